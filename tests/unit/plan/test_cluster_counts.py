from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import config_of

from pcl_ray.plan import check, make, resolve_num_clusters, why_so_many


def test_shares_become_counts() -> None:
    assert resolve_num_clusters((0.02, 250, 0.5), 1000) == (20, 250, 500)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1_281_167, (1132, 2264, 4528)),
        (50_000, (224, 447, 894)),
        (1600, (40, 80, 160)),  # the finest has just ten images a cluster
        (1599, (40, 80)),
        (1438, (38, 76)),
        (400, (20, 40)),
        (100, (10,)),
        (99, (9,)),  # √N would leave fewer than ten
        (29, (2,)),
        (5, (2,)),
    ],
)
def test_auto_takes_multiples_of_the_root_and_fewer_clusterings_of_few_images(
    images: int, expected: tuple[int, ...]
) -> None:
    assert resolve_num_clusters("auto", images) == expected


@given(st.integers(5, 10**9))
def test_auto_has_rising_counts_below_half_of_the_images(images: int) -> None:
    counts = resolve_num_clusters("auto", images)
    assert list(counts) == sorted(set(counts))
    assert counts[0] >= 2
    assert 2 * counts[-1] < images
    # by hand: so many of the three leave ten images a cluster
    fine_enough = [times for times in (1, 2, 4) if round(math.sqrt(images) * times) * 10 <= images]
    assert len(counts) == max(1, len(fine_enough))


@given(st.integers(5, 10**7), st.integers(1, 10**6))
def test_more_images_never_make_fewer_clusters(images: int, more: int) -> None:
    fewer, larger = resolve_num_clusters("auto", images), resolve_num_clusters("auto", images + more)
    assert len(fewer) <= len(larger)
    assert all(one <= other for one, other in zip(fewer, larger, strict=False))


def test_the_rule_is_told_where_it_chose() -> None:
    assert why_so_many("auto", 50_000) == "auto: 1, 2 and 4 times √N of N = 50,000 images"
    assert why_so_many("auto", 1438).endswith("at least 10 images a cluster on average")
    assert why_so_many((0.02, 30), 1438) == ""


def test_a_plan_has_the_counts() -> None:
    plan = make(config_of(e_step__num_clusters="auto"), 2000)
    assert plan.num_clusters == (45, 89, 179)
    assert plan.negatives == (None, None, None)
    assert plan.assignment_bytes == 2000 * 8 * 3


@pytest.mark.parametrize(("images", "right"), [(4, False), (5, True)])
def test_too_few_images_for_auto_are_told(images: int, right: bool) -> None:
    config = config_of(e_step__num_clusters="auto", train__batch_size=4, loss__queue_size=4)
    problems, _ = check(config, images)
    assert [problem.name for problem in problems] == ([] if right else ["e_step.num_clusters"])
    assert all("4 training images are too few" in problem.message for problem in problems)


def test_more_negatives_than_auto_has_prototypes_are_refused() -> None:
    (problem,) = check(config_of(e_step__num_clusters="auto", loss__negative_prototypes=32), 1000)[0]
    assert problem.name == "loss.negative_prototypes"
    assert "the smallest clustering has 32 prototypes, so at most 31" in problem.message


def test_auto_needs_no_advice_about_tiny_clusters() -> None:
    assert not [
        note for note in check(config_of(e_step__num_clusters="auto"), 1438)[1] if "clusters get" in note
    ]
