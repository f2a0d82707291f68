"""What a run leaves beside its checkpoints when it ends: its result, its report, its figures as a table, a
note in the dashboard, its model. None of it can fail a run. Shared by single runs and the trials of a sweep.
"""

from __future__ import annotations

import csv
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import (
    AMI,
    DEVICE_MINUTES,
    E_STEP_SECONDS,
    E_STEP_SECONDS_TOTAL,
    EPOCH_SECONDS,
    EPOCH_SECONDS_TOTAL,
    HEAD_KNN_TOP1,
    IMAGES_PER_SECOND,
    KNN_TOP1,
    LOSS,
    M_STEP_SECONDS,
    M_STEP_SECONDS_TOTAL,
    RANKME,
    REFERENCES,
    with_present_names,
)
from pcl_ray.config.final_figures import final_rows
from pcl_ray.config.knn_figures import LARGEST_CLASS, row_with_error
from pcl_ray.plan import RunPlan
from pcl_ray.runs.folder import (
    FIGURES_FILE,
    MEMBERS_FILE,
    REPORT_FILE,
    RunFolder,
    State,
    StateEntries,
    read_history_at,
    read_state_at,
)
from pcl_ray.support import provenance, redaction
from pcl_ray.support.files import atomic_file

_SHOWN = (
    KNN_TOP1,
    *REFERENCES,
    LARGEST_CLASS,
    HEAD_KNN_TOP1,
    AMI.at(0),
    RANKME,
    LOSS,
    IMAGES_PER_SECOND,
    DEVICE_MINUTES,
)
_TOTALS = {
    E_STEP_SECONDS: E_STEP_SECONDS_TOTAL,
    M_STEP_SECONDS: M_STEP_SECONDS_TOTAL,
    EPOCH_SECONDS: EPOCH_SECONDS_TOTAL,
}


@dataclass(frozen=True)
class RunResult:
    """How a run ended. checkpoint: a path for `load_encoder`. metrics: the last epoch's, with totals."""

    run_name: str
    mlflow_run_id: str | None
    state: State
    run_dir: str
    checkpoint: str | None
    metrics: dict[str, float] = field(default_factory=dict)


def write_result(result: Any, file: Path | None) -> None:
    """Writes the dataclass as JSON, where a file was asked for. It could be written when the run began; if
    not now, that is a warning: the run itself is safe.
    """
    if file is None:
        return
    try:
        file.write_text(json.dumps(asdict(result), indent=2) + "\n")
    except OSError as error:
        print(f"warning: --result {file} could not be written ({error.strerror})", file=sys.stderr)


def result_of(
    folder: RunFolder, state: State, mlflow_run_id: str | None, history: Sequence[Mapping[str, Any]]
) -> RunResult:
    """The result of the run in this folder, from the epochs that it has trained."""
    return _result(folder.path, state, mlflow_run_id, history)


def stored_result(path: Path) -> RunResult:
    """The result of the run in the folder `path`, from what is written there: of one under way, so far."""
    entries = read_state_at(path)
    return _result(path, entries.get("state", "running"), entries.get("mlflow_run_id"), read_history_at(path))


def _result(
    path: Path, state: State, mlflow_run_id: str | None, history: Sequence[Mapping[str, Any]]
) -> RunResult:
    checkpoint = epoch_files.latest(epoch_files.folder_of(path))
    metrics = dict(history[-1]["metrics"]) if history else {}
    for seconds, total in _TOTALS.items():
        metrics[total.name] = sum(entry["metrics"].get(seconds.name, 0.0) for entry in history)
    return RunResult(
        run_name=path.name,
        mlflow_run_id=mlflow_run_id,
        state=state,
        run_dir=str(path),
        checkpoint=str(checkpoint) if checkpoint else None,
        metrics=metrics,
    )


def write_traceback(folder: RunFolder) -> Path:
    """Writes the traceback of the error that is being handled to `error.txt`, without secrets."""
    path = folder.path / "error.txt"
    with suppress(OSError):
        path.write_text(redaction.scrubbed(traceback.format_exc()))
    return path


def report_entries(plan: RunPlan, class_names: Sequence[str], command: str) -> StateEntries:
    """The entries of state.json that reports show. command: "" leaves the one that is there."""
    entries: StateEntries = {
        "num_images": plan.num_images,
        "num_holdout": plan.num_holdout,
        "num_clusters": list(plan.num_clusters),
        "steps_per_epoch": plan.steps_per_epoch,
        "class_names": list(class_names),
        "versions": provenance.run_tags(),
    }
    if command:
        entries["command"] = command
    return entries


def dashboard_note(
    name: str,
    command: str,
    config: RunConfig,
    plan: RunPlan,
    classes: int,
    state: State,
    metrics: Mapping[str, float],
) -> str:
    """The run in Markdown, as the dashboard shows it above everything else."""
    path = f" (`{config.data.path}`)" if config.data.path else ""
    labels = f"{classes} classes" if classes else "no labels"
    counts = ", ".join(f"{count:,}" for count in plan.num_clusters)
    if config.e_step.num_clusters == "auto":
        counts += " (auto)"
    lines = [f"**{name}**: {state}", ""]
    if command:
        lines.append(f"- command: `{command}`")
    lines += [
        (
            f"- data: {config.data.source}{path}, {plan.num_images:,} images to train on,"
            f" {plan.num_holdout:,} held out, {labels}"
        ),
        (
            f"- recipe: τ = {config.loss.temperature:g}, α = {config.e_step.alpha:g}, K = {counts};"
            f" {config.encoder.backbone}, {plan.epochs} epochs × {plan.steps_per_epoch} steps of"
            f" {plan.global_batch} images, {plan.warmup_epochs} of them warm-up"
        ),
    ]
    metrics = with_present_names(metrics)
    rows = [row_with_error(figure, metrics) for figure in _SHOWN if figure.name in metrics]
    rows += final_rows(metrics)
    results = [f"| {title} | {value} |" for title, value in rows]
    if results and state != "running":
        lines += ["", "| result | |", "|---|---|", *results]
        if config.tracking.report:
            lines += ["", f"The whole story: `{REPORT_FILE}` among the artifacts."]
    return "\n".join(lines)


def write_figures(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a table of every figure of every epoch; a cell is empty where there was none."""
    epochs = [with_present_names(entry["metrics"]) for entry in history]
    names = sorted({name for metrics in epochs for name in metrics} - {"epoch"})
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "step", *names])
        for entry, metrics in zip(history, epochs, strict=True):
            rows.writerow([entry["epoch"], entry["step"], *(metrics.get(name, "") for name in names)])


def write_artifacts(
    folder: RunFolder,
    config: RunConfig,
    state: State,
    history: Sequence[Mapping[str, Any]],
    tracker: tracking.MlflowRun | tracking.NullRun,
    warn: Callable[[str], None],
) -> None:
    """Leaves report and figures in folder and MLflow, a finished run's model too; failures are warnings."""
    if not history:
        return
    try:
        write_figures(history, folder.path / FIGURES_FILE)
        tracker.log_file(folder.path / FIGURES_FILE, FIGURES_FILE)
        if (folder.path / MEMBERS_FILE).exists():
            tracker.log_file(folder.path / MEMBERS_FILE, MEMBERS_FILE)
        if config.tracking.report:
            from pcl_ray.report import page
            from pcl_ray.runs import record_reader

            record = record_reader.read(folder.name, history)
            tracker.log_file(page.write(record, folder.path / REPORT_FILE), REPORT_FILE)
    except Exception as error:
        warn(
            f"the report could not be written ({type(error).__name__}: {error}); try `pcl-ray report"
            f" {folder.name}`"
        )
    newest = folder.newest_checkpoint()
    if state == "finished" and config.tracking.model and newest is not None:
        tracker.log_model(newest, config, dict(history[-1]["metrics"]), int(history[-1]["step"]))
