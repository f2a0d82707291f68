"""Reads the record of a run from its folder, to look at it afterwards. Takes no lock: it may be under way."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_ray import config as configs
from pcl_ray.config import figures, public_config
from pcl_ray.data.inspection import summary
from pcl_ray.report.run_record import RunRecord
from pcl_ray.runs.evaluation.stored import evaluations_of
from pcl_ray.runs.folder import (
    CONFIG_FILE,
    DATA_FILE,
    FIGURES_FILE,
    SNAPSHOT_FILE,
    RunFolder,
    read_history_at,
    read_state_at,
)
from pcl_ray.snapshot import load_snapshot
from pcl_ray.support import redaction
from pcl_ray.support.redaction import scrubbed


def read(name: str, history: Sequence[Mapping[str, Any]] | None = None) -> RunRecord:
    """The record of a run. name: its name, or the path of its folder. history: where it is known already,
    which spares reading a checkpoint.

    Raises ConfigError where there is no such run.
    """
    path = folder_of(name)
    state = read_state_at(path)
    entries = (read_history_at(path) or _history_in_table(path)) if history is None else history
    snapshot, thumbnails = load_snapshot(path / SNAPSHOT_FILE) or (None, None)
    return RunRecord(
        name=path.name,
        config=public_config(configs.load_stored(path / CONFIG_FILE)),
        history=[{**entry, "metrics": figures.with_present_names(entry["metrics"])} for entry in entries],
        state=state.get("state", "running"),
        error=scrubbed(str(state.get("error") or "")),
        num_images=state.get("num_images", 0),
        num_holdout=state.get("num_holdout", 0),
        num_clusters=tuple(state.get("num_clusters", ())),
        steps_per_epoch=state.get("steps_per_epoch", 0),
        class_names=tuple(state.get("class_names", ())),
        command=scrubbed(str(state.get("command", ""))),
        fingerprint=state.get("fingerprint", ""),
        versions=state.get("versions", {}),
        link=redaction.public_uri(str(state.get("link", ""))),
        snapshot=snapshot,
        thumbnails=thumbnails,
        evaluations=evaluations_of(path),
        data=summary.read(path / DATA_FILE),
    )


def _history_in_table(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run whose checkpoints are gone, out of its table of figures; [] without one."""
    try:
        with (path / FIGURES_FILE).open(newline="", encoding="utf-8") as file:
            return [
                {
                    "epoch": int(row.pop("epoch")),
                    "step": int(row.pop("step")),
                    "metrics": {name: float(value) for name, value in row.items() if value},
                }
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []


def folder_of(name: str) -> Path:
    """The folder of a run, from its name or the folder's own path. Raises ConfigError where there is none."""
    path = Path(os.path.abspath(name))  # the name of `runs/one/..` is no folder's
    if "/" in name and (path / CONFIG_FILE).is_file():
        return path
    return RunFolder.existing(name.rstrip("/").rpartition("/")[2])
