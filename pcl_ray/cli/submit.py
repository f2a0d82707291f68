"""`pcl-ray submit`: a train or a sweep as a job of a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pcl_ray import config
from pcl_ray.cli import sweep
from pcl_ray.cli.sweep import SWEEP
from pcl_ray.cli.train import TRAIN, recipe_and_overrides
from pcl_ray.cli.verb import Verb, add_address_argument, knob_words
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support import redaction

_OPTIONS_WITH_VALUE = ("--address", "--memory-gb")
_OPTIONS_ALONE = ("--no-wait", "--print", "--help", "-h")


def _divide(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words for `pcl-ray submit` itself, and those for the job, in their order."""
    own: list[str] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word in _OPTIONS_ALONE or word.startswith(tuple(f"{name}=" for name in _OPTIONS_WITH_VALUE)):
            own.append(word)
        elif word in _OPTIONS_WITH_VALUE:
            value = next(remaining, None)
            own += [word] if value is None else [word, value]
        else:
            others.append(word)
    return own, others


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "pcl-ray submit [train|sweep] RECIPE|SPACE [KEY=VALUE ...] [options of train or sweep] [--address"
        " URL] [--memory-gb GB] [--no-wait] [--print]"
    )
    add_address_argument(parser)
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=1.0,
        metavar="GB",
        help="memory that the driver reserves; it never gets a GPU",
    )
    parser.add_argument("--no-wait", action="store_true", help="come back as soon as the job is accepted")
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the line, submit nothing"
    )


def _submit(arguments: argparse.Namespace) -> int:
    words = (
        arguments.others if arguments.others[:1] in (["train"], ["sweep"]) else ["train", *arguments.others]
    )
    verb, words = (SWEEP if words[0] == "sweep" else TRAIN), words[1:]
    # The words would be the job's entrypoint, which everybody who reaches the cluster can read.
    redaction.refuse_in(words)
    # What `pcl-ray VERB` would refuse is refused here, unless only the cluster can tell (its data).
    job = verb.parse(words)
    if job.dry_run or job.describe or job.result is not None:
        raise ConfigError(
            "--dry-run, --describe and --result are for `pcl-ray train` and `sweep` here: a job's files are"
            " thrown away, and its outcome is in MLflow"
        )
    if verb is SWEEP:
        sweep.check(job)
        settings: dict[str, Any] = dict(word.split("=", 1) for word in knob_words(job.words)[1])
    else:
        settings = _settings(*recipe_and_overrides(job))
    _check_paths(settings)
    return _run_job(arguments, verb, words, job)


def _settings(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The knobs of a new run; those of one that goes on are not known here. Raises ConfigError."""
    if not recipe:
        return {}
    loaded = config.load(recipe, overrides)
    if secrets := config.secret_knobs(loaded):
        raise ConfigError(secrets)
    return loaded.flatten()


def _check_paths(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a path that would lie in the job's working directory, which is thrown away."""
    for name in ("data.path", "data.list", "data.labels", "resources.storage"):
        value = settings.get(name)
        if name == "data.path" and value:
            value = str(value).removeprefix("@")
        if value and "://" not in str(value) and not Path(str(value)).is_absolute():
            message = (
                "has to be an absolute path: a job runs in a copy of this folder, on another machine perhaps"
            )
            raise ConfigError([Problem(name, value, message)])
    weights = settings.get("encoder.init_from")
    if weights and not Path(str(weights)).is_absolute() and Path(str(weights)).exists():
        message = (
            "is a file of this folder; give its absolute path, which has to be there on the cluster, too"
        )
        raise ConfigError([Problem("encoder.init_from", weights, message)])


def _run_job(arguments: argparse.Namespace, verb: Verb, words: Sequence[str], job: argparse.Namespace) -> int:
    """Prints and runs the command that submits the job, given as its words in order and as parsed."""
    from pcl_ray.cluster import submit
    from pcl_ray.runs.folder import RunFolder, SweepFolder

    if not 0.01 <= arguments.memory_gb < 1e5:
        raise ConfigError(
            f"--memory-gb {arguments.memory_gb:g}: 0.01 to 100000; without any Ray would show the driver"
            " every GPU"
        )
    kind = SweepFolder if verb is SWEEP else RunFolder
    stem = next((Path(word).stem for word in knob_words(job.words)[0]), verb.name)
    run = job.resume or job.name or kind.free_name(stem, datetime.now().strftime("%m%d-%H%M%S"))
    kind.path_of(run)  # raises where it is not allowed as a name
    named = [] if job.resume or job.name else ["--name", run]
    cluster = submit.cluster(arguments.address)
    folder, words_there = submit.uploaded(words)
    command = submit.experiment(
        cluster,
        verb.name,
        [*words_there, *named],
        run,
        memory_gb=arguments.memory_gb,
        wait=not arguments.no_wait,
        folder=folder,
    )
    print(command, flush=True)
    if arguments.only_print:
        return 0
    # Whether the cluster is there, and takes the token: in one sentence, before Ray says so in forty lines.
    cluster.jobs()
    return submit.run(command, cluster)


SUBMIT = Verb("submit", "run an experiment as a job of a cluster", _add_arguments, _submit, divide=_divide)
