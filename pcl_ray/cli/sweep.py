"""`pcl-ray sweep`: many experiments over a space of knobs."""

from __future__ import annotations

import argparse
import re
from typing import Any

from pcl_ray.cli.output import print_knobs
from pcl_ray.cli.verb import Verb, add_run_arguments, check_result_file, knob_words
from pcl_ray.errors import ConfigError, Problem

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="SPACE [KEY=VALUE ...]",
        help="a shipped space, a .py or a .yaml file; knobs of the recipe or of the sweep",
    )
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="sweep over this recipe instead of the space's own"
    )
    parser.add_argument("--samples", metavar="N", help="configurations to try (sweep.samples)")
    parser.add_argument("--search", metavar="HOW", help="optuna, random or grid (sweep.search)")
    parser.add_argument("--scheduler", metavar="WHICH", help="asha, median, pbt or none (sweep.scheduler)")
    parser.add_argument("--seeds", metavar="S", help="runs of each configuration (sweep.seeds)")
    parser.add_argument(
        "--concurrency",
        metavar="N",
        help="trials at a time (sweep.concurrency); as many as fit where it is left out",
    )
    parser.add_argument("--budget", metavar="TIME", help="end after this time: 90m, 2h, 1d (sweep.budget_s)")
    parser.add_argument("--name", help="name of the new sweep; made up where it is left out")
    parser.add_argument("--resume", metavar="NAME", help="go on with this sweep; takes no space")
    add_run_arguments(
        parser,
        dry_run="check everything, print space, trials at a time and cost, start nothing",
        describe="print every knob of sweeps: type, default, range, meaning",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.describe:
        from pcl_ray.sweep.space import settings

        print_knobs(settings.describe())
        return 0
    check_result_file(arguments.result)
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before spaces, which import Ray
    space, words = _space_and_words(arguments)
    options = _options(arguments)
    if arguments.dry_run:
        _dry_run(space, words, options, arguments)
        return 0
    from pcl_ray import sweep

    sweep.run(
        space,
        words,
        recipe=arguments.recipe,
        name=arguments.name,
        resume=arguments.resume,
        result_file=arguments.result,
        **{name.removeprefix("sweep."): value for name, value in options.items()},
    )
    return 0


def _dry_run(space: str, words: list[str], options: dict[str, Any], arguments: argparse.Namespace) -> None:
    from pcl_ray.runs.folder import SweepFolder
    from pcl_ray.sweep import driver, request, tune_run
    from pcl_ray.sweep.dry_run import show

    tune_run.quiet_tune()
    if not arguments.resume:
        show(request.check(space, words, options, arguments.recipe))
        return
    with SweepFolder.open(arguments.resume) as folder:
        show(driver.stored(folder, words, options))


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for what no sweep can have; the space itself is checked where the sweep runs."""
    _space_and_words(arguments)
    from pcl_ray.sweep.space import settings

    _, problems = settings.read(_options(arguments))
    if problems:
        raise ConfigError(problems)


def _space_and_words(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The space ("" with --resume) and the KEY=VALUE words. Raises ConfigError where they do not fit."""
    spaces, words = knob_words(arguments.words)
    if arguments.resume:
        named = [f"--name {arguments.name}"] if arguments.name else []
        from_recipe = [f"--recipe {arguments.recipe}"] if arguments.recipe else []
        if superfluous := [*spaces, *named, *from_recipe]:
            raise ConfigError(
                f"--resume {arguments.resume} has its own space, recipe and name; leave out {superfluous[0]}"
            )
        return "", words
    if not any(spaces):
        from pcl_ray.sweep.space.files import shipped  # imports Ray

        raise ConfigError(f"which space? One of {', '.join(shipped())}, or the path of a file")
    if len(spaces) > 1:
        raise ConfigError(f"{spaces[1]!r} is neither KEY=VALUE nor the only space ({spaces[0]!r})")
    return spaces[0], words


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as `sweep.…` knobs."""
    options: dict[str, Any] = {}
    for name in ("samples", "search", "scheduler", "seeds", "concurrency"):
        if (value := getattr(arguments, name)) is not None:
            options[f"sweep.{name}"] = value
    if arguments.budget is not None:
        options["sweep.budget_s"] = seconds(arguments.budget)
    return options


def seconds(text: str) -> float:
    """The seconds of 90s, 30m, 2h, 1h30m, 1d, or a number of seconds. Raises ConfigError."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)", text)
    understood = "".join(number + unit for number, unit in parts)
    if not parts or understood != re.sub(r"\s+", "", text):
        raise ConfigError([Problem("--budget", text, "a time is written 90s, 30m, 2h, 1h30m or 1d")])
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


SWEEP = Verb("sweep", "run many experiments over a space of knobs", _add_arguments, _run)
