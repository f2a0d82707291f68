"""A Ray worker's process that has a warm one forked instead of loading torch itself. A script for Python
without site-packages: it takes milliseconds, and the standard library.

raylet ── this process ── arguments, environment, folder, output ──→ `warm_parent` ── fork ──→ the worker
             └ both end together: each sees that the other's end of their connection is closed
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main(address: str, command: list[str]) -> int:
    """Stays until the worker has ended. Where nobody forks one, becomes the worker itself."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()})
        content = request.encode("utf-8", "surrogateescape")
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        worker = int.from_bytes(connection.recv(8), "big")
    except OSError:
        worker = 0
    if not worker:
        os.execv(sys.executable, [sys.executable, *command])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os.kill(worker, number))
    while connection.recv(8):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
