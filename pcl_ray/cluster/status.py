"""What is under way: the cluster, its jobs, the runs here and in MLflow, and what they wait for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from pcl_ray import config as configs
from pcl_ray import tracking
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.config import TrackingConfig, figures
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import local_head_record
from pcl_ray.runs.folder import (
    CONFIG_FILE,
    LOCK_FILE,
    STATE_FILE,
    EndState,
    RunFolder,
    SweepFolder,
    read_state_at,
    write_state_at,
)
from pcl_ray.support import machine
from pcl_ray.support.files import is_unlocked
from pcl_ray.support.paths import home
from pcl_ray.support.text import MISSING, count, duration
from pcl_ray.tracking import run_list
from pcl_ray.tracking.run_list import RecordedRun

KILLED = "its process was killed"
_LOOK_S = 1.0
_MOST_RUNNING = 1000
_COLUMNS = ("run", "state", "epoch", "left", "figure", "waits for", "job")


@dataclass(frozen=True)
class StatusRow:
    """A run or a sweep as a line of the table of `pcl-ray status` and `pcl-ray runs`, and as `pcl-ray status
    --json` prints it.
    """

    name: str
    state: str  # running, finished, stopped, failed
    kind: str = "run"  # run, sweep, trial
    phase: str = ""  # what it does while it runs: starting, training, features, clustering, recording …
    epoch: int = 0  # done
    epochs: int = 0  # 0 where it is not known, and of a sweep
    trials_ended: int = 0  # of a sweep, as is the next
    trials: int = 0
    left_s: float | None = None
    figure: str = ""
    value: float | None = None
    waits_for: str = ""
    job: str = ""
    began: float = 0.0  # s since 1970


def local_runs() -> list[StatusRow]:
    """The runs, sweeps and trials of this PCL_RAY_HOME that are under way, from their folders: also where
    MLflow does not answer. Those whose process was killed are marked so, in their folder and in MLflow.
    """
    rows: list[StatusRow] = []
    reached = True
    for kind in (SweepFolder, RunFolder):
        for path in sorted((home() / kind.ROOT).glob(f"*/{STATE_FILE}")):
            folder, state = path.parent, read_state_at(path.parent)
            running, gone = state.get("state") == "running", _is_gone(folder, state)
            # what has ended is recorded as long as its process holds it
            records = not running and state.get("phase") == "recording" and _is_here(state) and not gone
            if not running and not records:
                continue
            if gone:
                reached = reached and _mark(folder, state)  # a server that does not answer is asked once
                state |= {"state": "stopped", "waits_for": KILLED}
            of_kind = "trial" if state.get("sweep") else kind.KIND
            try:
                rows.append(_local_row(folder.name, of_kind, state))
            except (TypeError, ValueError, AttributeError):  # a damaged file
                rows.append(StatusRow(folder.name, str(state["state"]), of_kind))
    return sorted(rows, key=lambda row: row.name)  # a sweep, then its trials


def mark_ended(name: str, limit_s: float = 60.0) -> None:
    """Marks the run of this name as stopped once its process is gone, which may have children that hold on
    for a moment. Leaves alone what has ended in good order, or runs again.
    """
    folder = home() / RunFolder.ROOT / name
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        state = read_state_at(folder)
        if state.get("state") != "running":
            return
        if _is_gone(folder, state) and _mark(folder, state):
            if not state.get("mlflow_run_id"):
                _close_by_name(folder)
            return
        time.sleep(_LOOK_S)


def _close_by_name(folder: Path) -> None:
    """Closes the run in MLflow where it had one whose number was not written down yet."""
    with suppress(ConfigError, RunFailed, OSError):
        settings = configs.load_stored(folder / CONFIG_FILE).tracking
        if settings.enabled:
            close_ended(settings.experiment)


def _is_here(state: dict[str, Any]) -> bool:
    """Whether the state was written by a process of this machine, as it runs now."""
    return state.get("machine") == machine.identity() != ""


def _is_gone(folder: Path, state: dict[str, Any]) -> bool:
    """Whether the process that wrote the state was one of this machine, and is no more."""
    return _is_here(state) and is_unlocked(folder / LOCK_FILE)


def _local_row(name: str, kind: str, state: dict[str, Any]) -> StatusRow:
    progress = state.get("progress") or {}
    running = state["state"] == "running"
    waits_for = state.get("waits_for") or ""
    if waits_for.endswith(" so far"):
        waits_for = waits_for.rpartition("; ")[0]
    if waits_for and state.get("waits_since"):
        waits_for += f" (for {duration(time.time() - state['waits_since'])})"
    left = progress.get("left_s")
    phase = str(state.get("phase") or "") if state.get("waits_for") != KILLED else ""
    if left is not None:
        left = max(0.0, left - (time.time() - progress.get("at", time.time())))
    return StatusRow(
        name=name,
        state=state["state"],
        kind=kind,
        phase=phase,
        epoch=int(progress.get("epoch", 0)),
        epochs=int(progress.get("epochs", 0)),
        trials_ended=int(progress.get("ended", 0)),
        trials=int(progress.get("trials", 0)),
        left_s=left if running and phase != "recording" else None,
        figure=progress.get("figure", ""),
        value=progress.get("value"),
        waits_for=waits_for,
        job=state.get("submission_id") or "",
        began=state.get("began_at") or 0.0,
    )


def _mark(folder: Path, state: dict[str, Any]) -> bool:
    """Marks a killed run as stopped, here and in MLflow, where it would read RUNNING for ever.

    False where MLflow does not answer: then it is left for the next time.
    """
    write_state_at(folder, state="stopped", error=KILLED)
    if run_id := state.get("mlflow_run_id"):
        try:
            run_list.close(uri(), run_id, "stopped")
        except RunFailed:
            write_state_at(folder, state="running", error=None)
            return False
    return True


def uri() -> str:
    """Where runs are recorded: the server of `pcl-ray up` if it runs, so that links work; else the store."""
    head = local_head_record.read()
    if not os.environ.get("MLFLOW_TRACKING_URI") and head and head.mlflow and head.mlflow.process():
        return head.mlflow_uri
    return tracking.tracking_uri(TrackingConfig(), home())


def recorded_rows(runs: Sequence[RecordedRun]) -> list[StatusRow]:
    """Runs out of MLflow as rows."""
    return [
        StatusRow(
            name=run.name,
            state=run.state,
            kind=run.kind,
            phase=run.phase,
            epoch=run.epoch,
            epochs=run.epochs,
            trials_ended=run.trials_ended,
            trials=run.trials,
            left_s=run.left_s if not run.phase else None,
            figure=run.figure,
            value=run.value,
            waits_for=run.waits_for,
            job=run.submission_id,
            began=run.began,
        )
        for run in runs
    ]


def under_way(experiment: str) -> tuple[list[StatusRow], str]:
    """All runs under way, local ones first, and why MLflow's are missing ("" if they are not)."""
    rows = local_runs()
    try:
        elsewhere = recorded_rows(close_ended(experiment))
    except RunFailed as error:
        return rows, str(error)
    local_names = {row.name for row in rows}
    return rows + [row for row in elsewhere if row.name not in local_names], ""


def close_ended(experiment: str) -> list[RecordedRun]:
    """The runs and sweeps that MLflow has as running. Those whose folder here says that they have ended, and
    whose process is gone, are closed there and left out: it was killed before it could tell MLflow, or before
    it knew the run's number there. Raises RunFailed where MLflow does not answer.
    """
    running = run_list.recorded(uri(), experiment, state="running", trials=True, limit=_MOST_RUNNING)
    left = []
    for run in running:
        folder = (SweepFolder if run.kind == "sweep" else RunFolder).root() / run.name
        state = read_state_at(folder)
        if state.get("state") in get_args(EndState) and _is_gone(folder, state):
            run_list.close(uri(), run.run_id, state["state"])
        elif run.kind != "trial":
            left.append(run)
    return left


def cluster_state(cluster: Cluster) -> dict[str, Any]:
    """The cluster and its jobs as `pcl-ray status --json` prints them. `trouble` says why nothing else is
    known of it, "" where it answers.
    """
    try:
        usage, nodes, jobs = cluster.usage(), cluster.nodes(), cluster.jobs()
    except (RunFailed, ConfigError) as error:
        return {"address": cluster.address, "trouble": str(error), "nodes": 0, "resources": {}, "jobs": []}
    resources = {
        kind: {
            "used": usage.get(kind, (0.0,))[0],
            "total": sum(node.get("resources_total", {}).get(kind, 0.0) for node in nodes),
        }
        for kind in ("CPU", "GPU")
    }
    open_jobs = [
        {
            "id": job["submission_id"],
            "state": job["status"].lower(),
            "began": job["start_time"] / 1000 if job.get("start_time") else None,
            "message": (job.get("message") or "") if job["status"] == "PENDING" else "",
        }
        for job in jobs
        if job["status"] in ("PENDING", "RUNNING")
    ]
    return {
        "address": cluster.address,
        "trouble": "",
        "nodes": len(nodes),
        "resources": resources,
        "jobs": open_jobs,
    }


def cluster_lines(state: Mapping[str, Any]) -> list[str]:
    """What `cluster_state` gave back, for people."""
    if state["trouble"]:
        return [f"cluster     {state['trouble']}"]
    parts = [
        f"{entry['used']:g} of {entry['total']:g} {kind}s in use" if entry["total"] else f"no {kind}s"
        for kind, entry in state["resources"].items()
    ]
    lines = [f"cluster     {state['address']}: {count(state['nodes'], 'node')}, {', '.join(parts)}"]
    for job in state["jobs"]:
        line = f"job         {job['id']}  {job['state']}"
        if job["began"]:
            line += f", for {duration(time.time() - job['began'])}"
        lines.append(f"{line}: {job['message']}" if job["message"] else line)
    return lines


def table(rows: Sequence[StatusRow], say: Callable[[Any], None], *, dated: bool = False) -> None:
    """Says the runs as a table of rich; columns that no row fills are left out."""
    from rich import box  # rich takes a while to import, and --json needs none
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    cells = [_cells(row) for row in rows]
    always = ("run", "state")
    filled = [title for title in _COLUMNS if title in always or any(line[title] != MISSING for line in cells)]
    for title in filled:
        grid.add_column(title, overflow="fold", no_wrap=title in ("state", "epoch", "left"))
    if dated:
        grid.add_column("began", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        texts = [Text(line[title]) for title in filled]  # brackets in a name are no markup
        if dated:
            texts.append(Text(datetime.fromtimestamp(row.began).strftime("%Y-%m-%d %H:%M")))
        grid.add_row(*texts)
    say(grid)


def _cells(row: StatusRow) -> dict[str, str]:
    """What the columns of the table say of the run."""
    state = row.state
    if row.waits_for and row.state == "running":
        state = "waiting"
    elif row.phase not in ("", "training"):
        state = row.phase
    epoch = f"{row.epoch}/{row.epochs}" if row.epochs else MISSING
    if row.trials:
        epoch = f"{row.trials_ended}/{count(row.trials, 'trial')}"
    values = (
        *(row.name, state, epoch, duration(row.left_s) if row.left_s is not None else ""),
        *(_figure(row.figure, row.value, best=row.kind == "sweep"), row.waits_for, row.job),
    )
    return {title: value or MISSING for title, value in zip(_COLUMNS, values, strict=True)}


def as_json(runs: Sequence[RecordedRun] | Sequence[StatusRow]) -> list[dict[str, Any]]:
    """Runs as `pcl-ray runs --json` and `pcl-ray status --json` print them: keys stay what they are."""
    return [asdict(run) for run in runs]


def _figure(name: str, value: float | None, *, best: bool) -> str:
    """The figure that tells most of a run, and its value: "kNN 0.934"; of a sweep the best so far."""
    if value is None:
        return ""
    entry = figures.find(name)
    label = entry[0].short or entry[0].label if entry else name
    return f"{'best ' * best}{label} {value:.4g}"
