"""From the command to the first training step of `train digits`, and where the seconds go.

    python benchmarks/start.py                 # three rounds, interleaved: two minutes on 2 cores
    python benchmarks/start.py --quick         # one round: shows that everything runs, claims no speed
    python benchmarks/start.py --submitted     # and as a job of the head that `pcl-ray up` started here

One run with two workers on a Ray of its own, one where every process of Ray loads what it needs
(PCL_RAY_WARM_START=0), one in a single process. Each writes into its state.json when what comes before its
first step began, and is stopped at that step. Beside the seconds: those of processor time that all its
processes have taken by then, kind by kind; and what each kind imports, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
import psutil
from common import LIMIT_S, Report, Row

from pcl_ray.errors import RunFailed
from pcl_ray.runs.event_router import FIRST_STEP

_EVERY_S = 0.1
_ENDED = "the first step"
_WORDS = ["train.epochs=2", "e_step.warmup_epochs=1", "tracking.model=false"]
# What each kind of process imports, and how.
_IMPORTS = {
    "command and driver": "pcl_ray.cli.command, pcl_ray.runs.driver",
    "driver on Ray": "pcl_ray.on_ray.launch, pcl_ray.on_ray.processes.trainer",
    "board": "ray, pcl_ray.training.events",
    "E-step actor": "ray, pcl_ray.training.e_step_actor",
    "worker": "ray.train, pcl_ray.on_ray.worker",
    "MLflow, after the first step": "mlflow.tracking, mlflow.store.tracking.sqlalchemy_store",
}
# Processes by what their command lines hold, the first that fits.
_KINDS = {
    "warm_client": "start of a warm worker",
    "warm_parent": "warm process",
    "default_worker.py": "start of a worker",
    "setup_worker.py": "start of a worker",
    "ray::RayTrainWorker": "workers",
    "ray::EStepActor": "E-step actor",
    "ray::EventBoard": "board",
    "ray::TrainController": "controller",
    "ray::SynchronizationActor": "Ray Train's actor for broadcasts",
    "ray::": "Ray's agents and idle workers",
    "gcs_server": "Ray's servers",
    "raylet": "Ray's servers",
    "ray/autoscaler": "Ray's servers",
    "ray/dashboard": "Ray's servers",
    "ray/_private": "Ray's servers",
}


def main() -> int:
    made = common.parser(__doc__, repeats=3)
    made.add_argument("--submitted", action="store_true", help="as a job of `pcl-ray up`, too")
    arguments = made.parse_args()
    report = Report("start", arguments.quick)
    repeats = 1 if arguments.quick else arguments.repeats
    variants: dict[str, tuple[list[str], dict[str, str]]] = {
        "2 workers": ([], {}),
        "2 workers, nothing warm": ([], {"PCL_RAY_WARM_START": "0"}),
        "one process": (["resources.workers=0"], {}),
    }
    if arguments.submitted:
        variants["2 workers, submitted"] = ([], {"submit": "1"})
    runs: dict[str, list[Row]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, (words, environment) in variants.items():
            runs[name].append(_start(words, environment))
    report.section("seconds from the command to the beginning of …; median (least – most)")
    for name, rows in runs.items():
        moments = list(dict.fromkeys(moment for row in rows for moment in row["moments"]))
        report.row(
            name, **{moment: _spread([row["moments"].get(moment) for row in rows]) for moment in moments}
        )
    report.section("seconds of processor time until then")
    for name, rows in runs.items():
        kinds = sorted({kind for row in rows for kind in row["processor"]})
        spent = {kind: _median([row["processor"].get(kind, 0.0) for row in rows]) for kind in kinds}
        report.row(name, all=_median([sum(row["processor"].values()) for row in rows]), **spent)
    report.section("seconds of processor time of imports")
    for kind, modules in _IMPORTS.items():
        report.row(kind, seconds=_median([_import_seconds(modules) for _ in range(repeats)]))
    for name, bar in (("2 workers", 10.0), ("one process", 4.0)):
        text = f"{name}: seconds from the command to the first step"
        report.claim(
            text, _median([row["moments"][_ENDED] for row in runs[name]]), at_most=bar, full_size=True
        )
    if arguments.submitted:
        ratios = [
            one["moments"][_ENDED] / other["moments"][_ENDED]
            for one, other in zip(runs["2 workers, submitted"], runs["2 workers"], strict=True)
        ]
        report.claim("submitted / local", _median(ratios), at_most=1.0, full_size=True)
    return report.end(arguments.json)


def _start(words: list[str], environment: dict[str, str]) -> Row:
    """When each thing of a run's start began, and the processor time until its first step, at which it is
    stopped.

    environment: what is set beside; `submit`: it is submitted, and its home is the head's.
    """
    submitted = "submit" in environment
    with tempfile.TemporaryDirectory() as folder:
        home = os.environ["PCL_RAY_HOME"] if submitted else folder
        name = f"start-{time.time_ns()}"
        verb = "submit" if submitted else "train"
        command = [sys.executable, "-m", "pcl_ray.cli", verb, "digits", "--name", name, *_WORDS, *words]
        variables = {**os.environ, **environment, "PCL_RAY_HOME": home}
        earlier = set(psutil.pids())
        begun = time.time()
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        state = Path(home, "runs", name, "state.json")
        processor: dict[int, tuple[str, float]] = {}
        start: dict[str, float] = {}
        while process.poll() is None and FIRST_STEP not in start and time.time() < begun + LIMIT_S:
            time.sleep(_EVERY_S)
            processor |= _processor_times(process, earlier, everything=submitted)
            with suppress(OSError, ValueError):
                start = json.loads(state.read_text()).get("start", {})
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=LIMIT_S)[1]
    if FIRST_STEP not in start:
        raise RunFailed(f"{' '.join(command)}: {errors.strip()}")
    by_kind: dict[str, float] = defaultdict(float)
    for kind, seconds in processor.values():
        by_kind[kind] += seconds
    moments = {_ENDED if what == FIRST_STEP else what: at - begun for what, at in start.items()}
    return {"moments": moments, "processor": dict(by_kind)}


def _processor_times(
    process: subprocess.Popen[str], earlier: set[int], *, everything: bool
) -> dict[int, tuple[str, float]]:
    """Kind and processor seconds of the command's processes, by number. everything: of all that are new,
    where the head's processes work for it and not its own.
    """
    times = {}
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        watched = psutil.process_iter() if everything else [own, *own.children(recursive=True)]
        for one in watched:
            if one.pid in earlier:
                continue
            with suppress(psutil.Error):
                line, spent = " ".join(one.cmdline()), one.cpu_times()
                kind = next((kind for part, kind in _KINDS.items() if part in line), "driver")
                times[one.pid] = (kind, spent.user + spent.system)
    return times


def _import_seconds(modules: str) -> float:
    code = f"import time; begun = time.process_time(); import {modules}; print(time.process_time() - begun)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    return float(done.stdout.split()[-1])


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _spread(values: list[Any]) -> str:
    there = [value for value in values if value is not None]
    return f"{statistics.median(there):.1f} ({min(there):.1f} – {max(there):.1f})"


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
