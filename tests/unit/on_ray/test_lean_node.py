"""A Ray of our own starts without the helpers that a run has no use for."""

from __future__ import annotations

from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

import pytest  # noqa: E402
from ray._private.node import Node  # noqa: E402

from pcl_ray.on_ray import lean_node  # noqa: E402


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
