"""The linear probe as on ImageNet: a linear layer on the frozen backbone, trained by SGD on random views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcl_ray.evaluation.protocols.classifiers import Values
from pcl_ray.evaluation.protocols.extraction import Say, TestedEncoder
from pcl_ray.evaluation.protocols.images import EvaluationImages
from pcl_ray.evaluation.protocols.results import accuracies
from pcl_ray.evaluation.protocols.settings import ProtocolSettings
from pcl_ray.evaluation.protocols.supervised import Course, LabelledViews, class_positions, predicted, train
from pcl_ray.model.learner import precision

_BATCH = 256  # that the learning rate is meant for
_INITIAL_SPREAD = 0.01


class FrozenProbe(nn.Module):
    """A linear layer on a backbone that stays as it is, its batch norm included."""

    def __init__(self, tested: TestedEncoder, backbone: nn.Module, width: int, classes: int):
        super().__init__()
        self._tested, self._backbone = tested, [backbone]  # in a list: no part of what is trained or saved
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=_INITIAL_SPREAD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, views: Tensor) -> Tensor:
        with torch.no_grad(), precision(self._tested.config, self._tested.device):
            features = self._backbone[0](views)
        return self.linear(features.float())


def linear_sgd(
    tested: TestedEncoder, images: EvaluationImages, settings: ProtocolSettings, say: Say
) -> Values:
    """Top-1 and balanced accuracy after the last epoch: by default 100 epochs of SGD with momentum 0.9,
    learning rate 5 for batches of 256, a tenth of it after 60 and 80 % of them, no weight decay; views are
    random crops and flips. A run is another start and order. The last, incomplete batch of an epoch is left
    out; with fewer images than a batch, batch and learning rate are as much smaller.

    Raises DataError where it diverges.
    """
    assert images.queries is not None, "checked before"
    assert images.bank_labels is not None, "checked before"
    assert images.query_labels is not None, "checked before"
    bank, queries, classes = class_positions(images.bank_labels, images.query_labels)
    backbone = tested.parts()[0]
    width = backbone_width(tested, backbone)
    batch = min(settings.probe_batch, len(images.bank))
    course = Course(settings.probe_epochs, batch)
    lr = settings.probe_lr * batch / _BATCH
    values: dict[str, list[float]] = {"top1": [], "balanced": []}
    losses = []
    for run in range(settings.costly_runs):
        seed = settings.seed + run
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            probe = FrozenProbe(tested, backbone, width, len(classes)).to(tested.device)
        optimizer = torch.optim.SGD(probe.linear.parameters(), lr=lr, momentum=0.9, weight_decay=0.0)
        views = LabelledViews(tested, images.bank, bank, course, seed)
        losses.append(train(probe, optimizer, views, course, say))
        for name, value in accuracies(predicted(probe, tested, images.queries), queries).items():
            values[name].append(value)
    notes = {"epochs": course.epochs, "batch": batch, "lr": lr, "losses": losses}
    return values, notes | {"bank": len(images.bank), "queries": len(images.queries)}


@torch.no_grad()
def backbone_width(tested: TestedEncoder, backbone: nn.Module) -> int:
    """The number of the backbone's features, from a view that is all zeros."""
    side, channels = tested.config.augment.image_size, tested.config.data.channels
    return int(backbone(torch.zeros(2, channels, side, side, device=tested.device)).shape[1])
