"""A Ray worker's process that has a warm one forked instead of loading torch itself. Ray runs it in place of
its own scripts: it takes milliseconds, of the standard library alone.

raylet ── this process ── arguments, environment, folder, output ──→ `warm_parent` ── fork ──→ the worker
             └ both end together: each sees that the other's end of their connection is closed

It is run by links to it, in the folder of the warm process: as SCRIPT, or where the worker has an environment
of its own as SETUP. Beside it are the socket of the warm process, and links to Ray's own scripts for both:
the one becomes the worker, the other is there for environments that are more than variables.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

SWITCH = "PCL_RAY_WARM_START"  # "0": every process of Ray loads what it needs
# the raylet leaves the second one out by this name, where a worker has no environment of its own
SCRIPT, SETUP, SOCKET = "worker.py", "setup_worker.py", "warm"
RAYS_SCRIPT, RAYS_SETUP = "rays_worker.py", "rays_setup.py"
_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main(script: str, words: list[str]) -> int:
    """Stays until the worker has ended. Where nobody forks one, becomes the worker itself."""
    folder, name = os.path.split(script)
    if name == SETUP:
        variables = _variables_alone(words)
        if variables is None or words[:1] != [os.path.join(folder, SCRIPT)]:
            return _become(folder, RAYS_SETUP, words)
        os.environ.update(variables)
        words = [word for word in words[1:] if not word.startswith((_CONTEXT, _LANGUAGE))]
    connection = socket.socket(socket.AF_UNIX)
    worker = 0
    if os.environ.get(SWITCH) != "0":
        try:
            connection.connect(os.path.join(folder, SOCKET))
            worker = _forked(connection, [_real(folder, RAYS_SCRIPT), *words])
        except OSError:
            pass
    if not worker:
        return _become(folder, RAYS_SCRIPT, words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(worker, number))
    while connection.recv(8):
        pass
    return 0


def _variables_alone(words: list[str]) -> dict[str, str] | None:
    """The variables of a worker's environment; None where it has more than these, or they refer to others."""
    options = {name: [word for word in words if word.startswith(name)] for name in (_CONTEXT, _LANGUAGE)}
    if options[_LANGUAGE] != [f"{_LANGUAGE}PYTHON"] or not options[_CONTEXT]:
        return None
    context = json.loads(options[_CONTEXT][-1].removeprefix(_CONTEXT))
    variables = context.pop("env_vars", {})
    python = context.pop("py_executable", sys.executable)
    simple = python == sys.executable and not any(context.values()) and "$" not in "".join(variables.values())
    return variables if simple else None


def _forked(connection: socket.socket, command: list[str]) -> int:
    """The number of the process that runs this command for us; 0 where it is refused."""
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "prefix": sys.prefix,
    }
    content = json.dumps(request).encode("utf-8", "surrogateescape")
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(content)
    return int.from_bytes(connection.recv(8), "big")


def _become(folder: str, name: str, words: list[str]) -> int:
    os.execv(sys.executable, [sys.executable, _real(folder, name), *words])


def _real(folder: str, name: str) -> str:
    return os.path.realpath(os.path.join(folder, name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
