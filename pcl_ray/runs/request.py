"""The request for a run, checked before anything starts; without torch and Ray, so in a second or two."""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.config import KnobProperties, RunConfig, secret_knobs
from pcl_ray.data import datasets
from pcl_ray.errors import ConfigError, DataError, Problem
from pcl_ray.plan import RunPlan
from pcl_ray.runs import folder, storage_mirror
from pcl_ray.support import machine, paths, storage
from pcl_ray.support.text import value_text

_CONNECT_S = 5
# Knobs without which no encoder can be built.
_SHAPES = {"encoder.backbone", "encoder.init_from", "encoder.freeze_stages", "data.channels"}


@dataclass(frozen=True)
class Request:
    """A configuration without mistakes, and what follows from it."""

    config: RunConfig
    plan: RunPlan  # from the sizes that the data source tells without reading it
    notes: tuple[str, ...]  # legal, but worth saying


def check(recipe_or_path: str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Request:
    """The request, or ConfigError / DataError with all mistakes: of the configuration, data and machine."""
    overrides = dict(overrides) if isinstance(overrides, Mapping) else list(overrides)
    config, problems = configs.load_leniently(recipe_or_path, overrides)
    config, more_problems = with_backbone_of_weights(with_storage(config))
    case = _Case.of(config)
    notes: tuple[str, ...] = ()
    if recipe_or_path in configs.recipe_names() and not (problems or more_problems):
        case, notes = _fitted(case, configs.names_of(overrides))
    request = _checked(case, problems + more_problems)
    return replace(request, notes=(*notes, *request.notes))


def _fitted(case: _Case, given: set[str]) -> tuple[_Case, tuple[str, ...]]:
    """The case with what of a shipped recipe depends on the images and the machine, and what to say of it.
    given: knobs that the user has set, which stay.
    """
    side = (
        datasets.typical_side(case.config.data) if case.config.train.fit_to_data and case.num_images else None
    )
    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    around = plans.Surroundings(case.num_images, side, machine.cores(), gpus_here(), on_cluster)
    fitting = plans.fit(case.config, given, around)
    config = configs.with_overrides(case.config, fitting.changes)
    uses_ray = config.resources.workers > 0
    address = os.environ.get("RAY_ADDRESS", "") if uses_ray else ""
    return replace(case, config=config, address=address), fitting.notes


def check_config(config: RunConfig, *, on_ray: bool = False, stored: bool = False) -> Request:
    """The request for a configuration that is itself all right. Raises as `check` does.

    on_ray: it is trained there, also where it has no workers of its own. stored: it is that of a run that
    goes on, and may hold what is refused today.
    """
    config, problems = with_backbone_of_weights(config)
    return _checked(_Case.of(config, on_ray=on_ray, stored=stored), problems)


def check_stored(name: str, overrides: Iterable[str]) -> Request:
    """What going on with run `name` would do. Raises as `check` does."""
    overrides = list(overrides)
    storage_mirror.fetch(name, overrides)
    with folder.RunFolder.open(name) as run:
        return check_config(changed(run.read_config(), overrides, name), stored=True)


def changed(config: RunConfig, overrides: Iterable[str], run: str) -> RunConfig:
    """The stored configuration of a run with changed knobs, to go on. Raises ConfigError for fixed ones."""
    new = configs.with_overrides(config, overrides)
    before, after = config.flatten(), new.flatten()
    secrets = [problem for problem in secret_knobs(new) if after[problem.name] != before[problem.name]]
    if secrets:
        raise ConfigError(secrets)
    refuse_changes(config, new, lambda knob: not knob.changeable_on_resume, "when a run goes on", fork=run)
    return with_storage(new)


def refuse_changes(
    before: RunConfig,
    after: RunConfig,
    is_fixed: Callable[[KnobProperties], bool],
    occasion: str,
    fork: str = "",
) -> None:
    """Raises ConfigError with every knob that has another value than before and is fixed on this occasion.

    fork: the name of the run, where a fork of it may have those that are not fixed there.
    """
    old, new = before.flatten(), after.flatten()
    problems = [
        Problem(
            name,
            new[name],
            f"cannot change {occasion}; it is {old[name]!r} there. Start a new run"
            + _or_fork(fork, name, new[name]),
        )
        for name in new
        if new[name] != old[name] and is_fixed(configs.properties(name))
    ]
    if problems:
        raise ConfigError(problems)


def _or_fork(run: str, name: str, value: object) -> str:
    """How a new run with this knob can begin with the weights of a run; "" where it cannot."""
    if not run or configs.properties(name).fixed_in_fork:
        return ""
    return f", or go on from its weights: pcl-ray fork {run} {name}={value_text(value, digits=None)}"


def with_storage(config: RunConfig) -> RunConfig:
    """The configuration with the storage that the environment names, where it has none of its own: workers on
    other nodes, and whoever resumes, know it from there.
    """
    uri = os.environ.get(storage.VARIABLE)
    if not uri or config.resources.storage:
        return config
    return configs.with_overrides(config, {"resources.storage": uri})


def with_backbone_of_weights(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """The configuration with the encoder written out, where it is that of the weights that the run begins
    with; and why that cannot be. Reads the weights then, and takes seconds.
    """
    encoder = config.encoder
    if encoder.backbone != "init_from":
        return config, []
    problem = None
    if encoder.init_from is None:
        message = "which weights? a run's name, or a file of weights that `load_encoder` takes"
        problem = Problem("encoder.init_from", None, message)
    else:
        from pcl_ray.model import weights  # torch

        try:
            storage_mirror.fetch_source(encoder.init_from)
            encoder = weights.encoder_of_weights(config)
        except (ConfigError, DataError) as error:
            problem = Problem("encoder.init_from", encoder.init_from, str(error))
    if problem is not None:
        encoder = encoder.model_copy(update={"backbone": "resnet18"})  # for the other checks
    return config.model_copy(update={"encoder": encoder}), [problem] if problem else []


def gpus_here() -> int:
    """GPUs of this machine, without importing torch; device files are numbered."""
    return len(glob.glob("/dev/nvidia[0-9]*")) + len(glob.glob("/dev/dxg"))


@dataclass(frozen=True)
class _Case:
    """A configuration to be checked, and the circumstances that the checks depend on."""

    config: RunConfig
    stored: bool
    address: str  # RAY_ADDRESS of the cluster that it runs on; "" without Ray, or for a Ray of its own
    num_images: int  # 0 where the data are missing
    num_holdout: int
    missing_data: str  # why there are none; "" where there are

    @classmethod
    def of(cls, config: RunConfig, *, on_ray: bool = False, stored: bool = False) -> _Case:
        """Looks for the data, without reading them."""
        num_images, num_holdout, missing = 0, 0, ""
        try:
            num_images, num_holdout = datasets.sizes(config.data)
        except DataError as error:
            missing = str(error)
        except OSError as error:
            missing = f"{error.filename or config.data.path} cannot be read: {error.strerror or error}"
        uses_ray = config.resources.workers > 0 or on_ray
        address = os.environ.get("RAY_ADDRESS", "") if uses_ray else ""
        return cls(config, stored, address, num_images, num_holdout, missing)


def _checked(case: _Case, problems: list[Problem]) -> Request:
    """The request, if checks and caller have no problems. Of a wrong knob later checks say nothing."""
    problems = list(problems)
    for check_case in _CHECKS:
        wrong = {problem.name for problem in problems}
        problems += [problem for problem in check_case(case, wrong) if problem.name not in wrong]
    config, missing = case.config, case.missing_data
    if missing and not problems:
        raise DataError(missing)
    if missing:
        reason = missing.removeprefix(f"data.path = {config.data.path!r} ")
        problems.append(Problem("data.path", config.data.path, reason))
    if problems:
        raise ConfigError(problems)
    notes = plans.notes(config, case.num_images, case.num_holdout)
    return Request(config, plans.make(config, case.num_images, case.num_holdout), tuple(notes))


# What follows are the checks, in the order of their messages. Each gives back its problems; the names of the
# knobs that are wrong already save it the work where it is slow.


def _tracking_server(case: _Case, wrong: Set[str]) -> list[Problem]:
    return tracking.check_uri(case.config.tracking, paths.home(), stored=case.stored)


def _secrets(case: _Case, wrong: Set[str]) -> list[Problem]:
    return [] if case.stored else secret_knobs(case.config)


def _cluster(case: _Case, wrong: Set[str]) -> Iterator[Problem]:
    """Whether anything answers where the cluster should be. Ray itself would try for minutes."""
    host, colon, port = case.address.rpartition("://")[2].rpartition(":")
    if not colon:
        return  # none, auto, local: Ray finds its own
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        message = (
            f"no Ray cluster answers there ({error}); unset it to start a Ray on this machine, or `ray start"
            " --head` first"
        )
        yield Problem("RAY_ADDRESS", case.address, message)


def _storage(case: _Case, wrong: Set[str]) -> Iterator[Problem]:
    uri = case.config.resources.storage
    if uri and "resources.storage" not in wrong and (problem := storage_mirror.problem_with(uri)):
        yield problem


def _together(case: _Case, wrong: Set[str]) -> list[Problem]:
    """What knobs get wrong together with each other, the data and the machine."""
    gpus = None if case.address else gpus_here()  # a cluster is asked for its GPUs when we are there
    if case.missing_data:
        return plans.check_alone(case.config, gpus=gpus)
    return plans.check(case.config, case.num_images, case.num_holdout, gpus=gpus)[0]


def _timm_model(case: _Case, wrong: Set[str]) -> Iterator[Problem]:
    backbone = case.config.encoder.backbone
    if not backbone.startswith("timm:") or "encoder.backbone" in wrong:
        return
    # torch and timm take seconds to import, and only they know timm's models
    from pcl_ray.model.encoder import timm_problem, view_problem

    if problem := timm_problem(backbone) or view_problem(case.config):
        yield problem


def _initial_weights(case: _Case, wrong: Set[str]) -> Iterator[Problem]:
    """Whether the run can begin with the weights that it names; one that goes on has them."""
    encoder = case.config.encoder
    if case.stored or not (encoder.init_from or encoder.freeze_stages) or wrong & _SHAPES:
        return
    from pcl_ray.model import weights  # torch

    if encoder.init_from is not None:
        try:
            storage_mirror.fetch_source(encoder.init_from)
        except ConfigError as error:
            yield Problem("encoder.init_from", encoder.init_from, str(error))
            return
    if problem := weights.problem_with(case.config):
        yield problem


_CHECKS: tuple[Callable[[_Case, Set[str]], Iterable[Problem]], ...] = (
    _tracking_server,
    _secrets,
    _cluster,
    _storage,
    _together,
    _timm_model,
    _initial_weights,
)
