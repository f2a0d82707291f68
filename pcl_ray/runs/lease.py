"""Who trains a run on a storage, as its `owner.json` says."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from pcl_ray.runs.folder import Busy
from pcl_ray.support import machine

FRESH_S = 150.0  # since it was written last: then its driver is gone


def check_free(name: str, content: bytes, age_s: float) -> None:
    """Raises Busy where the `owner.json` of this content and age says that another driver trains run
    `name`.
    """
    owner = read(content)
    if age_s < FRESH_S and not is_gone(owner):
        raise Busy(
            f"run {name!r} is being trained by process {owner.get('pid')} on {owner.get('host')}; stop it"
            f" first, or, where it is gone for good, try again in {FRESH_S - age_s:.0f} s"
        )


def read(content: bytes) -> dict[str, Any]:
    """What the file says; nothing where it is damaged."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def this_process() -> dict[str, Any]:
    """Where this driver is: `machine` tells where its number can be asked for."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine.identity()}


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no more."""
    here = this_process()
    if (
        not here["machine"]
        or owner.get("machine") != here["machine"]
        or not isinstance(owner.get("pid"), int)
    ):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return owner["pid"] == os.getpid()  # of an earlier run of this very process
