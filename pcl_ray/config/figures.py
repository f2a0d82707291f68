"""The figure catalogue: every figure that a run or a sweep records, with what those need who show it.

A new figure is entered here first. What measures it takes its name from here; progress lines, tables,
reports, charts of the dashboard and gauges for Prometheus take label, format and direction. What MLflow calls
system metrics, `system/…`, has MLflow's own names and is not here. Those of a run's end: `final_figures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pcl_ray.config.fault_figures import FAILURES, ROLLBACKS
from pcl_ray.config.figure import Direction as Direction
from pcl_ray.config.figure import Figure
from pcl_ray.config.final_figures import FINAL_FIGURES
from pcl_ray.config.knn_figures import HEAD_KNN_TOP1 as HEAD_KNN_TOP1
from pcl_ray.config.knn_figures import KNN_ERROR as KNN_ERROR
from pcl_ray.config.knn_figures import KNN_TOP1 as KNN_TOP1
from pcl_ray.config.knn_figures import LARGEST_CLASS as LARGEST_CLASS
from pcl_ray.config.knn_figures import PIXELS_KNN_TOP1 as PIXELS_KNN_TOP1
from pcl_ray.config.knn_figures import SAMPLED_KNN_TOP1 as SAMPLED_KNN_TOP1
from pcl_ray.config.knn_figures import TEST_KNN_TOP1 as TEST_KNN_TOP1
from pcl_ray.config.knn_figures import TEST_KNN_TOP1_LEAST as TEST_KNN_TOP1_LEAST
from pcl_ray.config.knn_figures import UNTRAINED_KNN_TOP1 as UNTRAINED_KNN_TOP1

EPOCH = Figure("epoch", "Epoch", "Epochs before this one.", format="{:.0f}")

# ---- training, means over the steps of an epoch
LOSS = Figure(
    "train/loss",
    "Loss",
    "ProtoNCE, mean of the last steps or epoch.",
    title="loss",
    short="loss",
    format="{:.3f}",
    direction="min",
)
LOSS_INSTANCE = Figure("train/loss_instance", "instance term", "InfoNCE, against the queue.", direction="min")
LOSS_PROTOTYPE = Figure(
    "train/loss_prototype", "prototype term", "Mean over the clusterings.", direction="min"
)
LOSS_MATES = Figure("train/loss_cluster_positives", "mate term", "InfoNCE with a mate's key.", charted=False)
WITH_MATE = Figure("train/images_with_mate", "With a mate", "Share of images that have one.", charted=False)
ACCURACY_INSTANCE = Figure(
    "train/accuracy_instance",
    "Accuracy of the instance head",
    "How often an image's own other view wins against all negatives.",
    direction="max",
)
ACCURACY_PROTOTYPE = Figure(
    "train/accuracy_prototype_{m}",
    "Accuracy of the prototype head",
    "How often an image's own prototype wins against all negatives.",
    direction="max",
)
GRADIENT_NORM = Figure("train/gradient_norm", "Gradient norm", "Length of the gradient over all weights.")
FEATURE_STD = Figure(
    "train/feature_std",
    "Spread of the features",
    "Spread of the features over the sphere: 1 is even, 0 is collapsed.",
)
LEARNING_RATE = Figure("train/lr", "Learning rate", "The learning rate of the last step.")

# ---- evaluation
RANKME = Figure(
    "eval/rankme",
    "RankMe",
    "How many directions the head's features make use of. A fall towards 1 is a collapse.",
    title="effective rank (RankMe)",
    format="{:.1f}",
    direction="max",
)
LIDAR = Figure(
    "eval/lidar",
    "LiDAR",
    "How many directions tell images apart beyond what their views differ in.",
    direction="max",
)
AREQ = Figure(
    "eval/areq",
    "α-ReQ",
    "The exponent by which the spectrum of the head's features falls.",
    direction="nearest_one",
    charted=False,
)
UNIFORMITY = Figure(
    "eval/uniformity", "Uniformity", "How evenly the head's features cover the sphere.", charted=False
)
ALIGNMENT = Figure("eval/alignment", "Alignment", "How far apart an image's two views are.", charted=False)

# ---- all clusterings of an E-step together
CONE = Figure("cluster/cone", "Cone", "Mean cosine of two images: 1 where all point one way.", charted=False)
SPREAD = Figure("cluster/spread", "Spread", "Mean squared distance of features to their mean.", charted=False)
RANK = Figure("cluster/rank", "Rank", "Effective rank of the features that were clustered.")

# ---- each clustering
NUM_CLUSTERS = Figure("cluster/{m}/k", "K", "Number of clusters.", format="{:.0f}", charted=False)
AMI = Figure(
    "cluster/{m}/ami",
    "AMI",
    "How well clusters agree with the labels, adjusted for chance: 0 is chance, 1 is perfect.",
    title="AMI of the first clustering and the labels",
    format="{:.3f}",
    direction="max",
)
ARI = Figure(
    "cluster/{m}/ari",
    "ARI",
    "Pairs of images that clusters and labels agree on, adjusted for chance.",
    direction="max",
    charted=False,
)
NMI = Figure("cluster/{m}/nmi", "NMI", "Information that clusters and labels share.", charted=False)
PURITY = Figure(
    "cluster/{m}/purity", "Purity", "Images with the most frequent label of their cluster.", charted=False
)
LARGEST_SHARE = Figure(
    "cluster/{m}/largest_share",
    "Largest cluster",
    "Images in the largest cluster. Rising towards 1: everything falls into one.",
)
EMPTY = Figure("cluster/{m}/empty", "Empty clusters", "Prototypes without any image.")
NMI_PREVIOUS = Figure(
    "cluster/{m}/nmi_previous",
    "Stability of the assignments (NMI)",
    "How alike this clustering and the one of the epoch before are: 1 is the same. Prototypes only teach"
    " where it is high.",
)
DRIFT = Figure(
    "cluster/{m}/drift",
    "Drift of the prototypes",
    "How far prototypes moved since the epoch before: 1 − cosine, mean.",
)
COLLISIONS = Figure(
    "cluster/{m}/collisions",
    "Shared prototypes in a batch",
    "Images of a batch that share their prototype with another one of it.",
)
PHI_P10 = Figure("cluster/{m}/phi_p10", "φ, 10th percentile", "φ that a tenth of the prototypes is below.")
PHI_P50 = Figure("cluster/{m}/phi_p50", "φ, median", "φ that half of them are below.")
PHI_P90 = Figure(
    "cluster/{m}/phi_p90", "φ, 90th percentile", "φ that nine tenths of the prototypes are below."
)
PHI_MIN = Figure("cluster/{m}/phi_min", "φ, lowest", "The tightest prototype's φ.", charted=False)
PHI_MEAN = Figure("cluster/{m}/phi_mean", "φ, mean", "Mean of φ over the prototypes.", charted=False)
PHI_MAX = Figure("cluster/{m}/phi_max", "φ, highest", "The loosest prototype's φ.", charted=False)
PHI_ZEROS = Figure("cluster/{m}/phi_zeros", "φ of 0", "Prototypes whose images all coincide.", charted=False)
PHI_IMPUTED = Figure(
    "cluster/{m}/phi_imputed", "φ imputed", "Prototypes with too few images for one.", charted=False
)
SIZE_P50 = Figure("cluster/{m}/size_p50", "Size, median", "Images of the median cluster.")
COLD = Figure("cluster/{m}/cold", "Cold start", "1 where k-means began anew.", charted=False)

# ---- time and memory
IMAGES_PER_SECOND = Figure(
    "perf/images_per_second",
    "Images a second",
    "Images a second in the M-step, over all workers.",
    title="images/s in the M-step",
    short="images/s",
    format="{:.0f}",
    direction="max",
)
EPOCH_SECONDS = Figure(
    "perf/epoch_seconds",
    "Seconds of an epoch",
    "Seconds of the whole epoch.",
    format="{:.1f}",
    direction="min",
    charted=False,
)
M_STEP_SECONDS = Figure(
    "perf/m_step_seconds", "M-step", "Seconds of the epoch's training steps.", direction="min"
)
E_STEP_SECONDS = Figure(
    "perf/e_step_seconds",
    "Seconds of an E-step",
    "Seconds that training waited for the last E-step.",
    short="E-step s",
    format="{:.2f}",
    direction="min",
)
E_STEP_SHARE = Figure(
    "perf/e_step_share", "E-step", "Share of the epoch that the E-step took.", charted=False
)
FEATURE_SECONDS = Figure("perf/feature_seconds", "Features", "Seconds of encoding all images.", charted=False)
CLUSTER_SECONDS = Figure("perf/cluster_seconds", "Clustering", "Seconds of clustering.", charted=False)
REFERENCE_SECONDS = Figure(
    "perf/reference_seconds", "Reference lines", "Seconds of measuring them, once.", charted=False
)
EVALUATION_SECONDS = Figure("perf/evaluation_seconds", "Evaluation", "Seconds of evaluation.", charted=False)
LIDAR_SECONDS = Figure("perf/lidar_seconds", "LiDAR", "Seconds of measuring LiDAR.", charted=False)
OWED_SECONDS = Figure(
    "perf/owed_seconds", "Owed E-step", "Seconds of what a shared warm-up left to do.", charted=False
)
DATA_SECONDS = Figure(
    "perf/data_seconds", "waiting for data", "Seconds of the M-step spent waiting.", charted=False
)
DATA_SHARE = Figure(
    "perf/data_share", "Waiting for data", "Share of the M-step spent waiting for images.", direction="min"
)
STEP_SECONDS_MEDIAN = Figure(
    "perf/step_seconds_median", "Median step", "Median seconds of a step in the last epoch.", charted=False
)
STEP_SECONDS_P95 = Figure(
    "perf/step_seconds_p95",
    "Slow step",
    "95th percentile of the seconds of a step in the last epoch.",
    charted=False,
)
MEMORY_GB = Figure("perf/memory_gb", "Memory", "Memory of the device, or of the process, at its peak, in GB.")
DEVICE_MINUTES = Figure(
    "perf/device_minutes",
    "Device minutes",
    "Minutes of all devices together, from the start to this epoch.",
    title="device minutes",
    format="{:.1f}",
    direction="min",
)
E_STEP_SECONDS_TOTAL = Figure(
    "perf/e_step_seconds_total",
    "E-steps of all epochs",
    "Seconds in E-steps over all epochs.",
    title="seconds in the E-step, all epochs",
    format="{:.1f}",
    direction="min",
)
M_STEP_SECONDS_TOTAL = Figure(
    "perf/m_step_seconds_total", "M-steps of all epochs", "Seconds over all epochs.", direction="min"
)
EPOCH_SECONDS_TOTAL = Figure(
    "perf/epoch_seconds_total",
    "All epochs",
    "Seconds of all epochs together.",
    title="seconds in all epochs",
    format="{:.1f}",
    direction="min",
)

# ---- a sweep
SWEEP_ENDED = Figure("sweep/ended", "Ended trials", "Trials that have ended so far.")
SWEEP_TRIALS = Figure("sweep/trials", "Trials", "Trials that began.")
SWEEP_FINISHED = Figure("sweep/finished", "Finished trials", "Trials with all their epochs.")
SWEEP_STOPPED_EARLY = Figure("sweep/stopped_early", "Trials stopped early", "Trials that were stopped.")
SWEEP_FAILED = Figure("sweep/failed", "Failed trials", "Trials that failed.")
SWEEP_BEST = Figure("sweep/best", "Best objective", "The best configuration's mean objective.")
SWEEP_BEST_SCORE = Figure("sweep/best_score", "Best score", "The best score so far; more is better.")
SWEEP_SECONDS = Figure("sweep/seconds", "Seconds of the sweep", "Seconds from beginning to end.")
SWEEP_DEVICE_MINUTES = Figure("sweep/device_minutes", "Device minutes of the sweep", "Those of all trials.")
SWEEP_SAVED_MINUTES = Figure("sweep/saved_minutes", "Saved minutes", "Device minutes of others' warm-ups.")
SWEEP_SHARED_WARMUPS = Figure(
    "sweep/trials_on_shared_warmup", "Shared warm-ups", "Trials that began from another's."
)
_IMPORTANCE = "sweep/importance/"
SWEEP_IMPORTANCE = Figure(_IMPORTANCE + "{knob}", "Importance", "Share of the objective's variance.")

_OF_A_CLUSTERING = (
    Figure("cluster/{m}/objective", "Objective", "Mean squared distance of an image to its centroid."),
    Figure(
        "cluster/{m}/objective_ratio",
        "Objective against the one before",
        "It rises while features spread out, and jumps where something broke.",
        charted=False,
    ),
    Figure("cluster/{m}/singletons", "Clusters of one image", "Prototypes with one image.", charted=False),
    Figure("cluster/{m}/size_p10", "Size, 10th percentile", "Images of a small cluster."),
    Figure("cluster/{m}/size_p90", "Size, 90th percentile", "Images of a large cluster."),
    Figure("cluster/{m}/phi_raw_p10", "Raw φ, 10th percentile", "φ before clipping.", charted=False),
    Figure("cluster/{m}/phi_raw_p50", "Raw φ, median", "φ before clipping.", charted=False),
    Figure("cluster/{m}/phi_raw_p90", "Raw φ, 90th percentile", "φ before clipping.", charted=False),
    Figure("cluster/{m}/repaired", "Repaired", "Empty clusters that were put elsewhere.", charted=False),
    Figure(
        "cluster/{m}/shortlist_agreement", "Shortlist", "The least share that it got right.", charted=False
    ),
    Figure("cluster/{m}/shortlist_fallbacks", "Fallbacks", "Passes that compared with all.", charted=False),
    Figure("cluster/{m}/phi_clipped", "φ clipped", "Share of the prototypes.", charted=False),
    Figure("cluster/{m}/passes", "Passes", "Passes over the features.", charted=False),
    Figure("cluster/{m}/changed", "Changed", "Share of labels that the first pass changed.", charted=False),
)
CATALOGUE: tuple[Figure, ...] = (
    *(EPOCH, LOSS, LOSS_INSTANCE, LOSS_PROTOTYPE, ACCURACY_INSTANCE, ACCURACY_PROTOTYPE),
    *(LOSS_MATES, WITH_MATE, GRADIENT_NORM, FEATURE_STD, LEARNING_RATE, ROLLBACKS),
    *(KNN_TOP1, KNN_ERROR, HEAD_KNN_TOP1, PIXELS_KNN_TOP1, UNTRAINED_KNN_TOP1, SAMPLED_KNN_TOP1),
    LARGEST_CLASS,
    *(RANKME, LIDAR, AREQ, UNIFORMITY, ALIGNMENT, TEST_KNN_TOP1, TEST_KNN_TOP1_LEAST, *FINAL_FIGURES),
    *(CONE, SPREAD, RANK, FAILURES, NUM_CLUSTERS, AMI, ARI, NMI, PURITY, LARGEST_SHARE, EMPTY, NMI_PREVIOUS),
    *(DRIFT, COLLISIONS, PHI_P10, PHI_P50, PHI_P90, PHI_MIN, PHI_MEAN, PHI_MAX, PHI_ZEROS, PHI_IMPUTED),
    *(SIZE_P50, COLD, *_OF_A_CLUSTERING),
    *(IMAGES_PER_SECOND, EPOCH_SECONDS, M_STEP_SECONDS, E_STEP_SECONDS, E_STEP_SHARE, FEATURE_SECONDS),
    *(CLUSTER_SECONDS, EVALUATION_SECONDS, REFERENCE_SECONDS, LIDAR_SECONDS, OWED_SECONDS, DATA_SECONDS),
    *(DATA_SHARE, STEP_SECONDS_MEDIAN, STEP_SECONDS_P95, MEMORY_GB, DEVICE_MINUTES, E_STEP_SECONDS_TOTAL),
    *(M_STEP_SECONDS_TOTAL, EPOCH_SECONDS_TOTAL, SWEEP_ENDED, SWEEP_TRIALS, SWEEP_FINISHED),
    *(SWEEP_STOPPED_EARLY, SWEEP_FAILED, SWEEP_BEST, SWEEP_BEST_SCORE, SWEEP_SECONDS, SWEEP_DEVICE_MINUTES),
    *(SWEEP_SAVED_MINUTES, SWEEP_SHARED_WARMUPS, SWEEP_IMPORTANCE),
)
OBJECTIVES = (KNN_TOP1, RANKME)  # what runs are compared by: the first that a run has
WITHOUT_LABELS = (RANKME, LIDAR, AREQ)  # criteria of how good features are that need no labels
# lines that the backbone's kNN accuracy is held against: what is reached without training
REFERENCES = (PIXELS_KNN_TOP1, UNTRAINED_KNN_TOP1)
HEADLINES = (KNN_TOP1, HEAD_KNN_TOP1, RANKME, LOSS)  # what a list shows of a run: the first that it has
_BY_NAME = {figure.name: figure for figure in CATALOGUE}
_NUMBERED = re.compile(r"(cluster/|train/accuracy_prototype_)(\d+)(.*)")


def find(name: str) -> tuple[Figure, int | None] | None:
    """The figure with this name and the number of its clustering, None where it is not of one: for
    "cluster/3/ami" the entry AMI and 3. None for a name that the catalogue does not have.
    """
    number = None
    if numbered := _NUMBERED.fullmatch(name):
        number = int(numbered[2])
        name = f"{numbered[1]}{{m}}{numbered[3]}"
    elif name.startswith(_IMPORTANCE):
        name = SWEEP_IMPORTANCE.name
    figure = _BY_NAME.get(name)
    return None if figure is None else (figure, number)


def with_present_names(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics by the names that they have now. Earlier versions wrote the kNN accuracy of the head's
    output as eval/knn_top1, and no eval/head/knn_top1.
    """
    values = dict(metrics)
    if KNN_TOP1.name in values and HEAD_KNN_TOP1.name not in values:
        values[HEAD_KNN_TOP1.name] = values.pop(KNN_TOP1.name)
    return values


def first_of(figures: tuple[Figure, ...], metrics: Mapping[str, float]) -> Figure | None:
    """The first of these figures that was measured."""
    return next((figure for figure in figures if figure.name in metrics), None)


def charted(metrics: Mapping[str, float], also: Iterable[str] = ()) -> dict[str, float]:
    """What the MLflow dashboard gets: charted metrics, those in `also`, and those not in the catalogue."""
    wanted = set(also)
    return {name: value for name, value in metrics.items() if name in wanted or _is_charted(str(name))}


def _is_charted(name: str) -> bool:
    entry = find(name)
    return entry is None or entry[0].charted


def clusterings_in(metrics: Mapping[str, float]) -> list[int]:
    """The numbers of the clusterings that these metrics tell K of."""
    numbers = (find(name) for name in metrics)
    return sorted(
        entry[1] for entry in numbers if entry and entry[0] == NUM_CLUSTERS and entry[1] is not None
    )
