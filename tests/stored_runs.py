"""Runs as they lie on the disk, without having been trained."""

from __future__ import annotations

from pathlib import Path

from pcl_ray.config import load
from pcl_ray.runs.folder import RunFolder


def made(
    name: str, kind: type[RunFolder] = RunFolder, overrides: tuple[str, ...] = (), **state: object
) -> Path:
    with kind.create(name, load("digits", ["tracking.enabled=false", *overrides])) as folder:
        (folder.path / "checkpoints").mkdir()
        (folder.path / "checkpoints" / "epoch_00001.pt").write_bytes(bytes(2048))
        folder.write_state(**{"state": "finished", "phase": "", **state})  # type: ignore[arg-type]
    return folder.path
