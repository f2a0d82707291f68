from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.plan import Surroundings, fit


def around(images: int, **changes: object) -> Surroundings:
    return Surroundings(
        **{"images": images, "side": 150, "cores": 2, "gpus": 0, "on_cluster": False, **changes}
    )  # type: ignore[arg-type]


def test_as_many_pictures_as_it_was_measured_with_leave_the_recipe_as_it_is() -> None:
    fitting = fit(configs.load("folder"), set(), around(477))
    assert fitting.changes == {
        "resources.workers": 0,
        "train.batch_size": 32,
        "train.epochs": 50,
        "e_step.warmup_epochs": 10,
        "loss.queue_size": 256,
        "augment.image_size": 32,
        "encoder.batch_norm_parts": 2,
    }
    (note,) = fitting.notes
    assert note.startswith("chosen for 477 pictures of about 150 px, 2 cores and no GPU: workers 0, ")


@given(st.integers(6, 300_000), st.integers(1, 64), st.integers(0, 8), st.integers(1, 4000))
def test_whatever_it_chooses_can_be_trained(images: int, cores: int, gpus: int, side: int) -> None:
    config = configs.load("folder", {"data.path": "/pictures"})
    changes = fit(config, set(), around(images, cores=cores, gpus=gpus, side=side)).changes
    fitted = configs.with_overrides(config, changes)
    assert plans.check(fitted, images, 1, gpus=gpus)[0] == []
    assert fitted.loss.queue_size <= max(images, 2)


@pytest.mark.parametrize(
    ("surroundings", "expected"),
    [
        (around(60), {"train.batch_size": 8, "train.epochs": 100, "loss.queue_size": 32}),
        (around(25), {"train.batch_size": 4, "train.epochs": 117}),
        (around(30_000), {"train.epochs": 30, "e_step.warmup_epochs": 6, "loss.queue_size": 4096}),
        (around(200_000), {"train.epochs": 20}),
        (around(30_000, cores=16), {"resources.workers": 4}),
        (around(600, cores=16), {"resources.workers": 0}),
        (
            around(600, gpus=1),
            {"resources.workers": 0, "resources.gpus_per_worker": 1, "augment.image_size": 64},
        ),
        (around(6_000, gpus=4), {"resources.workers": 4, "resources.gpus_per_worker": 1}),
        (around(600, side=20), {"augment.image_size": 16}),
        (around(600, side=None), {"augment.image_size": 32}),
    ],
)
def test_what_follows_from_pictures_and_machine(surroundings: Surroundings, expected: dict[str, int]) -> None:
    changes = fit(configs.load("folder"), set(), surroundings).changes
    assert expected.items() <= changes.items()


def test_a_machine_of_others_is_not_chosen_for() -> None:
    assert "resources.workers" not in fit(configs.load("folder"), set(), around(600, on_cluster=True)).changes


def test_a_knob_given_wins_and_the_others_follow_it() -> None:
    config = configs.load("folder", {"train.epochs": 5, "resources.workers": 3, "loss.queue_size": 64})
    given_knobs = {"train.epochs", "resources.workers", "loss.queue_size"}
    changes = fit(config, given_knobs, around(600)).changes
    assert not given_knobs & set(changes)
    assert changes["e_step.warmup_epochs"] == 1
    assert changes["train.batch_size"] % 3 == 0
    assert "encoder.batch_norm_parts" not in changes


def test_other_recipes_keep_what_can_be_filled() -> None:
    config = configs.load("digits")
    assert fit(config, set(), around(1438)).changes == {}
    assert fit(config, set(), around(0)).changes == {}


def test_a_batch_and_a_queue_that_cannot_be_filled_are_reduced_with_a_note() -> None:
    config = configs.load("digits", {"train.epochs": 2})
    fitting = fit(config, {"train.epochs"}, around(50))
    assert fitting.changes == {"train.batch_size": 32, "loss.queue_size": 64}
    assert [note.partition(" = ")[0] for note in fitting.notes] == ["train.batch_size", "loss.queue_size"]
    assert fit(config, {"train.epochs", "train.batch_size", "loss.queue_size"}, around(50)).changes == {}
