"""A run as it is looked at afterwards, read from its folder. Takes no lock: it may be under way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_ray import config as configs
from pcl_ray import snapshot as exhibits
from pcl_ray import tracking
from pcl_ray.report.run_record import RunRecord
from pcl_ray.runs import gallery
from pcl_ray.runs.folder import RunFolder, read_history_at, read_state_at
from pcl_ray.support import redaction
from pcl_ray.support.redaction import scrubbed


def read(name: str, history: Sequence[Mapping[str, Any]] | None = None) -> RunRecord:
    """name: of a run, or the path of its folder. history: where it is known already, which spares reading a
    checkpoint.

    Raises ConfigError where there is no such run.
    """
    path = folder_of(name)
    state = read_state_at(path)
    shown = exhibits.load(path / gallery.FILE)
    return RunRecord(
        name=path.name,
        config=tracking.public_config(configs.load(path / "config.yaml")),
        history=read_history_at(path) if history is None else history,
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
        exhibit=shown[0] if shown else None,
        thumbnails=shown[1] if shown else None,
    )


def folder_of(name: str) -> Path:
    """Of a run by its name, or by the path of its folder. Raises ConfigError where there is none."""
    path = Path(os.path.abspath(name))  # the name of `runs/one/..` is no folder's
    return (
        path
        if "/" in name and (path / "config.yaml").is_file()
        else RunFolder.existing(name.rstrip("/").rpartition("/")[2])
    )
