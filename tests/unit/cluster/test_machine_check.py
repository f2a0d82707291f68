"""What `pcl-ray doctor` says of a machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from pcl_ray.cluster import machine_check
from pcl_ray.cluster.check import Check


def test_everything_is_asked(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = machine_check.check()
    assert [one.name for one in found] == [
        *(
            "packages",
            "Ray",
            "Ray's token",
            "GPUs",
            "faiss",
            "shared memory",
            "memory",
            "cores",
            "PCL_RAY_HOME",
            "tracking",
        )
    ]
    text = machine_check.as_text(found)
    assert all(one.name in text for one in found)
    assert (
        max(
            map(len, machine_check.as_text([Check("a", "failed", "word " * 60, "advice " * 40)]).splitlines())
        )
        <= 100
    )


def test_what_raises_or_hangs_is_said_and_the_others_are_asked(no_ray: pytest.MonkeyPatch) -> None:
    def raises() -> Check:
        raise KeyError("MemTotal")

    done = threading.Event()
    hangs: Callable[[], Check] = lambda: Check("faiss", "ok", str(done.wait(60)))  # noqa: E731
    changed = {"memory": raises, "faiss": hangs}
    checks = [replace(entry, run=changed.get(entry.name, entry.run)) for entry in machine_check.CHECKS]
    found = {one.name: one for one in machine_check.check(checks, limit_s=0.5)}
    done.set()
    assert "KeyError: 'MemTotal'" in found["memory"].message
    assert found["faiss"].message == "gave no answer in time"
    assert found["cores"].level in ("ok", "warning")
    assert "failed" in machine_check.as_text(list(found.values())).splitlines()[-1]
