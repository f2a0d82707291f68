"""Fine-tuning with few labels: the whole backbone, trained on with 1 % and 10 % of the labels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcl_ray.evaluation.protocols.classifiers import Values
from pcl_ray.evaluation.protocols.extraction import Say, TestedEncoder
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.linear_sgd import backbone_width
from pcl_ray.evaluation.protocols.results import accuracies
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.protocols.supervised import Course, LabelledViews, class_positions, predicted, train

_BACKBONE_LR, _LINEAR_LR = 0.01, 0.2
_LARGEST_BATCH, _SMALLEST_BATCH, _STEPS = 256, 16, 10  # an epoch has ten steps at least, if there are images
_GAMMA = 0.2


class TunedBackbone(nn.Module):
    """A backbone and a linear layer that are trained together."""

    def __init__(self, backbone: nn.Module, width: int, classes: int):
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, views: Tensor) -> Tensor:
        return self.linear(self.backbone(views).float())


def fine_tuning(
    tested: TestedEncoder, images: EvaluationImages, settings: ProtocolSettings, say: Say
) -> Values:
    """Top-1 and balanced accuracy with each share of the labels: `p1/top1` with 1 %, `p10/top1` with 10 %.

    Of every class the same share of its images, one at the least, drawn by run; which ones is recorded
    (`rows`, positions among the labelled images). 20 epochs of SGD with momentum 0.9, learning rate 0.01 for
    the backbone and 0.2 for a linear layer that begins with zeros, a fifth after 60 and 80 % of them, no
    weight decay; batches of 256, smaller ones where an epoch had fewer than ten steps. The learning rates are
    those of SwAV (Caron et al., NeurIPS 2020) with 10 % of the labels. Raises DataError where it diverges.
    """
    assert images.queries is not None, "checked before"
    assert images.bank_labels is not None, "checked before"
    assert images.query_labels is not None, "checked before"
    bank, queries, classes = class_positions(images.bank_labels, images.query_labels)
    values: dict[str, list[float]] = {}
    rows_of: dict[str, list[list[int]]] = {}
    batches: dict[str, int] = {}
    for share in settings.label_shares:
        title = f"p{100 * share:g}".replace(".", "_")
        for run in range(settings.costly_runs):
            rows = class_balanced_rows(bank, share, seed=settings.seed + run)
            rows_of.setdefault(title, []).append(rows.tolist())
            batch = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, len(rows) // _STEPS), len(rows))
            batches[title] = batch
            course = Course(settings.tuning_epochs, batch, gamma=_GAMMA)
            say(f"  {100 * share:g} % of the labels: {len(rows):,} images")
            model = _tuned(tested, images, bank, rows, course, settings.seed + run, len(classes), say)
            measured = accuracies(predicted(model, tested, images.queries), queries)
            for name, value in measured.items():
                values.setdefault(f"{title}/{name}", []).append(value)
    notes: dict[str, Any] = {"epochs": settings.tuning_epochs, "batch": batches, "rows": rows_of}
    return values, notes | {"bank": len(images.bank), "queries": len(images.queries)}


def class_balanced_rows(labels_N: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Positions, rising, of a share of the images of each class, rounded, one at the least; no negative
    labels.
    """
    order = np.random.default_rng((seed, round(share * 1e6))).permutation(len(labels_N))
    order = order[labels_N[order] >= 0]
    rows = []
    for label in np.unique(labels_N[order]):
        of_class = order[labels_N[order] == label]
        rows.append(of_class[: max(1, round(share * len(of_class)))])
    return np.sort(np.concatenate(rows))


def _tuned(
    tested: TestedEncoder,
    images: EvaluationImages,
    classes_N: np.ndarray,
    rows: np.ndarray,
    course: Course,
    seed: int,
    classes: int,
    say: Say,
) -> nn.Module:
    """A copy of the backbone with a linear layer, trained, for evaluation. The encoder stays as it is."""
    backbone = copy.deepcopy(tested.parts()[0]).requires_grad_(True)
    model = TunedBackbone(backbone, backbone_width(tested, backbone), classes).to(tested.device)
    optimizer = torch.optim.SGD(
        [
            {"params": model.backbone.parameters(), "lr": _BACKBONE_LR},
            {"params": model.linear.parameters(), "lr": _LINEAR_LR},
        ],
        lr=_BACKBONE_LR,
        momentum=0.9,
        weight_decay=0.0,
    )
    views = LabelledViews(tested, images.bank.take(rows), classes_N[rows], course, seed)
    model.train()
    train(model, optimizer, views, course, say)
    return model.eval()
