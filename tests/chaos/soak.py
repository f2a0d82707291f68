"""A run of hundreds of epochs through Ray: nothing of it may grow.

python tests/chaos/soak.py --minutes 20 [--json FILE]

Samples every process of the run each few seconds: memory (PSS, so that shared pages count once), file
handles, threads; with them /dev/shm and the run's folder. Compares the last third of the time with the
second. Exit code 1 where memory of driver, workers or actor grows by more than 1 %, or handles
or threads grow (threads by more than a few).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/chaos")]

import faults  # noqa: E402
from faults import Run  # noqa: E402

EVERY_S = 5.0
ROLES = {
    "RayTrainWorker": "worker",
    "EStepActor": "E-step actor",
    "EventBoard": "board",
    "TrainController": "controller",
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
}
# The digits as the recipe has them, with epochs of one to two seconds on two cores.
KNOBS = (
    "train.epochs=100000",
    "train.checkpoint_every_steps=null",
    "train.log_every_steps=20",
    "evaluation.every_epochs=5",
    "data.limit=null",
    "augment.image_size=12",
    "encoder.width=32",
    "encoder.blocks=1,1,1",
    "encoder.dim=64",
)
_LEAST = 0.01  # growth that is told from noise
# Allocators and Python's caches keep some pages back and forth; less than this is no leak.
_PAGES_MB = 2.0
_POOL = 3  # threads that gRPC's pools have more where the machine is busy


def role_of(run: Run, process: psutil.Process) -> str | None:
    if process.pid == run.process.pid:
        return "driver"
    words = " ".join(process.cmdline())
    return next((role for title, role in ROLES.items() if title in words), None)


def sample(run: Run) -> dict[str, dict[str, float]]:
    """role → what its processes have together."""
    measured: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for process in run.family():
        with suppress(psutil.Error, OSError):
            role = role_of(run, process)
            if role is not None:
                measured[role]["MB"] += process.memory_full_info().pss / 1e6
                measured[role]["handles"] += process.num_fds()
                measured[role]["threads"] += process.num_threads()
    whole = measured["all"]
    whole["shared memory MB"] = sum(sizes(Path("/dev/shm").glob("*"))) / 1e6
    files = sizes(path for path in run.folder.rglob("*") if path.is_file())
    whole["folder MB"] = sum(files) / 1e6
    whole["files"] = len(files)
    whole["epoch"] = run.state.get("progress", {}).get("epoch", 0)
    return {role: dict(values) for role, values in measured.items()}


def sizes(paths: Iterable[Path]) -> list[int]:
    """Bytes of the files that are still there: some are renamed while they are looked at."""
    found = []
    for path in paths:
        with suppress(OSError):
            found.append(path.stat().st_size)
    return found


def growth(samples: list[dict[str, dict[str, float]]]) -> list[tuple[str, str, float, float, float]]:
    """role, what, median of the second third, of the last, growth as a share."""
    third = len(samples) // 3
    rows = []
    for role in sorted({role for one in samples for role in one}):
        for what in sorted({what for one in samples for what in one.get(role, {})}):
            parts = [samples[third : 2 * third], samples[2 * third :]]
            before, after = (
                statistics.median([one[role][what] for one in part if what in one.get(role, {})] or [0.0])
                for part in parts
            )
            rows.append((role, what, before, after, (after - before) / before if before else 0.0))
    return rows


def leaks(rows: list[tuple[str, str, float, float, float]]) -> list[str]:
    found = []
    for role, what, before, after, share in rows:
        if what == "MB" and share > _LEAST and after - before > _PAGES_MB:
            found.append(f"memory of {role}: {before:.1f} → {after:.1f} MB")
        if (what == "handles" and after > before) or (what == "threads" and after - before > _POOL):
            found.append(f"{what} of {role}: {before:g} → {after:g}")
        if what in ("shared memory MB", "files") and share > _LEAST and after - before > 1:
            found.append(f"{what}: {before:.1f} → {after:.1f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="pcl_ray_soak_") as folder,
        faults.started(Path(folder), "soak", *KNOBS) as run,
    ):
        # it would stand still once the pipe is full
        for output in (run.process.stdout, run.process.stderr):
            threading.Thread(target=deque, args=(output, 0), daemon=True).start()
        run.wait_for(faults.M_STEP, 3)
        until = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until:
            if run.process.poll() is not None:
                print(f"the run ended with {run.process.returncode}: {run.state.get('error')}")
                return 1
            samples.append(sample(run))
            time.sleep(EVERY_S)
        epochs = int(samples[-1]["all"]["epoch"])
    rows = growth(samples)
    print(
        f"{epochs} epochs in {arguments.minutes:g} minutes, {len(samples)} samples; second third → last third"
    )
    for role, what, before, after, share in rows:
        print(f"{role:14s} {what:18s} {before:10.2f} → {after:10.2f}  {share:+7.2%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"epochs": epochs, "rows": rows}, indent=1))
    problems = leaks(rows)
    for problem in problems:
        print(f"GROWS  {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
