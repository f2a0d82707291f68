"""The trials of a sweep as the folders of their runs record them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pcl_ray.config import figures
from pcl_ray.errors import ConfigError
from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import Configuration, TrialRecord
from pcl_ray.runs import preparation
from pcl_ray.runs.folder import RunFolder, read_state_at
from pcl_ray.support.paths import home
from pcl_ray.sweep.trials.context import SweepContext

_STATES: dict[str, leaderboard.State] = {
    "finished": "finished",
    "stopped early": "stopped early",
    "failed": "failed",
}


def read(sweep: str) -> list[TrialRecord]:
    """Every trial that has begun."""
    return [_record(path, state) for path, state in _states(sweep)]


def ended(sweep: str) -> list[str]:
    """The runs of trials that need no more training."""
    return [record.run_name for record in read(sweep) if record.state in ("finished", "stopped early")]


def of_the_head(sweep: str, objective: str) -> bool:
    """Whether trials were compared by eval/knn_top1 when that was the head's, in an earlier version."""
    return objective == figures.KNN_TOP1.name and any(
        figures.HEAD_KNN_TOP1.name in figures.with_present_names(record.metrics)
        and figures.HEAD_KNN_TOP1.name not in record.metrics
        for record in read(sweep)
    )


def exploits(sweep: str) -> list[dict[str, Any]]:
    """Which member of a population went on from which, with its values before and after."""
    return [
        {"member": state["member"], **exploit}
        for _, state in _states(sweep)
        for exploit in state.get("exploits", [])
    ]


def totals(records: list[TrialRecord], seconds: float) -> dict[str, float]:
    """What the sweep took and trained, as figures of its parent run. seconds: by the clock."""
    return {
        figures.SWEEP_DEVICE_MINUTES.name: sum(record.device_seconds for record in records) / 60,
        figures.SWEEP_SAVED_MINUTES.name: sum(record.saved_seconds for record in records) / 60,
        figures.SWEEP_SHARED_WARMUPS.name: float(sum(record.saved_seconds > 0 for record in records)),
        figures.SWEEP_SECONDS.name: seconds,
        figures.SWEEP_TRIALS.name: float(len(records)),
        figures.SWEEP_FINISHED.name: float(sum(record.state == "finished" for record in records)),
        figures.SWEEP_STOPPED_EARLY.name: float(sum(record.state == "stopped early" for record in records)),
        figures.SWEEP_FAILED.name: float(sum(record.state == "failed" for record in records)),
    }


def means(row: Configuration) -> dict[str, float]:
    """Every figure that all trials of a configuration have, as its mean over them."""
    names = set.intersection(*(set(trial.metrics) for trial in row.trials))
    return {
        name: sum(trial.metrics[name] for trial in row.trials) / len(row.trials) for name in sorted(names)
    }


def close_mlflow_runs(context: SweepContext) -> None:
    """Closes MLflow runs that trials left open: their process was killed, or the server did not answer."""
    for path, state in _states(context.sweep):
        if state.get("recorded"):
            continue
        # one that is still held is closed by whoever holds it
        with suppress(ConfigError), RunFolder.open(path.name) as folder:
            _close_mlflow_run(folder, state, context)


def _close_mlflow_run(folder: RunFolder, state: dict[str, Any], context: SweepContext) -> None:
    how: Any = state["state"] if state["state"] in _STATES else "stopped"
    tags = {"trial.status": how, "pcl_ray.sweep": context.sweep}
    if context.parent_run_id:
        tags["mlflow.parentRunId"] = context.parent_run_id
    tracker = preparation.open_tracker(
        folder,
        folder.read_config(),
        context.fingerprint,
        lambda text: None,
        preparation.TrackingDetails(title=state.get("title"), tags=tags),
    )
    for entry in folder.read_history():
        tracker.log(entry["metrics"], entry["step"])
    tracker.finish(how)
    folder.write_state(state=how, mlflow_run_id=tracker.run_id, recorded=tracker.run_id is not None)


def _states(sweep: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder and the state of every trial that has begun."""
    for path in sorted((home() / "runs").glob(f"{sweep}.*")):
        state = read_state_at(path)
        if state.get("sweep") == sweep:
            yield path, state


def _record(path: Path, state: dict[str, Any]) -> TrialRecord:
    trial = state.get("trial") or {}
    return TrialRecord(
        title=state.get("title", path.name),
        run_name=path.name,
        state=_STATES.get(state.get("state", ""), "unfinished"),
        point=dict(state.get("point", {})),
        seed=int(state.get("seed", 0)),
        objective=trial.get("objective"),
        refused=trial.get("refused", ""),
        epochs=int(state.get("epochs", 0)),
        device_seconds=float(trial.get("device_seconds", 0.0)),
        saved_seconds=float(trial.get("saved_seconds", 0.0)),
        error=state.get("error") or "",
        metrics=trial.get("metrics", {}),
    )
