"""The protocols that classify from features as they are: kNN and the fast linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_ray.errors import DataError
from pcl_ray.evaluation.knn import ranked_classes
from pcl_ray.evaluation.labelled import LabelledFeatures
from pcl_ray.evaluation.linear import linear_probe
from pcl_ray.evaluation.neighbours import nearest_neighbours
from pcl_ray.evaluation.protocols.results import accuracies
from pcl_ray.evaluation.protocols.settings import ProtocolSettings

_TOP = 5
_WORK = 1e12  # multiply-adds within which the probe takes all its iterations: a minute on one core
_SELECTION = 10_000  # images that its penalty is chosen on

Values = tuple[dict[str, list[float]], dict[str, Any]]  # of each measure one value a run; settings


def knn(features: LabelledFeatures, settings: ProtocolSettings) -> Values:
    """Top-1, of more than five classes top-5, and balanced accuracy of the weighted kNN classifier, for each
    number of neighbours: `k200/top1`. Exact, so there is one run.

    With `leave_one_out` the bank's images are the queries, each without itself. More neighbours than the bank
    has are as many as it has.
    """
    bank = _tensor(features.bank_BD)
    labels = torch.tensor(features.bank_labels_B)  # a copy: from_numpy warns about what is read-only
    if settings.leave_one_out:
        queries, query_labels, own = bank, labels, torch.arange(len(bank))
    else:
        queries, query_labels, own = _tensor(features.queries_QD), torch.tensor(features.query_labels_Q), None
    most = len(bank) - int(settings.leave_one_out)
    if most < 1:
        raise DataError("a bank of one image has no neighbours to leave one out of")
    search = settings.search or _in_this_process
    cosine, rows = search(bank, queries, min(max(settings.neighbours), most), own)
    values: dict[str, list[float]] = {}
    for count in sorted(set(settings.neighbours)):
        used = min(count, most)
        ranked = ranked_classes(
            cosine[:, :used],
            labels[rows[:, :used]],
            temperature=settings.temperature,
            classes=_TOP,
            num_classes=features.num_classes,
        )
        measured = accuracies(ranked[:, 0].numpy(), query_labels.numpy())
        if features.num_classes > _TOP:
            measured["top5"] = float((ranked == query_labels[:, None]).any(dim=1).float().mean())
        values |= {f"k{count}/{name}": [value] for name, value in measured.items()}
    notes: dict[str, Any] = {"temperature": settings.temperature, "leave_one_out": settings.leave_one_out}
    notes |= {"bank": len(bank), "queries": len(queries)}
    if most < max(settings.neighbours):
        notes["neighbours"] = f"at most {most}, which is the whole bank"
    return values, notes


def linear(features: LabelledFeatures, settings: ProtocolSettings) -> Values:
    """Top-1 and balanced accuracy of logistic regression by L-BFGS on standardised features. A run draws the
    part that the penalty is chosen on; the queries take no part in the choice.
    """
    classes = len(np.unique(features.bank_labels_B))
    bank = features.bank_BD.astype(np.float32, copy=False)
    queries = features.queries_QD.astype(np.float32, copy=False)
    work = 2.0 * (len(bank) + 5 * min(len(bank), _SELECTION)) * classes * bank.shape[1]
    iterations = int(min(max(_WORK / work, 50), 200))
    values: dict[str, list[float]] = {"top1": [], "balanced": []}
    penalties: dict[float, dict[str, float]] = {}  # runs that choose the same one give the same
    choices: list[float] = []
    for run in range(settings.runs):
        model, scaled, penalty = linear_probe(
            bank,
            features.bank_labels_B,
            queries,
            iterations=iterations,
            selection=_SELECTION,
            seed=settings.seed + run,
        )
        choices.append(penalty)
        if penalty not in penalties:
            penalties[penalty] = accuracies(model.predict(scaled), features.query_labels_Q)
        for name, value in penalties[penalty].items():
            values[name].append(value)
    return values, {
        "penalties": choices,
        "iterations": iterations,
        "bank": len(bank),
        "queries": len(queries),
    }


def _in_this_process(bank: Tensor, queries: Tensor, count: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return nearest_neighbours(bank, queries, count, own_rows_Q=own, device=device)


def _tensor(features: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features))
