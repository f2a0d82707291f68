"""The weighted kNN classifier (Wu et al., CVPR 2018, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOATS = 2**24  # of the bank, and of similarities, at a time: 64 MiB each


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
    classes, count = int(bank_labels_N.max()) + 1, min(neighbours, len(bank_NC))
    cosine_QK, nearest_QK = _nearest(bank_NC, query_QC, count)
    # weights relative to the nearest neighbour: the same winner, and no overflow at small temperatures
    weight_QK = ((cosine_QK - cosine_QK[:, :1]) / temperature).exp()
    hits = []
    for nearest, weight, labels in zip(
        *(each.split(max(1, _FLOATS // classes)) for each in (nearest_QK, weight_QK, query_labels_Q)),
        strict=True,
    ):
        votes = torch.zeros(len(labels), classes).scatter_add_(1, bank_labels_N[nearest], weight)
        hits.append(votes.argmax(dim=1) == labels)
    return torch.cat(hits)


def _labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    has_label = labels >= 0
    return (features, labels) if bool(has_label.all()) else (features[has_label], labels[has_label])


def _nearest(bank_NC: Tensor, query_QC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[Q, count] the largest cosines of each query, falling, and [Q, count] the rows of the bank.

    The bank is taken in blocks of rows and the nearest of each block are merged, so that memory does not
    grow with the bank.
    """
    rows = max(1, _FLOATS // bank_NC.shape[1])
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, len(bank_NC), rows):
        block = F.normalize(bank_NC[start : start + rows].float(), dim=1)
        of_block = [
            (F.normalize(queries.float(), dim=1) @ block.T).topk(min(count, len(block)), dim=1)
            for queries in query_QC.split(max(1, _FLOATS // len(block)))
        ]
        cosine, nearest = (torch.cat(parts) for parts in zip(*of_block, strict=True))
        nearest += start
        if best is not None:
            cosine, nearest = torch.cat([best[0], cosine], dim=1), torch.cat([best[1], nearest], dim=1)
            cosine, order = cosine.topk(min(count, cosine.shape[1]), dim=1)
            nearest = nearest.gather(1, order)
        best = cosine, nearest
    assert best is not None, "the bank is not empty"
    return best
