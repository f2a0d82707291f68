"""What a run leaves beside its checkpoints when it ends: its report, its figures as a table, a note in the
dashboard, its model. None of it can fail a run.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_ray import tracking
from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan
from pcl_ray.runs.folder import RunFolder, State
from pcl_ray.support.files import atomic_file

REPORT, FIGURES = "report.html", "figures.csv"
_SHOWN = (
    ("eval/knn_top1", "kNN accuracy, held-out images", "{:.4f}"),
    ("cluster/0/ami", "AMI of the first clustering and the labels", "{:.3f}"),
    ("eval/rankme", "effective rank (RankMe)", "{:.1f}"),
    ("train/loss", "loss", "{:.3f}"),
    ("perf/images_per_second", "images/s in the M-step", "{:.0f}"),
    ("perf/device_minutes", "device minutes", "{:.1f}"),
)


def facts(plan: RunPlan, class_names: Sequence[str], command: str) -> dict[str, Any]:
    """What state.json keeps for whoever looks at the run later."""
    known: dict[str, Any] = {
        "num_images": plan.num_images,
        "num_holdout": plan.num_holdout,
        "num_clusters": list(plan.num_clusters),
        "steps_per_epoch": plan.steps_per_epoch,
        "class_names": list(class_names),
        "versions": tracking.run_tags(),
    }
    return known | ({"command": command} if command else {})


def note(
    name: str,
    command: str,
    config: RunConfig,
    plan: RunPlan,
    classes: int,
    state: State,
    metrics: Mapping[str, float],
) -> str:
    """The run in Markdown, as the dashboard shows it above everything else."""
    data = f"{config.data.source}{f' (`{config.data.path}`)' if config.data.path else ''}"
    labels = f"{classes} classes" if classes else "no labels"
    counts = ", ".join(f"{count:,}" for count in plan.num_clusters)
    lines = [
        f"**{name}**: {state}",
        "",
        *([f"- command: `{command}`"] if command else []),
        f"- data: {data}, {plan.num_images:,} images to train on, {plan.num_holdout:,} held out, {labels}",
        (
            f"- recipe: τ = {config.loss.temperature:g}, α = {config.e_step.alpha:g}, K = {counts};"
            f" {config.encoder.backbone}, {plan.epochs} epochs × {plan.steps_per_epoch} steps of"
            f" {plan.global_batch} images, {plan.warmup_epochs} of them warm-up"
        ),
    ]
    results = [
        f"| {said} | {form.format(metrics[figure])} |" for figure, said, form in _SHOWN if figure in metrics
    ]
    if results and state != "running":
        lines += ["", "| result | |", "|---|---|", *results]
        lines += ["", f"The whole story: `{REPORT}` among the artifacts."] if config.tracking.report else []
    return "\n".join(lines)


def write_figures(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every figure of every epoch; an empty cell where there was none."""
    names = sorted({name for entry in history for name in entry["metrics"]})
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "step", *(name for name in names if name != "epoch")])
        for entry in history:
            rows.writerow(
                [
                    entry["epoch"],
                    entry["step"],
                    *(entry["metrics"].get(name, "") for name in names if name != "epoch"),
                ]
            )


def leave(
    folder: RunFolder,
    config: RunConfig,
    state: State,
    history: Sequence[Mapping[str, Any]],
    tracker: tracking.MlflowRun | tracking.NullRun,
    warn: Callable[[str], None],
) -> None:
    """Report and figures, in the folder and as artifacts; of a finished run also its model. What fails is a
    warning.
    """
    if not history:
        return
    try:
        write_figures(history, folder.path / FIGURES)
        tracker.log_file(folder.path / FIGURES, FIGURES)
        if config.tracking.report:
            from pcl_ray.report import page
            from pcl_ray.runs import run_record

            tracker.log_file(page.write(run_record.read(folder.name, history), folder.path / REPORT), REPORT)
    except Exception as error:
        warn(
            f"the report could not be written ({type(error).__name__}: {error}); try `pcl-ray report"
            f" {folder.name}`"
        )
    newest = folder.newest_checkpoint()
    if state == "finished" and config.tracking.model and newest is not None:
        tracker.log_model(newest, config, dict(history[-1]["metrics"]), int(history[-1]["step"]))
