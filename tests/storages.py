"""Runs whose checkpoints and results lie on another storage, for tests of several rooms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from small import DIGITS_RUN

from pcl_ray.runs import lease, request
from pcl_ray.support import storage

TINY = ("resources.workers=0", *DIGITS_RUN, "tracking.report=true")
STORAGE = "resources.storage={}"


def leased_run(shared: Path, **owner: Any) -> Path:
    """Makes a run `one` that began elsewhere, and the file that says who trains it, which is given back."""
    run_storage = storage.of_run(str(shared), "one")
    config = request.check("digits", [*TINY, "train.epochs=2", STORAGE.format(shared)]).config
    run_storage.write("config.yaml", config.to_yaml().encode())
    run_storage.write(lease.FILE, json.dumps(owner).encode())
    return shared / "runs/one" / lease.FILE
