"""What a process may use of this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pcl_ray.support import machine


@pytest.mark.parametrize(
    ("of_its_own", "limit", "expected"),
    [(1, None, 1), (0, None, 1), (10**6, None, machine.cores()), (2, "1", 1), (1, "4,2", 1), (1, "many", 1)],
)
def test_threads_are_its_own_cores_and_no_more(
    of_its_own: int, limit: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert machine.threads(of_its_own) == expected


def test_importing_the_package_lets_idle_threads_sleep() -> None:
    script = "import os, pcl_ray; print(os.environ['OMP_WAIT_POLICY'])"
    for before, after in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": before} if before else {}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.strip() == after, done.stderr
