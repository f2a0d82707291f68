"""What is under way: the cluster, its jobs, the runs here and in MLflow, and what they wait for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pcl_ray import tracking
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.config import TrackingConfig, figures
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import local_head_record
from pcl_ray.runs.folder import LOCK_FILE, read_state_at, write_state_at
from pcl_ray.support import machine
from pcl_ray.support.files import is_unlocked
from pcl_ray.support.paths import home
from pcl_ray.support.text import count, duration
from pcl_ray.tracking import run_list
from pcl_ray.tracking.run_list import RecordedRun

KILLED = "its process was killed"


@dataclass(frozen=True)
class StatusRow:
    """A run as a line of the table of `pcl-ray status` and `pcl-ray runs`."""

    name: str
    state: str
    epoch: str
    left: str
    figure: str
    waits_for: str = ""
    job: str = ""
    began: float = 0.0


def local_runs() -> list[StatusRow]:
    """The runs of this PCL_RAY_HOME that are under way, from their folders: also where MLflow does not
    answer. Those whose process was killed are marked so, in their folder and in MLflow.
    """
    rows: list[StatusRow] = []
    reached = True
    for path in sorted((home() / "runs").glob("*/state.json")):
        folder, state = path.parent, read_state_at(path.parent)
        if state.get("state") != "running":
            continue
        if state.get("machine") == machine.identity() != "" and is_unlocked(folder / LOCK_FILE):
            reached = reached and _mark(folder, state)  # a server that does not answer is asked once
            state |= {"state": "stopped", "waits_for": KILLED}
        try:
            rows.append(_local_row(folder.name, state))
        except (TypeError, ValueError, AttributeError):  # a damaged file
            rows.append(StatusRow(folder.name, str(state["state"]), "–", "–", "–"))
    return rows


def _local_row(name: str, state: dict[str, Any]) -> StatusRow:
    progress = state.get("progress") or {}
    running = state["state"] == "running"
    waits_for = state.get("waits_for") or ""
    waiting = running and waits_for
    if waits_for.endswith(" so far"):
        waits_for = waits_for.rpartition("; ")[0]
    if waits_for and state.get("waits_since"):
        waits_for += f" (for {duration(time.time() - state['waits_since'])})"
    epochs = progress.get("epochs", 0)
    left = "–"
    if progress and running:
        since = time.time() - progress.get("at", time.time())
        left = duration(max(0.0, progress.get("left_s", 0.0) - since))
    return StatusRow(
        name=name,
        state="waiting" if waiting else state["state"],
        epoch=f"{progress.get('epoch', 0)}/{epochs}" if epochs else "–",
        left=left,
        figure=_figure(progress.get("figure", ""), progress.get("value")),
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
            run_list.mark_killed(uri(), run_id)
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
            state="waiting" if run.waits_for else run.state,
            epoch=f"{run.epoch}/{run.epochs}" if run.epochs else "–",
            left=duration(run.left_s) if run.left_s is not None else "–",
            figure=_figure(run.figure, run.value),
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
        elsewhere = recorded_rows(run_list.recorded(uri(), experiment, state="running"))
    except RunFailed as error:
        return rows, str(error)
    local_names = {row.name for row in rows}
    return rows + [row for row in elsewhere if row.name not in local_names], ""


def cluster_lines(cluster: Cluster) -> list[str]:
    """The cluster and its jobs. Raises RunFailed or ConfigError where it does not answer."""
    usage, nodes, jobs = cluster.usage(), cluster.nodes(), cluster.jobs()
    totals = {
        kind: sum(node.get("resources_total", {}).get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")
    }
    parts = [
        f"{usage.get(kind, (0.0,))[0]:g} of {has:g} {kind}s in use" if has else f"no {kind}s"
        for kind, has in totals.items()
    ]
    lines = [f"cluster     {cluster.address}: {count(len(nodes), 'node')}, {', '.join(parts)}"]
    for job in jobs:
        if job["status"] in ("PENDING", "RUNNING"):
            line = f"job         {job['submission_id']}  {job['status'].lower()}"
            if job.get("start_time"):
                line += f", for {duration(time.time() - job['start_time'] / 1000)}"
            if job["status"] == "PENDING" and job.get("message"):
                line += f": {job['message']}"
            lines.append(line)
    return lines


def table(rows: Sequence[StatusRow], say: Callable[[Any], None], *, dated: bool = False) -> None:
    """Says the runs as a table of rich; columns that no row fills are left out."""
    from rich import box  # rich takes a while to import, and --json needs none
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = [
        ("run", "name"),
        ("state", "state"),
        ("epoch", "epoch"),
        ("left", "left"),
        ("figure", "figure"),
        ("waits for", "waits_for"),
        ("job", "job"),
    ]
    filled = [
        (title, name)
        for title, name in columns
        if any(getattr(row, name) not in ("", "–") for row in rows) or name in ("name", "state")
    ]
    for title, name in filled:
        grid.add_column(title, overflow="fold", no_wrap=name in ("state", "epoch", "left"))
    if dated:
        grid.add_column("began", no_wrap=True)
    for row in rows:
        cells = [Text(str(getattr(row, name))) for _, name in filled]  # brackets in a name are no markup
        if dated:
            cells.append(Text(datetime.fromtimestamp(row.began).strftime("%Y-%m-%d %H:%M")))
        grid.add_row(*cells)
    say(grid)


def as_json(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Runs out of MLflow as `pcl-ray runs --json` prints them."""
    return [replace(run, knobs=dict(run.knobs)).__dict__ for run in runs]


def cluster_or_none(cluster: Cluster) -> list[str]:
    """`cluster_lines`, or in one line why there is none."""
    try:
        return cluster_lines(cluster)
    except (RunFailed, ConfigError) as error:
        return [f"cluster     {error}"]


def _figure(name: str, value: float | None) -> str:
    """The figure that tells most of a run, and its value: "kNN 0.934"."""
    if value is None:
        return "–"
    entry = figures.find(name)
    return f"{entry[0].short or entry[0].label if entry else name} {value:.4g}"
