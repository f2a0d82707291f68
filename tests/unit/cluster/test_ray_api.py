from __future__ import annotations

from typing import Any

import pytest
from processes import free_port

from pcl_ray.cluster import ray_api
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.errors import ConfigError, RunFailed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "http://",
        "http://host",
        "ftp://host:1",
        "http://me:pw@host:8265",
        "http://host:99999999",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a cluster's dashboard"):
        ray_api.checked_address(address)


def test_addresses() -> None:
    assert ray_api.checked_address("127.0.0.1:8265") == "http://127.0.0.1:8265"
    assert ray_api.checked_address("https://ray.example.org:443/") == "https://ray.example.org:443"


def test_a_token_is_its_owner_s_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "service" / "token"
    file.parent.mkdir()
    file.touch(mode=0o644)
    ray_api.write_token(file, "abc")
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert ray_api.user_token() == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        ray_api.user_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert ray_api.user_token() == ""


def test_a_token_goes_neither_through_a_proxy_nor_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, here)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(RunFailed):
            Cluster(f"http://127.0.0.1:{free_port()}", "t0ken").jobs()
        assert seen == []
        with pytest.raises(RunFailed, match="302"):
            Cluster(here, "t0ken").jobs()
        assert seen == ["/api/jobs/"]
        server.shutdown()


@pytest.mark.parametrize("content", ["[]", '"x"', '{"status": "ok"}', '{"data": []}', "no json", ""])
def test_something_else_at_the_dashboard_s_address_is_said(content: str) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = Cluster(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RunFailed, match="no dashboard of Ray"):
            other.nodes()
        if content != "[]":
            with pytest.raises(RunFailed, match="no dashboard of Ray"):
                other.jobs()
        server.shutdown()


def test_what_speaks_no_http_is_said_and_no_token_is_repeated() -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-other\r\n")

        threading.Thread(target=answer, daemon=True).start()
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not Cluster(place).alive()
        for token in ("t0ken", "t0ken\r\n x"):
            with pytest.raises(RunFailed) as caught:
                Cluster(place, token).jobs()
            assert "t0ken" not in str(caught.value)
