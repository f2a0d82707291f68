"""What is attached to a run beside points, tags and files: pictures on the step slider, models, the data set,
the note.

A task is a dictionary that JSON can hold, since it may have to wait on disk for a server to come back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pcl_ray.config import RunConfig, figures
from pcl_ray.errors import RunFailed

NOTE = "mlflow.note.content"
_NOTE_DIGEST = "pcl_ray.note_digest"


@dataclass(frozen=True)
class DataSet:
    """The run's input, as the dashboard shows it."""

    name: str
    digest: str
    source: str
    num_images: int
    num_holdout: int
    classes: int

    def profile(self) -> str:
        return json.dumps(
            {"num_images": self.num_images, "num_holdout": self.num_holdout, "classes": self.classes}
        )


def image(path: Path, key: str, step: int) -> dict[str, Any]:
    """A picture on the step slider; the file is removed once the server has it."""
    return {"do": "image", "path": str(path), "key": key, "step": step}


def model(
    checkpoint: Path, config_yaml: str, metrics: Mapping[str, float], step: int, register_as: str | None
) -> dict[str, Any]:
    """The checkpoint as models of the run; registered versions compare by the metrics' first objective."""
    objective = figures.first_of(figures.OBJECTIVES, metrics) or figures.RANKME
    return {
        "do": "model",
        "checkpoint": str(checkpoint),
        "config": config_yaml,
        "metrics": dict(metrics),
        "step": step,
        "register": register_as,
        "objective": objective.name,
    }


def perform(
    client: Any,
    uri: str,
    run_id: str,
    experiment_id: str,
    task: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Does what `image` or `model` asked for. What the task needs may have gone meanwhile, which is no reason
    to send nothing more; a server that fails raises.
    """
    from mlflow.exceptions import MlflowException

    try:
        if task["do"] == "image":
            _send_image(client, run_id, task)
        elif task["do"] == "model" and Path(task["checkpoint"]).is_file():
            _send_model(uri, run_id, experiment_id, task, warn)
    except MlflowException as error:
        if not _refused(error):
            raise
        warn(f"MLflow does not take the {task['do']} of this run: {(str(error).splitlines() or [''])[0]}")


def _refused(error: Any) -> bool:
    """Whether another try is useless: the server has understood, and says no."""
    code = error.get_http_status_code()
    return 400 <= code < 500 and code not in (408, 429)


def _send_image(client: Any, run_id: str, task: Mapping[str, Any]) -> None:
    from PIL import Image

    path = Path(task["path"])
    if not path.is_file():
        return
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            picture = opened.convert("RGB")
    except OSError:  # half a file, after a crash
        return
    client.log_image(run_id, picture, key=task["key"], step=task["step"])
    with suppress(OSError):
        path.unlink()  # the dashboard has it


def _send_model(
    uri: str, run_id: str, experiment_id: str, task: Mapping[str, Any], warn: Callable[[str], None]
) -> None:
    from pcl_ray.tracking import models  # torch takes seconds to import

    try:
        request = models.ModelRequest(
            run_id=run_id,
            experiment_id=experiment_id,
            checkpoint=Path(task["checkpoint"]),
            config=RunConfig.model_validate(yaml.safe_load(task["config"])),
            metrics=task["metrics"],
            step=task["step"],
            register_as=task["register"],
            objective=task["objective"],
        )
        logged = models.log(uri, request, warn)
    except (RunFailed, ValueError) as error:  # a checkpoint that cannot be read does not get better
        warn(f"the model is not recorded: {error}")
        return
    if request.register_as:
        warn(f"MLflow: {logged.summary}")


def log_dataset(client: Any, run: Any, dataset: DataSet) -> None:
    """Records the data set as the run's input, once a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = run.inputs.dataset_inputs if run.inputs else []
    if dataset.digest[:36] in [entry.dataset.digest for entry in inputs]:
        return
    entity = Dataset(
        name=dataset.name[:500],
        digest=dataset.digest[:36],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=dataset.profile(),
    )
    client.log_inputs(run.info.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "pretrain")])])


def without_foreign_note(client: Any, run_id: str, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags to write: a note that somebody has edited in the dashboard stays as it is."""
    if NOTE not in tags:
        return dict(tags)
    now = client.get_run(run_id).data.tags
    if NOTE in now and _digest(now[NOTE]) != now.get(_NOTE_DIGEST):
        return {name: value for name, value in tags.items() if name != NOTE}
    return {**tags, _NOTE_DIGEST: _digest(tags[NOTE])}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
