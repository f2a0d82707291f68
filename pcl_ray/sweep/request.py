"""The request for a sweep, with all mistakes in space, settings and recipe at once before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import LIDAR
from pcl_ray.errors import ConfigError, DataError, Problem
from pcl_ray.plan import FILE_SOURCES, RunPlan, resolve_num_clusters
from pcl_ray.runs import request
from pcl_ray.support.text import value_text
from pcl_ray.sweep.space import checks, domains, objective, search, search_checks, settings, spaces
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.space.settings import PREFIX, SweepConfig
from pcl_ray.sweep.space.spaces import Space


@dataclass(frozen=True)
class SweepRequest:
    """A space, a recipe and settings without mistakes, and what follows from them."""

    space: Space
    space_source: str  # name or path that `space` was read from
    recipe: RunConfig  # with the KEY=VALUE of the command line
    base: RunConfig  # the same as trials run it: what all of them have in common
    plan: RunPlan  # of the recipe itself
    settings: SweepConfig
    recipe_point: dict[str, Any] | None  # its own values of the swept knobs; None: they are not tried
    words: tuple[str, ...]  # KEY=VALUE of the recipe
    notes: tuple[str, ...]


def check(
    name_or_path: str,
    words: Iterable[str],
    options: Mapping[str, Any],
    recipe_name: str | None = None,
    *,
    stored: bool = False,
) -> SweepRequest:
    """The request. words: KEY=VALUE, of the recipe or `sweep.…`; options: `sweep.…` values that were given as
    options of the command; recipe_name: instead of the space's BASE; stored: of a sweep that goes on, which
    may hold what is refused today.

    Raises ConfigError with every mistake.
    """
    words = list(words)
    space = spaces.load(name_or_path)
    if recipe_name:
        space = replace(space, base=recipe_name)
    of_recipe, of_sweep = _divided(words)
    sweep_settings, problems = settings.read({**of_sweep, **options})
    problems += _swept_as_well(of_recipe, space)
    overrides = {**_known_only(space.fixed), **of_recipe}
    overrides = {name: value for name, value in overrides.items() if name not in space.domains}
    recipe, recipe_problems = configs.load_leniently(space.base, overrides)
    recipe, weights_problems = request.with_backbone_of_weights(recipe)
    recipe_problems += weights_problems
    base, notes = as_trials(with_first_values(recipe, space), user_set=set(of_recipe) | set(space.fixed))
    plan, base_problems = _checked_base(base, recipe_problems, stored)
    problems += base_problems
    num_images, num_holdout = (plan.num_images, plan.num_holdout) if plan is not None else (0, 0)
    problems += checks.problems(space, base, num_images, num_holdout)
    problems += search_checks.problems(space, sweep_settings, base)
    problems += _objective_problems(space, sweep_settings, base, num_images)
    if problems:
        different = {(problem.name, str(problem.value), problem.message): problem for problem in problems}
        raise ConfigError(list(different.values()))
    assert plan is not None
    recipe_point = None
    if sweep_settings.with_recipe and sweep_settings.scheduler != "pbt":
        recipe_point, note = _recipe_point(recipe, base, space, plan)
        notes += [note] if note else []
    return SweepRequest(
        space=space,
        space_source=name_or_path,
        recipe=recipe,
        base=base,
        plan=plan,
        settings=sweep_settings,
        recipe_point=recipe_point,
        words=tuple(word for word in words if not word.startswith(PREFIX)),
        notes=tuple(notes),
    )


def with_first_values(recipe: RunConfig, space: Space) -> RunConfig:
    """The recipe with a value of the space for each swept knob: its own may not fit these data, and no trial
    has it. A value that is wrong is left out here and reported by `space.checks`.
    """
    for name, domain in space.domains.items():
        try:
            recipe = configs.with_overrides(recipe, {name: spaces.some_value(domain)})
        except (ConfigError, ValueError, TypeError):
            continue
    return recipe


def _recipe_point(
    recipe: RunConfig, base: RunConfig, space: Space, plan: RunPlan
) -> tuple[dict[str, Any] | None, str]:
    """The recipe's own values as a point, or None and why there is none: they need not fit these data."""
    point = search.recipe_point(space, recipe)
    try:
        config = configs.with_overrides(base, point)
        problems = plans.check(config, plan.num_images, plan.num_holdout)[0]
    except ConfigError as error:
        problems = list(error.problems)
    if not problems:
        return point, ""
    return None, f"the recipe's own values are not tried: {problems[0]}"


def as_trials(recipe: RunConfig, user_set: set[str]) -> tuple[RunConfig, list[str]]:
    """The recipe as trials run it: on one device, in the trial's own process, unless it has several GPU
    workers or an override says otherwise.
    """
    resources = recipe.resources
    workers = resources.workers
    notes: list[str] = []
    changes: dict[str, Any] = {}
    several_devices = workers > 1 and resources.gpus_per_worker > 0
    if workers and "resources.workers" not in user_set and not several_devices:
        notes.append(
            f"trials train in one process each (resources.workers = 0, the recipe has {workers}):"
            " several side by side use the machine better"
        )
        workers = 0
        changes["resources.workers"] = 0
    # A trial takes only its own cores: other trials use the machine as well.
    if not workers:
        cpus = max(1, int(resources.cpus_per_worker))
        changes["e_step.threads"] = recipe.e_step.threads or cpus
        if recipe.data.source in FILE_SOURCES and recipe.data.loader_workers is None:
            changes["data.loader_workers"] = max(cpus - 1, 1) if resources.gpus_per_worker else cpus // 4
    return configs.with_overrides(recipe, changes), notes


def with_objective(base: RunConfig, metric: str) -> RunConfig:
    """The configuration of trials compared by this metric: LiDAR needs its own views at every evaluation."""
    if metric != LIDAR.name or base.evaluation.lidar_views:
        return base
    return configs.with_overrides(base, {"evaluation.lidar_views": 10})


def objective_of(space: Space, sweep_settings: SweepConfig, *, labelled: bool) -> Objective:
    """What trials are compared by. Raises ConfigError for a metric that cannot compare trials of the data."""
    metric = sweep_settings.objective or space.objective or objective.default(labelled)
    mode = sweep_settings.mode or space.mode
    problems = objective.problems(metric, mode, labelled=labelled, name=_objective_name(sweep_settings))
    if problems := list(problems):
        raise ConfigError(problems)
    return objective.of(metric, mode)


def _objective_name(sweep_settings: SweepConfig) -> str:
    """Where the objective was named."""
    return "sweep.objective" if sweep_settings.objective else "OBJECTIVE"


def _objective_problems(
    space: Space, sweep_settings: SweepConfig, base: RunConfig, num_images: int
) -> list[Problem]:
    metric = sweep_settings.objective or space.objective
    if metric is None:
        return []
    name = _objective_name(sweep_settings)
    clustering, fewest = objective.clustering_of(metric), _fewest_clusterings(space, base, num_images)
    if clustering is not None and clustering >= fewest:
        return [Problem(name, metric, f"some trials have {fewest} clusterings, numbered from 0")]
    # Whether there are labels shows when the data are read.
    return list(objective.problems(metric, sweep_settings.mode or space.mode, labelled=True, name=name))


def _fewest_clusterings(space: Space, base: RunConfig, num_images: int) -> int:
    """The number of clusterings of the trial that has the fewest; without images, auto counts as one."""
    swept = space.domains.get("e_step.num_clusters")
    values = domains.values(swept) if swept is not None else None
    if not values:
        values = [base.e_step.num_clusters]
    automatic = len(resolve_num_clusters("auto", num_images))
    return min(automatic if value == "auto" else len(value_text(value).split(",")) for value in values)


def _divided(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The knobs of the recipe and those of the sweep. Raises ConfigError for words that are no KEY=VALUE."""
    parsed, problems = configs.parse(words)
    if problems:
        raise ConfigError(problems)
    of_sweep = {name: value for name, value in parsed.items() if name.startswith(PREFIX)}
    return {name: value for name, value in parsed.items() if name not in of_sweep}, of_sweep


def _swept_as_well(of_recipe: Mapping[str, Any], space: Space) -> list[Problem]:
    """Knobs that the command line fixes and the space sweeps."""
    message = f"is swept by space {space.name!r}; leave it out, or write a space without it"
    return [Problem(name, value, message) for name, value in of_recipe.items() if name in space.domains]


def _known_only(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of the space that are knobs; `space.checks` refuses the others."""
    return {name: value for name, value in fixed.items() if name in configs.knobs.names()}


def _checked_base(
    base: RunConfig, recipe_problems: list[Problem], stored: bool
) -> tuple[RunPlan | None, list[Problem]]:
    """The plan of the trials, None where there is none, and the mistakes: the recipe's, and those that the
    checks of a run find in other knobs.
    """
    try:
        return request.check_config(base, on_ray=True, stored=stored).plan, recipe_problems
    except DataError as error:
        return None, [*recipe_problems, Problem("data.path", base.data.path, str(error))]
    except ConfigError as error:
        if not error.problems:
            raise
        wrong = {problem.name for problem in recipe_problems}
        return None, recipe_problems + [problem for problem in error.problems if problem.name not in wrong]
