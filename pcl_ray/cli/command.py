"""The `pcl-ray` command. Exit codes: 0 done, 1 run failed, 2 request wrong, 128 + n stopped by signal n."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from pcl_ray import __version__
from pcl_ray.cli.cluster import DOWN, STATUS, UP
from pcl_ray.cli.collection import DUPLICATES, EMBED, LABEL, OUTLIERS, SAMPLE, SEARCH
from pcl_ray.cli.evaluate import EVALUATE, REPRODUCE
from pcl_ray.cli.export import EXPORT
from pcl_ray.cli.look import COMPARE, DOCTOR, REPORT, RUNS, UI
from pcl_ray.cli.submit import SUBMIT
from pcl_ray.cli.sweep import SWEEP
from pcl_ray.cli.train import FORK, RECIPES, RESUME, TRAIN
from pcl_ray.cli.verb import Parser, Verb
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed, Stopped
from pcl_ray.support import redaction, telemetry
from pcl_ray.support.text import suggestion_sentence

# In the order of --help.
_GROUPS: dict[str, tuple[Verb, ...]] = {
    "train": (TRAIN, SWEEP, RESUME, FORK, RECIPES),
    "look at runs": (RUNS, REPORT, COMPARE, DOCTOR, UI),
    "use an encoder": (EVALUATE, REPRODUCE, EXPORT),
    "what is in a folder of pictures": (EMBED, SEARCH, DUPLICATES, OUTLIERS, SAMPLE, LABEL),
    "on a cluster": (UP, STATUS, SUBMIT, DOWN),
}
_VERBS = {verb.name: verb for group in _GROUPS.values() for verb in group}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. A user's mistake is one message on stderr, no traceback."""
    telemetry.turn_off()
    redaction.hide_from_tracebacks()
    verb, arguments = _parsed(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # ≥ and φ on a terminal that has no such letters
    try:
        return verb.run(arguments)
    except ConfigError as error:
        return _complain(_listed(error.problems) if error.problems else str(error), 2)
    except DataError as error:
        return _complain(str(error), 2)
    except Stopped as stopped:
        return _complain(str(stopped), stopped.exit_code)
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
    """The console script: exits with the code of `main`."""
    sys.exit(main())


def _parsed(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace]:
    """The verb and its arguments. Each verb has a parser of its own: its words and options may stand in any
    order, which argparse's sub-commands do not allow. Without a verb the help, and exit code 2.
    """
    parser = Parser(
        prog="pcl-ray",
        usage="pcl-ray VERB …",
        description="Prototypical Contrastive Learning on Ray.",
        epilog=f"{_listed_verbs()}\n\n`pcl-ray VERB --help` says what a verb takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pcl_ray {__version__}")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    name = parser.parse_args(argv[:1]).verb
    if name is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if name not in _VERBS:
        hint = suggestion_sentence(name, _VERBS)
        parser.exit(2, f"pcl-ray: there is no verb {name!r}.{hint} `pcl-ray --help` lists them\n")
    return _VERBS[name], _VERBS[name].parse(argv[1:])


def _listed_verbs() -> str:
    """The verbs in their groups, each with what it does."""
    blocks = []
    for title, verbs in _GROUPS.items():
        lines = [f"  {verb.name:<11} {verb.sentence}" for verb in verbs]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks)


def _listed(problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return f"{len(problems)} mistakes:\n" + "\n".join(f"  {problem}" for problem in problems)


def _complain(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"pcl-ray: {redaction.scrubbed(message)}", file=sys.stderr)
    return code
