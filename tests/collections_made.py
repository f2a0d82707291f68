"""A small run's checkpoint, pictures of several kinds, and collections of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from small import GREY_ENCODER

from pcl_ray import cli, config
from pcl_ray.checkpoints import run_state
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.model import KeyQueue, MomentumPair
from pcl_ray.model.encoder import build

SIZES = (3, 5)


def settings_of(**more: Any) -> RunConfig:
    flat = {
        **GREY_ENCODER,
        "data.channels": 3,
        "augment.mean": [0.4] * 3,
        "augment.std": [0.3] * 3,
        "augment.image_size": 8,
    }
    return config.load("digits", {**flat, "encoder.dim": 8, "e_step.num_clusters": list(SIZES), **more})


def checkpoint(folder: Path, *, clusters: bool = True, **more: Any) -> Path:
    """A checkpoint as a run leaves it, its config.yaml beside; prototypes are random directions."""
    settings = settings_of(**more)
    torch.manual_seed(3)
    query, key = (build(settings.encoder, 3) for _ in range(2))
    key.train()(torch.randn(16, 3, 8, 8))
    queue = KeyQueue(16, settings.encoder.dim).state_dict()
    learner = {"model": MomentumPair(query, key, 0.9).state_dict(), "queue": queue, "optimizer": {}}
    made = []
    for k in SIZES if clusters else ():
        prototypes = torch.nn.functional.normalize(torch.randn(k, settings.encoder.dim), dim=1)
        made.append(Clustering(prototypes, torch.arange(k), torch.full((k,), 0.2)))
    state = run_state.RunState(
        2, learner, ClusterSet(2, tuple(made)) if made else None, [], [], settings.encoder, 3
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(settings.to_yaml())
    return run_state.save(state, folder / "checkpoints", 1)


def pictures(folder: Path, count: int = 12, seed: int = 0) -> list[Path]:
    """Smooth pictures of random sizes, as files `000.png` …"""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        low = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        size = tuple(int(side) for side in draw.integers(10, 40, 2))
        files.append(folder / f"{number:03d}.png")
        low.resize(size, Image.Resampling.BICUBIC).save(files[-1])
    return files


def embedded(folder: Path, *words: str) -> Path:
    """The collection in `folder/collection`: of the folder's own checkpoint and pictures, in this process."""
    out = folder / "collection"
    assert cli.main(["embed", *words, "--out", str(out), "--workers", "0"]) == 0
    return out
