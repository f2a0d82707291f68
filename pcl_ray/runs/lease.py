"""The lease of a run in its storage: `owner.json` there says which driver trains the run.

Locks of files end at a machine's door, so the driver writes its lease anew again and again, and the lease
counts while it is fresh by the storage's own clock.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from typing import Any

from pcl_ray.errors import RunFailed
from pcl_ray.runs.folder import Busy, parse_entries
from pcl_ray.support import machine, storage
from pcl_ray.support.storage import Storage
from pcl_ray.support.storage_address import without_secrets

FILE = "owner.json"
FRESH_S = 150.0  # a lease that is older counts no more: its driver is gone
RENEW_EVERY_S = 30.0


class Lease:
    """This driver's lease of run `run` in the storage of this address, from `acquire` to `release`. All
    methods raise RunFailed where the storage does not answer.
    """

    def __init__(self, uri: str, run: str):
        self._uri, self._run = uri, run
        self._owner = {**this_process(), "token": uuid.uuid4().hex}
        self._lost = threading.Event()

    def acquire(self) -> None:
        """Takes the lease. Raises Busy where another driver has a fresh one."""
        run_storage = storage.of_run(self._uri, self._run)
        content, version = run_storage.read(FILE), run_storage.version(FILE)
        if content is not None and version is not None:
            age_ns = self._now_ns(run_storage) - version.changed_ns
            self._check_free(parse_entries(content), age_ns / 1e9)
        self._write(run_storage)

    def renew(self) -> None:
        """Makes the lease fresh."""
        self._write(self._hurried_storage())

    def release(self, *, hurried: bool) -> None:
        """Removes the lease if it is still this driver's. Where that fails, it ends when it gets stale."""
        if not self.lost and self._read() == self._owner:
            storage.of_run(self._uri, self._run, hurried=hurried).remove(FILE)

    @property
    def lost(self) -> bool:
        """Whether `look` has seen another driver's lease."""
        return self._lost.is_set()

    def look(self) -> None:
        """Finds out whether another driver has taken the run over."""
        owner = self._read()
        if owner is not None and owner != self._owner:
            self._lost.set()

    def check_held(self) -> None:
        """Raises RunFailed after another driver has taken the run over."""
        if self.lost:
            address = f"{without_secrets(self._uri)}/runs/{self._run}/{FILE}"
            raise RunFailed(f"another process has taken the run over ({address} names it)")

    def _check_free(self, owner: dict[str, Any], age_s: float) -> None:
        """Raises Busy where a lease of this owner and age counts."""
        if age_s < FRESH_S and not is_gone(owner):
            raise Busy(
                f"run {self._run!r} is being trained by process {owner.get('pid')} on {owner.get('host')};"
                f" stop it first, or, where it is gone for good, try again in {FRESH_S - age_s:.0f} s"
            )

    def _now_ns(self, run_storage: Storage) -> int:
        """The time by the storage's clock."""
        key = f".now-{self._owner['token']}"
        now_ns = run_storage.write(key, b"now").changed_ns
        run_storage.remove(key)
        return now_ns

    def _read(self) -> dict[str, Any] | None:
        content = self._hurried_storage().read(FILE)
        return None if content is None else parse_entries(content)

    def _write(self, run_storage: Storage) -> None:
        run_storage.write(FILE, json.dumps(self._owner).encode())

    def _hurried_storage(self) -> Storage:
        return storage.of_run(self._uri, self._run, hurried=True)


def this_process() -> dict[str, Any]:
    """Where this driver is: `machine` tells on which machine `pid` can be asked for."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine.identity()}


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is no more."""
    this_machine, pid = machine.identity(), owner.get("pid")
    if not this_machine or owner.get("machine") != this_machine or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return pid == os.getpid()  # an earlier run of this very process
