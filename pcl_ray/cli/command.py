"""The `pcl-ray` command. Exit codes: 0 done, 1 run failed, 2 request wrong, 128 + n stopped by signal n."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import locale
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

from pcl_ray import __version__
from pcl_ray.cli import completion
from pcl_ray.cli.cluster import DOWN, STATUS, UP
from pcl_ray.cli.collection import DUPLICATES, EMBED, LABEL, OUTLIERS, SAMPLE, SEARCH
from pcl_ray.cli.evaluate import EVALUATE, REPRODUCE
from pcl_ray.cli.export import EXPORT
from pcl_ray.cli.look import COMPARE, DOCTOR, REPORT, RUNS, UI
from pcl_ray.cli.submit import SUBMIT
from pcl_ray.cli.sweep import SWEEP
from pcl_ray.cli.train import FORK, RECIPES, RESUME, TRAIN
from pcl_ray.cli.upkeep import ARCHIVE, DELETE, PRUNE, UNARCHIVE
from pcl_ray.cli.verb import Parser, Verb
from pcl_ray.errors import ConfigError, DataError, Problem, RunFailed, Stopped
from pcl_ray.support import redaction, signals, telemetry
from pcl_ray.support.paths import escaped_sign, path_text, visible
from pcl_ray.support.text import suggestion_sentence

_UTF8 = ["-X", "utf8"]
_BY_SIGNAL = 128  # exit codes above it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SPELLED = "pcl_ray.spelled"  # how streams handle what they cannot encode
_ASCII = {
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "≈": "~",
    "×": "x",
    "·": "*",
    "±": "+-",
    "−": "-",
    "∞": "inf",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "←": "<-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "φ": "phi",
    "τ": "tau",
    "α": "alpha",
    "ε": "epsilon",
    "√": "sqrt ",
    "µ": "u",
    "\u00a0": " ",
    **dict.fromkeys("─━═╌", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇╭╮╰╯", "+"),
    **dict.fromkeys("█▇▆▅▄▃▂▁", "#"),
}

# In the order of --help.
_GROUPS: dict[str, tuple[Verb, ...]] = {
    "train": (TRAIN, SWEEP, RESUME, FORK, RECIPES),
    "look at runs": (RUNS, REPORT, COMPARE, DOCTOR, UI),
    "use an encoder": (EVALUATE, REPRODUCE, EXPORT),
    "what is in a folder of pictures": (EMBED, SEARCH, DUPLICATES, OUTLIERS, SAMPLE, LABEL),
    "keep order": (DELETE, PRUNE, ARCHIVE, UNARCHIVE, completion.verb_of(lambda: _VERBS)),
    "on a cluster": (UP, STATUS, SUBMIT, DOWN),
}
_VERBS = {verb.name: verb for group in _GROUPS.values() for verb in group}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. A user's mistake is one message on stderr, no traceback."""
    telemetry.turn_off()
    redaction.hide_from_tracebacks()
    verb, arguments = parse(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_SPELLED)
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
    except OSError as error:
        if error.filename is None and not isinstance(error, PermissionError) and error.errno not in _NO_ROOM:
            raise
        return _complain(f"{path_text(error.filename or 'a file')}: {error.strerror}", 2)
    except MemoryError as error:
        return _complain(f"there is not enough memory for this ({str(error) or 'no more to be had'})", 1)
    except KeyboardInterrupt:
        return _complain("stopped", 130)


def entry(*words: str) -> None:
    """The console script and the jobs: exits with the code of `main`. words: stand before what was typed."""
    _read_names_as_utf8()
    lost = _open_streams()
    code = main([*words, *sys.argv[1:]])
    if code > _BY_SIGNAL:
        signals.ignore()
    try:
        sys.stdout.flush()
    except OSError as error:
        lost.append(error)
    if lost and not code:
        code = _complain(f"the output cannot be written: {lost[0].strerror}", 1)
    sys.exit(code)


def _read_names_as_utf8() -> None:
    """Starts this command once more, in Python's UTF-8 mode, where the locale has another encoding.

    The name of a file is then the same text in all processes: Ray's inherit the variable. In the locales C
    and POSIX Python has chosen that mode itself, unless it was told not to.
    """
    if sys.getfilesystemencoding() != "utf-8" and not _restarted():
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *_UTF8, *sys.orig_argv[1:]])


def _restarted() -> bool:
    return sys.orig_argv[1:3] == _UTF8


def _open_streams() -> list[OSError]:
    """Opens what the command prints to, so that nobody's going away ends it; gives back a list that gets the
    error where output was lost for another reason than that.

    A stream that was closed at the start is /dev/null: else the next file that is opened got its number, and
    what is printed. Whoever reads may stop doing so, as `head` does.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    lost: list[OSError] = []
    encoding = locale.getencoding() if _restarted() and "PYTHONIOENCODING" not in os.environ else None
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        screen = _Screen(
            io.BufferedWriter(_Output(number, lost.append)),
            encoding or (stream.encoding if stream else "utf-8"),
            _SPELLED,
            line_buffering=name == "stderr" or os.isatty(number),
            write_through=stream is not None and stream.write_through,  # PYTHONUNBUFFERED
        )
        setattr(sys, name, screen)
    return lost


class _Screen(TextIOWrapper):
    """Prints what commands a terminal, or cannot be seen, as `path_text` escapes it. Only a terminal gets
    escape sequences, which `rich` writes.
    """

    def write(self, text: str, /) -> int:
        return super().write(visible(text, but="\n\t\r\x1b" if self.isatty() else "\n\t\r"))


class _Output(io.FileIO):
    """Standard output or error: takes what is written after nobody reads it any more."""

    def __init__(self, number: int, lost: Callable[[OSError], None]):
        super().__init__(number, "wb", closefd=False)
        self._lost = lost

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self._lost(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(content).nbytes


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """What is printed of signs that the terminal does not have, or no text has."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(sign) or escaped_sign(sign) for sign in text), error.end


def parse(argv: Sequence[str]) -> tuple[Verb, argparse.Namespace]:
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


codecs.register_error(_SPELLED, _spelled)
