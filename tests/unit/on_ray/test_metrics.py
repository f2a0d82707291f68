from __future__ import annotations

from typing import Any

import pytest

from pcl_ray.training.events import Event


def test_metrics_follow_from_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names and values that are set; that Ray exports them is shown on a real cluster, in tests/ray."""
    from pcl_ray.on_ray.metrics import RayMetrics

    metrics = RayMetrics("mine", 50)
    set_: dict[str, Any] = {}
    counted: list[float] = []
    monkeypatch.setattr(metrics, "_ready", lambda: True)
    monkeypatch.setattr(metrics, "_set", set_.__setitem__)
    metrics._counter = type("Counter", (), {"inc": lambda self, value, tags: counted.append(value)})()
    metrics.handle(Event("step", 0, 3, {"train/loss": 4.0}), 0)
    assert set_ == {"pcl_loss": 4.0}
    metrics.handle(
        Event(
            "epoch",
            0,
            9,
            {"train/loss": 3.0, "epoch": 0.0, "cluster/0/empty": 0.0, "perf/e_step_seconds": 1.5},
        ),
        2,
    )
    assert (set_["pcl_epoch"], set_["pcl_e_step_seconds"], set_["pcl_prototype_age_steps"]) == (1, 1.5, 0)
    metrics.handle(Event("step", 1, 15, {"train/loss": 2.0}), 2)
    assert set_["pcl_prototype_age_steps"] == 6
    metrics.handle(Event("system", 1, 15, {"train/loss": 9.0}), 5)
    assert set_["pcl_loss"] == 2.0
    assert counted == [2]
