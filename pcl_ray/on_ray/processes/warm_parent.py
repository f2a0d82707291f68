"""A process that has loaded what the processes of a run need, and forks them: torch, our own modules and
others take three seconds of a core, once instead of in each of them.

driver ── starts it before Ray, ends it by closing its standard input
             └ listens at once, loads, then forks a process for each `warm_client` that Ray has started

Only where Ray is on this machine alone, without GPUs. It has no threads that a fork would lose.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

# Torch and our modules, and of others what Ray and Ray Train load. Neither of these two: a forked copy of
# Ray's library draws the same numbers as its siblings, for tasks and objects that must have different ones.
PRELOADED = (
    "pcl_ray.training.loop",
    "pcl_ray.training.e_step_actor",
    "pcl_ray.snapshot",
    *(
        "fsspec",
        "google.protobuf.descriptor_pool",
        "jsonschema",
        "pandas",
        "pyarrow.dataset",
        "pyarrow.parquet",
    ),
    *("pydoc", "requests", "tqdm"),
)


def main(address: str) -> None:
    """Serves until standard input is closed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    for module in PRELOADED:
        with suppress(ImportError):  # its processes load it themselves, or do without
            importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a worker ended but Ray
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        with suppress(OSError, ValueError):
            _serve(connection, listener)
        connection.close()


def _serve(connection: socket.socket, listener: socket.socket) -> None:
    """Forks the worker that is asked for over this connection. Returns in the parent alone."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(head, "big"):
        piece = connection.recv(65536)
        if not piece:
            raise ValueError("cut off")
        content += piece
    request = json.loads(content.decode("utf-8", "surrogateescape"))
    if os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        return
    try:
        listener.close()
        _become(request, descriptors, connection)
    finally:
        os._exit(1)


def _become(request: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    """Turns this process into the worker, and runs it."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends the group of a worker's process with it
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    connection.sendall(os.getpid().to_bytes(8, "big"))
    # Where its client is gone, so is this process: the kernel tells by a signal, which ends it.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as a fresh process: from the machine's entropy
    sys.argv = request["command"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does for a script
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
