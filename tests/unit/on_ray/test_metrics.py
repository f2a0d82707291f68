"""The metrics of a run on its Ray cluster: which event gives which value."""

from __future__ import annotations

from pcl_ray.on_ray.metrics import GAUGES, GaugeValues
from pcl_ray.training.events import Event


def test_metrics_follow_from_events() -> None:
    """The names and values that are set; that Ray exports them is shown on a real cluster, in tests/ray."""
    values = GaugeValues()
    assert values.changed_by(Event("step", 0, 3, {"train/loss": 4.0})) == {"pcl_loss": 4.0}
    metrics = {"train/loss": 3.0, "epoch": 0.0, "cluster/0/empty": 0.0, "perf/e_step_seconds": 1.5}
    changed = values.changed_by(Event("epoch", 0, 9, metrics))
    assert (changed["pcl_epoch"], changed["pcl_e_step_seconds"], changed["pcl_prototype_age_steps"]) == (
        1,
        1.5,
        0,
    )
    changed = values.changed_by(Event("step", 1, 15, {"train/loss": 2.0}))
    assert changed == {"pcl_loss": 2.0, "pcl_prototype_age_steps": 6}
    assert values.changed_by(Event("system", 1, 15, {"train/loss": 9.0})) == {}
    assert set(changed) <= GAUGES.keys()


def test_a_dropped_point_is_counted_once() -> None:
    values = GaugeValues()
    assert [values.newly_dropped(dropped) for dropped in (0, 2, 2, 5)] == [0, 2, 0, 3]
