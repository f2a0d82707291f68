"""Where everything is written: PCL_RAY_HOME."""

from __future__ import annotations

import os
from pathlib import Path

from pcl_ray.errors import ConfigError

RUNS = "runs"  # the folder of all runs below it
CONFIG_FILE = "config.yaml"  # what makes a folder a run's


def home() -> Path:
    """PCL_RAY_HOME, or ~/.pcl_ray. Absolute: a submitted job's working directory is thrown away."""
    folder = os.environ.get("PCL_RAY_HOME") or "~/.pcl_ray"
    if "?" in folder:
        raise ConfigError(
            f"PCL_RAY_HOME = {folder!r} has a '?', which the address of a database in it cannot have; choose"
            " another folder"
        )
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"PCL_RAY_HOME = {folder!r} names a home folder that does not exist") from None


def check_writable() -> None:
    """Raises ConfigError where nothing can be written under PCL_RAY_HOME."""
    folder = home() / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(bytes(4096))  # an empty file would fit on a full disk
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"PCL_RAY_HOME = {str(home())!r} cannot be written ({error.strerror}); set PCL_RAY_HOME to a"
            " folder of yours"
        ) from None
