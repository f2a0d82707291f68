"""A real MLflow server that is killed and started again, and a proxy before it that misbehaves."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from processes import free_port

from pcl_ray.tracking import server
from pcl_ray.tracking.server import Server

START_S = 180.0


@dataclass
class MlflowServer:
    """A server process on a database of its own, always at the same address."""

    folder: Path
    port: int = field(default_factory=free_port)
    _running: Server | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        self.folder.mkdir(exist_ok=True)
        uri, artifacts = f"sqlite:///{self.folder}/mlflow.db", self.folder / "artifacts"
        log = self.folder / "mlflow.log"
        self._running = server.start(uri, artifacts, host="127.0.0.1", port=self.port, log=log)
        server.wait_for(self._running, START_S)

    def kill(self) -> None:
        """kill −9 of the server and all its processes."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.process.pid, signal.SIGKILL)
            self._running.process.wait(60)
            self._running = None


Mode = Literal["well", "away", "error"]


class Proxy(http.server.ThreadingHTTPServer):
    """Sends requests on to `target`, after `delay_s`; away: it hangs up, error: it answers 500."""

    daemon_threads = True

    def __init__(self, target: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.mode, self.delay_s = target, "well", 0.0
        self.requests = 0

    mode: Mode

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def _send_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests += 1
        time.sleep(self.server.delay_s)
        if self.server.mode == "away":
            self.close_connection = True
            return
        if self.server.mode == "error":
            self.send_error(500)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            self.close_connection = True
            return
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _send_on

    def log_message(self, *_: object) -> None: ...


@contextmanager
def proxy_before(servers: MlflowServer) -> Iterator[Proxy]:
    """A proxy before this server."""
    with Proxy(servers.port) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
