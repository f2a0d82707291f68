from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import FILES, N, config_of

from pcl_ray import config as configs
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.plan import check, make, resolve_num_clusters
from pcl_ray.support import machine


def test_a_good_configuration_has_no_problems_and_no_notes() -> None:
    assert check(config_of(), N, 200, gpus=0) == ([], [])


# One row: changes, number of images, the knob at fault, and what its message must hold, the way out included.
MISTAKES: dict[str, tuple[dict[str, Any], int, str, list[str]]] = {
    "more clusters than images": (
        {"e_step__num_clusters": [10, 2000]},
        N,
        "e_step.num_clusters",
        ["2000 is more than the 1000", "share like 0.02"],
    ),
    "a share of fewer than two": (
        {"e_step__num_clusters": [0.001]},
        N,
        "e_step.num_clusters",
        ["0.001 of 1000 images, that is 1", "least 0.0015"],
    ),
    "a share of none": (
        {"e_step__num_clusters": [1e-6]},
        N,
        "e_step.num_clusters",
        ["that is 0,", "at least 0.0015"],
    ),
    "fewer images than a batch": ({}, 60, "train.batch_size", ["only 60 images", "at most 60"]),
    "batch over workers": (
        {"resources__workers": 3},
        N,
        "train.batch_size",
        ["resources.workers = 3", "e.g. 102"],
    ),
    "one image a worker": (
        {"train__batch_size": 4, "resources__workers": 4, "loss__queue_size": 8},
        N,
        "train.batch_size",
        ["4 workers 1 image", "at least 8"],
    ),
    "more negatives than prototypes": (
        {"loss__negative_prototypes": 10},
        N,
        "loss.negative_prototypes",
        ["10 prototypes", "at most 9", "all"],
    ),
    "a queue the run never fills": (
        {"loss__queue_size": 10001},
        N,
        "loss.queue_size",
        ["only 10000 places", "train.epochs"],
    ),
    "a warm-up of the rate over the whole run": (
        {"optimizer__warmup_epochs": 10},
        N,
        "optimizer.warmup_epochs",
        ["below train.epochs = 10"],
    ),
    "means of another number of channels": (
        {"augment__mean": [0.1, 0.2, 0.3]},
        N,
        "augment.mean",
        ["data.channels = 1"],
    ),
    "deviations of another number of channels": (
        {"augment__std": [0.1, 0.2]},
        N,
        "augment.std",
        ["data.channels = 1"],
    ),
    "small views larger than the others": (
        {"augment__image_size": 8, "augment__small_crops": 2, "augment__small_crop_size": 9},
        N,
        "augment.small_crop_size",
        ["augment.image_size = 8"],
    ),
    "synchronised batch norm on CPUs": (
        {"encoder__batch_norm": "sync", "resources__workers": 2},
        N,
        "encoder.batch_norm",
        ["GPUs", "shuffle"],
    ),
    "the stem of a small ResNet on another": (
        {"encoder__backbone": "resnet18", "encoder__stem_stride": 2},
        N,
        "encoder.stem_stride",
        ["small_resnet", "encoder.stem", "Set encoder.stem_stride=1"],
    ),
    "parts of synchronised statistics": (
        {"encoder__batch_norm": "sync", "encoder__batch_norm_parts": 2},
        N,
        "encoder.batch_norm_parts",
        ["all workers", "shuffle or plain"],
    ),
    "parts of one image": (
        {"encoder__batch_norm_parts": 26, "resources__workers": 2},
        N,
        "encoder.batch_norm_parts",
        ["fewer than 2 of the 50 images", "at most 25"],
    ),
    "parts of a small pass": (
        {"encoder__batch_norm_parts": 4, "train__micro_batch": 7},
        N,
        "encoder.batch_norm_parts",
        ["fewer than 2 of the 6 images", "at most 3"],
    ),
    "a hidden layer of a linear head": (
        {"encoder__head": "linear", "encoder__head_width": 64},
        N,
        "encoder.head_width",
        ["encoder.head = mlp", "Set encoder.head_width=null"],
    ),
    "batch norm in a linear head": (
        {"encoder__head": "linear", "encoder__head_batch_norm": True},
        N,
        "encoder.head_batch_norm",
        ["encoder.head = mlp", "Set encoder.head_batch_norm=false"],
    ),
    "the slow reference on kept squares": (
        {
            "data__source": "folder",
            "data__path": "/pictures",
            "data__in_memory": True,
            "augment__engine": "torchvision",
        },
        N,
        "data.in_memory",
        ["augment.engine = batch"],
    ),
    "bf16 on CPUs": (
        {"train__precision": "bf16"},
        N,
        "train.precision",
        ["fp32", "resources.gpus_per_worker"],
    ),
    "GPU workers without a GPU": (
        {"resources__gpus_per_worker": 1},
        N,
        "resources.gpus_per_worker",
        ["no GPU on this machine", "set it to 0"],
    ),
    "GPU clustering without a GPU": (
        {"resources__e_step_gpus": 1},
        N,
        "resources.e_step_gpus",
        ["no GPU on this machine", "set it to 0"],
    ),
}


def test_bf16_is_for_cpus_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, names in ((True, []), (False, ["train.precision"])):
        monkeypatch.setattr(machine, "multiplies_bfloat16", lambda has=has: has)
        problems, _ = check(config_of(train__precision="bf16"), N, gpus=0)
        assert [problem.name for problem in problems] == names


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_the_knob_its_value_and_the_way_out(case: str) -> None:
    changed, images, name, parts = MISTAKES[case]
    config = config_of(**changed)
    problems, notes = check(config, images, gpus=0)
    (problem,) = [p for p in problems if p.name == name]
    assert str(problem).startswith(f"{name} = ")
    value = config.flatten()[name]
    assert problem.value == (list(value) if isinstance(value, tuple) else value)
    for part in parts:
        assert part in problem.message
    assert not notes  # notes about a plan that cannot run only distract


@pytest.mark.parametrize("case", [case for case in MISTAKES if case != "fewer images than a batch"])
def test_one_mistake_is_one_problem(case: str) -> None:
    changed, images, _, _ = MISTAKES[case]
    assert len(check(config_of(**changed), images, gpus=0)[0]) == 1


def test_several_mistakes_are_all_reported_and_make_refuses_them() -> None:
    config = config_of(e_step__num_clusters=[5000, 6000], loss__queue_size=10**6, optimizer__warmup_epochs=99)
    names = [problem.name for problem in check(config, N)[0]]
    assert sorted(names) == [
        "e_step.num_clusters",
        "e_step.num_clusters",
        "loss.queue_size",
        "optimizer.warmup_epochs",
    ]
    with pytest.raises(ConfigError) as caught:
        make(config, N)
    assert [problem.name for problem in caught.value.problems] == names
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("changed", "images"),
    [
        ({"loss__queue_size": 333}, N),  # the batch need not divide the queue
        ({"loss__queue_size": 10000}, N),  # just filled by the last step
        ({"loss__negative_prototypes": 9}, N),  # all others of the smallest clustering
        ({"e_step__num_clusters": [1000]}, N),
        ({"e_step__num_clusters": [0.0015]}, N),
        ({"train__batch_size": 1000}, N),
        ({"resources__workers": 50}, N),  # two images each
        ({"optimizer__warmup_epochs": 9.5}, N),
        ({"loss__queue_size": 64}, N),  # smaller than a batch
    ],
)
def test_what_just_fits_is_no_mistake(changed: dict[str, Any], images: int) -> None:
    problems, _ = check(config_of(**changed), images, gpus=0)
    assert problems == []


@pytest.mark.parametrize("gpus", [None, 1, 8])
def test_gpus_are_only_missed_where_there_are_none(gpus: int | None) -> None:
    assert check(config_of(resources__gpus_per_worker=1), N, gpus=gpus)[0] == []


@pytest.mark.parametrize(
    ("changed", "images", "holdout", "said"),
    [
        ({"e_step__warmup_epochs": 10}, N, 9, "e_step.warmup_epochs = 10 covers all 10 epochs"),
        ({"loss__queue_size": 1500}, N, 9, "loss.queue_size = 1500 exceeds the 1000 images"),
        ({"e_step__num_clusters": [400]}, N, 9, "400 clusters get 2.5 images each"),
        ({"loss__negative_prototypes": 8}, N, 9, "fewer are left to draw"),
        ({"loss__cluster_positives": 0.1, "loss__queue_size": 9}, N, 9, "9 keys rarely holds another"),
        ({"loss__prototype_ramp_epochs": 10}, N, 9, "only 8 epochs follow the warm-up"),
        ({}, N, 0, "data.holdout"),
    ],
)
def test_what_is_legal_but_worth_saying(
    changed: dict[str, Any], images: int, holdout: int, said: str
) -> None:
    problems, notes = check(config_of(**changed), images, holdout)
    assert problems == []
    assert [said in note for note in notes] == [True]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("images", [321, 500, 1800, 20_000])
def test_the_recipe_for_own_pictures_fits_their_number_as_it_is(images: int, workers: int) -> None:
    config = configs.load("folder", ["data.path=/pictures", f"resources.workers={workers}"])
    held_out = round(images * config.data.holdout)
    assert check(config, images - held_out, held_out, gpus=0) == ([], [])


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_pictures_only_get_notes(workers: int) -> None:
    config = configs.load("folder", ["data.path=/pictures", f"resources.workers={workers}"])
    problems, notes = check(config, 80, 20, gpus=0)
    assert problems == []
    assert ["loss.queue_size" in note for note in notes] == [True]


ANY_SIZES = st.fixed_dictionaries(
    {
        "train__batch_size": st.integers(2, 2000),
        "train__epochs": st.integers(1, 300),
        "resources__workers": st.integers(0, 70),
        "resources__gpus_per_worker": st.sampled_from([0, 0.5, 1]),
        "resources__e_step_gpus": st.sampled_from([0, 1]),
        "loss__queue_size": st.integers(1, 10**6),
        "loss__negative_prototypes": st.one_of(st.sampled_from(["auto", "all"]), st.integers(1, 5000)),
        "e_step__num_clusters": st.lists(
            st.one_of(st.integers(2, 3000), st.floats(1e-6, 0.99)), min_size=1, max_size=3
        ),
        "e_step__warmup_epochs": st.integers(0, 400),
        "optimizer__warmup_epochs": st.floats(0, 300),
        "augment__mean": st.lists(st.floats(0, 1), max_size=4),
        "augment__engine": st.sampled_from(["batch", "torchvision"]),
        "data__source": st.sampled_from(["digits", "folder"]),
        "data__in_memory": st.sampled_from(["auto", True, False]),
        "data__loader_workers": st.one_of(st.none(), st.integers(0, 9)),
        "train__micro_batch": st.one_of(st.none(), st.integers(2, 3000)),
        "encoder__batch_norm": st.sampled_from(["shuffle", "sync", "plain"]),
        "encoder__batch_norm_parts": st.integers(1, 1000),
    }
)


@given(
    changed=ANY_SIZES,
    images=st.integers(0, 5000),
    holdout=st.integers(0, 100),
    gpus=st.sampled_from([None, 0, 2]),
)
def test_check_never_raises_and_make_refuses_what_it_finds(
    changed: dict[str, Any], images: int, holdout: int, gpus: int | None
) -> None:
    config = config_of(**changed)
    problems, notes = check(config, images, holdout, gpus=gpus)
    known = config.flatten()
    assert all(
        isinstance(problem, Problem) and problem.name in known and problem.message for problem in problems
    )
    assert all(isinstance(note, str) for note in notes)
    if check(config, images, holdout)[0]:  # those that do not depend on this machine
        with pytest.raises(ConfigError):
            make(config, images, holdout)


@given(images=st.integers(2, 10**7), share=st.floats(1e-12, 0.9))
def test_the_share_that_a_refusal_proposes_is_enough(images: int, share: float) -> None:
    problems = [
        p
        for p in check(config_of(e_step__num_clusters=[share]), images)[0]
        if p.name == "e_step.num_clusters"
    ]
    for problem in problems:
        proposed = float(re.search(r"use at least ([\d.e-]+)", problem.message)[1])
        assert resolve_num_clusters((proposed,), images)[0] >= 2
    assert bool(problems) == (round(share * images) < 2)


def test_loader_processes_that_are_not_needed_are_worth_saying() -> None:
    def notes(**changed: Any) -> list[str]:
        return check(config_of(data__loader_workers=2, **changed), N, 200)[1]

    assert notes() == ["data.loader_workers = 2: not needed, the images are in memory"]
    assert notes(**FILES | {"data__in_memory": True}) == notes()
    assert notes(**FILES) == []
    assert notes(augment__engine="torchvision") == []
    assert check(config_of(data__loader_workers=0), N, 200)[1] == []


@pytest.mark.parametrize("wanted", ["auto", "all"])
def test_negatives_that_are_no_number_need_no_check(wanted: str) -> None:
    assert check(config_of(loss__negative_prototypes=wanted, e_step__num_clusters=[2]), N, 200) == ([], [])
