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
from pcl_ray.cli.train import FORK, RESUME, TRAIN
from pcl_ray.cli.verb import Parser, Verb
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed, Stopped
from pcl_ray.support import redaction, telemetry

# In the order of --help.
_VERBS = (
    *(TRAIN, SWEEP, RESUME, FORK),
    *(EVALUATE, REPRODUCE, EXPORT, EMBED, SEARCH, DUPLICATES, OUTLIERS, SAMPLE, LABEL),
    *(RUNS, UP, STATUS, SUBMIT, DOWN, UI, REPORT, COMPARE, DOCTOR),
)


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
    order, which argparse's sub-commands do not allow.
    """
    verbs = {verb.name: verb for verb in _VERBS}
    parser = Parser(prog="pcl-ray", description="Prototypical Contrastive Learning on Ray.")
    parser.add_argument("--version", action="version", version=f"pcl_ray {__version__}")
    parser.add_argument(
        "verb", choices=list(verbs), help="; ".join(f"{verb.name}: {verb.sentence}" for verb in _VERBS)
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="...", help="`pcl-ray VERB --help` says what a verb takes"
    )
    verb = verbs[parser.parse_args(argv[:1]).verb]
    return verb, verb.parse(argv[1:])


def _listed(problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return f"{len(problems)} mistakes:\n" + "\n".join(f"  {problem}" for problem in problems)


def _complain(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"pcl-ray: {redaction.scrubbed(message)}", file=sys.stderr)
    return code
