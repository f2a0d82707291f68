"""Reads what the overview shows of each run and sweep, from the small files of their folders: no checkpoint,
and nothing heavy is imported.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

from pcl_ray import config as configs
from pcl_ray.config import RunConfig, figures
from pcl_ray.errors import ConfigError
from pcl_ray.report.overview import RunEntry, SweepEntry
from pcl_ray.runs.folder import (
    FIGURES_FILE,
    REPORT_FILE,
    SNAPSHOT_FILE,
    RunFolder,
    StateEntries,
    SweepFolder,
    read_state_at,
)
from pcl_ray.support.paths import CONFIG_FILE, home
from pcl_ray.support.redaction import public_uri

LEADERBOARD_FILE = "leaderboard.json"


def runs() -> list[RunEntry]:
    """The runs, the newest first; those whose folder is damaged are left out."""
    entries = [entry for path in _folders(RunFolder) if (entry := _run(path)) is not None]
    return sorted(entries, key=lambda entry: entry.began, reverse=True)


def sweeps(trained: list[RunEntry]) -> list[SweepEntry]:
    """The sweeps, the newest first. trained: all runs, trials among them."""
    entries = [entry for path in _folders(SweepFolder) if (entry := _sweep(path, trained)) is not None]
    return sorted(entries, key=lambda entry: entry.began, reverse=True)


def _folders(kind: type[RunFolder]) -> Iterator[Path]:
    for path in (home() / kind.ROOT).glob(f"*/{CONFIG_FILE}"):
        if path.is_file():
            yield path.parent


def _read(path: Path) -> tuple[RunConfig, StateEntries] | None:
    try:
        stored = configs.public_config(configs.load_stored(path / CONFIG_FILE))
    except (ConfigError, OSError):
        return None
    state: StateEntries = read_state_at(path)  # pyrefly: ignore
    return stored, state


def _run(path: Path) -> RunEntry | None:
    read = _read(path)
    if read is None:
        return None
    stored, state = read
    progress = state.get("progress") or {}
    measured = figures.with_present_names(_last_figures(path / FIGURES_FILE))
    if progress.get("value") is not None:
        measured.setdefault(str(progress["figure"]), progress["value"])
    return RunEntry(
        name=path.name,
        state=str(state.get("state", "running")),
        began=float(state.get("began_at") or _changed(path)),
        config=stored,
        data=data_name(stored),
        epochs=int(progress.get("epoch") or 0),
        num_clusters=tuple(state.get("num_clusters") or ()),
        figures=measured,
        sweep=str(state.get("sweep") or ""),
        mlflow_run_id=str(state.get("mlflow_run_id") or ""),
        has_report=(path / REPORT_FILE).is_file(),
        has_pictures=(path / SNAPSHOT_FILE).is_file(),
    )


def _sweep(path: Path, trained: list[RunEntry]) -> SweepEntry | None:
    read = _read(path)
    if read is None:
        return None
    stored, state = read
    objective, best = _best(path / LEADERBOARD_FILE)
    return SweepEntry(
        name=path.name,
        state=str(state.get("state", "running")),
        began=float(state.get("began_at") or _changed(path)),
        data=data_name(stored),
        objective=objective,
        best=best,
        trials=sum(run.sweep == path.name for run in trained),
        mlflow_run_id=str(state.get("mlflow_run_id") or ""),
        has_report=(path / REPORT_FILE).is_file(),
    )


def data_name(stored: RunConfig) -> str:
    """What tells the images of a run from others': the end of their path, or the source."""
    data = stored.data
    if data.path is None:
        return data.source
    return PurePath(public_uri(str(data.path)).rstrip("/")).name or data.source


def _changed(path: Path) -> float:
    return (path / CONFIG_FILE).stat().st_mtime


def _last_figures(path: Path) -> dict[str, float]:
    """The last value of each figure in figures.csv, which a run leaves at its end."""
    last: dict[str, float] = {}
    with suppress(OSError, ValueError, csv.Error), path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            last |= {name: float(value) for name, value in row.items() if name and value}
    return last


def _best(path: Path) -> tuple[str, float | None]:
    """The objective of a leaderboard and its best value."""
    with suppress(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["objective"]), float(content["rows"][0]["mean"])
    return "", None
