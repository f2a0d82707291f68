"""The `pcl-ray` command. Exit codes: 0 done, 1 the run failed, 2 the request was wrong, 128 + n stopped by
signal n.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pcl_ray import __version__, config
from pcl_ray.cli import cluster, look, sweep
from pcl_ray.config import figures
from pcl_ray.config.knobs import Knob
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed, Stopped
from pcl_ray.support import machine, redaction, telemetry

if TYPE_CHECKING:
    from pcl_ray.runs.final_artifacts import RunResult


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives back the exit code. The user's mistakes become one message on stderr,
    without a traceback.
    """
    telemetry.turn_off()
    redaction.hide_from_tracebacks()
    arguments = _parsed(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # ≥ and φ on a terminal that has no such letters
    try:
        return arguments.command(arguments)
    except ConfigError as error:
        return _complain(_listed(error.problems) if error.problems else str(error), 2)
    except DataError as error:
        return _complain(str(error), 2)
    except RunFailed as error:
        return _complain(str(error), 1)
    except PermissionError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror}", 2)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    sys.exit(main())


class _Parser(argparse.ArgumentParser):
    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, redaction.scrubbed(message or ""))  # it repeats what was typed


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Each verb has a parser of its own: its words and options may stand in any order, which argparse's
    sub-commands do not allow.
    """
    parser = _Parser(prog="pcl-ray", description="Prototypical Contrastive Learning on Ray.")
    parser.add_argument("--version", action="version", version=f"pcl_ray {__version__}")
    parser.add_argument(
        "verb",
        choices=list(_VERBS),
        help="; ".join(f"{verb}: {sentence}" for verb, (sentence, _, _) in _VERBS.items()),
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="...", help="`pcl-ray VERB --help` says what a verb takes"
    )
    verb = parser.parse_args(argv[:1]).verb
    sentence, add_arguments, command = _VERBS[verb]
    of_verb = _Parser(prog=f"pcl-ray {verb}", description=f"{sentence[0].upper()}{sentence[1:]}.")
    add_arguments(of_verb)
    of_verb.set_defaults(command=command)
    ours, others = (argv[1:], []) if verb not in _PASSES_ON else cluster.split(argv[1:])
    arguments = of_verb.parse_intermixed_args(ours)
    arguments.others = others
    return arguments


def _train_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and print the plan, start nothing"
    )
    parser.add_argument(
        "--describe", action="store_true", help="print every knob: type, default, range, meaning"
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="write the outcome as JSON")


def _train(arguments: argparse.Namespace) -> int:
    if arguments.describe:
        _print_knobs(config.describe())
        return 0
    recipe, overrides = _recipe_and_overrides(arguments)
    if arguments.result is not None:
        _check_result_file(arguments.result)
    from pcl_ray.cli import dry_run
    from pcl_ray.runs import driver, request
    from pcl_ray.runs.folder import RunFolder

    if arguments.dry_run:
        if arguments.name:
            RunFolder.check_free(arguments.name)
        asked = (
            request.check(recipe, overrides) if recipe else request.check_stored(arguments.resume, overrides)
        )
        dry_run.show(asked)
        return 0
    try:
        if recipe:
            typed = shlex.join(
                [
                    "pcl-ray",
                    "train",
                    recipe,
                    *overrides,
                    *(["--name", arguments.name] if arguments.name else []),
                ]
            )
            asked = request.check(recipe, overrides)
            result = driver.start(
                asked,
                name=arguments.name,
                stem=Path(recipe).stem,
                command=redaction.scrubbed(typed),
                result_file=arguments.result,
            )
        else:
            result = driver.resume(arguments.resume, overrides, result_file=arguments.result)
    except Stopped as stopped:
        return _complain(str(stopped), stopped.exit_code)
    _print_result(result)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    if arguments.describe:
        from pcl_ray.sweep.space import settings

        _print_knobs(settings.describe())
        return 0
    if arguments.result is not None:
        _check_result_file(arguments.result)

    try:
        sweep.run(arguments)
    except Stopped as stopped:
        return _complain(str(stopped), stopped.exit_code)
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    verb, *words = (
        arguments.others if arguments.others[:1] in (["train"], ["sweep"]) else ["train", *arguments.others]
    )
    from pcl_ray import tracking

    # they would be the job's entrypoint, which everybody who reaches the cluster can read
    redaction.refuse_in(words)
    # what `pcl-ray VERB` would refuse is refused here, as far as that shows: the data may lie on the cluster
    # alone
    asked = _parsed([verb, *words])
    if asked.dry_run or asked.describe or asked.result is not None:
        raise ConfigError(
            "--dry-run, --describe and --result are for `pcl-ray train` and `sweep` here: a job's files are"
            " thrown away, and its outcome is in MLflow"
        )
    if verb == "train":
        recipe, overrides = _recipe_and_overrides(asked)
        loaded = config.load(recipe, overrides) if recipe else None
        if loaded and (secrets := tracking.secret_knobs(loaded)):
            raise ConfigError(secrets)
        settings = loaded.flatten() if loaded else {}
    else:
        sweep.check(asked)
        settings = dict(word.split("=", 1) for word in asked.words if "=" in word)
    cluster.check_places(settings)
    return cluster.submit(arguments, verb, words, asked)


def _resume(arguments: argparse.Namespace) -> int:
    again = _parsed(cluster.resume_words(arguments))
    return again.command(again)


def _fork(arguments: argparse.Namespace) -> int:
    if arguments.result is not None:
        _check_result_file(arguments.result)
    from pcl_ray.runs import fork

    typed = shlex.join(
        [
            "pcl-ray",
            "fork",
            arguments.run,
            *arguments.changes,
            *(["--name", arguments.name] if arguments.name else []),
        ]
    )
    try:
        result = fork.fork(
            arguments.run,
            arguments.changes,
            name=arguments.name,
            epoch=arguments.epoch,
            command=redaction.scrubbed(typed),
            result_file=arguments.result,
        )
    except Stopped as stopped:
        return _complain(str(stopped), stopped.exit_code)
    _print_result(result)
    return 0


def _check_result_file(path: Path) -> None:
    """Opens it, so that hours of training do not end in a file that cannot be written."""
    there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"--result {str(path)!r} cannot be written: {error.strerror}") from None
    if not there:
        path.unlink()


def _recipe_and_overrides(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The recipe ("" with --resume) and the KEY=VALUE words, which may stand in any order."""
    recipes = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if arguments.resume:
        if recipes or arguments.name:
            given = f"recipe {recipes[0]!r}" if recipes else f"--name {arguments.name}"
            raise ConfigError(
                f"--resume {arguments.resume} uses the run's own recipe and name; leave out {given}"
            )
        return "", overrides
    if not recipes:
        raise ConfigError(
            f"which recipe? One of {', '.join(config.recipe_names())}, or the path of a .yaml file"
        )
    if len(recipes) > 1:
        raise ConfigError(f"{recipes[1]!r} is neither KEY=VALUE nor the only recipe ({recipes[0]!r})")
    return recipes[0], overrides


def _print_knobs(described: Sequence[Knob]) -> None:
    for knob in described:
        print(f"{knob.name} = {knob.default!r}\n    {knob.allowed}\n    {knob.sentence}")


def _print_result(result: RunResult) -> None:
    from pcl_ray import tracking
    from pcl_ray.runs import final_artifacts
    from pcl_ray.runs.folder import read_state_at
    from pcl_ray.support.paths import home

    stored = config.load(Path(result.run_dir, "config.yaml"))
    print()
    for title, value in _table(result.metrics):
        print(f"{title:<34} {value}")
    print(f"{'run':<34} {result.run_name} ({result.state})")
    if (report := Path(result.run_dir, final_artifacts.REPORT)).exists():
        print(f"{'report':<34} {report}")
    print("\nNext:")
    if stored.tracking.enabled:
        link = read_state_at(Path(result.run_dir)).get("link")
        print(f"  {link or _typed(tracking.ui_command(stored.tracking, home()))}")
    print(f"  {_typed('pcl-ray train folder data.path=/path/to/your/pictures')}")


def _typed(command: str) -> str:
    """The command as it can be typed here."""
    program, space, rest = command.partition(" ")
    return f"{machine.as_typed(program)} {rest}" if space else command  # no space: the address of a server


def _table(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """The rows of the closing table; figures that a run without labels does not have are left out."""
    before = (figures.LOSS, figures.KNN_TOP1)
    after = (
        *(figures.RANKME, figures.IMAGES_PER_SECOND),
        *(figures.E_STEP_SECONDS_TOTAL, figures.EPOCH_SECONDS_TOTAL),
    )
    rows = [figure.row(metrics[figure.name]) for figure in before if figure.name in metrics]
    for m in figures.clusterings_in(metrics):
        agreement, count = figures.AMI.at(m), figures.NUM_CLUSTERS.at(m)
        if agreement.name in metrics:
            title = f"clusters and labels, K = {count.text(metrics[count.name])}"
            rows.append((title, agreement.phrase(metrics[agreement.name])))
    return rows + [figure.row(metrics[figure.name]) for figure in after if figure.name in metrics]


def _listed(problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return f"{len(problems)} mistakes:\n" + "\n".join(f"  {problem}" for problem in problems)


def _complain(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"pcl-ray: {redaction.scrubbed(message)}", file=sys.stderr)
    return code


_VERBS = {
    "train": ("run one experiment", _train_arguments, _train),
    "sweep": ("run many experiments over a space of knobs", sweep.add_arguments, _sweep),
    "resume": ("go on with a run or a sweep", cluster.add_resume_arguments, _resume),
    "fork": (
        "start a new run from a checkpoint of another, with changed knobs",
        cluster.add_fork_arguments,
        _fork,
    ),
    "runs": ("list the runs that MLflow has", cluster.add_runs_arguments, cluster.runs),
    "up": ("start a Ray head and an MLflow server on this machine", cluster.add_up_arguments, cluster.up),
    "status": ("show the cluster, and the runs under way", cluster.add_status_arguments, cluster.status),
    "submit": ("run an experiment as a job of a cluster", cluster.add_submit_arguments, _submit),
    "down": ("stop what `up` started, its jobs in good order", cluster.add_down_arguments, cluster.down),
    "ui": ("open the MLflow dashboard", look.add_ui_arguments, look.ui),
    "report": ("write the report of a run as one HTML file", look.add_report_arguments, look.report),
    "compare": ("write one page that compares runs", look.add_compare_arguments, look.compare),
    "doctor": (
        "say what the curves of a run mean and what to try; without a run, check this machine",
        look.add_doctor_arguments,
        look.doctor,
    ),
}

_PASSES_ON = ("submit",)  # verbs that take what they do not know, for a command that does
