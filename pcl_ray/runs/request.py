"""What was asked for, checked before anything starts: torch and Ray are not imported here, so a mistake shows
within a second or two.
"""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.checkpoints import storage
from pcl_ray.config import RunConfig
from pcl_ray.data import datasets
from pcl_ray.errors import ConfigError, DataError, Problem
from pcl_ray.plan import RunPlan
from pcl_ray.runs import folder, storage_mirror
from pcl_ray.support import paths

_CONNECT_S = 5


@dataclass(frozen=True)
class Request:
    config: RunConfig
    plan: RunPlan  # from the sizes that the data source tells without reading it
    notes: tuple[str, ...]  # legal, but worth saying


def check(recipe_or_path: str, overrides: Iterable[str] = ()) -> Request:
    """The request, or ConfigError / DataError with all its mistakes: the configuration's and those that only
    show with data and machine.
    """
    config, problems = configs.load_leniently(recipe_or_path, overrides)
    return _checked(with_storage(config), problems)


def check_config(config: RunConfig, *, on_ray: bool = False, stored: bool = False) -> Request:
    """As `check`, for a configuration that is itself all right. on_ray: it is trained there, also where it
    has no workers of its own. stored: it is that of a run that goes on, and may hold what is refused today.
    """
    return _checked(config, [], on_ray, stored)


def check_stored(name: str, overrides: Iterable[str]) -> Request:
    """What going on with run `name` would do. Raises as `check` does."""
    overrides = list(overrides)
    storage_mirror.fetch(name, overrides)
    with folder.RunFolder.open(name) as stored:
        return check_config(changed(stored.read_config(), overrides), stored=True)


def changed(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """A stored configuration with knobs changed for going on. Raises ConfigError for knobs that must stay as
    they are.
    """
    new = configs.with_overrides(config, overrides)
    before, after = config.flatten(), new.flatten()
    if secrets := [
        problem for problem in tracking.secret_knobs(new) if after[problem.name] != before[problem.name]
    ]:
        raise ConfigError(secrets)
    fixed = [
        name
        for name in after
        if after[name] != before[name] and not configs.properties(name).changeable_on_resume
    ]
    if fixed:
        raise ConfigError(
            [
                Problem(
                    name,
                    after[name],
                    f"cannot change when a run goes on; it is {before[name]!r} there. Start a new run",
                )
                for name in fixed
            ]
        )
    return with_storage(new)


def with_storage(config: RunConfig) -> RunConfig:
    """With the storage that the environment names where the configuration has none: workers on other nodes,
    and whoever resumes, know it from there.
    """
    uri = os.environ.get(storage.VARIABLE)
    return (
        configs.with_overrides(config, {"resources.storage": uri})
        if uri and not config.resources.storage
        else config
    )


def gpus_here() -> int:
    """GPUs of this machine, without importing torch; device files are numbered."""
    return len(glob.glob("/dev/nvidia[0-9]*")) + len(glob.glob("/dev/dxg"))


def _unreachable(address: str) -> str | None:
    """Why no cluster can be there. Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return None  # auto, local: Ray finds its own
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return (
            f"no Ray cluster answers there ({error}); unset it to start a Ray on this machine, or `ray start"
            " --head` first"
        )
    return None


def _checked(
    config: RunConfig, problems: list[Problem], on_ray: bool = False, stored: bool = False
) -> Request:
    wrong = {problem.name for problem in problems}
    problems = problems + [
        problem
        for problem in tracking.check_uri(config.tracking, paths.home(), stored=stored)
        if problem.name not in wrong
    ]
    told = {problem.name for problem in problems}
    problems += (
        [] if stored else [problem for problem in tracking.secret_knobs(config) if problem.name not in told]
    )
    missing, num_images, num_holdout = "", 0, 0
    try:
        num_images, num_holdout = datasets.sizes(config.data)
    except DataError as error:
        missing = str(error)
    except OSError as error:
        missing = f"{error.filename or config.data.path} cannot be read: {error.strerror or error}"
    address = os.environ.get("RAY_ADDRESS", "") if config.resources.workers or on_ray else ""
    elsewhere = bool(address)  # then the cluster is asked for its GPUs when we are there
    if elsewhere and (unreachable := _unreachable(address)):
        problems.append(Problem("RAY_ADDRESS", address, unreachable))
    said = {problem.name for problem in problems}
    if (
        config.resources.storage
        and "resources.storage" not in said
        and (refused := storage_mirror.problem_with(config.resources.storage))
    ):
        problems.append(refused)
    gpus = None if elsewhere else gpus_here()
    crossed, notes = (
        (plans.check_alone(config, gpus=gpus), [])
        if missing
        else plans.check(config, num_images, num_holdout, gpus=gpus)
    )
    problems += [problem for problem in crossed if problem.name not in wrong]
    if config.encoder.backbone.startswith("timm:") and not any(
        problem.name == "encoder.backbone" for problem in problems
    ):
        # torch and timm take seconds to import, and only they know timm's models
        from pcl_ray.model.encoder import timm_problem

        problems += [problem] if (problem := timm_problem(config.encoder.backbone)) else []
    if missing and not problems:
        raise DataError(missing)
    if missing:
        problems.append(
            Problem("data.path", config.data.path, missing.removeprefix(f"data.path = {config.data.path!r} "))
        )
    if problems:
        raise ConfigError(problems)
    return Request(config, plans.make(config, num_images, num_holdout), tuple(notes))
