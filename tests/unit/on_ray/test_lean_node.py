"""A Ray of our own starts without the helpers that a run has no use for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

import pytest  # noqa: E402
from ray._private.node import Node  # noqa: E402
from ray._private.parameter import RayParams  # noqa: E402

from pcl_ray.on_ray.starting import lean_node, warm_client  # noqa: E402


def test_helpers_are_left_out_inside_of_the_block_alone() -> None:
    """These are names of Ray's inside: where one is gone, Ray starts what it replaced it by."""
    before = {name: getattr(Node, name) for name in lean_node._HELPERS}
    node = Node.__new__(Node)
    with lean_node.without_unused_helpers():
        for name in lean_node._HELPERS:
            getattr(node, name)(include_dashboard=False, raise_on_failure=True)
        assert node.webui_url == ""
    assert {name: getattr(Node, name) for name in lean_node._HELPERS} == before


def test_a_ray_with_another_inside_starts_all_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Node, "start_log_monitor")
    with lean_node.without_unused_helpers():
        assert not hasattr(Node, "start_log_monitor")
    assert not hasattr(Node, "start_log_monitor")


def test_workers_start_by_our_scripts_inside_of_the_block_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, str]] = []

    def start_raylet(node: Node) -> None:
        parameters = node._ray_params
        started.append((parameters.worker_path, parameters.setup_worker_path))

    monkeypatch.setattr(Node, "start_raylet", start_raylet)
    node: Any = Node.__new__(Node)
    node._ray_params = RayParams(worker_path="/rays/worker.py", setup_worker_path="/rays/setup.py")
    with lean_node.workers_forked(str(tmp_path)):
        node.start_raylet()
    assert started == [(str(tmp_path / warm_client.SCRIPT), str(tmp_path / warm_client.SETUP))]
    assert (tmp_path / warm_client.RAYS_SCRIPT).readlink() == Path("/rays/worker.py")
    assert (tmp_path / warm_client.RAYS_SETUP).readlink() == Path("/rays/setup.py")
    assert Node.start_raylet is start_raylet


def test_workers_of_a_ray_with_another_inside_start_by_its_own_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(Node, "start_raylet", lambda node: started.append(node._ray_params.worker_path))
    node: Any = Node.__new__(Node)
    node._ray_params = RayParams(worker_path="/rays/worker.py")
    with lean_node.workers_forked(str(tmp_path)):
        node.start_raylet()
    monkeypatch.delattr(Node, "start_raylet")
    with lean_node.workers_forked(str(tmp_path)):
        assert not hasattr(Node, "start_raylet")
    assert started == ["/rays/worker.py"]
