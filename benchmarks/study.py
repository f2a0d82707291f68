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
import sys
import tempfile
import time
from pathlib import Path

import common
import study_report
import study_runs
import study_settings
import torch
from study_runs import Images, Pause, Row
from study_settings import ARMS, FIRST_TUNING_SEED, TASKS, Run

from pcl_ray.errors import DataError, RunFailed

RESULTS = Path(__file__).parent / "study_results.jsonl"


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
        return study_runs.show(_wanted(arguments), arguments.results)
    torch.set_num_threads(1)
    if not arguments.quick:
        os.nice(19)
        return _run(_wanted(arguments), arguments)
    with tempfile.TemporaryDirectory() as folder:
        arguments.results, arguments.work = Path(folder, "results.jsonl"), Path(folder, "work")
        _run(study_settings.quick_runs(), arguments)
        return study_report.quick(arguments.results, arguments.json)


def _parser() -> argparse.ArgumentParser:
    options = study_runs.parser(__doc__, RESULTS, "study")
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
    return options


def _wanted(arguments: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, in their order. Raises ConfigError for names that there are not."""
    for option, names in (("tasks", TASKS), ("arms", ARMS)):
        study_runs.check_names(f"--{option}", getattr(arguments, option), names)
    made = study_settings.runs(device=arguments.device, references=arguments.references)
    if arguments.seeds:
        pairs = {(run.task, run.arm): None for run in made}
        made = [Run(task, arm, seed, arguments.device) for seed in arguments.seeds for task, arm in pairs]
    return [
        run for run in made if run.task in (arguments.tasks or TASKS) and run.arm in (arguments.arms or ARMS)
    ]


def _run(wanted: list[Run], arguments: argparse.Namespace) -> int:
    """Makes what is left, one run after the other, until it is done or time is up."""
    work = study_runs.work_folder(arguments.work, "study")
    loaded: dict[tuple[str, bool], Images] = {}

    def row_of(run: Run, done: dict[str, Row], pause: Pause) -> Row | None:
        key = (run.task, run.tuning)
        if key not in loaded:
            loaded.clear()
            channels = study_settings.base_knobs(run)["data.channels"]
            loaded[key] = study_runs.images_of(run.task, channels, arguments.data, tuning=run.tuning)
        return _row(run, loaded[key], work, pause, done)

    return study_runs.make(wanted, row_of, arguments.results, work, minutes=arguments.minutes, ready=_ready)


def _ready(run: Run, done: dict[str, Row]) -> bool:
    """Whether the runs are done whose seconds a run's length follows from."""
    if not ARMS[run.arm].longer:
        return True
    others = (done.get(Run(run.task, name, run.seed, run.device).digest) for name in ("infonce", "pcl"))
    return all(row is not None and "failed" not in row for row in others)


def _row(run: Run, images: Images, work: Path, pause: Pause, done: dict[str, Row]) -> Row | None:
    """The line of a run, None where time was up first. A run that fails has a line that says why."""
    import study_evaluation as evaluation  # scikit-learn takes seconds
    import study_training as training

    arm, device = ARMS[run.arm], torch.device(run.device)
    row: Row = {"task": run.task, "arm": run.arm, "seed": run.seed, "device": run.device}
    row |= {"digest": run.digest, "data": images.checksum, "tuning": run.tuning}
    splits, path = images.splits, str(images.path)
    start = time.perf_counter()
    try:
        if arm.untrained == "pixels":
            row |= evaluation.of_pixels(splits, run.seed)
        elif arm.untrained:
            config = training.config_of(run, path, len(splits.train), splits.num_holdout)
            row |= evaluation.of_untrained(config, splits, device)
        else:

            def seconds_of(other: str) -> tuple[float, float]:
                found = done[Run(run.task, other, run.seed, run.device).digest]
                return found["seconds"], found["epochs"] - found["warmup_epochs"]

            result = training.trained(run, splits, path, work, pause=pause, seconds_of=seconds_of)
            row |= training.described(result, study_settings.base_knobs(run)["e_step.warmup_epochs"])
            row |= evaluation.of_checkpoint(result.checkpoint, result.config, splits, device)
            training.tidy(training.run_folder(run, work))
    except training.Paused:
        return None
    except RunFailed as failure:
        row["failed"] = str(failure)
    return row | study_runs.origin(start)


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
