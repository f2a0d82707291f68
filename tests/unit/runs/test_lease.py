from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pcl_ray.checkpoints.storage import Storage
from pcl_ray.errors import RunFailed
from pcl_ray.runs import lease
from pcl_ray.runs.folder import Busy
from pcl_ray.runs.lease import Lease

ELSEWHERE = {"host": "elsewhere", "pid": 12, "machine": "another"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_a_lease_is_held_until_it_is_released(storage: Storage, tmp_path: Path) -> None:
    held = Lease("one")
    held.acquire(storage)
    assert json.loads((tmp_path / lease.FILE).read_text())["pid"] == os.getpid()
    held.look(storage)
    assert not held.lost
    held.check_held("/shared")
    held.release(storage, storage)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_lease_of_another_machine_counts(storage: Storage, tmp_path: Path) -> None:
    storage.write(lease.FILE, json.dumps(ELSEWHERE).encode())
    with pytest.raises(Busy, match=r"run 'one' is being trained by process 12 on elsewhere; .* in 1[45]\d s"):
        Lease("one").acquire(storage)
    assert json.loads((tmp_path / lease.FILE).read_text()) == ELSEWHERE
    old = time.time() - 2 * lease.FRESH_S
    os.utime(tmp_path / lease.FILE, (old, old))
    Lease("one").acquire(storage)
    assert json.loads((tmp_path / lease.FILE).read_text()) != ELSEWHERE


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\0"])
def test_a_damaged_lease_says_nothing_of_its_owner(storage: Storage, content: bytes) -> None:
    storage.write(lease.FILE, content)
    with pytest.raises(Busy, match="process None on None"):
        Lease("one").acquire(storage)


def test_a_lease_that_another_driver_took_is_lost_and_left_alone(storage: Storage, tmp_path: Path) -> None:
    held = Lease("one")
    held.acquire(storage)
    storage.write(lease.FILE, json.dumps(ELSEWHERE).encode())
    held.look(storage)
    assert held.lost
    with pytest.raises(RunFailed, match=r"taken the run over \(/shared/runs/one/owner.json names it\)"):
        held.check_held("/shared")
    held.release(storage, storage)
    assert json.loads((tmp_path / lease.FILE).read_text()) == ELSEWHERE


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
