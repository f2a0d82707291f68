"""What a sweep costs beyond its trials' own training, and what one shared warm-up saves: 12 one-device trials
on the digits, 3 τ × 2 α × 2 K.

    python benchmarks/sweep.py            # two rounds: ten minutes on 2 cores
    python benchmarks/sweep.py --quick    # a few epochs: a minute and a half; no shares of time

Both sweeps run as `pcl-ray sweep` does, in turns: with the shared warm-up (half of the epochs) and without.
Overhead is the share of the time of the command, on as many devices as trials run at a time, in which no
trial trains: start of Python and Ray, starts of trials, Tune, idle ends, leaderboard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from common import LIMIT_S, Report, Timed

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.errors import RunFailed

_SPACE = """
base: digits
space:
  loss.temperature: {type: grid, values: [0.1, 0.2, 0.4]}
  e_step.alpha: {type: grid, values: [1.0, 10.0]}
  e_step.num_clusters: {type: grid, values: ["0.02,0.04,0.08", "0.01,0.02,0.04"]}
"""


def main() -> int:
    arguments = common.parser(__doc__, repeats=2).parse_args()
    report = Report("sweep", arguments.quick)
    epochs, repeats = (4, 1) if arguments.quick else (50, arguments.repeats)
    at_a_time = min(os.cpu_count() or 1, 12)
    shared, alone = Timed(), Timed()
    same = True
    report.section(f"12 trials of {epochs} epochs, {epochs // 2} of them warm-up, {at_a_time} at a time")
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as home:
            results = {}
            for name, timed in (("shared", shared), ("alone", alone)):
                begun = time.perf_counter()
                results[name] = _sweep(home, name, epochs, at_a_time)
                timed.seconds.append(time.perf_counter() - begun)
                timed.results.append(results[name]["metrics"]["sweep/device_minutes"] * 60)
            same &= _same_results(Path(home))
    for name, timed in (("shared warm-up", shared), ("a warm-up for each trial", alone)):
        overheads = [
            1 - own / (seconds * at_a_time) for own, seconds in zip(timed.results, timed.seconds, strict=True)
        ]
        report.timing(
            f"{name}: the whole command",
            timed,
            device_seconds=sorted(timed.results)[len(timed.results) // 2],
            overhead=max(overheads),
        )
        # The shorter trials of the other pay the same start; 3 long and 9 short ones do not divide by 2.
        if timed is alone:
            report.claim(
                "overhead beyond the trials' own training (worst round)",
                max(overheads),
                at_most=0.15,
                full_size=True,
            )
    shares = [1 - with_it / without for with_it, without in zip(shared.results, alone.results, strict=True)]
    report.row("device time saved by the shared warm-up", least=min(shares), most=max(shares))
    report.claim(
        "device time saved by the shared warm-up (worst round)", min(shares), at_least=0.3, full_size=True
    )
    report.claim("weights, clusters and figures of all trials bit for bit the same", float(same), at_least=1)
    return report.end(arguments.json)


def _sweep(home: str, name: str, epochs: int, at_a_time: int) -> dict[str, Any]:
    space, result = Path(home, "space.yaml"), Path(home, f"{name}.json")
    space.write_text(_SPACE)
    words = [
        f"train.epochs={epochs}",
        f"e_step.warmup_epochs={epochs // 2}",
        "tracking.enabled=false",
        f"sweep.shared_warmup={str(name == 'shared').lower()}",
    ]
    command = [sys.executable, "-m", "pcl_ray.cli", "sweep", str(space), *words]
    command += ["--name", name, "--concurrency", str(at_a_time), "--result", str(result)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=4 * LIMIT_S,
        env={**os.environ, "PCL_RAY_HOME": home},
        check=False,
    )
    if done.returncode:
        raise RunFailed(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(result.read_text())


def _same_results(home: Path) -> bool:
    """Whether every trial ended alike in both sweeps."""
    folders = {name: sorted((home / "runs").glob(f"{name}.*")) for name in ("shared", "alone")}
    pairs = list(zip(folders["shared"], folders["alone"], strict=True))
    return len(pairs) == 12 and all(_equal(_end(one), _end(two)) for one, two in pairs)


def _end(folder: Path) -> dict[str, Any]:
    newest = epoch_files.latest(folder / "checkpoints")
    if newest is None:
        raise RunFailed(f"{folder} has no checkpoint")
    state = run_state.load(newest)
    history = [
        {name: value for name, value in entry["metrics"].items() if not name.startswith("perf/")}
        for entry in state.history
    ]
    return {
        "learner": state.learner,
        "clusters": state.clusters.state_dict() if state.clusters else None,
        "history": history,
        "random": state.random_states,
    }


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(_equal(a, b) for a, b in zip(one, two, strict=True))
    return one == two


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
