from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pcl_ray.errors import RunFailed
from pcl_ray.runs import lease
from pcl_ray.runs.folder import Busy
from pcl_ray.runs.lease import Lease

ELSEWHERE = {"host": "elsewhere", "pid": 12, "machine": "another"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a lease in a storage that has no other."""
    path = tmp_path / "runs/one" / lease.FILE
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Lease:
    return Lease(str(tmp_path), "one")


def test_a_lease_is_held_until_it_is_released(own: Lease, file: Path) -> None:
    own.acquire()
    assert json.loads(file.read_text())["pid"] == os.getpid()
    file.unlink()
    own.renew()
    own.look()
    assert not own.lost
    own.check_held()
    own.release(hurried=False)
    assert list(file.parent.iterdir()) == []


def test_a_fresh_lease_of_another_machine_counts(own: Lease, file: Path) -> None:
    file.write_text(json.dumps(ELSEWHERE))
    with pytest.raises(Busy, match=r"run 'one' is being trained by process 12 on elsewhere; .* in 1[45]\d s"):
        own.acquire()
    assert json.loads(file.read_text()) == ELSEWHERE
    old = time.time() - 2 * lease.FRESH_S
    os.utime(file, (old, old))
    own.acquire()
    assert json.loads(file.read_text()) != ELSEWHERE


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\0"])
def test_a_damaged_lease_says_nothing_of_its_owner(own: Lease, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(Busy, match="process None on None"):
        own.acquire()


def test_a_lease_that_another_driver_took_is_lost_and_left_alone(own: Lease, file: Path) -> None:
    own.acquire()
    file.write_text(json.dumps(ELSEWHERE))
    own.look()
    assert own.lost
    with pytest.raises(RunFailed, match=r"taken the run over \(/.*/runs/one/owner.json names it\)"):
        own.check_held()
    own.release(hurried=True)
    assert json.loads(file.read_text()) == ELSEWHERE


def test_a_process_of_this_machine_is_asked_for_itself() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    here = lease.this_process()
    assert lease.is_gone({**here, "pid": ended.pid})
    assert lease.is_gone(here)  # of an earlier run of this very process
    assert not lease.is_gone({**here, "pid": os.getppid()})
    assert not lease.is_gone({**here, "pid": ended.pid, "machine": "another"})
    assert not lease.is_gone({**here, "pid": "12"})
    assert not lease.is_gone({})
