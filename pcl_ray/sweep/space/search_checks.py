"""What is wrong with how a space is searched: settings that do not fit the space, recipe or each other."""

from __future__ import annotations

from collections.abc import Iterator

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.errors import Problem
from pcl_ray.support import storage_address
from pcl_ray.sweep.space import search, spaces
from pcl_ray.sweep.space.settings import SweepConfig
from pcl_ray.sweep.space.spaces import Space

_LENGTHS = (
    "train.epochs",
    "e_step.warmup_epochs",
    "e_step.every_epochs",
    "e_step.early_epochs",
    "e_step.early_every_epochs",
)


def problems(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    """Every mistake, in the order of the checks. base: what all trials have in common."""
    for check in (_storage, _grid, _scheduler, _population, _temperature_levels):
        yield from check(space, settings, base)


def _storage(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    if base.resources.storage:
        message = (
            "is of single runs: trials and what they share lie under PCL_RAY_HOME, on storage that all nodes"
            " share; leave it out"
        )
        yield Problem("resources.storage", storage_address.without_secrets(base.resources.storage), message)


def _grid(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    if search.method(space, settings) != "grid":
        return
    if spaces.size(space) is None:
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
    if settings.samples is not None and settings.search == "grid":
        yield Problem(
            "sweep.samples",
            settings.samples,
            f"a grid tries all its {spaces.size(space)} combinations; leave it out, or use --search random",
        )


def _scheduler(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    if settings.scheduler == "none":
        return
    for name in _LENGTHS:
        if name in space.domains:
            yield Problem(
                name,
                spaces.described(space),
                f"scheduler {settings.scheduler} compares trials at the same epoch of the same schedule; use"
                " none",
            )
    if base.evaluation.every_epochs == 0:
        yield Problem(
            "evaluation.every_epochs",
            0,
            f"scheduler {settings.scheduler} compares trials while they train; use 1 or more",
        )


def _population(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    if settings.scheduler != "pbt":
        return
    how = search.method(space, settings)
    if how != "random":
        yield Problem(
            "sweep.search",
            how,
            "a population is drawn at random; use --search random, or another --scheduler",
        )
    if settings.seeds > 1:
        yield Problem(
            "sweep.seeds",
            settings.seeds,
            "members of a population change their values as they go on, so there is no configuration to"
            " repeat; use 1",
        )
    if settings.concurrency is not None:
        yield Problem(
            "sweep.concurrency",
            settings.concurrency,
            "all members of a population are under way, taking turns where they do not fit; leave it out",
        )
    yield from _perturbed_knobs(space)
    yield from _members(space, settings, base)


def _perturbed_knobs(space: Space) -> Iterator[Problem]:
    perturbable = [name for name in configs.knobs.names() if configs.properties(name).perturbable]
    for name in space.domains:
        if name not in perturbable:
            yield Problem(
                name,
                spaces.described(space),
                f"cannot change while a member trains; pbt takes {', '.join(perturbable)}",
            )


def _members(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    """Whether there are members to compare, checkpoints to go on from, and epochs to compare them after."""
    if search.method(space, settings) == "random":
        members = len(search.points(space, settings, base) or [])
        if members < 2:
            yield Problem(
                "sweep.samples", members, "a population needs 2 members or more, of different values"
            )
    if base.train.checkpoint_every_epochs > 1:
        yield Problem(
            "train.checkpoint_every_epochs",
            base.train.checkpoint_every_epochs,
            "members go on from each other's checkpoints; use 1",
        )
    grace = search.grace_epochs(base)
    if grace + search.perturb_epochs(settings, base) > base.train.epochs:
        yield Problem(
            "train.epochs",
            base.train.epochs,
            f"warm-up and two E-steps take {grace} of them, and nothing is left to compare members after",
        )


def _temperature_levels(space: Space, settings: SweepConfig, base: RunConfig) -> Iterator[Problem]:
    if settings.temperature_levels is not None and "loss.temperature" not in space.domains:
        yield Problem(
            "sweep.temperature_levels",
            settings.temperature_levels,
            "the space does not sweep loss.temperature; leave it out",
        )
