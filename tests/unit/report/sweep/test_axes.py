from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from pcl_ray.report.sweep.axes import LABEL, Scale, by_numbers, label_of

TAU, ALPHA, K, LR = "loss.temperature", "e_step.alpha", "e_step.num_clusters", "optimizer.lr"


def test_texts_are_evenly_spaced_by_their_numbers() -> None:
    scale = Scale(K, ["0.1", "0.02,0.04", "auto", "0.02"])
    assert scale.ticks() == {0.0: "0.02", 1.0: "0.02,0.04", 2.0: "0.1", 3.0: "auto"}


@pytest.mark.parametrize(
    "values",
    [
        [0.0712345 + 0.00131 * n for n in range(300)],
        [0.05 * 1.02**n for n in range(300)],
        [1 / 3, 2 / 3],
        [7],
        [0.1, 0.105, 0.9],
    ],
)
def test_numbers_have_few_and_round_ticks(values: list[float]) -> None:
    for knob in (TAU, LR):
        scale = Scale(knob, values)
        ticks = scale.ticks()
        assert 1 <= len(ticks) <= 8
        assert all(len(label) <= 6 for label in ticks.values())
        shares = [scale.share(spot) for spot in ticks]
        assert all(later - earlier > 0.1 for earlier, later in zip(shares, shares[1:], strict=False))
        assert all(min(values) * 0.97 <= spot <= max(values) * 1.03 for spot in ticks)


def test_few_short_values_are_the_ticks() -> None:
    assert Scale(TAU, [0.1, 0.5, 0.1, 0.2]).ticks() == {0.1: "0.1", 0.2: "0.2", 0.5: "0.5"}
    assert Scale(LR, [0.03]).ticks() == {0.03: "0.03"}


def test_share_is_by_factors_on_a_logarithmic_axis() -> None:
    logarithmic, linear = Scale(TAU, [0.01, 1.0]), Scale(LR, [0.0, 1.0])
    assert logarithmic.log
    assert not linear.log
    assert [logarithmic.share(value) for value in (0.01, 0.1, 1.0)] == pytest.approx([0, 0.5, 1])
    assert [linear.share(value) for value in (0.0, 0.1, 1.0)] == pytest.approx([0, 0.1, 1])
    assert Scale(LR, [0.3, 0.3]).share(0.3) == 0.5


def test_many_words_have_a_label_here_and_there_and_long_ones_are_cut() -> None:
    ticks = Scale(K, [f"word{n:03}" for n in range(100)]).ticks()
    assert 10 < len(ticks) <= 24
    assert ticks[0.0] == "word000"
    (label,) = Scale(K, ["a" * 40]).ticks().values()
    assert len(label) <= LABEL
    assert label.startswith("aaaa")


def test_lists_of_numbers_are_sorted_by_them_and_words_come_last() -> None:
    labels = ["auto", "10", "9", "0.02,0.04", "0.02", "0.1"]
    assert sorted(labels, key=by_numbers) == ["0.02", "0.02,0.04", "0.1", "9", "10", "auto"]


@pytest.mark.parametrize(
    ("knob", "values", "kind"),
    [(TAU, [0.1, 0.4], "log"), (LR, [0.01, 0.02], "linear"), (K, ["a", "b"], "linear"), (TAU, [0.1], "log")],
)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_all_values_are_inside_of_the_limits(axis: str, knob: str, values: list[Any], kind: str) -> None:
    axes = Figure().subplots()
    scale = Scale(knob, values)
    scale.apply(axes, axis)
    assert getattr(axes, f"get_{axis}scale")() == kind
    low, high = getattr(axes, f"get_{axis}lim")()
    assert all(low < scale.spot(value) < high for value in values)
    labels = [label.get_text() for label in getattr(axes, f"get_{axis}ticklabels")()]
    assert labels == list(scale.ticks().values())


def test_crowded_words_are_turned() -> None:
    def rotation(values: list[str]) -> float:
        axes = Figure().subplots()
        Scale(K, values).apply(axes, "x")
        return axes.get_xticklabels()[0].get_rotation()

    assert rotation(["a", "b"]) == 0
    assert rotation([f"a long word {n}" for n in range(5)]) == 30
    assert rotation([f"a long word {n:02}" for n in range(12)]) == 90


def test_knobs_of_the_paper_have_their_letter() -> None:
    assert [label_of(knob) for knob in (TAU, ALPHA, K, LR)] == [
        "temperature τ",
        "concentration smoothing α",
        "clusters K",
        LR,
    ]
    assert label_of(TAU, lines=True) == "temperature\nτ"
    assert label_of(LR, lines=True) == "optimizer.\nlr"
