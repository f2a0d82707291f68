from __future__ import annotations

import pytest
from processes import free_port

from pcl_ray.cluster import head_checks, head_processes
from pcl_ray.cluster.local_head import HeadRequest, up
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LocalHead, Ports


def test_a_token_that_others_could_read_is_not_used() -> None:
    local_head_record.folder().mkdir(parents=True)
    local_head_record.token_file().write_text("abc")
    local_head_record.token_file().chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        up(HeadRequest(), lambda text: None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.200", "not a host"])
def test_no_head_at_an_address_that_is_not_one_of_ours(host: str) -> None:
    with pytest.raises(ConfigError, match="one address of this machine"):
        up(HeadRequest(host=host), lambda text: None)


def test_no_head_without_a_token_where_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 is loopback too; so the address is made to look like the network's."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(head_checks.server, "loopback", lambda host: False)
    with pytest.raises(ConfigError, match="not started there without a token"):
        up(HeadRequest(host="127.0.0.2"), lambda text: None)


@pytest.mark.parametrize("which", ["ray", "dashboard", "metrics", "mlflow"])
def test_a_port_that_is_taken_is_named_and_nothing_is_started(which: str) -> None:
    import socket

    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = Ports(
            **({name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")} | {which: port})
        )
        with pytest.raises(ConfigError, match=f"port {port} cannot be had"):
            up(HeadRequest(ports=ports), said.append)
    assert local_head_record.read() is None
    assert said == []


def test_what_was_started_ends_where_the_rest_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MLflow server, and a Ray that does not come up."""
    import psutil

    monkeypatch.setattr(
        head_processes, "ray_variables", lambda head: {"PATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    )
    ports = Ports(**{name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")})
    with pytest.raises(RunFailed, match="Ray ended at once"):
        up(HeadRequest(ports=ports), lambda text: None)
    assert local_head_record.read() is None
    assert [
        one
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == ports.mlflow
    ] == []


def test_a_remote_store_s_password_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-1@mlflow.example:5000")
    seen: list[LocalHead] = []

    def start_ray(head: LocalHead, num_cpus: int | None, num_gpus: int | None) -> LocalHead:
        seen.append(head)
        local_head_record.write(head)
        return head

    monkeypatch.setattr(head_processes, "start_ray", start_ray)
    ports = Ports(**{name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")})
    up(HeadRequest(ports=ports), lambda text: None)
    assert seen[0].mlflow_uri == "http://mlflow.example:5000"
    assert "planted" not in (local_head_record.folder() / "up.json").read_text()
    assert (
        head_processes.ray_variables(seen[0])["MLFLOW_TRACKING_URI"]
        == "http://me:planted-1@mlflow.example:5000"
    )
