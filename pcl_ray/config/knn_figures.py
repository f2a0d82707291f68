"""The figures of the kNN accuracy, how certain it is, and what it is held against. The catalogue,
`config.figures`, has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pcl_ray.config.figure import Figure

KNN_TOP1 = Figure(
    "eval/knn_top1",
    "kNN top-1",
    "Share of held-out images whose nearest neighbours, by the backbone's features, give the right class.",
    title="kNN accuracy, held-out images",
    short="kNN",
    format="{:.4f}",
    short_format="{:.3f}",
    direction="max",
)
HEAD_KNN_TOP1 = Figure(
    "eval/head/knn_top1",
    "kNN top-1 of the head",
    "The same by the head's output, which the loss compares and the E-step clusters; it is not transferred.",
    title="kNN accuracy of the head's output",
    short="head kNN",
    format="{:.4f}",
    short_format="{:.3f}",
    direction="max",
)
PIXELS_KNN_TOP1 = Figure(
    "eval/pixels/knn_top1",
    "kNN top-1 of raw pixels",
    "The same by the pixels of the evaluation view: what no training reaches. Measured once, at the start.",
    title="kNN accuracy of raw pixels",
    short="pixels",
    format="{:.4f}",
    short_format="{:.3f}",
)
UNTRAINED_KNN_TOP1 = Figure(
    "eval/untrained/knn_top1",
    "kNN top-1 of the untrained encoder",
    "The same by the backbone before the first step. Measured once, at the start.",
    title="kNN accuracy of the untrained encoder",
    short="untrained",
    format="{:.4f}",
    short_format="{:.3f}",
)
SAMPLED_KNN_TOP1 = Figure(
    "eval/sampled/knn_top1",
    "kNN top-1 where reference lines are measured",
    "That of the backbone on those held-out images that pixels and untrained encoder were measured on; only"
    " where these are not all.",
    direction="max",
    charted=False,
)
KNN_ERROR = Figure(
    "eval/knn_top1_error",
    "± of kNN top-1",
    "Half the width of the range in which kNN top-1 lies with 95 % certainty, from the number of held-out"
    " images alone (Wilson); other seeds add to it.",
    format="{:.4f}",
    charted=False,
)
LARGEST_CLASS = Figure(
    "eval/largest_class",
    "Largest class",
    "Share of the held-out images that are of the largest class: what always naming it reaches.",
    title="always naming the largest class",
    short="largest class",
    format="{:.4f}",
    short_format="{:.3f}",
    charted=False,
)
TEST_KNN_TOP1 = Figure(
    "eval/test_knn_top1",
    "kNN top-1, test split",
    "kNN accuracy of the best configuration on images that no trial was compared by, mean over its seeds.",
    direction="max",
)
TEST_KNN_TOP1_LEAST = Figure(
    "eval/test_knn_top1_least",
    "kNN top-1, test split, least",
    "That of the seed that did worst.",
    direction="max",
)

_Z = 1.96  # standard deviations: 95 %


def half_width(accuracy: float, images: int) -> float:
    """Half the width of Wilson's 95 % interval of an accuracy measured on so many images."""
    if images < 1:
        return 1.0
    spread = accuracy * (1 - accuracy) / images + _Z**2 / (4 * images**2)
    return _Z * math.sqrt(max(spread, 0.0)) / (1 + _Z**2 / images)


def row_with_error(figure: Figure, metrics: Mapping[str, float]) -> tuple[str, str]:
    """Title and value as a table shows them; of the kNN accuracy with its ±, where that is known."""
    title, value = figure.row(metrics[figure.name])
    if figure == KNN_TOP1 and KNN_ERROR.name in metrics:
        value += f" ± {KNN_ERROR.text(metrics[KNN_ERROR.name])}"
    return title, value
