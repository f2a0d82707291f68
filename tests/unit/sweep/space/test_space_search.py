from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pcl_ray import config as configs
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from ray import tune  # noqa: E402
from ray.tune.experiment import Trial  # noqa: E402
from ray.tune.schedulers import TrialScheduler  # noqa: E402
from search_spaces import space_of  # noqa: E402

from pcl_ray.sweep.space import search  # noqa: E402
from pcl_ray.sweep.space.settings import SweepConfig  # noqa: E402
from pcl_ray.sweep.space.spaces import Space  # noqa: E402

EPOCHS = 6


GRID = space_of(
    {"e_step.num_clusters": tune.choice([[20], [40]]), "loss.temperature": tune.choice([0.1, 0.2, 0.4])}
)
RANGE = space_of({"e_step.alpha": tune.loguniform(1, 20)})


# --- which search, how many samples, which points


@pytest.mark.parametrize(
    ("space", "settings", "method", "samples"),
    [
        (GRID, {}, "grid", 6),
        (GRID, {"samples": 4}, "optuna", 4),
        (GRID, {"scheduler": "pbt"}, "random", 20),
        (RANGE, {}, "optuna", 20),
        (RANGE, {"search": "random", "samples": 3}, "random", 3),
        (space_of({"e_step.alpha": tune.randint(1, 66)}), {}, "optuna", 20),  # 65 values, one too many
        (space_of({"e_step.alpha": tune.randint(1, 65)}), {}, "grid", 64),
        (replace(space_of({"e_step.alpha": tune.choice([1, 10])}), num_samples=7), {}, "optuna", 7),
    ],
)
def test_method_and_samples(space: Space, settings: dict[str, Any], method: str, samples: int) -> None:
    config = SweepConfig(**settings)
    assert search.method(space, config) == method
    assert search.samples(space, config) == samples


def test_all_seeds_of_one_k_come_before_the_next_k() -> None:
    points = search.points(GRID, SweepConfig(seeds=2), configs.load("digits", ["seed=5"]))
    assert points is not None
    assert [
        (point["values"]["e_step.num_clusters"], point["values"]["loss.temperature"], point["seed"])
        for point in points
    ] == [(k, tau, seed) for k in ("20", "40") for tau in (0.1, 0.2, 0.4) for seed in (5, 6)]
    assert {point["member"] for point in points} == {None}


def test_points_that_fall_on_the_same_level_are_tried_once() -> None:
    space = space_of({"loss.temperature": tune.uniform(0.1, 0.5)})
    settings = SweepConfig(search="random", samples=50, temperature_levels=3)
    points = search.points(space, settings, configs.load("digits"))
    assert points is not None
    assert sorted(point["values"]["loss.temperature"] for point in points) == [0.1, 0.3, 0.5]


def test_optuna_has_no_points_beforehand_and_members_have_numbers() -> None:
    base = configs.load("digits")
    assert search.points(RANGE, SweepConfig(), base) is None
    points = search.points(RANGE, SweepConfig(scheduler="pbt", samples=3), base)
    assert points is not None
    assert [point["member"] for point in points] == [0, 1, 2]


def test_listed_goes_on_after_the_last_one_it_gave(tmp_path: Path) -> None:
    listed = search.Listed([{"a": 1}, {"a": 2}])
    assert listed.suggest("one") == {"a": 1}
    listed.save(str(tmp_path / "state"))
    restored = search.Listed([{"a": 1}, {"a": 2}])
    restored.restore(str(tmp_path / "state"))
    assert restored.suggest("two") == {"a": 2}
    assert restored.suggest("three") == search.Listed.FINISHED


def test_the_recipe_comes_first_and_once() -> None:
    base = configs.load("digits", ["seed=5"])
    within = {"e_step.num_clusters": "40", "loss.temperature": 0.2}
    points = search.points(GRID, SweepConfig(seeds=2), base, within)
    assert points is not None
    assert [(point["values"], point["seed"]) for point in points[:2]] == [(within, 5), (within, 6)]
    assert len(points) == search.num_trials(GRID, SweepConfig(seeds=2), base, within) == 12
    outside = within | {"loss.temperature": 0.9}
    assert search.num_trials(GRID, SweepConfig(seeds=2), base, outside) == 14
    assert search.num_trials(RANGE, SweepConfig(samples=3, seeds=2), base, {"e_step.alpha": 7.0}) == 8
    assert search.recipe_point(GRID, configs.with_overrides(base, {"e_step.num_clusters": [7, 9]})) == {
        "e_step.num_clusters": "7,9",
        "loss.temperature": 0.2,
    }


def suggested(searcher: Any, trials: range) -> list[Any]:
    return [searcher.suggest(f"trial{number}") for number in trials]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_searcher_after_the_recipe_goes_on_where_it_was(seeds: int, tmp_path: Path) -> None:
    """Saved as Tune does it: one file, which is renamed."""
    base, settings = configs.load("digits"), SweepConfig(seeds=seeds)

    def new() -> Any:
        return search.after_recipe(search.optuna(RANGE, settings), {"e_step.alpha": 500.0}, settings, base)

    one = new()
    first = suggested(one, range(2 * seeds))
    assert [config["point"]["values"] for config in first[:seeds]] == [{"e_step.alpha": 500.0}] * seeds
    assert all("e_step.alpha" in config for config in first[seeds:])
    for number in range(2 * seeds):
        one.on_trial_complete(f"trial{number}", {"score": 0.1 * number, "epoch": 1})
    one.save_to_dir(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1  # nothing lies beside it
    two = new()
    two.restore_from_dir(str(tmp_path))
    rest = range(2 * seeds, 6 * seeds)
    assert suggested(two, rest) == suggested(one, rest)


def test_the_searcher_learns_nothing_from_the_recipe_s_trials() -> None:
    settings = SweepConfig()
    inner = search.optuna(RANGE, settings)
    searcher = search.after_recipe(inner, {"e_step.alpha": 500.0}, settings, configs.load("digits"))
    searcher.suggest("recipe")
    searcher.on_trial_result("recipe", {"epoch": 1, "training_iteration": 1, "score": 0.9})
    searcher.on_trial_complete("recipe", {"epoch": 1, "training_iteration": 1, "score": 0.9})
    searcher.suggest("own")
    searcher.on_trial_complete("own", {"epoch": 1, "training_iteration": 1, "score": 0.5})
    assert [trial.value for trial in inner._ot_study.trials] == [0.5]


def test_optuna_hears_only_of_results_that_have_a_score() -> None:
    """A trial that waits for another's warm-up tells how far it is, and no score."""
    searcher = search.optuna(space_of({"e_step.alpha": tune.loguniform(1, 100)}), SweepConfig())
    assert set(searcher.suggest("one")) == {"e_step.alpha"}
    searcher.on_trial_result("one", {"epoch": 0, "training_iteration": 1})
    searcher.on_trial_result("one", {"epoch": 1, "training_iteration": 2, "score": 0.5})
    searcher.on_trial_complete("one", {"epoch": 1, "training_iteration": 3, "score": 0.5})
    assert searcher._ot_study.best_value == 0.5


# --- populations


def population(members: int = 2) -> Any:
    base = configs.load("digits", [f"train.epochs={EPOCHS}", "e_step.warmup_epochs=1"])
    settings = SweepConfig(scheduler="pbt", samples=members, perturb_epochs=1, quantile=0.5)
    return search.scheduler(RANGE, settings, base)


class Controller:
    """Does with trials what Tune's controller does: starts those that are pending and the one that the
    scheduler chooses, one epoch each, and tells the scheduler of results, ends and failures.
    """

    search_alg = None

    def __init__(self, scheduler: Any, epochs: list[int], fails_at: dict[int, int] | None = None):
        self.scheduler = scheduler
        self.fails_at = fails_at or {}
        self.trials = [
            Trial("member", config={"e_step.alpha": 5.0}, trial_id=str(i), stub=True)
            for i in range(len(epochs))
        ]
        self.epochs = dict(zip(self.trials, epochs, strict=True))
        self.live = set(self.trials)
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> set[Trial]:
        return self.live

    def _schedule_trial_save(self, trial: Trial, result: Any = None) -> None:
        return None

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        trial.status = Trial.PAUSED

    def run(self) -> None:
        """Until all have ended, or nobody trains and nobody is chosen to."""
        while self.live:
            chosen = self.scheduler.choose_trial_to_run(self)
            pending = [trial for trial in self.trials if trial.status == Trial.PENDING]
            starting = list(dict.fromkeys([*pending, *([chosen] if chosen else [])]))
            if not starting:
                return
            for trial in starting:
                trial.status = Trial.RUNNING
            for trial in starting:
                self._train(trial)

    def _train(self, trial: Trial) -> None:
        while trial.status == Trial.RUNNING:
            self.epochs[trial] += 1
            if self.fails_at.get(int(trial.trial_id)) == self.epochs[trial]:
                self.scheduler.on_trial_error(self, trial)
                trial.status = Trial.ERROR
                self.live.discard(trial)
                return
            result = {"epoch": self.epochs[trial], "score": float(trial.trial_id)}
            if self.epochs[trial] >= EPOCHS:
                self.scheduler.on_trial_complete(self, trial, result)
                trial.status = Trial.TERMINATED
                self.live.discard(trial)
            elif self.scheduler.on_trial_result(self, trial, result) == TrialScheduler.PAUSE:
                trial.status = Trial.PAUSED


@pytest.mark.parametrize(
    "epochs",
    [
        [0, 0],
        [4, 3],  # one ends at once, the other waits for it
        [3, 4],
        [3, 3],  # both come back later than the first comparison
        [4, 4],
        [5, 5, 3, 3],
        [0, 4],
        [4, 4, 4],
    ],
)
def test_members_of_a_population_end_wherever_they_go_on_from(epochs: list[int]) -> None:
    random.seed(0)
    controller = Controller(population(len(epochs)), epochs)
    controller.run()
    assert [trial.status for trial in controller.trials] == [Trial.TERMINATED] * len(epochs)
    assert set(controller.epochs.values()) == {EPOCHS}


@pytest.mark.parametrize("fails_at", [{0: 1}, {1: 4}, {2: 5}, {0: 3, 2: 5}])
def test_a_population_goes_on_without_members_that_fail(fails_at: dict[int, int]) -> None:
    random.seed(0)
    controller = Controller(population(3), [0, 0, 0], fails_at)
    controller.run()
    assert [trial.status for trial in controller.trials] == [
        Trial.ERROR if i in fails_at else Trial.TERMINATED for i in range(3)
    ]


def test_who_waits_for_a_comparison_is_not_chosen_while_another_trains() -> None:
    controller = Controller(population(), [0, 0])
    waiting, training = controller.trials
    waiting.status = training.status = Trial.RUNNING
    decision = controller.scheduler.on_trial_result(controller, waiting, {"epoch": 4, "score": 1.0})
    assert decision == TrialScheduler.PAUSE
    waiting.status = Trial.PAUSED
    assert controller.scheduler.choose_trial_to_run(controller) is None


def test_a_perturbed_value_is_brought_back_into_its_range() -> None:
    space = space_of({"e_step.alpha": tune.loguniform(1, 20), "encoder.width": tune.randint(4, 9)})
    explore = population_of(space)._custom_explore_fn
    assert explore({"e_step.alpha": 24.0, "encoder.width": 10}) == {"e_step.alpha": 20.0, "encoder.width": 8}
    assert explore({"e_step.alpha": 0.8, "encoder.width": 3}) == {"e_step.alpha": 1.0, "encoder.width": 4}
    assert explore({"e_step.alpha": 5.0}) == {"e_step.alpha": 5.0}


def population_of(space: Space) -> Any:
    return search.scheduler(space, SweepConfig(scheduler="pbt", samples=2), configs.load("digits"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["e_step.warmup_epochs=2", "e_step.every_epochs=3", "train.epochs=50"], 8),
        (["e_step.warmup_epochs=2", "e_step.every_epochs=3", "train.epochs=5"], 5),
        (["e_step.warmup_epochs=2", "e_step.early_epochs=7", "e_step.early_every_epochs=5"], 9),
    ],
)
def test_no_trial_is_stopped_before_its_second_clustering(words: list[str], expected: int) -> None:
    assert search.grace_epochs(configs.load("digits", words)) == expected
