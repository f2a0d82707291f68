"""What levers.py runs: the setting that all are compared with, the levers, the list of runs in their order.

A lever is a change of one thing. Nothing here is reported as a result of the project: seeds and images are
those that settings are chosen on. A result is known by a digest of its settings, as the study's are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from study_settings import EVALUATION, FIRST_TUNING_SEED, TASKS, Knobs

SEEDS = tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 5))
BASE = "base"  # the name of the runs without a change

# What every lever is a change of: the study's setting, shorter. InfoNCE is what PCL is before its first
# clustering.
SETTING: Knobs = TASKS["fashion_mnist"].knobs | {"train.epochs": 8}
BASES = {"infonce": "InfoNCE", "pcl": "PCL"}  # with their titles

# What may help with and without prototypes. Where a step costs more, there are fewer epochs: the CPU time is
# that of the base.
GENERAL: dict[str, Knobs] = {
    "head_narrow": {"encoder.head_width": None},
    "head_wide": {"encoder.head_width": 2048},
    "head_without_batch_norm": {"encoder.head_batch_norm": False},
    "batch_norm_whole": {"encoder.batch_norm_parts": 1},
    "batch_norm_parts_8": {"encoder.batch_norm_parts": 8},
    "jitter_0": {"augment.jitter": 0.0},
    "jitter_0.4": {"augment.jitter": 0.4},
    "jitter_0.8": {"augment.jitter": 0.8},
    "min_crop_0.08": {"augment.min_crop": 0.08},
    "min_crop_0.3": {"augment.min_crop": 0.3},
    "min_crop_0.5": {"augment.min_crop": 0.5},
    "no_flip": {"augment.flip": 0.0},
    "shift": {"augment.shift": 0.1},
    "rotate_and_shear": {"augment.rotate": 15.0, "augment.shear": 10.0},
    "erase": {"augment.erase": 0.5},
    "multi_crop": {"augment.small_crops": 2, "augment.small_crop_size": 14, "train.epochs": 5},
    "symmetric": {"loss.symmetric": True, "train.epochs": 4},
    "temperature_0.1": {"loss.temperature": 0.1},
    "queue_256": {"loss.queue_size": 256},
    "queue_4096": {"loss.queue_size": 4096},
    "momentum_to_0.999": {"encoder.momentum_end": 0.999},
    "momentum_to_1": {"encoder.momentum_end": 1.0},
    "lr_0.03": {"optimizer.lr": 0.03},
    "lr_0.12": {"optimizer.lr": 0.12},
    "decay_1e-4": {"optimizer.weight_decay": 1e-4},
    "decay_weights_alone": {"optimizer.decay_biases": False},
    "stem_stride_1": {"encoder.stem_stride": 1},
    "width_32": {"encoder.width": 32},
}
# What does nothing without clusters.
PROTOTYPES: dict[str, Knobs] = {
    "weight_0.1": {"loss.prototype_weight": 0.1},
    "weight_1": {"loss.prototype_weight": 1.0},
    "ramp": {"loss.prototype_ramp_epochs": 2.0},
    "other_clusters": {"loss.queue_negatives": "other_clusters"},
    "other_clusters_alone": {"loss.queue_negatives": "other_clusters", "loss.prototype_weight": 0.0},
    "cluster_positives": {"loss.cluster_positives": 0.3},
    "num_clusters_few": {"e_step.num_clusters": [0.0005, 0.001, 0.002]},
    "num_clusters_half": {"e_step.num_clusters": [0.0025, 0.005, 0.01]},
    "num_clusters_auto": {"e_step.num_clusters": "auto"},
    "every_2_epochs": {"e_step.every_epochs": 2},
    "every_2_epochs_early": {"e_step.early_epochs": 4, "e_step.early_every_epochs": 2},
}
LEVERS = GENERAL | PROTOTYPES

# --quick: it says nothing about learning.
_QUICK: Knobs = {
    "encoder.width": 8,
    "loss.queue_size": 256,
    "e_step.num_clusters": [10, 20, 40],
    "train.epochs": 3,
}
_QUICK_LEVERS = {
    "infonce": (BASE, "head_narrow", "multi_crop"),
    "pcl": (BASE, "weight_1", "other_clusters_alone", "cluster_positives"),
}


@dataclass(frozen=True)
class Run:
    """One line of the results: a lever, or none, on a base with a seed."""

    base: str
    lever: str
    seed: int
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{'quick.' if self.quick else ''}{self.base}.{self.lever}.{self.seed}"

    @property
    def digest(self) -> str:
        """The same for the same settings."""
        text = json.dumps([self.name, knobs_of(self), EVALUATION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def knobs_of(run: Run) -> Knobs:
    """The knobs of a run but for path and seed. Of InfoNCE all epochs are warm-up."""
    knobs = SETTING | (_QUICK if run.quick else {}) | changes_of(run)
    warmup = knobs["train.epochs"] if run.base == "infonce" else warmup_epochs(knobs["train.epochs"])
    return knobs | {"e_step.warmup_epochs": warmup}


def changes_of(run: Run) -> Knobs:
    """What the lever changes; of the few epochs of --quick none."""
    changes: Knobs = {} if run.lever == BASE else LEVERS[run.lever]
    return {name: value for name, value in changes.items() if not (run.quick and name == "train.epochs")}


def warmup_epochs(epochs: int) -> int:
    """Epochs without prototypes of a run with them: a quarter."""
    return max(1, epochs // 4)


def levers_of(base: str, *, general: bool = False) -> list[str]:
    """The base itself and the levers that are tried on it: those of prototypes on PCL, all others on InfoNCE.
    general: these on PCL, too.
    """
    if base == "infonce":
        return [BASE, *GENERAL]
    return [BASE, *(GENERAL if general else ()), *PROTOTYPES]


def runs(
    bases: tuple[str, ...] | None = None, seeds: tuple[int, ...] = SEEDS, levers: set[str] | None = None
) -> list[Run]:
    """The runs in their order: everything with one seed, then with the next, so that whole columns exist
    wherever one stops.

    bases: of BASES; named, PCL gets the general levers, too. levers: these alone, and what they are
    compared with.
    """
    return [
        Run(base, lever, seed)
        for seed in seeds
        for base in bases or BASES
        for lever in levers_of(base, general=bases is not None)
        if levers is None or lever in levers | {BASE}
    ]


def quick_runs() -> list[Run]:
    """Several kinds of levers once, on few images, and two of them twice."""
    return [
        Run(base, lever, SEEDS[seed], quick=True)
        for seed in range(2)
        for base, levers in _QUICK_LEVERS.items()
        for lever in levers[: len(levers) if seed == 0 else 2]
    ]


def described(lever: str, base: dict[str, Any]) -> str:
    """A lever in words: its knobs, from what to what. base: the values of all knobs of the base."""
    return ", ".join(
        f"`{name}` {_written(base[name])} → {_written(value)}" for name, value in LEVERS[lever].items()
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
