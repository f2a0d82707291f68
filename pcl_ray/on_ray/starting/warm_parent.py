"""A process that has loaded what the processes of a run need, and forks them: torch, our own modules and
others take three seconds of a core, once instead of in each of them.

driver, or the head of `pcl-ray up` ── starts it before Ray, ends it by closing its standard input
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
import shutil
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from pcl_ray.on_ray.starting.warm_client import SOCKET

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

# Forget our own modules again, which have loaded those of others that they need: jobs bring theirs along.
OTHERS_ALONE = "--others-alone"
_OURS = "pcl_ray"
_REQUEST_S = 5.0  # for which one that does not go on keeps the others waiting


def main(folder: str, *options: str) -> None:
    """Serves in this folder until standard input is closed, and removes it then. options: OTHERS_ALONE, or
    none.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, SOCKET))
    listener.listen(64)
    for module in PRELOADED:
        with suppress(ImportError):  # its processes load it themselves, or do without
            importlib.import_module(module)
    if OTHERS_ALONE in options:
        for name in [name for name in sys.modules if name.partition(".")[0] == _OURS]:
            del sys.modules[name]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a worker ended but Ray
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            remove_folder(folder)
            return
        connection, _ = listener.accept()
        with suppress(OSError, ValueError):
            _serve(connection, listener)
        connection.close()


def remove_folder(folder: str) -> None:
    """What it served in; also of one that was killed."""
    shutil.rmtree(folder, ignore_errors=True)


def _serve(connection: socket.socket, listener: socket.socket) -> None:
    """Forks the worker that is asked for over this connection. Returns in the parent alone."""
    connection.settimeout(_REQUEST_S)
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    try:
        request = _request(connection, head)
        # other than ours: that of a runtime environment with packages of its own
        if request["prefix"] == sys.prefix and not os.fork():
            try:
                listener.close()
                connection.settimeout(None)
                _become(request, descriptors, connection)
            finally:
                os._exit(1)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _request(connection: socket.socket, head: bytes) -> dict[str, Any]:
    """What `warm_client` sends. Raises OSError or ValueError where it is cut off."""
    content = b""
    while len(content) < int.from_bytes(head, "big"):
        piece = connection.recv(65536)
        if not piece:
            raise ValueError("cut off")
        content += piece
    request: dict[str, Any] = json.loads(content.decode("utf-8", "surrogateescape"))
    return request


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
    # as Python does for a script
    added = [
        path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)
    ]
    sys.path[:0] = [os.path.dirname(sys.argv[0]), *added]
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
