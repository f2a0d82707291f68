"""The study of whether prototypes help, beside and beyond InfoNCE: docs/study.md says what it asks and how.

    python benchmarks/study.py run --minutes 30     # what is left of it, for so long; two at once share it
    python benchmarks/study.py list                 # what is done, under way, left
    python benchmarks/study.py report               # tables and figures into docs/study.md
    python benchmarks/study.py run --quick          # a minute: everything runs; says nothing about learning
    python benchmarks/study.py run --device cuda --minutes 9    # where there is a GPU; Ray, MLflow and faiss
                                                                # need not be installed

Each run appends a line to benchmarks/study_results.jsonl. A run that is stopped goes on from its last epoch.
Settings are in study_settings.py; data sets are made by study_data.py where they are missing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a run; read when torch is loaded

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import study_data
import study_report
import study_settings
import torch
from study_settings import ARMS, FIRST_TUNING_SEED, TASKS, Run

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, DataError, RunFailed
from pcl_ray.support import files, paths, provenance

RESULTS = Path(__file__).parent / "study_results.jsonl"

Row = dict[str, Any]


def main() -> int:
    arguments = _parser().parse_args()
    try:
        return _verb(arguments)
    except DataError as error:  # which says by itself which package is missing
        print(error, file=sys.stderr)
        return 2


def _verb(arguments: argparse.Namespace) -> int:
    if arguments.verb == "report":
        return study_report.main(arguments.results, arguments.json, arguments.device)
    if arguments.verb == "list":
        return _list(arguments)
    torch.set_num_threads(1)
    if not arguments.quick:
        os.nice(19)
        return _run(_wanted(arguments), arguments)
    with tempfile.TemporaryDirectory() as folder:
        arguments.results, arguments.work = Path(folder, "results.jsonl"), Path(folder, "work")
        _run(study_settings.quick_runs(), arguments)
        return study_report.quick(arguments.results, arguments.json)


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("verb", choices=["run", "list", "report"])
    options.add_argument("--minutes", type=float, default=1e6, help="stop after so long (run)")
    options.add_argument("--tasks", nargs="+", metavar="TASK", help=f"of {', '.join(TASKS)} (default: all)")
    options.add_argument("--arms", nargs="+", metavar="ARM", help=f"of {', '.join(ARMS)}")
    options.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help=f"these seeds; from {FIRST_TUNING_SEED} on they are trained and measured on the tuning images",
    )
    options.add_argument("--references", action="store_true", help="the reference's setting, too")
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--data", type=Path, help="folder of the data sets (default: PCL_RAY_HOME/data)")
    options.add_argument("--work", type=Path, help="checkpoints and locks (default: PCL_RAY_HOME/study)")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--quick", action="store_true")
    options.add_argument("--json", type=Path, help="writes claims and figures there (report, run --quick)")
    return options


def _wanted(arguments: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, in their order. Raises ConfigError for names that there are not."""
    for option, names in (("tasks", TASKS), ("arms", ARMS)):
        if unknown := set(getattr(arguments, option) or ()) - set(names):
            raise ConfigError(f"--{option}: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    made = study_settings.runs(device=arguments.device, references=arguments.references)
    if arguments.seeds:
        pairs = {(run.task, run.arm): None for run in made}
        made = [Run(task, arm, seed, arguments.device) for seed in arguments.seeds for task, arm in pairs]
    return [
        run for run in made if run.task in (arguments.tasks or TASKS) and run.arm in (arguments.arms or ARMS)
    ]


def _list(arguments: argparse.Namespace) -> int:
    done = results(arguments.results)
    wanted = _wanted(arguments)
    for run in wanted:
        state = "left"
        if run.digest in done:
            state = "failed" if "failed" in done[run.digest] else "done"
        print(f"{state:6s} {run.name}")
    print(f"{sum(run.digest in done for run in wanted)} of {len(wanted)} are done")
    return 0


def results(path: Path) -> dict[str, Row]:
    """The lines of a file of results by `Run.digest`, which has the seed in it; of equal ones the last."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {row["digest"]: row for row in rows}


def _run(wanted: list[Run], arguments: argparse.Namespace) -> int:
    """Makes what is left, one run after the other, until it is done or time is up."""
    deadline = time.monotonic() + 60 * arguments.minutes
    work = (arguments.work or paths.home() / "study").expanduser().absolute()
    (work / "locks").mkdir(parents=True, exist_ok=True)
    loaded: dict[tuple[str, bool], tuple[DataSplits, Path, str]] = {}
    progress = True
    while progress:
        progress = False
        for run in wanted:
            done = results(arguments.results)
            if run.digest in done or not _ready(run, done):
                continue
            if time.monotonic() > deadline:
                print("time is up")
                return 0
            try:
                lock = files.acquire_lock(work / "locks" / f"{run.name}.{run.digest}")
            except files.LockHeld:
                continue
            try:
                if run.digest in results(arguments.results):  # finished elsewhere a moment ago
                    continue
                key = (run.task, run.tuning)
                if key not in loaded:
                    loaded.clear()
                    loaded[key] = _load(run, arguments.data)
                row = _row(run, *loaded[key], work, deadline, done)
                if row is None:
                    print(f"{run.name}: time is up; it goes on from here next time")
                    return 0
                with (
                    files.file_lock(work / "results.lock", timeout_s=60),
                    arguments.results.open("a") as file,
                ):
                    file.write(json.dumps(row) + "\n")
                progress = True
                print(_line(run, row), flush=True)
            finally:
                lock.release()
    left = [run.name for run in wanted if run.digest not in results(arguments.results)]
    print(
        f"{len(wanted) - len(left)} of {len(wanted)} runs are done"
        + (", the others under way" if left else "")
    )
    return 0


def _ready(run: Run, done: dict[str, Row]) -> bool:
    """Whether the runs are done whose seconds a run's length follows from."""
    if not ARMS[run.arm].longer:
        return True
    others = (done.get(Run(run.task, name, run.seed, run.device).digest) for name in ("infonce", "pcl"))
    return all(row is not None and "failed" not in row for row in others)


def _load(run: Run, folder: Path | None) -> tuple[DataSplits, Path, str]:
    path = study_data.file_of(run.task, tuning=run.tuning, folder=folder)
    checksum = study_data.read(path).checksum
    knobs = study_settings.base_knobs(run)
    config = DataConfig(source="arrays", path=str(path), channels=knobs["data.channels"])
    return datasets.load(config, cache_dir=path.parent), path, checksum


def _row(
    run: Run, splits: DataSplits, path: Path, checksum: str, work: Path, deadline: float, done: dict[str, Row]
) -> Row | None:
    """The line of a run, None where time was up first. A run that fails has a line that says why."""
    import study_evaluation as evaluation  # scikit-learn takes seconds
    import study_training as training

    arm, device = ARMS[run.arm], torch.device(run.device)
    row: Row = {"task": run.task, "arm": run.arm, "seed": run.seed, "device": run.device}
    row |= {"digest": run.digest, "data": checksum, "tuning": run.tuning}
    start = time.perf_counter()
    try:
        if arm.untrained == "pixels":
            row |= evaluation.of_pixels(splits, run.seed)
        elif arm.untrained:
            config = training.config_of(run, str(path), len(splits.train), splits.num_holdout)
            row |= evaluation.of_untrained(config, splits, device)
        else:

            def seconds_of(other: str) -> tuple[float, float]:
                found = done[Run(run.task, other, run.seed, run.device).digest]
                return found["seconds"], found["epochs"] - found["warmup_epochs"]

            result = training.trained(
                run, splits, str(path), work, pause=lambda: time.monotonic() > deadline, seconds_of=seconds_of
            )
            row |= training.described(run, result)
            row |= evaluation.of_checkpoint(result.checkpoint, result.config, splits, device)
            training.tidy(run, work)
    except training.Paused:
        return None
    except RunFailed as failure:
        row["failed"] = str(failure)
    row["wall_seconds"] = round(time.perf_counter() - start, 1)
    commit = provenance.run_tags(Path(__file__).parent).get("git.commit", "")
    return row | {
        "machine": common.machine(),
        "versions": common.versions(),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _line(run: Run, row: Row) -> str:
    if "failed" in row:
        return f"{run.name}: failed: {row['failed']}"
    shown = "  ".join(f"{name} {value:.4f}" for name, value in row["backbone"].items())
    seconds, in_all = row.get("seconds", 0.0), row["wall_seconds"]
    return f"{run.name}: {shown}  ({seconds:.0f} s of training, {in_all:.0f} s in all)"


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
