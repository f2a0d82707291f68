from __future__ import annotations

import pytest
from small import config_error

from pcl_ray import config as configs
from pcl_ray.config import EStepConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250", (250,)),
        ("[250, 500]", (250, 500)),
        ("250,500", (250, 500)),
        ("0.02", (0.02,)),
        ("1e-2", (0.01,)),
        ("[100, 0.5]", (100, 0.5)),
        ("100.0", (100,)),
    ],
)
def test_counts_and_shares(text: str, expected: tuple[int | float, ...]) -> None:
    found = configs.load("digits", [f"e_step.num_clusters={text}"]).e_step.num_clusters
    assert found == expected
    # a count is an int and a share a float: the plan tells them apart so
    assert [type(k) for k in found] == [type(k) for k in expected]


@pytest.mark.parametrize("text", ["auto", "'auto'"])
def test_auto_is_no_list(text: str) -> None:
    assert configs.load("digits", [f"e_step.num_clusters={text}"]).e_step.num_clusters == "auto"
    assert EStepConfig().num_clusters == (25000, 50000, 100000)  # the paper's, where nothing is said


@pytest.mark.parametrize("text", ["[auto]", "auto,20", "automatic", "[]", "null"])
def test_what_is_neither_a_list_nor_auto_is_refused(text: str) -> None:
    (problem,) = config_error([f"e_step.num_clusters={text}"]).problems
    assert problem.name == "e_step.num_clusters"
    assert problem.message == "allowed: auto | list of whole number | number"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True),
        ("false", False),
        ("True", True),
        ("yes", True),
        ("off", False),
        ("auto", "auto"),
        ("'auto'", "auto"),
        ("'true'", True),
    ],
)
def test_in_memory_is_yes_no_or_auto(text: str, expected: bool | str) -> None:
    found = configs.load("digits", [f"data.in_memory={text}"]).data.in_memory
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("knob", ["data.loader_workers", "data.prefetch", "train.micro_batch"])
def test_null_leaves_the_choice(knob: str) -> None:
    assert configs.load("digits", [f"{knob}=3"]).flatten()[knob] == 3
    assert configs.load("digits", [f"{knob}=null"]).flatten()[knob] is None


def test_a_huge_count_is_left_to_the_plan() -> None:
    assert EStepConfig(num_clusters=10**400).num_clusters == (10**400,)


@pytest.mark.parametrize("value", ["1e-3", "0.001", "'0.001'"])
def test_numbers_as_people_write_them(value: str) -> None:
    assert configs.load("digits", [f"optimizer.lr={value}"]).optimizer.lr == 0.001
