from __future__ import annotations

import statistics
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.meters import Meter, StepClock, gauges, memory_gb, reset_memory

CPU = torch.device("cpu")


def read_at(times: list[float], settled: list[int] | None = None) -> StepClock:
    """A clock that ticked at these times, settled after the ticks of these numbers (else: after the last)."""
    clock = StepClock(CPU)
    with pytest.MonkeyPatch.context() as patched:
        for number, moment in enumerate(times):
            patched.setattr(time, "perf_counter", lambda moment=moment: moment)
            clock.tick()
            if number in (settled or ()):
                clock.settle()
    clock.settle()
    return clock


def test_a_meter_gives_every_step_and_the_means_and_is_then_empty() -> None:
    meter = Meter(("loss", "accuracy"), CPU)
    for row in ([1.0, 0.0], [2.0, 0.5], [6.0, 1.0]):
        meter.add(torch.tensor(row))
    table, means = meter.read()
    assert table.tolist() == [[1.0, 0.0], [2.0, 0.5], [6.0, 1.0]]
    assert means.tolist() == [3.0, 0.5]
    assert meter.rows == []
    meter.add(torch.tensor([8.0, 8.0]))
    assert meter.read()[1].tolist() == [8.0, 8.0]


def test_a_meter_keeps_what_is_not_finite_in_its_row() -> None:
    meter = Meter(("loss",), CPU)
    for value in (1.0, float("nan"), 2.0):
        meter.add(torch.tensor([value]))
    table, means = meter.read()
    assert torch.isfinite(table[:, 0]).tolist() == [True, False, True]
    assert torch.isnan(means).tolist() == [True]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], (0.0, 0.0)),
        ([5.0], (0.0, 0.0)),  # a beginning and no step
        ([5.0, 7.0], (2.0, 2.0)),
        ([0.0, 1.0, 4.0], (2.0, 2.9)),  # steps of 1 and 3
        ([0.0, 1.0, 3.0, 6.0], (2.0, 2.9)),
        ([float(i) for i in range(22)], (1.0, 1.0)),
    ],
)
def test_median_and_95th_percentile_against_hand_values(
    times: list[float], expected: tuple[float, float]
) -> None:
    assert read_at(times).quantiles() == pytest.approx(expected)


def test_one_slow_step_of_many_does_not_show_in_the_median() -> None:
    steps = [1.0] * 99 + [100.0]
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    assert read_at(times).quantiles() == pytest.approx((1.0, 1.0))


def test_nothing_counts_before_it_is_settled() -> None:
    clock = StepClock(CPU)
    for _ in range(3):
        clock.tick()
    assert clock.quantiles() == (0.0, 0.0)
    clock.settle()
    assert clock.quantiles()[0] >= 0


@given(steps=st.lists(st.floats(0, 100), min_size=1, max_size=40), data=st.data())
def test_when_a_clock_is_settled_makes_no_difference(steps: list[float], data: st.DataObject) -> None:
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    settled = data.draw(st.lists(st.integers(0, len(times) - 1), max_size=10))
    median, slow = read_at(times, settled).quantiles()
    assert (median, slow) == read_at(times).quantiles()
    taken = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert median == statistics.median(taken)
    assert min(taken) <= median <= slow + 1e-9
    assert slow <= max(taken) + 1e-9


def test_a_process_takes_memory_and_forgets_nothing_on_a_cpu() -> None:
    before = memory_gb(CPU)
    assert 0.01 < before < 10_000  # GB, and not KB or bytes
    reset_memory(CPU)
    assert memory_gb(CPU) >= before


def test_gauges_against_their_definitions() -> None:
    one, two = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    one.grad, two.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    norm, spread, first, second = gauges(
        features,
        [one, two, torch.nn.Parameter(torch.zeros(1))],
        [torch.tensor([0, 0, 0, 5]), torch.tensor([-1, -1, 3, 4])],
    )
    assert float(norm) == pytest.approx(5.0)
    assert float(spread) == pytest.approx(1.0)  # the four directions of the plane
    assert float(first) == pytest.approx(0.75)
    assert float(second) == 0.0  # images without a prototype do not collide


def test_one_feature_for_all_images_is_a_spread_of_zero() -> None:
    assert float(gauges(torch.ones(8, 4) / 2, [], [])[1]) == 0.0
