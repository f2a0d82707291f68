"""What a sweep was asked for, with all mistakes in space, settings and recipe at once, before anything
starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pcl_ray import config as configs
from pcl_ray.checkpoints import storage_address
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import LIDAR
from pcl_ray.errors import ConfigError, DataError, Problem
from pcl_ray.plan import FILE_SOURCES, RunPlan
from pcl_ray.runs import request
from pcl_ray.support.text import value_text
from pcl_ray.sweep.space import checks, domains, objective, search, settings, spaces
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.space.settings import PREFIX, SweepConfig
from pcl_ray.sweep.space.spaces import Space


@dataclass(frozen=True)
class SweepRequest:
    space: Space
    space_source: str  # name or path that `space` was read from
    recipe: RunConfig  # with what was said on the command line
    base: RunConfig  # the same as trials run it: what all of them have in common
    plan: RunPlan  # of the recipe itself
    settings: SweepConfig
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
    of_recipe, of_sweep = _sorted(words)
    asked_for, problems = settings.read({**of_sweep, **options})
    overrides = {**_known_only(space.fixed), **of_recipe}
    swept_as_well = [name for name in of_recipe if name in space.domains]
    problems += [
        Problem(
            name,
            of_recipe[name],
            f"is swept by space {space.name!r}; leave it out, or write a space without it",
        )
        for name in swept_as_well
    ]
    overrides = {name: value for name, value in overrides.items() if name not in swept_as_well}
    recipe, wrong = configs.load_leniently(space.base, overrides)
    base, notes = as_trials(with_first_values(recipe, space), user_set=set(of_recipe) | set(space.fixed))
    plan, from_data = _checked_base(base, wrong, stored)
    problems += from_data
    num_images, num_holdout = (plan.num_images, plan.num_holdout) if plan is not None else (0, 0)
    problems += checks.problems(space, base, num_images, num_holdout)
    problems += _search_problems(space, asked_for, base)
    problems += _objective_problems(space, asked_for, base)
    if problems:
        raise ConfigError(list({(p.name, str(p.value), p.message): p for p in problems}.values()))
    assert plan is not None
    return SweepRequest(
        space,
        name_or_path,
        recipe,
        base,
        plan,
        asked_for,
        tuple(word for word in words if not word.startswith(PREFIX)),
        tuple(notes),
    )


def with_first_values(recipe: RunConfig, space: Space) -> RunConfig:
    """The recipe with a value of the space for each swept knob: its own may not fit these data, and no trial
    has it. Mistakes are told elsewhere.
    """
    for name, domain in space.domains.items():
        try:
            recipe = configs.with_overrides(recipe, {name: spaces.some_value(domain)})
        except (ConfigError, ValueError, TypeError):
            continue
    return recipe


def as_trials(recipe: RunConfig, user_set: set[str]) -> tuple[RunConfig, list[str]]:
    """The recipe as trials run it: on one device, in the trial's own process, unless it has several GPU
    workers or somebody says otherwise.
    """
    resources, changes, notes = recipe.resources, {}, []
    several_devices = resources.workers > 1 and resources.gpus_per_worker > 0
    if resources.workers and "resources.workers" not in user_set and not several_devices:
        changes["resources.workers"] = 0
        notes.append(
            f"trials train in one process each (resources.workers = 0, the recipe has {resources.workers}):"
            " several side by side use the machine better"
        )
    # not all cores of the machine, which other trials use as well
    if not (changes.get("resources.workers", resources.workers)):
        cpus = max(1, int(resources.cpus_per_worker))
        changes["e_step.threads"] = recipe.e_step.threads or cpus
        if recipe.data.source in FILE_SOURCES and recipe.data.loader_workers is None:
            changes["data.loader_workers"] = max(cpus - 1, 1) if resources.gpus_per_worker else cpus // 4
    return configs.with_overrides(recipe, changes), notes


def with_objective(base: RunConfig, metric: str) -> RunConfig:
    """LiDAR needs views of its own at every evaluation."""
    wanted = metric == LIDAR.name and not base.evaluation.lidar_views
    return configs.with_overrides(base, {"evaluation.lidar_views": 10}) if wanted else base


def objective_of(space: Space, asked_for: SweepConfig, *, labelled: bool) -> Objective:
    """Raises ConfigError for one that cannot compare trials of these data."""
    metric = asked_for.objective or space.objective or objective.default(labelled)
    mode = asked_for.mode or space.mode
    if wrong := list(objective.problems(metric, mode, labelled=labelled, name=_objective_name(asked_for))):
        raise ConfigError(wrong)
    return objective.of(metric, mode)


def _clusterings(space: Space, base: RunConfig) -> list[int]:
    """How many each trial has."""
    swept = space.domains.get("e_step.num_clusters")
    lists = domains.values(swept) if swept is not None else None
    return (
        [len(value_text(value).split(",")) for value in lists] if lists else [len(base.e_step.num_clusters)]
    )


def _objective_name(asked_for: SweepConfig) -> str:
    return "sweep.objective" if asked_for.objective else "OBJECTIVE"


def _objective_problems(space: Space, asked_for: SweepConfig, base: RunConfig) -> list[Problem]:
    metric = asked_for.objective or space.objective
    if metric is None:
        return []
    number, fewest = objective.clustering_of(metric), min(_clusterings(space, base))
    if number is not None and number >= fewest:
        return [
            Problem(
                _objective_name(asked_for), metric, f"some trials have {fewest} clusterings, numbered from 0"
            )
        ]
    # Whether there are labels shows when the data are read.
    return list(
        objective.problems(
            metric, asked_for.mode or space.mode, labelled=True, name=_objective_name(asked_for)
        )
    )


def _sorted(words: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    parsed, problems = configs.parse(words)
    if problems:
        raise ConfigError(problems)
    of_sweep = {name: value for name, value in parsed.items() if name.startswith(PREFIX)}
    return {name: value for name, value in parsed.items() if name not in of_sweep}, of_sweep


def _known_only(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of the space; those with mistakes are told by `space_checks`."""
    known = {knob.name for knob in configs.describe()}
    return {name: value for name, value in fixed.items() if name in known}


def _checked_base(
    base: RunConfig, wrong: list[Problem], stored: bool
) -> tuple[RunPlan | None, list[Problem]]:
    try:
        return request.check_config(base, on_ray=True, stored=stored).plan, wrong
    except DataError as error:
        return None, [*wrong, Problem("data.path", base.data.path, str(error))]
    except ConfigError as error:
        if not error.problems:
            raise
        known = {problem.name for problem in wrong}
        return None, wrong + [problem for problem in error.problems if problem.name not in known]


def _search_problems(space: Space, asked_for: SweepConfig, base: RunConfig) -> Iterable[Problem]:
    how = search.method(space, asked_for)
    if base.resources.storage:
        message = (
            "is of single runs: trials and what they share lie under PCL_RAY_HOME, on storage that all nodes"
            " share; leave it out"
        )
        yield Problem("resources.storage", storage_address.without_secrets(base.resources.storage), message)
    if how == "grid" and spaces.size(space) is None:
        ranges = [
            f"{name} ({words})"
            for name, words in spaces.described(space)
            if name in space.domains and "uniform" in words
        ]
        yield Problem(
            "sweep.search",
            "grid",
            f"takes lists of values only; {', '.join(ranges) or 'a knob'} is a range: use choice or"
            " grid_search, or --search random",
        )
    if how == "grid" and asked_for.samples is not None and asked_for.search == "grid":
        yield Problem(
            "sweep.samples",
            asked_for.samples,
            f"a grid tries all its {spaces.size(space)} combinations; leave it out, or use --search random",
        )
    for name in (
        ("train.epochs", "e_step.warmup_epochs", "e_step.every_epochs")
        if asked_for.scheduler != "none"
        else ()
    ):
        if name in space.domains:
            yield Problem(
                name,
                spaces.described(space),
                f"scheduler {asked_for.scheduler} compares trials at the same epoch of the same schedule; use"
                " none",
            )
    if asked_for.scheduler != "none" and base.evaluation.every_epochs == 0:
        yield Problem(
            "evaluation.every_epochs",
            0,
            f"scheduler {asked_for.scheduler} compares trials while they train; use 1 or more",
        )
    if asked_for.scheduler == "pbt":
        yield from _population_problems(space, asked_for, base, how)
    if asked_for.temperature_levels is not None and "loss.temperature" not in space.domains:
        yield Problem(
            "sweep.temperature_levels",
            asked_for.temperature_levels,
            "the space does not sweep loss.temperature; leave it out",
        )


def _population_problems(
    space: Space, asked_for: SweepConfig, base: RunConfig, how: str
) -> Iterable[Problem]:
    if how != "random":
        yield Problem(
            "sweep.search",
            how,
            "a population is drawn at random; use --search random, or another --scheduler",
        )
    if asked_for.seeds > 1:
        yield Problem(
            "sweep.seeds",
            asked_for.seeds,
            "members of a population change their values as they go on, so there is no configuration to"
            " repeat; use 1",
        )
    if asked_for.concurrency is not None:
        yield Problem(
            "sweep.concurrency",
            asked_for.concurrency,
            "all members of a population are under way, taking turns where they do not fit; leave it out",
        )
    perturbable = [name for name in configs.knobs.names() if configs.properties(name).perturbable]
    for name in space.domains:
        if name not in perturbable:
            yield Problem(
                name,
                spaces.described(space),
                f"cannot change while a member trains; pbt takes {', '.join(perturbable)}",
            )
    if how == "random" and (members := len(search.points(space, asked_for, base) or [])) < 2:
        yield Problem("sweep.samples", members, "a population needs 2 members or more, of different values")
    if base.train.checkpoint_every_epochs > 1:
        yield Problem(
            "train.checkpoint_every_epochs",
            base.train.checkpoint_every_epochs,
            "members go on from each other's checkpoints; use 1",
        )
    if search.grace_epochs(base) + search.perturb_epochs(asked_for, base) > base.train.epochs:
        yield Problem(
            "train.epochs",
            base.train.epochs,
            f"warm-up and two E-steps take {search.grace_epochs(base)} of them, and nothing is left to"
            " compare members after",
        )
