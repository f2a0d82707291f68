"""Runs that are made one after the other, in pieces of minutes, each a line in a file of results.

Several processes at once share what is left. A run that is stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import common
import study_data

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError
from pcl_ray.support import files, paths, provenance

Row = dict[str, Any]
Pause = Callable[[], bool]  # whether time is up


class ListedRun(Protocol):
    """A run by its name and a digest of its settings, by which its line is known."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


AnyRun = TypeVar("AnyRun", bound=ListedRun)


def parser(description: str | None, results: Path, work: str) -> argparse.ArgumentParser:
    """A parser with the verbs and the options of such a script. work: the folder under PCL_RAY_HOME."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("verb", choices=["run", "list", "report"])
    options.add_argument("--minutes", type=float, default=1e6, help="stop after so long (run)")
    options.add_argument("--data", type=Path, help="folder of the data sets (default: PCL_RAY_HOME/data)")
    options.add_argument("--work", type=Path, help=f"checkpoints and locks (default: PCL_RAY_HOME/{work})")
    options.add_argument("--results", type=Path, default=results)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--json", type=Path, help="writes claims and figures there (report, run --quick)")
    return options


def check_names(option: str, names: Iterable[str] | None, known: Iterable[str]) -> None:
    """Raises ConfigError for names of an option that there are not."""
    if unknown := set(names or ()) - set(known):
        raise ConfigError(f"{option}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")


def lines(path: Path) -> list[Row]:
    """The lines of a file of results, none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def results(path: Path) -> dict[str, Row]:
    """The lines of a file of results by the digest of their runs; of equal ones the last."""
    return {row["digest"]: row for row in lines(path)}


def show(wanted: Sequence[ListedRun], path: Path) -> int:
    """Prints which runs are done, failed and left."""
    done = results(path)
    for run in wanted:
        state = "left"
        if run.digest in done:
            state = "failed" if "failed" in done[run.digest] else "done"
        print(f"{state:6s} {run.name}")
    print(f"{sum(run.digest in done for run in wanted)} of {len(wanted)} are done")
    return 0


def work_folder(given: Path | None, name: str) -> Path:
    """The folder of checkpoints and locks."""
    return (given or paths.home() / name).expanduser().absolute()


def make(
    wanted: Sequence[AnyRun],
    row_of: Callable[[AnyRun, dict[str, Row], Pause], Row | None],
    path: Path,
    work: Path,
    *,
    minutes: float,
    ready: Callable[[AnyRun, dict[str, Row]], bool] = lambda run, done: True,
) -> int:
    """Makes what is left, one run after the other, until it is done or time is up.

    row_of: the line of a run, None where time was up first. It and `ready`, which says whether a run can be
    made yet, get the lines that there are by digest.
    """
    deadline = time.monotonic() + 60 * minutes
    (work / "locks").mkdir(parents=True, exist_ok=True)
    progress = True
    while progress:
        progress = False
        for run in wanted:
            done = results(path)
            if run.digest in done or not ready(run, done):
                continue
            if time.monotonic() > deadline:
                print("time is up")
                return 0
            try:
                lock = files.acquire_lock(work / "locks" / f"{run.name}.{run.digest}")
            except files.LockHeld:
                continue
            try:
                if run.digest in results(path):  # finished elsewhere a moment ago
                    continue
                row = row_of(run, done, lambda: time.monotonic() > deadline)
                if row is None:
                    print(f"{run.name}: time is up; it goes on from here next time")
                    return 0
                with files.file_lock(work / "results.lock", timeout_s=60), path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                progress = True
                print(_summary(run, row), flush=True)
            finally:
                lock.release()
    left = [run.name for run in wanted if run.digest not in results(path)]
    under_way = ", the others under way" if left else ""
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done{under_way}")
    return 0


def _summary(run: ListedRun, row: Row) -> str:
    if "failed" in row:
        return f"{run.name}: failed: {row['failed']}"
    shown = "  ".join(f"{name} {value:.4f}" for name, value in row["backbone"].items())
    seconds, in_all = row.get("seconds", 0.0), row["wall_seconds"]
    return f"{run.name}: {shown}  ({seconds:.0f} s of training, {in_all:.0f} s in all)"


@dataclass(frozen=True)
class Images:
    """A data set of the study, its file and its checksum."""

    splits: DataSplits
    path: Path
    checksum: str


def images_of(name: str, channels: int, folder: Path | None, *, tuning: bool) -> Images:
    """Loads a data set, and makes it first where it is missing. Raises DataError."""
    path = study_data.file_of(name, tuning=tuning, folder=folder)
    config = DataConfig(source="arrays", path=str(path), channels=channels)
    return Images(datasets.load(config, cache_dir=path.parent), path, study_data.read(path).checksum)


def origin(start: float) -> Row:
    """The end of every line: how long the run took since the start, by time.perf_counter, where and when."""
    return {
        "wall_seconds": round(time.perf_counter() - start, 1),
        "machine": common.machine(),
        "versions": common.versions(),
        "commit": provenance.run_tags(Path(__file__).parent).get("git.commit", ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
