"""Which trials share a warm-up, and which of them trains it."""

from __future__ import annotations

from pathlib import Path

from small import DIGITS_RUN

from pcl_ray import config
from pcl_ray.sweep import warm_ups
from pcl_ray.sweep.trial_point import TrialPoint
from pcl_ray.sweep.warm_ups import Warmups

BASE = config.load("digits", (*DIGITS_RUN, "train.epochs=5", "e_step.warmup_epochs=2"))


def test_another_temperature_or_seed_has_a_warmup_of_its_own() -> None:
    points = [TrialPoint({"loss.temperature": t}, s) for t in (0.1, 0.2) for s in (0, 1)]
    assert len({warm_ups.key_of(point.config(BASE)) for point in points}) == 4
    later = {
        "e_step.alpha": 3.0,
        "e_step.num_clusters": "5",
        "loss.prototype_weight": 0.5,
        "e_step.restarts": 3,
    }
    key = warm_ups.key_of(TrialPoint({}, 0).config(BASE))
    assert warm_ups.key_of(TrialPoint(later, 0).config(BASE)) == key
    assert warm_ups.key_of(TrialPoint({"e_step.warmup_epochs": 3}, 0).config(BASE)) != key


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_claim_that_nobody_hears_of_any_more_goes_to_the_next(tmp_path: Path) -> None:
    clock = Clock()
    warmups = Warmups(str(tmp_path), clock)
    assert warmups.claim("k", "a").kind == "train"
    assert warmups.claim("k", "b").kind == "wait"
    clock.seconds += 29
    assert warmups.claim("k", "b").kind == "wait"
    warmups.alive("k", "a")
    clock.seconds += 29
    assert warmups.claim("k", "b").kind == "wait"
    clock.seconds += 1
    assert warmups.claim("k", "b").kind == "train"
    clock.seconds += 29
    warmups.alive("k", "a")  # the old holder: no effect
    assert warmups.claim("k", "a").kind == "wait"
    clock.seconds += 1
    assert warmups.claim("k", "a").kind == "train"


def test_what_is_given_back_is_the_next_one_s_and_what_is_trained_everybody_s(tmp_path: Path) -> None:
    warmups = Warmups(str(tmp_path))
    assert warmups.claim("k", "a") == warm_ups.Claim("train", str(tmp_path / "k"))
    warmups.release("k", "b")  # not b's to give back
    assert warmups.claim("k", "b").kind == "wait"
    warmups.release("k", "a")
    assert warmups.claim("k", "b").kind == "train"
    (tmp_path / "k").mkdir()
    trained = tmp_path / "k" / "epoch_00002.pt"
    trained.touch()
    assert warmups.claim("k", "a") == warm_ups.Claim("ready", str(trained))
    assert Warmups(str(tmp_path)).claim("k", "c").kind == "ready"  # an actor that was started again
