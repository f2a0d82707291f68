"""What the study runs: the settings of each data set, the arms, and the list of runs in their order.

Everything that decides a figure stands here, in one place. A result is known by a digest of these settings:
whoever changes one starts those runs anew, and the report leaves out results of other settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Knobs = dict[str, Any]
Change = Literal["none", "shuffled", "constant"]

FIRST_TUNING_SEED = 100  # seeds below are reported, and nothing is chosen by them
EVALUATION = 1  # raise it when what is measured at the end of a run changes

# What all runs of the study have in common, on top of the defaults (the paper's v2 setting).
_COMMON: Knobs = {
    "data.source": "arrays",
    "augment.min_crop": 0.2,
    "augment.jitter": 1.0,
    "augment.blur": 0.0,
    "encoder.backbone": "small_resnet",
    "encoder.width": 16,
    "encoder.blocks": [1, 1, 1],
    "encoder.stem_stride": 2,
    "encoder.head_width": 512,
    "encoder.head_batch_norm": True,
    "encoder.batch_norm_parts": 4,
    "encoder.dim": 64,
    "encoder.momentum": 0.99,
    "loss.temperature": 0.2,
    "loss.queue_size": 1024,
    "loss.prototype_weight": 0.3,
    "e_step.restarts": 1,
    "optimizer.lr": 0.06,
    "optimizer.weight_decay": 5e-4,
    "train.batch_size": 128,
}
_GREY: Knobs = _COMMON | {"data.channels": 1, "augment.image_size": 28}

# The reference's choices in our code: views image by image, weight 1, its encoder, no lever of this project.
# Written out in full, so that no tuning of the study moves the baseline.
_REFERENCE: Knobs = {
    "data.source": "arrays",
    "data.channels": 1,
    "augment.engine": "torchvision",
    "augment.image_size": 28,
    "augment.min_crop": 0.3,
    "augment.jitter": 0.4,
    "augment.blur": 0.0,
    "augment.mean": [0.286],
    "augment.std": [0.353],
    "encoder.backbone": "small_resnet",
    "encoder.width": 16,
    "encoder.blocks": [2, 2, 2, 2],
    "encoder.stem_stride": 1,
    "encoder.dim": 128,
    "encoder.momentum": 0.99,
    "loss.temperature": 0.2,
    "loss.queue_size": 1024,
    "loss.prototype_weight": 1.0,
    "loss.mask_duplicates": False,
    "e_step.num_clusters": [0.005, 0.01, 0.02],
    "e_step.warmup_epochs": 3,
    "e_step.warm_start": "none",
    "e_step.cold_iterations": 20,
    "e_step.restarts": 5,
    "optimizer.lr": 0.06,
    "optimizer.weight_decay": 5e-4,
    "train.epochs": 16,
    "train.batch_size": 128,
}

# A GPU machine takes a larger encoder and more epochs (--device cuda).
_ON_GPU: Knobs = {
    "encoder.backbone": "resnet18",
    "encoder.stem": "small",
    "encoder.stem_stride": 1,
    "encoder.dim": 128,
    "loss.queue_size": 4096,
    "e_step.warmup_epochs": 10,
    "train.epochs": 60,
    "train.batch_size": 256,
    "optimizer.lr": 0.12,
    "resources.gpus_per_worker": 1.0,
    "resources.e_step_gpus": 1.0,
}


@dataclass(frozen=True)
class Task:
    """A data set of the study and how encoders are trained on it."""

    classes: int
    knobs: Knobs
    seeds: int = 5
    references: Knobs | None = None  # of the arms that follow the reference


TASKS: dict[str, Task] = {
    "fashion_mnist": Task(
        10,
        _GREY
        | {
            "augment.mean": [0.286],
            "augment.std": [0.353],
            "e_step.num_clusters": [0.005, 0.01, 0.02],
            "e_step.warmup_epochs": 3,
            "train.epochs": 12,
        },
        seeds=10,
        references=_REFERENCE,
    ),
    "fashion_mnist_long_tail": Task(
        10,
        _GREY
        | {
            "loss.temperature": 0.1,
            "augment.mean": [0.299],
            "augment.std": [0.356],
            "e_step.num_clusters": [0.005, 0.01, 0.02],
            "e_step.warmup_epochs": 8,
            "train.epochs": 32,
        },
    ),
    "animal_mnist": Task(
        10,
        _GREY
        | {
            "augment.jitter": 0.0,
            "augment.mean": [0.272],
            "augment.std": [0.405],
            "e_step.num_clusters": [0.005, 0.01, 0.02],
            "e_step.warmup_epochs": 8,
            "train.epochs": 30,
        },
    ),
    "kanji": Task(
        600,
        _GREY
        | {
            "augment.flip": 0.0,
            "augment.jitter": 0.0,
            "augment.min_crop": 0.8,
            "encoder.head": "linear",  # a projector with batch norm takes much away here
            "encoder.head_width": None,
            "encoder.head_batch_norm": False,
            "loss.temperature": 0.1,
            "augment.mean": [0.192],
            "augment.std": [0.305],
            "e_step.num_clusters": [0.02, 0.04, 0.08],
            "e_step.warmup_epochs": 5,
            "train.epochs": 20,
        },
    ),
    "emoji": Task(
        58,
        _COMMON
        | {
            "data.channels": 3,
            "augment.image_size": 32,
            "augment.jitter": 0.4,
            "augment.hue": 0.1,
            "augment.grey": 0.2,
            "augment.mean": [0.796, 0.745, 0.701],
            "augment.std": [0.287, 0.288, 0.336],
            "e_step.num_clusters": [0.02, 0.04, 0.08],
            "e_step.warmup_epochs": 10,
            "train.epochs": 40,
        },
    ),
}

# What time_to_accuracy.py compares with the reference: the tuned setting, on a schedule as short as will do.
FAST: Knobs = TASKS["fashion_mnist"].knobs | {"train.epochs": 8}

# What --quick runs; it says nothing about learning.
QUICK = Task(
    10,
    _GREY
    | {
        "augment.mean": [0.286],
        "augment.std": [0.353],
        "encoder.width": 8,
        "loss.queue_size": 256,
        "e_step.num_clusters": [10, 20, 40],
        "e_step.warmup_epochs": 1,
        "train.epochs": 3,
    },
    seeds=2,
)


@dataclass(frozen=True)
class Arm:
    """One way to train on from the shared warm-up, or a reference that is not trained."""

    title: str
    knobs: Knobs = field(default_factory=dict)
    clusters: bool = True  # False: InfoNCE to the end
    change: Change = "none"  # what is done to the clusters before they are trained with
    longer: bool = False  # as many further epochs as PCL's extra seconds buy
    untrained: Literal["", "pixels", "encoder"] = ""
    one_clustering: bool = False  # of the setting's clusterings the middle one alone
    reference: bool = False  # the reference's settings, with a warm-up of their own


MAIN: dict[str, Arm] = {
    "pixels": Arm("pixels", untrained="pixels"),
    "untrained": Arm("untrained encoder", untrained="encoder"),
    "infonce": Arm("InfoNCE", clusters=False),
    "pcl": Arm("PCL"),
    "pcl_shuffled": Arm("PCL, shuffled assignments", change="shuffled"),
    "infonce_longer": Arm("InfoNCE, as long as PCL", clusters=False, longer=True),
}
ABLATIONS: dict[str, Arm] = {
    "constant_phi": Arm("φ = τ for all prototypes", change="constant"),
    "one_k": Arm("one K instead of three", one_clustering=True),
    "bank": Arm("features from the bank", {"e_step.features": "bank"}),
    "cold": Arm(
        "cold E-steps, 20 × 5",
        {"e_step.warm_start": "none", "e_step.cold_iterations": 20, "e_step.restarts": 5},
    ),
    "unmasked": Arm("duplicates not masked", {"loss.mask_duplicates": False}),
    "weight_0.03": Arm("prototype weight 0.03", {"loss.prototype_weight": 0.03}),
    "weight_0.1": Arm("prototype weight 0.1", {"loss.prototype_weight": 0.1}),
    "weight_0.3": Arm("prototype weight 0.3", {"loss.prototype_weight": 0.3}),
    "weight_1": Arm("prototype weight 1", {"loss.prototype_weight": 1.0}),
}
# On request alone: they take long, and are the baseline of the whole project rather than of the study.
REFERENCES: dict[str, Arm] = {
    "reference_infonce": Arm("reference setting, InfoNCE", clusters=False, reference=True),
    "reference": Arm("reference setting, PCL", reference=True),
}
ARMS = MAIN | ABLATIONS | REFERENCES
ABLATION_TASK, ABLATION_SEEDS = "fashion_mnist", 5


@dataclass(frozen=True)
class Run:
    """One line of the results: an arm on a data set with a seed."""

    task: str
    arm: str
    seed: int
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.task}.{self.arm}.{self.seed}.{self.device}"

    @property
    def tuning(self) -> bool:
        """Whether it is trained and measured on the images that settings are chosen on."""
        return self.seed >= FIRST_TUNING_SEED

    @property
    def digest(self) -> str:
        """The same for the same settings."""
        arm = ARMS[self.arm]
        parts: list[Any] = [self.name, base_knobs(self), asdict(arm) | {"title": ""}, EVALUATION]
        if arm.longer:  # its length follows from these two
            parts += [replace(self, arm=name).digest for name in ("infonce", "pcl")]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def warm_up(self) -> str:
        """The name of the warm-up that it begins with."""
        text = json.dumps(base_knobs(self), sort_keys=True)
        kind = "reference" if ARMS[self.arm].reference else "base"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.task}.{kind}.{self.seed}.{self.device}.{digest}"


def task_of(run: Run) -> Task:
    """The data set of a run."""
    return QUICK if run.task == "quick" else TASKS[run.task]


def base_knobs(run: Run) -> Knobs:
    """The knobs that all arms of a run's data set, seed and device share."""
    task = task_of(run)
    knobs = task.knobs
    if ARMS[run.arm].reference:
        assert task.references is not None, f"{run.task} has no reference setting"
        knobs = task.references
    return knobs | (_ON_GPU if run.device == "cuda" else {})


def runs(*, device: str = "cpu", references: bool = False) -> list[Run]:
    """All runs of the study, in an order that leaves something whole wherever one stops: seed by seed the
    first five of all data sets, then the ablations, then Fashion-MNIST's further seeds.
    """
    made = [
        Run(name, arm, seed, device)
        for seed in range(max(task.seeds for task in TASKS.values()))
        for name, task in TASKS.items()
        for arm in MAIN
        if seed < task.seeds and (seed == 0 or arm != "pixels")
    ]
    ablations = [
        Run(ABLATION_TASK, arm, seed, device)
        for seed in range(ABLATION_SEEDS)
        for arm, settings in ABLATIONS.items()
        if not _is_base(settings)
    ]
    first = [run for run in made if run.seed < ABLATION_SEEDS]
    reference = [
        Run(ABLATION_TASK, arm, seed, device) for seed in range(3) for arm in REFERENCES if references
    ]
    return first + ablations + [run for run in made if run.seed >= ABLATION_SEEDS] + reference


def quick_runs() -> list[Run]:
    """Every kind of run once or twice, on few images."""
    return [
        Run("quick", arm, seed)
        for seed in range(QUICK.seeds)
        for arm in (*MAIN, "constant_phi", "one_k")
        if seed == 0 or arm in ("infonce", "pcl")
    ]


def _is_base(arm: Arm) -> bool:
    """Whether an ablation changes nothing: the weight that PCL is trained with anyhow."""
    base = TASKS[ABLATION_TASK].knobs
    return bool(arm.knobs) and all(base.get(name) == value for name, value in arm.knobs.items())
