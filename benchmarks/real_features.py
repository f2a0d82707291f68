"""Momentum features of every epoch of a real run: Fashion-MNIST, the shipped recipe, one process.

    python benchmarks/real_features.py --images 30000 --epochs 16      # ten minutes on one core

They are stored under PCL_RAY_HOME/benchmarks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WARMUP = 3


def of_epochs(images: int, epochs: int, *, dim: int = 128, seed: int = 0) -> list[np.ndarray]:
    """[images, dim] float32 before each epoch from the warm-up's end on. Trained once, then read."""
    from pcl_ray.support.paths import home

    folder = home() / "benchmarks" / f"fashion_{images}_{dim}_{epochs}_{seed}"
    files = [folder / f"{epoch:03d}.npy" for epoch in range(WARMUP, epochs + 1)]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        _train(images, epochs, dim, seed, folder)
    return [np.load(file).astype(np.float32) for file in files]


def _train(images: int, epochs: int, dim: int, seed: int, folder: Path) -> None:
    import torch

    from pcl_ray import config, plan
    from pcl_ray.data import datasets
    from pcl_ray.features import assemble
    from pcl_ray.training.local_e_step import LocalEStep
    from pcl_ray.training.loop import train
    from pcl_ray.training.training_task import TrainingTask

    settings = config.load(
        "fashion_mnist",
        [f"data.limit={images}", f"train.epochs={epochs}", f"seed={seed}", f"encoder.dim={dim}"]
        + [f"e_step.warmup_epochs={WARMUP}", "e_step.threads=1"]
        + ["resources.workers=0", "evaluation.every_epochs=0"],
    )
    splits = datasets.load(settings.data, cache_dir=folder)

    class Keeps(LocalEStep):
        def begin(self, key: str, request: Any, shards: Any, previous: Any) -> Any:
            features = assemble([shards["train"]], request.num_images)
            np.save(folder / f"{request.epoch:03d}.npy", features)
            print(f"features before epoch {request.epoch + 1} of {epochs}", flush=True)
            return super().begin(key, request, shards, previous)

    with tempfile.TemporaryDirectory() as run_dir:
        made = plan.make(settings, len(splits.train), splits.num_holdout)
        task = TrainingTask(settings, made, run_dir)
        train(
            task,
            splits,
            device=torch.device("cpu"),
            e_step=Keeps(settings, splits),
            broadcast=lambda value: value,
            post=lambda event: None,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=16)
    arguments = parser.parse_args()
    print(f"{len(of_epochs(arguments.images, arguments.epochs))} epochs of features")
