"""What a run leaves and is known by: its result, its history, its MLflow run. Shared by single runs and the
trials of a sweep.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pcl_ray import tracking
from pcl_ray.config import RunConfig
from pcl_ray.on_ray import current_job
from pcl_ray.plan import RunPlan
from pcl_ray.runs.folder import RunFolder, State
from pcl_ray.support import redaction
from pcl_ray.support.paths import home


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `checkpoint` is a path that `model.weights.load_encoder` takes; `metrics` are the last
    epoch's, with totals.
    """

    run_name: str
    mlflow_run_id: str | None
    state: State
    run_dir: str
    checkpoint: str | None
    metrics: dict[str, float] = field(default_factory=dict)

    def write(self, file: Path | None) -> None:
        """As JSON, where a file was asked for. It could be written when the run began; if not now, that is a
        warning: the run itself is safe.
        """
        write_result(self, file)


def write_result(result: Any, file: Path | None) -> None:
    """The dataclass as JSON; a warning where that fails."""
    if file is None:
        return
    try:
        file.write_text(json.dumps(asdict(result), indent=2) + "\n")
    except OSError as error:
        print(f"warning: --result {file} could not be written ({error.strerror})", file=sys.stderr)


def write_traceback(folder: RunFolder) -> Path:
    path = folder.path / "error.txt"
    with suppress(OSError):
        path.write_text(redaction.scrubbed(traceback.format_exc()))
    return path


def open_tracker(
    folder: RunFolder,
    config: RunConfig,
    fingerprint: str,
    warn: Callable[[str], None],
    *,
    title: str | None = None,
    tags: Mapping[str, str] | None = None,
    without: Iterable[str] = (),
    known: DataSummary | None = None,
    sweep: tracking.Sweep | None = None,
    keep: Iterable[str] = (),
) -> tracking.MlflowRun | tracking.NullRun:
    """The MLflow run of this folder; `title` is the name shown there, else the folder's; `without`: knobs
    that are not recorded; `keep`: figures that are charted in any case; `sweep`: what its saved view is made
    from.
    """
    public = tracking.public_config(config)
    # and without the password that a URI may hold
    params = {name: value for name, value in public.flatten().items() if name not in set(without)}
    if known is not None:
        params |= plan_params(known.plan)
    return tracking.open_run(
        config.tracking,
        home=home(),
        run_name=folder.name,
        title=title,
        run_dir=folder.path,
        params=params,
        tags=tracking.run_tags()
        | current_job.tags()
        | {"pcl_ray.run_dir": str(folder.path), "data.fingerprint": fingerprint}
        | dict(tags or {}),
        config_yaml=public.to_yaml(),
        run_id=folder.read_state().get("mlflow_run_id"),
        dataset=dataset_of(config, fingerprint, known) if known is not None else None,
        clusterings=len(config.e_step.num_clusters),
        sweep=sweep,
        keep=keep,
        warn=warn,
    )


@dataclass(frozen=True)
class DataSummary:
    """The plan of a run that is about to begin, and the number of classes of its images (0: no labels)."""

    plan: RunPlan
    classes: int


def plan_params(plan: RunPlan) -> dict[str, Any]:
    """Numbers that follow from knobs and data, for the axes of charts: K as counts, N, steps."""
    return {
        "plan.num_images": plan.num_images,
        "plan.steps": plan.total_steps,
        "plan.num_clusters_total": sum(plan.num_clusters),
        **{f"plan.num_clusters_{m}": count for m, count in enumerate(plan.num_clusters)},
    }


def dataset_of(config: RunConfig, fingerprint: str, known: DataSummary) -> tracking.DataSet:
    path = config.data.path or ""
    name = (
        Path(path).name or config.data.source
        if config.data.source in ("folder", "arrays", "imagenet")
        else config.data.source
    )
    return tracking.DataSet(
        name,
        fingerprint,
        path or config.data.source,
        known.plan.num_images,
        known.plan.num_holdout,
        known.classes,
    )


def result(
    folder: RunFolder, state: State, mlflow_run_id: str | None, entries: list[dict[str, Any]]
) -> RunResult:
    path = folder.newest_checkpoint()
    metrics = dict(entries[-1]["metrics"]) if entries else {}
    for name in ("perf/e_step_seconds", "perf/m_step_seconds", "perf/epoch_seconds"):
        metrics[f"{name}_total"] = sum(entry["metrics"].get(name, 0.0) for entry in entries)
    return RunResult(
        folder.name, mlflow_run_id, state, str(folder.path), str(path) if path else None, metrics
    )
