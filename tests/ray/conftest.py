"""Real Ray, through the command a user types. Each run starts and ends a Ray of its own in its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 600  # a guard against hanging, not a measurement


@dataclass
class Ended:
    code: int
    out: str
    err: str
    result: dict[str, Any]


@pytest.fixture
def pcl_ray(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `pcl-ray train WORDS --result …` to its end."""

    def run(*words: str) -> Ended:
        result = tmp_path / "result.json"
        command = [sys.executable, "-m", "pcl_ray.cli", "train", *words, "--result", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path)
        return Ended(
            done.returncode,
            done.stdout,
            done.stderr,
            json.loads(result.read_text()) if result.exists() else {},
        )

    return run


@pytest.fixture
def said_by(tmp_path: Path) -> Callable[[str], str]:
    """What a script prints, which starts a Ray of its own and must end well."""

    def run(script: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"PCL_RAY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            cwd=tmp_path,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    return run
