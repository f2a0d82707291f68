"""A run to report on: real prototypes of scikit-learn's digits, a history that was made up."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from pcl_ray import config, e_step, snapshot
from pcl_ray.report.run_record import RunRecord
from pcl_ray.snapshot import ClusteringSnapshot, Snapshot, Thumbnails

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@functools.cache
def digits_snapshot(
    num_clusters: tuple[int, ...] = (30, 8), labelled: bool = True
) -> tuple[Snapshot, Thumbnails]:
    """With the finer clustering first, so that order and level are two things."""
    digits = load_digits()
    features = PCA(16, random_state=0).fit_transform(digits.data).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    settings = config.with_overrides(config.load("digits"), {"e_step.num_clusters": num_clusters}).e_step
    clusters = e_step.cluster(features, settings, epoch=6, temperature=0.2, seed=0)
    labels = digits.target if labelled else None
    count = len(features)
    made = snapshot.make_snapshot(
        features, np.arange(count), clusters, labels, epoch=6, step=66, num_images=count
    ).with_map(features[made_of(count), :2], "PCA")
    images = np.union1d(made.images(), made.sample[::10])
    pixels = (digits.images[images] / 16 * 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
    return made, Thumbnails(images, pixels)


def made_of(count: int) -> np.ndarray:
    """The images on the map, as `snapshot.make` picks them."""
    return np.linspace(0, count - 1, min(snapshot.MAP_POINTS, count)).astype(np.int64)


def history(epochs: int, warmup: int = 3, clusterings: int = 2, better: float = 0.0) -> list[dict[str, Any]]:
    entries = []
    for epoch in range(epochs):
        done = 1 - math.exp(-(epoch + 1) / 3)
        figures = {
            "train/loss": 6 - 3 * done,
            "train/loss_instance": 4 - 2 * done,
            "train/accuracy_instance": 0.8 * done,
            "train/feature_std": 0.3 + 0.6 * done,
        }
        figures |= {
            "eval/knn_top1": 0.9 * done + better,
            "eval/rankme": 20 * done,
            "perf/images_per_second": 2000.0,
            "perf/epoch_seconds": 60.0,
        }
        figures |= {
            "perf/m_step_seconds": 48.0,
            "perf/data_seconds": 3.0,
            "perf/data_share": 0.06,
            "train/gradient_norm": 1.5,
        }
        if epoch + 1 >= warmup:
            figures |= {"perf/e_step_seconds": 10.0}
            for m in range(clusterings):
                here = {
                    "ami": 0.7 * done - 0.1 * m + better,
                    "largest_share": 0.1,
                    "empty": 0.0,
                    "phi_p10": 0.15,
                    "phi_p50": 0.2,
                    "phi_p90": 0.27,
                    "k": 8.0,
                }
                here |= {"nmi_previous": 0.9, "drift": 0.1} if epoch + 1 > warmup else {}
                figures |= {f"cluster/{m}/{name}": value for name, value in here.items()}
        if epoch >= warmup:
            figures |= {
                "train/loss_prototype": 2 - done,
                "train/accuracy_prototype_0": 0.6,
                "cluster/0/collisions": 0.4,
            }
        entries.append({"epoch": epoch, "step": 11 * (epoch + 1) - 1, "metrics": figures})
    return entries


def digits_record(name: str = "seven", overrides: dict[str, Any] | None = None, **changes: Any) -> RunRecord:
    """6 epochs, 3 of them warm-up, K = 30 and 8; `changes` are fields of the record."""
    shown, thumbnails = digits_snapshot()
    knobs = {"e_step.num_clusters": (30, 8), "e_step.warmup_epochs": 3, "train.epochs": 6}
    knobs |= {"loss.temperature": 0.2, "loss.prototype_weight": 1.0, "train.batch_size": 128}
    knobs |= overrides or {}
    record = RunRecord(
        name=name,
        config=config.with_overrides(config.load("digits"), knobs),
        history=history(6),
        num_images=1797,
        num_clusters=(30, 8),
        steps_per_epoch=11,
        class_names=NAMES,
        command=f"pcl-ray train digits --name {name}",
        fingerprint="f00d",
        versions={"pcl_ray": "1.2", "torch": "2.14"},
        snapshot=shown,
        thumbnails=thumbnails,
    )
    return replace(record, **changes)


def synthetic(
    count: int, images: np.ndarray, rng: np.random.Generator, classes: int = 0
) -> ClusteringSnapshot:
    """A clustering of random sizes and φ, which shows these images [P, 16]; labelled if there are classes."""
    selected = np.sort(rng.choice(count, len(images), replace=False))
    top = rng.integers(0, classes, len(images)) if classes else np.full(len(images), -1)
    phi, sizes = rng.random(count).astype(np.float32), rng.integers(1, 90, count)
    parents = rng.integers(0, max(1, count // 2), count)
    return ClusteringSnapshot(
        phi,
        sizes,
        parents,
        np.full(count, 0.5, np.float32),
        selected,
        images[:, :12],
        images[:, 12:],
        top,
        np.full(len(images), 0.25, np.float32),
    )
