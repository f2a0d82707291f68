from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray import tune  # noqa: E402
from ray.tune.search.sample import Categorical, Domain  # noqa: E402

from pcl_ray.sweep.space import domains  # noqa: E402


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        (tune.choice([]), "has no values"),
        (tune.choice([1, tune.uniform(0, 1)]), "must be constants"),
        (tune.choice([{"low": 1}]), "must be constants"),
        (tune.randn(), "a normal distribution has no ends"),
        (tune.qrandint(0, 10, 5), "steps are kept by tune.quniform only"),
        (tune.qloguniform(0.1, 10, 0.1), "steps are kept by tune.quniform only"),
        (tune.randint(1.5, 9), "a range of whole numbers has whole ends, not 1.5 and 9"),  # type: ignore[arg-type]
        (tune.uniform(0.5, 0.05), "its lower end 0.5 must be below its upper end 0.05"),
        (tune.uniform(1, 1), "must be below its upper end"),
        (tune.sample_from(lambda spec: 1), "computed from others"),
    ],
)
def test_what_cannot_be_searched_and_why(domain: Domain, reason: str) -> None:
    assert reason in (domains.wrong(domain) or "")


@pytest.mark.parametrize(
    "domain",
    [
        tune.choice([None, "a", [1, 2]]),
        tune.uniform(0, 1),
        tune.loguniform(0.1, 1),
        tune.quniform(0, 1, 0.1),
        tune.randint(np.int64(1), np.int64(9)),
        tune.lograndint(1, 9),
    ],
)
def test_what_can_be_searched(domain: Domain) -> None:
    assert domains.wrong(domain) is None
    assert domains.repeated(domain) is None


def test_a_value_and_a_list_of_it_alone_are_the_same() -> None:
    assert domains.repeated(tune.choice([0.01, [0.01], 2, "2", 3])) == "lists 0.01; 2 more than once"
    assert domains.repeated(tune.uniform(0, 1)) is None


@pytest.mark.parametrize("values", [[1, 10], (1, 10), np.array([1, 10])])
def test_a_grid_is_a_choice(values: Any) -> None:
    domain = domains.of({"grid_search": values})
    assert isinstance(domain, Categorical)
    assert domain.categories == [1, 10]
    assert {type(value) for value in domain.categories} == {int}


def test_constants_become_plain_python_and_other_mappings_stay() -> None:
    plain = domains.of([(np.float32(0.5), 2), np.arange(2)])
    assert plain == [[0.5, 2], [0, 1]]
    assert type(plain[0][0]) is float
    assert domains.of({"grid_search": 5}) == {"grid_search": 5}
    assert domains.of({"low": 1}) == {"low": 1}


def test_whole_ranges_end_before_their_upper_end() -> None:
    assert domains.values(tune.randint(2, 5)) == [2, 3, 4]
    assert domains.edges(tune.randint(2, 5)) == [2, 4]
    assert domains.edges(tune.randint(2, 3)) == [2]
    assert domains.edges(tune.uniform(0.1, 0.5)) == [0.1, 0.5]
    assert domains.edges(tune.choice([3, 1, 2])) == [3, 1, 2]


def test_a_range_of_more_than_a_thousand_whole_numbers_is_not_listed() -> None:
    assert len(domains.values(tune.randint(0, 1000)) or []) == 1000
    assert domains.values(tune.randint(0, 1001)) is None
    assert domains.values(tune.uniform(0, 1)) is None


def test_ranges_with_steps_are_not_continuous() -> None:
    assert domains.is_continuous(tune.uniform(0, 1))
    assert not domains.is_continuous(tune.quniform(0, 1, 0.1))
    assert not domains.is_continuous(tune.randint(0, 9))
    assert not domains.is_continuous(None)


def test_logarithmic_ranges_are_so_with_steps_too() -> None:
    assert domains.is_log(tune.loguniform(0.1, 1))
    assert domains.is_log(tune.lograndint(1, 9))
    assert domains.is_log(tune.qloguniform(0.1, 1, 0.1))
    assert not domains.is_log(tune.uniform(0.1, 1))


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        (tune.loguniform(0.05, 0.5), "log-uniform 0.05 … 0.5"),
        (tune.lograndint(4, 9), "log-uniform whole numbers 4 … 8"),
        (tune.quniform(0.1, 0.5, 0.1), "uniform 0.1 … 0.5 in steps of 0.1"),
        (tune.choice([1, 3.0, 10]), "one of 1, 3, 10"),
        (tune.choice([[1, 2], 3]), "one of 1,2; 3"),
        (tune.choice([]), "one of nothing"),
        (tune.sample_from(lambda spec: 1), "computed from others"),
        (tune.randn(), "normal"),
    ],
)
def test_words(domain: Domain, text: str) -> None:
    assert domains.words(domain) == text
