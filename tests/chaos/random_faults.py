"""Faults at random for some minutes: every run must end as one that nobody disturbed, and leave nothing.

python tests/chaos/random_faults.py --minutes 10 --seed 0

Each round starts a run, disturbs it up to three times at moments that the seed draws, resumes it by name
where it ended, and compares its last state bit by bit. Prints a line a round; exit code 1 at the first that
differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/chaos")]

import faults  # noqa: E402
from faults import CHECKPOINT, E_STEP, M_STEP, Run  # noqa: E402

TITLES = ("RayTrainWorker", "EStepActor", "EventBoard", "raylet/raylet", "gcs_server")


def disturb(run: Run, draw: random.Random) -> str:
    """Waits for a moment and does something to the run; gives back what, "" where it had ended before."""
    phase, epoch = draw.choice((M_STEP, E_STEP, CHECKPOINT)), draw.randrange(1, faults.EPOCHS - 2)
    what = draw.choice((*TITLES, "driver", "SIGTERM", "SIGINT"))
    later = draw.random() * 0.05
    try:
        run.wait_for(phase, epoch)
    except AssertionError:
        return ""
    time.sleep(later)
    if run.process.poll() is not None:
        return ""
    if what == "driver":
        run.process.kill()
    elif what.startswith("SIG"):
        run.process.send_signal(signal.Signals[what])
    else:
        with suppress(AssertionError):  # it may be between two of them
            faults.kill(run, what)
    return f"{what} in {phase} of epoch {epoch + 1}"


def one_round(number: int, draw: random.Random, folder: Path, undisturbed: faults.RunState) -> None:
    before = faults.shared_files()
    happened: list[str] = []
    began = time.monotonic()
    with faults.started(folder, "disturbed") as run:
        for _ in range(draw.randint(1, 3)):
            if what := disturb(run, draw):
                happened.append(what)
            if run.process.poll() is None and what and not _ends(run, what):
                continue
            said = run.end()
            if run.process.returncode == 0:
                break
            assert "Traceback" not in said, said
            faults.wait_until(lambda: run.state.get("state") != "running", f"a true state: {run.state}")
            faults.wait_until(lambda: not run.family(), f"nothing is left: {run.family()}")
            run.process = faults.start(run.home, ["train", "--resume", run.name])
        said = run.end()
        if run.process.returncode != 0:
            said = faults.resume(run)
        faults.assert_same_course(run, undisturbed)
        faults.assert_recorded_once(run)
        faults.assert_nothing_left(run, before)
    print(f"{number:3d}  {time.monotonic() - began:6.1f} s  {'; '.join(happened) or 'nothing'}", flush=True)


def _ends(run: Run, what: str) -> bool:
    """Whether this ends the driver, which then has some seconds for it."""
    return what.startswith(("driver", "SIG", "raylet", "gcs"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="pcl_ray_chaos_") as folder:
        with faults.started(Path(folder, "undisturbed"), "undisturbed") as run:
            said = run.end()
            assert run.process.returncode == 0, said
            undisturbed = run.newest()
        number = 0
        while time.monotonic() < until:
            number += 1
            try:
                one_round(number, draw, Path(folder, f"round_{number}"), undisturbed)
            except AssertionError as error:
                print(f"{number:3d}  FAILED (seed {arguments.seed}): {error}", flush=True)
                return 1
    print(f"{number} rounds, all of them as the undisturbed run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
