from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest
from answering import answering
from processes import free_port

from pcl_ray.cluster import machine_services
from pcl_ray.cluster.check import Check


def test_no_cluster_named(no_ray: pytest.MonkeyPatch) -> None:
    assert "a Ray of its own" in machine_services.ray_cluster().message
    assert machine_services.ray_token() == Check(
        "Ray's token", "ok", "a Ray of our own gets a token in memory, new for each run"
    )


def test_a_cluster_that_is_not_there(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert "nothing answers there" in machine_services.ray_cluster().message
    no_ray.setenv("RAY_ADDRESS", "127.0.0.1:many")
    assert machine_services.ray_cluster().level == "failed"


def test_something_that_is_no_cluster(no_ray: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        found = machine_services.ray_cluster(answer_s=2.0)
    assert (found.level, "does not answer as a Ray cluster" in found.message) == ("failed", True)


def test_tokens(no_ray: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("top-secret")
    token.chmod(0o600)
    no_ray.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "differs" in machine_services.ray_token().message
    no_ray.setenv("RAY_AUTH_MODE", "token")
    assert machine_services.ray_token().level == "failed"
    no_ray.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert machine_services.ray_token() == Check("Ray's token", "ok", f"the cluster is given {token}")
    token.chmod(0o644)
    assert (machine_services.ray_token().level, "chmod 600" in machine_services.ray_token().advice) == (
        "warning",
        True,
    )
    no_ray.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert "does not start" in machine_services.ray_token().message
    no_ray.setenv("RAY_AUTH_TOKEN", "top-secret")
    found = machine_services.ray_token()
    assert (found.level, "top-secret" in repr(found)) == ("ok", False)
    no_ray.setenv("RAY_AUTH_MODE", "disabled")
    assert (machine_services.ray_token().level, "run code" in machine_services.ray_token().message) == (
        "warning",
        True,
    )


def test_a_token_file_of_our_own_ray(no_ray: pytest.MonkeyPatch) -> None:
    no_ray.setenv("RAY_AUTH_MODE", "token")
    assert "which it makes" in machine_services.ray_token().message


def test_a_tracking_uri_that_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    found = machine_services.tracking_store()
    assert (found.level, "sqlite:////" in found.message) == ("failed", True)


def test_a_store_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, "{}") as (port, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        found = machine_services.tracking_store()
    assert found.level == "ok"
    assert "secret" not in repr(found)
