"""A trial's point: how Tune's config says it, its title, the name of its run."""

from __future__ import annotations

import pytest

from pcl_ray import config, plan
from pcl_ray.sweep.trial_point import POINT, SEED_INDEX, TrialPoint, point_of, run_name_of, title_of

BASE = config.load("digits")
LISTED = {"values": {"loss.temperature": 0.1, "e_step.alpha": 10.0}, "seed": 3, "member": None}


def title(point: TrialPoint) -> str:
    full = point.config(BASE)
    return title_of(point, full, plan.make(full, 1438, 359))


def test_a_point_of_a_list_is_taken_as_it_is() -> None:
    assert point_of({POINT: LISTED}, 0, "a1b2_00007") == TrialPoint(LISTED["values"], 3)


def test_a_member_has_the_perturbed_values_and_the_number_of_its_own_trial() -> None:
    other = {**LISTED, "member": 1}
    perturbed = point_of({POINT: other, "loss.temperature": 0.12}, 0, "a1b2_00004")
    assert perturbed == TrialPoint({"loss.temperature": 0.12, "e_step.alpha": 10.0}, 3, 4)
    assert point_of({POINT: other}, 0).member == 1


def test_a_suggestion_is_its_values_and_a_repetition_the_next_seed() -> None:
    assert point_of({"e_step.alpha": 2.0}, 5) == TrialPoint({"e_step.alpha": 2.0}, 5)
    assert point_of({"e_step.alpha": 2.0, SEED_INDEX: 2}, 5) == TrialPoint({"e_step.alpha": 2.0}, 7)


def test_the_title_has_the_swept_knobs_first_and_k_as_counts() -> None:
    values = {"optimizer.lr": 0.05, "e_step.num_clusters": "10,20", "loss.temperature": 0.1}
    assert title(TrialPoint(values, 4)) == "tau0.1-K10+20-lr0.05-s4"
    assert title(TrialPoint({"e_step.alpha": 10}, 0, member=2)) == "a10-s0-p2"
    assert title(TrialPoint({"e_step.num_clusters": "auto"}, 4)) == "K38+76-s4"


def test_the_same_point_of_a_sweep_is_the_same_run() -> None:
    point = TrialPoint({"loss.temperature": 0.1, "e_step.alpha": 1}, 0)
    same = TrialPoint({"e_step.alpha": 1, "loss.temperature": 0.1}, 0)
    assert run_name_of("s", point) == run_name_of("s", same)
    assert run_name_of("s", point).startswith("s.")
    others = [TrialPoint(point.values, 1), TrialPoint({**point.values, "e_step.alpha": 2}, 0)]
    names = {run_name_of("s", other) for other in [point, *others]} | {run_name_of("t", point)}
    assert len(names) == 4


@pytest.mark.parametrize("values", [{"loss.temperature": 0.1}, {"loss.temperature": 0.7}])
def test_a_member_of_a_population_keeps_its_run_when_its_values_change(values: dict[str, float]) -> None:
    assert run_name_of("s", TrialPoint(values, 0, member=1)) == run_name_of("s", TrialPoint({}, 0, member=1))


@pytest.mark.parametrize(
    ("sweep", "point", "name"),
    [
        ("swept", TrialPoint({"e_step.alpha": 1}, 0), "swept.aff57a0f8d"),
        ("cut", TrialPoint({"e_step.alpha": 5.17634, "loss.temperature": 0.1}, 1), "cut.4940fe3000"),
        ("population", TrialPoint({"e_step.alpha": 1.35672}, 0, member=0), "population.1f8ad4368f"),
    ],
)
def test_run_names_are_those_that_earlier_versions_gave(sweep: str, point: TrialPoint, name: str) -> None:
    """A sweep that goes on finds its trials by them."""
    assert run_name_of(sweep, point) == name
