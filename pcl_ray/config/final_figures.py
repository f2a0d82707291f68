"""The figures of the evaluation at a run's end, `evaluation.final`. The catalogue, `config.figures`, has them
all.
"""

from __future__ import annotations

from collections.abc import Mapping

from pcl_ray.config.figure import Figure

LABELS_PER_CLASS = (1, 5, 10)
CLASSIFIERS = ("knn", "class_mean", "linear")
_LABELS = {"knn": "kNN", "class_mean": "Class mean", "linear": "Linear probe"}

LINEAR_TOP1 = Figure(
    "eval/linear_top1",
    "Linear probe top-1",
    "Share of held-out images that logistic regression on the backbone's features puts into the right class.",
    title="linear probe, held-out images",
    short="linear",
    format="{:.4f}",
    short_format="{:.3f}",
    direction="max",
)
CLUSTERS_AMI = Figure(
    "eval/clusters/ami",
    "AMI at the number of classes",
    "Agreement of the classes with as many clusters of the backbone's features: 0 is chance, 1 is perfect.",
    title="k-means, K = classes: AMI",
    format="{:.4f}",
    direction="max",
)
CLUSTERS_ACCURACY = Figure(
    "eval/clusters/accuracy",
    "Accuracy at the number of classes",
    "Share of images in the cluster that stands for their class, one cluster for each (Hungarian matching).",
    title="k-means, K = classes: accuracy",
    format="{:.4f}",
    direction="max",
)
CLUSTERS_NMI = Figure(
    "eval/clusters/nmi",
    "NMI at the number of classes",
    "Normalised mutual information of the same clusters and the classes.",
    direction="max",
    charted=False,
)
CLUSTERS_ARI = Figure(
    "eval/clusters/ari",
    "ARI at the number of classes",
    "Adjusted Rand index of the same clusters and the classes.",
    direction="max",
    charted=False,
)
FINAL_SECONDS = Figure(
    "perf/final_seconds", "Final evaluation", "Seconds of the evaluation at the end.", charted=False
)


def few_labels(count: int, classifier: str) -> Figure:
    """The mean accuracy of a classifier of CLASSIFIERS with `count` labels a class."""
    labels = f"{count} label{'s' * (count > 1)} a class"
    label = f"{_LABELS[classifier]}, {labels}"
    return Figure(
        f"eval/few_{count}/{classifier}_top1",
        label,
        f"Accuracy on held-out images from {labels}, mean over draws of which images have one.",
        title=label[0].lower() + label[1:],
        format="{:.4f}",
        direction="max",
        charted=classifier == "linear" and count < 10,
    )


def few_labels_spread(count: int, classifier: str) -> Figure:
    """The standard deviation of that accuracy over the draws."""
    mean = few_labels(count, classifier)
    return Figure(
        f"{mean.name}_sd",
        f"{mean.label}, spread",
        "Standard deviation of that accuracy over the draws.",
        format="{:.4f}",
        charted=False,
    )


FINAL_FIGURES = (
    LINEAR_TOP1,
    *(
        figure(count, classifier)
        for count in LABELS_PER_CLASS
        for classifier in CLASSIFIERS
        for figure in (few_labels, few_labels_spread)
    ),
    *(CLUSTERS_AMI, CLUSTERS_ACCURACY, CLUSTERS_NMI, CLUSTERS_ARI),
    FINAL_SECONDS,
)


def final_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Titles and values as a table shows them, of what was measured: the linear probe, with all labels and
    with few, and clusters.
    """
    rows = []
    few = {few_labels(count, "linear"): few_labels_spread(count, "linear") for count in LABELS_PER_CLASS}
    for figure in (LINEAR_TOP1, *few, CLUSTERS_AMI, CLUSTERS_ACCURACY):
        if figure.name not in metrics:
            continue
        title, text = figure.row(metrics[figure.name])
        spread = few.get(figure)
        if spread is not None and spread.name in metrics:
            text += f" ± {spread.text(metrics[spread.name])}"
        rows.append((title, text))
    return rows
