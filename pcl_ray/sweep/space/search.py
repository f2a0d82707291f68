"""How a space is searched: points of a grid or random search, Optuna's suggestions, schedulers in epochs."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from pcl_ray.config import RunConfig
from pcl_ray.plan import e_step_epochs
from pcl_ray.support.text import value_text
from pcl_ray.sweep.space import spaces
from pcl_ray.sweep.space.settings import SweepConfig
from pcl_ray.sweep.space.spaces import Space
from pcl_ray.sweep.trial_point import POINT

_GRID_UP_TO = 64  # combinations that are all tried where nothing else is said
_SAMPLES = 20
_SCORE, _TIME = "score", "epoch"


def method(space: Space, settings: SweepConfig) -> str:
    """optuna, random or grid."""
    if settings.search != "auto":
        return settings.search
    if settings.scheduler == "pbt":
        return "random"
    few = (spaces.size(space) or _GRID_UP_TO + 1) <= _GRID_UP_TO
    return "grid" if few and settings.samples is None and space.num_samples is None else "optuna"


def samples(space: Space, settings: SweepConfig) -> int:
    """Configurations to try."""
    if method(space, settings) == "grid":
        return spaces.size(space) or 0
    return settings.samples or space.num_samples or _SAMPLES


def points(
    space: Space, settings: SweepConfig, base: RunConfig, recipe_point: Mapping[str, Any] | None = None
) -> list[dict[str, Any]] | None:
    """Every trial of a grid or a random search, None for Optuna, whose points are not known beforehand.

    recipe_point: the recipe's own values, which come first; None: they are not tried. Of a grid, all seeds of
    the first value of α and K come before the second: trials that need a warm-up of their own start first, so
    that those that share one seldom wait for it.
    """
    how = method(space, settings)
    if how == "optuna":
        return None
    if how == "grid":
        drawn = spaces.grid(space)
    else:
        drawn = spaces.draw(space, samples(space, settings), settings.search_seed)
    different: list[dict[str, Any]] = []
    for point in drawn:
        written = _with_texts(spaces.snap(space, point, settings.temperature_levels))
        if written not in different and written != recipe_point:
            different.append(written)
    runs = [(values, base.seed + s) for values in different for s in range(settings.seeds)]
    if how == "grid" and settings.seeds > 1:
        groups = list(dict.fromkeys(map(_e_step_values, different)))
        runs = sorted(runs, key=lambda run: groups.index(_e_step_values(run[0])))
    in_population = settings.scheduler == "pbt"
    if recipe_point is not None:
        runs = [*_of_recipe(recipe_point, settings, base), *runs]
    return [
        {"values": values, "seed": seed, "member": number if in_population else None}
        for number, (values, seed) in enumerate(runs)
    ]


def _of_recipe(
    recipe_point: Mapping[str, Any], settings: SweepConfig, base: RunConfig
) -> list[tuple[dict[str, Any], int]]:
    """(values, seed) of each trial of the recipe itself."""
    return [(dict(recipe_point), base.seed + s) for s in range(settings.seeds)]


def recipe_point(space: Space, recipe: RunConfig) -> dict[str, Any]:
    """The recipe's own values of the knobs that are swept, as points have them."""
    values = recipe.flatten()
    return _with_texts({name: values[name] for name in space.domains})


def num_trials(
    space: Space, settings: SweepConfig, base: RunConfig, recipe_point: Mapping[str, Any] | None
) -> int:
    """All trials that there will be, those of the recipe and every seed among them."""
    listed = points(space, settings, base, recipe_point)
    if listed is not None:
        return len(listed)
    return (samples(space, settings) + (recipe_point is not None)) * settings.seeds


def _with_texts(point: dict[str, Any]) -> dict[str, Any]:
    """The point with its lists as texts, as the command line would have them."""
    return {
        name: value_text(value) if isinstance(value, list | tuple) else value for name, value in point.items()
    }


def _e_step_values(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in sorted(point.items()) if name.startswith("e_step."))


class Listed(Searcher):
    """Points made beforehand, one after the other."""

    def __init__(self, configs: list[dict[str, Any]]):
        super().__init__(metric=_SCORE, mode="max")
        self._configs, self._next = configs, 0

    def suggest(self, trial_id: str) -> Any:
        if self._next >= len(self._configs):
            return Searcher.FINISHED
        self._next += 1
        return copy.deepcopy(self._configs[self._next - 1])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learns nothing from it."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(str(self._next))

    def restore(self, checkpoint_path: str) -> None:
        self._next = int(Path(checkpoint_path).read_text())


def optuna(space: Space, settings: SweepConfig) -> Any:
    """Optuna's TPE over the space; with several seeds it sees one value a configuration, the mean."""
    domains: Any = spaces.to_tune(space)
    inner: Any = _Snapped(domains, metric=_SCORE, mode="max", seed=settings.search_seed)
    inner.snap = partial(spaces.snap, space, levels=settings.temperature_levels)
    return _Repeated(inner, repeat=settings.seeds) if settings.seeds > 1 else inner


def after_recipe(
    searcher: Any, recipe_point: Mapping[str, Any], settings: SweepConfig, base: RunConfig
) -> Any:
    """The trials of the recipe, then those that the searcher suggests."""
    first = [
        {POINT: {"values": values, "seed": seed, "member": None}}
        for values, seed in _of_recipe(recipe_point, settings, base)
    ]
    return RecipeFirst(first, searcher)


class RecipeFirst(Searcher):
    """Points made beforehand, then those of a searcher, which learns from its own alone: the recipe's values
    may lie outside of what it searches.
    """

    def __init__(self, configs: list[dict[str, Any]], searcher: Searcher):
        super().__init__(metric=_SCORE, mode="max")
        self._listed, self._searcher = Listed(configs), searcher
        self._of_searcher: set[str] = set()  # trials

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return self._searcher.set_search_properties(metric, mode, config, **spec)

    def suggest(self, trial_id: str) -> Any:
        listed = self._listed.suggest(trial_id)
        if listed != Searcher.FINISHED:
            return listed
        self._of_searcher.add(trial_id)
        return self._searcher.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._of_searcher:
            self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._of_searcher:
            self._searcher.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        state = (_state_of(self._listed), self._of_searcher, _state_of(self._searcher))
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        listed, self._of_searcher, searcher = pickle.loads(Path(checkpoint_path).read_bytes())
        _restore(self._listed, listed)
        _restore(self._searcher, searcher)


def _state_of(searcher: Searcher) -> bytes:
    """What the searcher saves. Tune renames the one file that is saved: nothing may lie beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        searcher.save(str(path))
        return path.read_bytes()


def _restore(searcher: Searcher, state: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(state)
        searcher.restore(str(path))


class _Snapped(OptunaSearch):
    """Suggestions with τ on its levels, numbers as they are written."""

    snap: Callable[[dict[str, Any]], dict[str, Any]]

    def suggest(self, trial_id: str) -> Any:
        suggested = super().suggest(trial_id)
        if not isinstance(suggested, dict):
            return suggested
        return self.snap(
            {
                name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in suggested.items()
            }
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial that waits for another's warm-up, or cannot go on, tells so and has no score yet."""
        if _SCORE in result:
            super().on_trial_result(trial_id, result)


class _Repeated(Repeater):
    """Ray's Repeater, which forgets its groups in a restored experiment."""

    def save(self, checkpoint_path: str) -> None:  # type: ignore[override]
        state = (self.get_state(), _state_of(self.searcher))
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:  # type: ignore[override]
        groups, of_searcher = pickle.loads(Path(checkpoint_path).read_bytes())
        self.set_state(groups)
        _restore(self.searcher, of_searcher)


def grace_epochs(config: RunConfig) -> int:
    """No trial is stopped before this epoch: α and K act from the first E-step, which is no verdict yet."""
    third = e_step_epochs(config.e_step, config.train.epochs)[2:3]
    return third[0] if third else config.train.epochs


def scheduler(space: Space, settings: SweepConfig, base: RunConfig) -> TrialScheduler:
    """Counts epochs, since `training_iteration` starts again in a resumed trial."""
    grace, whole = grace_epochs(base), base.train.epochs
    of_score: dict[str, Any] = {"metric": _SCORE, "mode": "max", "time_attr": _TIME}
    match settings.scheduler:
        case "none":
            return FIFOScheduler()
        case "asha":
            return ASHAScheduler(
                **of_score, max_t=whole, grace_period=grace, reduction_factor=settings.reduction_factor
            )
        case "median":
            return MedianStoppingRule(**of_score, grace_period=grace, min_samples_required=3)
        case "pbt":
            return population(space, settings, base, of_score)


def perturb_epochs(settings: SweepConfig, base: RunConfig) -> int:
    e_step = base.e_step
    longest_gap = max(e_step.every_epochs, e_step.early_every_epochs if e_step.early_epochs else 1)
    return settings.perturb_epochs or max(round(base.train.epochs / 10), longest_gap)


class _Population(PopulationBasedTraining):
    """Ray's waits for ever for a member that has failed, which it counts among those that are to be compared,
    and in a resumed sweep, where it counts from the first comparison on although the members are later.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Sets the next comparison an interval after the latest member where all wait and none is behind,
        then chooses as Ray does.
        """
        live = tune_controller.get_live_trials()
        times = [self._trial_state[trial].last_train_time for trial in live]
        all_wait = bool(live) and all(trial.status == trial.PAUSED for trial in live)
        if all_wait and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync = max(times) + self._perturbation_interval
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        tune_controller.get_live_trials().discard(trial)
        waiting = [other for other in tune_controller.get_live_trials() if other.status == other.PAUSED]
        behind = [
            other
            for other in tune_controller.get_live_trials()
            if self._trial_state[other].last_train_time < self._next_perturbation_sync
        ]
        # the failed one was the last that others waited for: what comes after their results is still to do
        if waiting and not behind:
            first = waiting[0]
            self.on_trial_result(tune_controller, first, self._trial_state[first].last_result or {})


def population(
    space: Space, settings: SweepConfig, base: RunConfig, of_score: dict[str, Any]
) -> PopulationBasedTraining:
    """Jaderberg et al., 2017: the weights of a weak member become those of a strong one, its values that
    one's, perturbed. The learning rate goes on by epoch, and prototypes are made anew at the next E-step
    anyway.
    """
    return _Population(
        **of_score,
        perturbation_interval=perturb_epochs(settings, base),
        burn_in_period=grace_epochs(base),
        hyperparam_mutations={name: _mutations(domain) for name, domain in spaces.to_tune(space).items()},
        quantile_fraction=settings.quantile,
        resample_probability=0.25,
        custom_explore_fn=_Within(space),
        log_config=False,
        synch=True,
        require_attrs=False,
    )


def _mutations(domain: Domain) -> Any:
    return list(domain.categories) if isinstance(domain, Categorical) else domain


class _Within:
    """Perturbed by factors, a value may leave its range: it is brought back."""

    def __init__(self, space: Space):
        self.space = space

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        for name, domain in self.space.domains.items():
            if name in config and isinstance(domain, Float):
                config[name] = float(f"{min(max(config[name], domain.lower), domain.upper):.6g}")
            elif name in config and isinstance(domain, Integer):
                config[name] = int(min(max(config[name], domain.lower), domain.upper - 1))
        return config


def population_space(listed: list[dict[str, Any]], space: Space) -> dict[str, Any]:
    """The members as Tune's own generator makes them, the only one that its populations take. Values lie
    beside the point, where they can be changed.
    """
    beside = {name: tune.sample_from(_ValueOf(name)) for name in space.domains}
    return {POINT: tune.grid_search(listed), **beside}


class _ValueOf:
    def __init__(self, name: str):
        self.name = name

    def __call__(self, spec: Any) -> Any:
        return spec["config"][POINT]["values"][self.name]
