"""The images in Ray's store: one copy, read by workers of several runs without copying it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from pcl_ray.on_ray import environment as ray_environment
ray_environment.set_defaults()
import numpy as np
import ray
from pcl_ray import config as configs, plan as plans
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.images import ArrayImages
from pcl_ray.on_ray import connection as ray_connection, launch as ray_setup
from pcl_ray.training.training_task import TrainingTask

def look(shared):
    def private():
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
    ray.get(ray.put(0))
    before = private()
    pixels = ray.get(shared.splits).train.pixels
    touched = int(pixels[:, ::8, ::8].sum())  # every page
    return pixels.flags.writeable, private() - before, pixels.nbytes / 2**20

config = configs.load("digits", sys.argv[2:])
draw = np.random.default_rng(0)
pixels = np.tile(draw.integers(0, 256, (300, 64, 64, 1), dtype=np.uint8), (60, 1, 1, 1))
splits = DataSplits(ArrayImages(pixels), None)
with ray_connection.connected(3):
    shared = ray_connection.share(splits)
    writeable, grown, size = ray.get(ray.remote(look).options(num_cpus=0).remote(shared), timeout=120)
    assert size > 64, size
    assert not writeable
    assert grown < size / 4, (grown, size)
    for number in range(2):
        run = configs.with_overrides(config, {"seed": number})
        plan = plans.make(run, len(splits.train))
        events = []
        ray_setup.train_shared(TrainingTask(run, plan, f"{sys.argv[1]}/{number}"), shared, events.append)
        assert [event.epoch for event in events if event.kind == "epoch"] == [0], events
print("shared")
"""


@pytest.mark.slow
def test_one_copy_serves_the_workers_of_several_runs(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    words = (
        "augment.image_size=8",
        "encoder.width=8",
        "encoder.blocks=1",
        "encoder.dim=8",
        "loss.queue_size=512",
        "train.batch_size=2048",
        "train.epochs=1",
    )
    e_step = (
        "e_step.warmup_epochs=1",
        "optimizer.warmup_epochs=0",
        "resources.workers=2",
        "tracking.enabled=false",
    )
    done = run_python(SCRIPT, str(tmp_path), *words, *e_step)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "shared" in done.stdout
