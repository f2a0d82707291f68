"""What a verb of the command is, and what several verbs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pcl_ray.errors import ConfigError
from pcl_ray.support import redaction


class Parser(argparse.ArgumentParser):
    """argparse's, whose messages repeat what was typed: without the secrets in it."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(status, redaction.scrubbed(message or ""))


@dataclass(frozen=True)
class Verb:
    """One verb: `pcl-ray NAME …`."""

    name: str
    sentence: str  # what it does, without a full stop
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # gives back the exit code
    # Verbs that pass words on to another verb get their own words, and the rest as `arguments.others`.
    divide: Callable[[Sequence[str]], tuple[list[str], list[str]]] | None = None

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """What was typed behind the verb. Exits with 2 for words that it does not take."""
        parser = Parser(
            prog=f"pcl-ray {self.name}", description=f"{self.sentence[0].upper()}{self.sentence[1:]}."
        )
        self.add_arguments(parser)
        own, others = self.divide(words) if self.divide else (words, [])
        arguments = parser.parse_intermixed_args(own)
        arguments.others = others
        return arguments


def add_run_arguments(parser: argparse.ArgumentParser, dry_run: str, describe: str) -> None:
    """--dry-run and --describe, with what each of them does, and --result."""
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--describe", action="store_true", help=describe)
    add_result_argument(parser)


def add_result_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--result", type=Path, metavar="FILE", help="write the outcome as JSON")


def check_result_file(path: Path | None, option: str = "--result") -> None:
    """Opens the file of --result, or of `option`, early: hours of work must not end in one that cannot be
    written.
    """
    if path is None:
        return
    try:
        existed = path.exists()
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {error.strerror}") from None
    if not existed:
        path.unlink()


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help=(
            "dashboard of the cluster; left out: RAY_API_SERVER_ADDRESS, that of `pcl-ray up`, or Ray's"
            " default"
        ),
    )


def add_experiment_argument(parser: argparse.ArgumentParser, meaning: str = "of MLflow") -> None:
    parser.add_argument("--experiment", default="pcl_ray", help=meaning)


def knob_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are no KEY=VALUE, and those that are; they may stand in any order."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]
