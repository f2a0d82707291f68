"""Whether two learners are the same, with what trains later: weights, statistics and queue."""

from __future__ import annotations

import torch

from pcl_ray.model.learner import Learner


def assert_same(first: Learner, second: Learner, tolerance: float = 0.0) -> None:
    one = first.pair.state_dict() | {"queue": first.queue.keys}
    other = second.pair.state_dict() | {"queue": second.queue.keys}
    assert list(one) == list(other)
    close = {name: torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one}
    assert [name for name in close if not close[name]] == []
    assert first.queue.pointer == second.queue.pointer
