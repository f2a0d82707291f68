"""The figures of an evaluation on an MLflow run: that which trained the encoder, or one made for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcl_ray.errors import RunFailed
from pcl_ray.support.redaction import error_line, public_uri
from pcl_ray.tracking.address import is_server
from pcl_ray.tracking.client import clean_name, open_client
from pcl_ray.tracking.saved_views import link
from pcl_ray.tracking.store import BATCH_NAMES, MlflowStore, RunDescription

TABLE_FILE = "evaluation_table.json"  # MLflow shows those of all runs of an experiment side by side
_FOLDER = "evaluations"


@dataclass(frozen=True)
class EvaluationRecord:
    """What is recorded. run_id: of the run that trained the encoder; None: a run of this name is made in the
    experiment. step: epochs that the encoder was trained for. rows: of the table, alike in their columns.
    """

    name: str
    run_id: str | None
    experiment: str
    figures: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    file: Path  # all of it as JSON
    step: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)


def record_evaluation(uri: str, record: EvaluationRecord, artifacts: Path) -> str:
    """Records figures, table and file; gives back the run's address on a server, else which run of which
    store it is.

    artifacts: where a database without a server has its files. A run that trained stays in the state that it
    ended in. Raises RunFailed, within about a minute, where the store does not take it.
    """
    try:
        client = open_client(uri, retries=1)
        run_id = record.run_id or _made(uri, record, artifacts)
        experiment_id = client.get_run(run_id).info.experiment_id
        _log_figures(client, run_id, record)
        columns = {name: [row[name] for row in record.rows] for name in record.rows[0]} if record.rows else {}
        if columns:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pandas' about what MLflow does
                client.log_table(run_id, columns, TABLE_FILE)
        client.log_artifact(run_id, str(record.file), _FOLDER)
        if record.run_id is None:
            client.set_terminated(run_id, "FINISHED")
    except Exception as error:  # MLflow and its databases raise many kinds
        raise RunFailed(
            f"the evaluation is not recorded: MLflow at {public_uri(uri)} does not take it"
            f" ({error_line(error, uri)})"
        ) from None
    server = public_uri(uri).rstrip("/")
    return link(server, experiment_id, run_id=run_id) if is_server(server) else f"run {run_id} in {server}"


def _made(uri: str, record: EvaluationRecord, artifacts: Path) -> str:
    """A run for weights that no run of ours has trained; the same one for the same name."""
    description = RunDescription(record.name, {}, {}, "")
    store = MlflowStore(uri, record.experiment, artifacts, description, lambda text: None)
    store.open()
    assert store.run_id is not None, "an open store has a run"
    return store.run_id


def _log_figures(client: Any, run_id: str, record: EvaluationRecord) -> None:
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    metrics = [Metric(clean_name(name), value, now, record.step) for name, value in record.figures.items()]
    tags = [RunTag(clean_name(name), value) for name, value in record.tags.items()]
    for start in range(0, max(len(metrics), len(tags)), BATCH_NAMES):
        part = slice(start, start + BATCH_NAMES)
        client.log_batch(run_id, metrics=metrics[part], tags=tags[part], synchronous=True)
