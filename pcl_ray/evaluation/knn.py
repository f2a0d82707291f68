"""The weighted kNN classifier (Wu et al., CVPR 2018, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcl_ray.evaluation.neighbours import nearest_neighbours

_FLOATS = 2**24  # of votes at a time: 64 MiB


def knn_accuracy(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    query_QC: Tensor,
    query_labels_Q: Tensor,
    *,
    neighbours: int = 200,
    temperature: float = 0.07,
) -> float:
    """The share of the queries (0..1) whose class wins the vote of the nearest bank features; a vote weighs
    exp(cosine / temperature).

    Features are normalised here. Negative labels take no part. NaN where no bank or query image is left.
    """
    return share_of(
        knn_hits(
            *_labelled(bank_NC, bank_labels_N),
            *_labelled(query_QC, query_labels_Q),
            neighbours=neighbours,
            temperature=temperature,
        )
    )


def share_of(hits: Tensor) -> float:
    """The share of true entries, 0..1; NaN of none."""
    return int(hits.sum()) / len(hits) if len(hits) else float("nan")


def knn_hits(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    query_QC: Tensor,
    query_labels_Q: Tensor,
    *,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """[Q] bool: the queries whose class wins the vote, as in `knn_accuracy`; [0] where the bank is empty. All
    labels must be 0 or more. Features may be of any type; few of them are float32 at a time.
    """
    if not len(bank_NC) or not len(query_QC):
        return torch.empty(0, dtype=torch.bool)
    cosine_QK, nearest_QK = nearest_neighbours(bank_NC, query_QC, neighbours)
    ranked = ranked_classes(cosine_QK, bank_labels_N[nearest_QK], temperature=temperature)
    return ranked[:, 0] == query_labels_Q


def ranked_classes(
    cosine_QK: Tensor, classes_QK: Tensor, *, temperature: float, classes: int = 1, num_classes: int = 0
) -> Tensor:
    """The classes [Q, min(`classes`, all)] that most of the neighbours' votes are for, the winner first.

    cosine_QK: of the neighbours, falling. classes_QK: theirs, int64, 0 or more. num_classes: how many there
    are, 0 to count them. A vote weighs exp(cosine / temperature); of equal ones the first class wins.
    """
    if not len(cosine_QK):
        return torch.empty((0, min(classes, max(num_classes, 1))), dtype=torch.int64)
    total = max(num_classes, int(classes_QK.max()) + 1)
    # weights relative to the nearest neighbour: the same winner, and no overflow at small temperatures
    weight_QK = ((cosine_QK - cosine_QK[:, :1]) / temperature).exp()
    rows = max(1, _FLOATS // total)
    ranked = []
    for of_classes, weight in zip(classes_QK.split(rows), weight_QK.split(rows), strict=True):
        votes = torch.zeros(len(weight), total).scatter_add_(1, of_classes, weight)
        if classes == 1:
            ranked.append(votes.argmax(dim=1, keepdim=True))
        else:
            order = votes.argsort(dim=1, descending=True, stable=True)
            ranked.append(order[:, : min(classes, total)])
    return torch.cat(ranked)


def _labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    has_label = labels >= 0
    return (features, labels) if bool(has_label.all()) else (features[has_label], labels[has_label])
