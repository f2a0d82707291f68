"""`pcl-ray train`, `resume` and `fork`: one run from a recipe, from its own checkpoint, or from another's."""

from __future__ import annotations

import argparse
import shlex

from pcl_ray import api, config
from pcl_ray.cli.output import print_knobs, print_result
from pcl_ray.cli.sweep import SWEEP
from pcl_ray.cli.verb import Verb, add_result_argument, add_run_arguments, check_result_file, knob_words
from pcl_ray.errors import ConfigError
from pcl_ray.support import redaction


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE [KEY=VALUE ...]",
        help=f"a shipped recipe ({', '.join(config.recipe_names())}) or a .yaml file",
    )
    parser.add_argument("--name", help="name of the new run; made up where it is left out")
    parser.add_argument(
        "--resume", metavar="NAME", help="go on with this run; takes no recipe, only KEY=VALUE"
    )
    add_run_arguments(
        parser,
        dry_run="check everything and print the plan, start nothing",
        describe="print every knob: type, default, range, meaning",
    )


def _train(arguments: argparse.Namespace) -> int:
    if arguments.describe:
        print_knobs(config.describe())
        return 0
    recipe, overrides = recipe_and_overrides(arguments)
    check_result_file(arguments.result)
    if arguments.dry_run:
        _dry_run(recipe, overrides, arguments)
        return 0
    if recipe:
        run = api.train(
            recipe,
            overrides,
            name=arguments.name,
            command=_typed(["train", recipe, *overrides], arguments.name),
            result_file=arguments.result,
        )
    else:
        run = api.resume(arguments.resume, overrides, result_file=arguments.result)
    print_result(run.result)
    return 0


def _dry_run(recipe: str, overrides: list[str], arguments: argparse.Namespace) -> None:
    from pcl_ray.cli import dry_run
    from pcl_ray.runs import request
    from pcl_ray.runs.folder import RunFolder

    if arguments.name:
        RunFolder.check_free(arguments.name)
    if recipe:
        dry_run.show(request.check(recipe, overrides))
    else:
        dry_run.show(request.check_stored(arguments.resume, overrides))


def recipe_and_overrides(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The recipe ("" with --resume) and the KEY=VALUE words. Raises ConfigError where they do not fit."""
    recipes, overrides = knob_words(arguments.words)
    if arguments.resume:
        if recipes or arguments.name:
            given = f"recipe {recipes[0]!r}" if recipes else f"--name {arguments.name}"
            raise ConfigError(
                f"--resume {arguments.resume} uses the run's own recipe and name; leave out {given}"
            )
        return "", overrides
    if not any(recipes):
        raise ConfigError(
            f"which recipe? One of {', '.join(config.recipe_names())}, or the path of a .yaml file"
        )
    if len(recipes) > 1:
        raise ConfigError(f"{recipes[1]!r} is neither KEY=VALUE nor the only recipe ({recipes[0]!r})")
    return recipes[0], overrides


def _typed(words: list[str], name: str | None) -> str:
    """The command as it was typed, as it is recorded with the run: without secrets."""
    named = ["--name", name] if name else []
    return redaction.scrubbed(shlex.join(["pcl-ray", *words, *named]))


def _add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run or a sweep")
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="KEY=VALUE",
        help="knobs that may change when it goes on, like train.epochs",
    )
    add_result_argument(parser)


def _resume(arguments: argparse.Namespace) -> int:
    """Goes on with `train --resume RUN …`, or `sweep --resume RUN …` where it is a sweep."""
    from pcl_ray.runs.folder import CONFIG_FILE, RunFolder, SweepFolder

    is_run = (RunFolder.path_of(arguments.run) / CONFIG_FILE).exists()
    is_sweep = not is_run and (SweepFolder.path_of(arguments.run) / CONFIG_FILE).exists()
    verb = SWEEP if is_sweep else TRAIN
    result = ["--result", str(arguments.result)] if arguments.result else []
    return verb.run(verb.parse(["--resume", arguments.run, *arguments.changes, *result]))


def _add_fork_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of the run to start from, which stays as it is")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="knobs of the new run")
    parser.add_argument("--name", help="name of the new run; made up where it is left out")
    parser.add_argument(
        "--epoch", type=int, metavar="N", help="from its checkpoint after N epochs; left out: the newest"
    )
    add_result_argument(parser)


def _fork(arguments: argparse.Namespace) -> int:
    check_result_file(arguments.result)
    run = api.fork(
        arguments.run,
        arguments.changes,
        name=arguments.name,
        epoch=arguments.epoch,
        command=_typed(["fork", arguments.run, *arguments.changes], arguments.name),
        result_file=arguments.result,
    )
    print_result(run.result)
    return 0


def _add_recipes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="prints this one, to change it: > mine.yaml"
    )


def _recipes(arguments: argparse.Namespace) -> int:
    """The shipped recipes with the first line of each, or the text of one."""
    if arguments.recipe:
        print(config.recipe_text(arguments.recipe), end="")
        return 0
    for name in config.recipe_names():
        first = config.recipe_text(name).splitlines()[0]
        print(f"{name:<18} {first.removeprefix('# ')}")
    print("\n`pcl-ray recipes RECIPE` prints one: what it was measured to reach, and every knob that it sets")
    return 0


RECIPES = Verb("recipes", "list the shipped recipes, or print one", _add_recipes_arguments, _recipes)
TRAIN = Verb("train", "run one experiment", _add_train_arguments, _train)
RESUME = Verb("resume", "go on with a run or a sweep", _add_resume_arguments, _resume)
FORK = Verb(
    "fork", "start a new run from a checkpoint of another, with changed knobs", _add_fork_arguments, _fork
)
