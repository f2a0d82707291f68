"""Where results come from: versions, host, and the state of the source tree."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("pcl_ray", "torch", "torchvision", "ray", "faiss-cpu", "faiss-gpu", "mlflow")


def run_tags(source: Path | None = None) -> dict[str, str]:
    """Versions and host, and the commit of the source tree when git knows it.

    source: a folder of that tree; None: the one that this package lies in.
    """
    tags = {"version.python": platform.python_version(), "hostname": socket.gethostname()}
    for name in _PACKAGES:
        try:
            tags["version." + name.partition("-")[0]] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return tags | _commit_tags(source or Path(__file__).parent)


def _commit_tags(folder: Path) -> dict[str, str]:
    # An installed package may lie below somebody else's repository, e.g. in its .venv. Git lists no file of
    # it then, and the commit says nothing about us.
    if not _git(folder, "ls-files"):
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is None:
        return {"git.commit": commit}
    return {"git.commit": commit, "git.dirty": "true" if changes else "false"}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, or there is none."""
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=3, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
