"""The evaluations of a run that were made before, out of their JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcl_ray.config.protocol_figures import is_measure
from pcl_ray.report.evaluations import StoredEvaluation
from pcl_ray.support.files import write_text
from pcl_ray.support.paths import home

FOLDER = "evaluations"  # under PCL_RAY_HOME


def evaluations_of(run_dir: Path) -> tuple[StoredEvaluation, ...]:
    """One for each set of images that the run's newest evaluated checkpoint was measured on: of every
    protocol and kind of features the newest measurement. Files that cannot be read are passed over.
    """
    newest: dict[str, StoredEvaluation] = {}
    for path in sorted((home() / FOLDER).glob("*.json"), key=_written_ns):
        evaluation = _read(path, run_dir)
        if evaluation is None:
            continue
        earlier = newest.get(evaluation.data)
        if earlier is not None and earlier.epochs == evaluation.epochs:
            evaluation = replace(evaluation, figures={**earlier.figures, **evaluation.figures})
        newest[evaluation.data] = evaluation
    return tuple(newest.values())


def contents_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The files with evaluations of this run by their names, each with the path of its checkpoint from the
    folder above the run's on, so that they mean something elsewhere.
    """
    contents = {}
    for path in sorted((home() / FOLDER).glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            weights = Path(content["weights"]).relative_to(run_dir.parent)
            if weights.parts[0] == run_dir.name:
                contents[path.name] = {**content, "weights": weights.as_posix()}
    return contents


def adopt(name: str, content: Mapping[str, Any], run_dir: Path) -> None:
    """Writes what `contents_of` gave back elsewhere into a file, as an evaluation of this run."""
    weights = run_dir / Path(*Path(str(content.get("weights", ""))).parts[1:])
    folder = home() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if file.exists():
        file = folder / f"{file.stem}-{run_dir.name}.json"
    write_text(file, json.dumps({**content, "weights": str(weights)}, indent=2, ensure_ascii=False) + "\n")


def _written_ns(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def _read(path: Path, run_dir: Path) -> StoredEvaluation | None:
    """What a file says of a checkpoint of this run; None of others, and of what is no evaluation."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not Path(content["weights"]).is_relative_to(run_dir):
            return None
        data = content["data"]
        figures = {
            (each["protocol"], each["features"], measure): (figure["mean"], figure["sd"])
            for each in content["protocols"]
            for measure, figure in each["figures"].items()
            if is_measure(measure)
        }
        return StoredEvaluation(data["name"], data["bank"], data["queries"], content["epochs"], figures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
