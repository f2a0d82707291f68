"""What an evaluation leaves: a table on the screen, JSON, an entry in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from pcl_ray import tracking
from pcl_ray.config import RunConfig, TrackingConfig
from pcl_ray.config.protocol_figures import PROTOCOLS, Features, measured_text, protocol_figure
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.evaluation.protocols.evaluate import Evaluation
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.results import Measurement
from pcl_ray.runs.evaluation.stored import FOLDER
from pcl_ray.runs.evaluation.subject import Subject
from pcl_ray.runs.folder import read_state_at
from pcl_ray.support import provenance
from pcl_ray.support.files import write_text
from pcl_ray.support.paths import home
from pcl_ray.support.redaction import public_uri
from pcl_ray.tracking.evaluations import EvaluationRecord, record_evaluation


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What was evaluated, on what, and what came of it."""

    subject: Subject
    images: EvaluationImages
    config: RunConfig
    evaluation: Evaluation

    def as_json(self) -> dict[str, Any]:
        subject, images = self.subject, self.images
        sources = {protocol.name: protocol.source for protocol in PROTOCOLS}
        return {
            "name": subject.name,
            "source": subject.source,
            "weights": str(subject.weights.path.absolute()),
            "recognised": subject.weights.note,
            "encoder": subject.which,
            "epochs": subject.epochs,
            "data": {
                "name": images.name,
                "source": self.config.data.source,
                "path": public_uri(self.config.data.path) if self.config.data.path else None,
                "fingerprint": images.bank.fingerprint,
                "bank": len(images.bank),
                "queries": 0 if images.queries is None else len(images.queries),
                "classes": images.num_classes,
            },
            "view": self.config.augment.model_dump(mode="json", include={"image_size", "mean", "std"}),
            "seed": self.config.seed,
            "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "protocols": [
                measurement.as_json() | {"source": sources[measurement.protocol]}
                for measurement in self.evaluation.measurements
            ],
            "refused": [vars(refusal) for refusal in self.evaluation.refusals],
            "versions": provenance.run_tags(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a measure, for tables that compare encoders."""
        return [
            {
                "name": self.subject.name,
                "encoder": self.subject.which,
                "epochs": self.subject.epochs,
                "data": self.images.name,
                "protocol": each.protocol,
                "features": each.features,
                "measure": measure,
                "mean": each.mean(measure),
                "sd": each.spread(measure),
                "runs": len(each.values[measure]),
            }
            for each in self.evaluation.measurements
            for measure in each.values
        ]


def table_of(evaluation: Evaluation) -> Table:
    """Measures below one another, features side by side; a spread is the standard deviation over runs."""
    present = {each.features for each in evaluation.measurements}
    kinds = [kind for kind in get_args(Features) if kind in present]
    table = Table("measure", *kinds)
    cells = {
        (each.protocol, measure, each.features): _cell(each, measure)
        for each in evaluation.measurements
        for measure in each.values
    }
    for protocol, measure in dict.fromkeys((key[0], key[1]) for key in cells):
        title = protocol_figure(protocol, "backbone", measure).title
        table.add_row(title, *(cells.get((protocol, measure, kind), "") for kind in kinds))
    return table


def _cell(measurement: Measurement, measure: str) -> str:
    mean, spread = measurement.mean(measure), measurement.spread(measure)
    return measured_text(measurement.protocol, measurement.features, measure, mean, spread)


def write_json(content: dict[str, Any], name: str, wanted: Path | None) -> Path:
    """Writes it under PCL_RAY_HOME, in a file that begins with `name`, and to the file that is wanted. Gives
    back where it is under there.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "encoder"
    folder = home() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    path = folder / f"{stem}-{stamp}.json"
    write_text(path, text)
    if wanted is not None:
        try:
            wanted.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--json {wanted} could not be written ({error.strerror}); the result is in {path}"
            ) from None
    return path


def record(result: EvaluationResult, file: Path, experiment: str, warn: Callable[[str], None]) -> str:
    """Records it in MLflow: on the run that trained the encoder, else on one made in `experiment`. Gives back
    where that run is, "" where nothing is recorded; what cannot be recorded is a warning.
    """
    subject = result.subject
    settings = subject.weights.run.tracking if subject.weights.run is not None else TrackingConfig()
    if not settings.enabled:
        return ""
    run_id = read_state_at(subject.run_dir).get("mlflow_run_id") if subject.run_dir is not None else None
    entry = EvaluationRecord(
        name=subject.name if run_id or subject.run_dir is not None else f"evaluate {subject.name}",
        run_id=run_id,
        experiment=settings.experiment if subject.run_dir is not None else experiment,
        figures=result.evaluation.figures(charted=settings.metrics != "all"),
        rows=result.rows(),
        file=file,
        step=subject.epochs,
        tags={"evaluate.data": result.images.name, "evaluate.encoder": subject.which},
    )
    try:
        return record_evaluation(
            tracking.tracking_uri(settings, home()), entry, home() / "mlflow" / "artifacts"
        )
    except RunFailed as error:
        warn(str(error))
        return ""
