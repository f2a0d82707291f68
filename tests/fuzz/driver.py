"""Gives damaged input to what reads it, thousands of times: a request ends in a result or in one sentence.

    python tests/fuzz/driver.py                        every target, 2,000 inputs each
    python tests/fuzz/driver.py --target images --first 5000 --count 1000
    python tests/fuzz/driver.py --target parquet --first 4711 --count 1 --show

An input follows from its target and its number alone. A target runs in a child process with an alarm for each
input and a limit of its memory; what kills it is a finding, and the next child goes on behind it. Exit code 1
with findings. What libraries in C print of damaged files is not suppressed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz.targets import TARGETS, Target

from pcl_ray.errors import ConfigError, DataError, RunFailed

SECONDS = 20.0  # of its own time that an input may take
# Inputs of each target that take seconds: some 3,000 in a minute of one core.
QUICK = {
    "overrides": 500,
    "recipes": 400,
    "labels": 300,
    "images": 400,
    "arrays": 500,
    "idx": 400,
    "parquet": 200,
    "tar": 200,
    "collections": 250,
    "dry_runs": 15,
    "spaces": 15,
    "checkpoints": 80,
}
OF_A_CHILD = 250  # inputs: allocators of other libraries reserve ever more addresses, if no memory
MEMORY = 4 << 30  # bytes of addresses that a child may take beside what it starts with


@dataclass(frozen=True)
class Finding:
    """An input that ended in something else than a result or a sentence."""

    target: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.target} {self.number}: {self.text}"


class TooLong(BaseException):
    """An input took more than its time. No Exception: nothing that is tested may catch it."""


def run(name: str, first: int, count: int, *, show: bool = False) -> Iterator[Finding]:
    """The findings among the inputs `first` … of a target."""
    with tempfile.TemporaryDirectory(prefix="pcl_ray_fuzz_") as folder:
        # of the target's own: what it needs is made and imported once, before the first child
        with contextlib.redirect_stdout(io.StringIO()):
            target = TARGETS[name](Path(folder))
        number = first
        while number < first + count:
            number = yield from _child(target, name, number, first + count, Path(folder), show)


def _child(target: Target, name: str, number: int, end: int, folder: Path, show: bool) -> Iterator[Finding]:
    """Gives inputs to a child process until it dies or has had all; gives back the number to go on with."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _serve(target, name, range(number, min(end, number + OF_A_CHILD)), folder, writing, show)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:  # it must not go on as the parent
            sys.stderr.flush()
            os._exit(70)
    os.close(writing)
    last = number - 1
    with open(reading, "rb") as answers:
        while True:
            try:
                last, text = pickle.load(answers)
            except EOFError:
                break
            if text:
                yield Finding(name, last, text)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return last + 1
    reason = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    yield Finding(name, last + 1, f"the process died of {reason}")
    return last + 2


def _serve(target: Target, name: str, numbers: range, folder: Path, writing: int, show: bool) -> None:
    """The child: one answer an input, (number, what is wrong)."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGVTALRM, _too_long)
    signal.signal(signal.SIGALRM, _too_long)
    with open(writing, "wb", buffering=0) as answers:
        for number in numbers:
            place = folder / "input"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            text = outcome(target, name, number, place, show)
            answers.write(pickle.dumps((number, text)))
            if text:
                break  # it is in an unknown state: the next child goes on


def outcome(target: Target, name: str, number: int, place: Path, show: bool = False) -> str:
    """What is wrong with how an input ended; "" where nothing is."""
    rng = random.Random(f"{name}:{number}")
    printed = io.StringIO()
    # by the process's own time, so that a busy machine makes no findings; and by the clock, for what waits
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS * 10)
    faulthandler.dump_traceback_later(SECONDS * 12, exit=True)  # for what never comes back to Python
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            target.try_input(rng, place)
    except (ConfigError, DataError, RunFailed) as error:
        printed.write(str(error))
        if not str(error).strip():
            return f"{type(error).__name__} without a word"
    except SystemExit as end:
        if end.code not in (0, 1, 2):
            return f"exit code {end.code}"
    except TooLong:
        return f"more than {SECONDS:.0f} s"
    except BaseException as error:
        if show:
            traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        where = next((frame for frame in reversed(frames) if "pcl_ray/" in frame.filename), frames[-1])
        reason = " ".join(str(error).split())[:200]
        return f"{type(error).__name__}: {reason} ({where.filename.rpartition('pcl_ray/')[2]}:{where.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        if show:
            print(printed.getvalue())
    return "a traceback was printed" if "Traceback (most recent" in printed.getvalue() else ""


def _too_long(*_: object) -> NoReturn:
    raise TooLong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="which; left out: all")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="of the first input (0)")
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="inputs of each target (2,000)")
    parser.add_argument("--quick", action="store_true", help="the few of each that tests take")
    parser.add_argument("--show", action="store_true", help="what is printed, and tracebacks")
    arguments = parser.parse_args()
    total = 0
    for name in arguments.target or TARGETS:
        began, findings = time.monotonic(), []
        count = QUICK[name] if arguments.quick else arguments.count
        for finding in run(name, arguments.first, count, show=arguments.show):
            findings.append(finding)
            print(f"  {finding}", flush=True)
        numbers = f"{arguments.first} … {arguments.first + count - 1}"
        took = time.monotonic() - began
        print(f"{name}: inputs {numbers}, {len(findings)} findings, {took:.0f} s", flush=True)
        total += len(findings)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
