"""The weighted kNN classifier (Wu et al., CVPR 2018, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    bank_NC = F.normalize(bank_NC[bank_labels_N >= 0].float(), dim=1)
    bank_labels_N = bank_labels_N[bank_labels_N >= 0]
    query_QC = F.normalize(query_QC[query_labels_Q >= 0].float(), dim=1)
    query_labels_Q = query_labels_Q[query_labels_Q >= 0]
    if not len(bank_NC) or not len(query_QC):
        return float("nan")
    classes, count = int(bank_labels_N.max()) + 1, min(neighbours, len(bank_NC))
    rows = max(1, 2**26 // len(bank_NC))  # at most 256 MiB of similarities at a time
    right = 0
    for features, labels in zip(query_QC.split(rows), query_labels_Q.split(rows), strict=True):
        cosine, nearest = (features @ bank_NC.T).topk(count, dim=1)
        # Weights relative to the nearest neighbour: the same winner, and no overflow at small temperatures.
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(features), classes).scatter_add_(1, bank_labels_N[nearest], weight)
        right += int((votes.argmax(dim=1) == labels).sum())
    return right / len(query_QC)
