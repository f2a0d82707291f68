"""What protocols that train with labels have in common: views, step schedule, steps, judgement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.config import RunConfig, with_overrides
from pcl_ray.data.images import Images
from pcl_ray.data.loaders import EvaluationLoader, TrainingLoader
from pcl_ray.errors import DataError
from pcl_ray.evaluation.protocols.extraction import Say, TestedEncoder
from pcl_ray.model.learner import precision

_SMALLEST_CROP = 0.08  # share of the area: torchvision's and ImageNet's usual one
_EVERY_S = 20.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Course:
    """How long and how fast is trained. milestones: shares of the epochs after which the learning rate is
    `gamma` of what it was.
    """

    epochs: int
    batch: int
    milestones: tuple[float, ...] = (0.6, 0.8)
    gamma: float = 0.1

    def factor_at(self, epoch: int) -> float:
        """What the learning rates are multiplied by in this epoch, counted from 0."""
        passed = sum(epoch >= round(share * self.epochs) for share in self.milestones)
        return self.gamma**passed


def standard_views(config: RunConfig, batch: int, seed: int) -> RunConfig:
    """The configuration with the augmentation that is usual for training with labels: random crops of 8 % to
    all of the area, flips unless the run has none because sides mean something there, and nothing else.
    """
    off = ("jitter", "hue", "grey", "blur", "shift", "rotate", "shear", "erase", "small_crops")
    changes: dict[str, object] = {f"augment.{name}": 0 for name in off}
    changes |= {"augment.min_crop": _SMALLEST_CROP, "augment.flip": 0.5 if config.augment.flip else 0.0}
    return with_overrides(config, changes | {"train.batch_size": batch, "seed": seed})


class LabelledViews:
    """Augmented batches of labelled images, reshuffled each epoch: views [b, channels, S, S], classes [b]."""

    def __init__(
        self, tested: TestedEncoder, images: Images, classes_N: np.ndarray, course: Course, seed: int
    ):
        config = standard_views(tested.config, course.batch, seed)
        self._device = tested.device
        self._classes = torch.from_numpy(classes_N.astype(np.int64))
        self._loader = TrainingLoader(images, config, device=tested.device)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader.epoch(number):
            yield batch.query_views.to(self._device), self._classes[batch.indices].to(self._device)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, views: LabelledViews, course: Course, say: Say
) -> float:
    """Trains the model, which gives logits, by cross-entropy; gives back the mean loss of the last epoch.

    Raises DataError where the loss is not finite.
    """
    bases = [group["lr"] for group in optimizer.param_groups]
    reported = time.monotonic()
    mean = float("nan")
    for epoch in range(course.epochs):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * course.factor_at(epoch)
        losses: list[Tensor] = []
        for pixels, classes in views.epoch(epoch):
            loss = F.cross_entropy(model(pixels).float(), classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not np.isfinite(mean):
            raise DataError(
                f"the training with labels diverged in epoch {epoch + 1} at a learning rate of {bases[-1]:g};"
                " --probe-lr makes that of the linear layer smaller"
            )
        if time.monotonic() - reported > _EVERY_S or epoch + 1 == course.epochs:
            reported = time.monotonic()
            say(f"  epoch {epoch + 1} of {course.epochs}, loss {mean:.4f}")
    return mean


@torch.no_grad()
def predicted(model: nn.Module, tested: TestedEncoder, images: Images) -> np.ndarray:
    """The class [Q] of each image's evaluation view that has the largest logit."""
    result = np.empty(len(images), dtype=np.int64)
    for pixels, ids in EvaluationLoader(images, tested.config, device=tested.device):
        with precision(tested.config, tested.device):
            result[ids.numpy()] = model(pixels.to(tested.device)).float().argmax(dim=1).cpu().numpy()
    return result


def class_positions(
    bank_labels: np.ndarray, query_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Sequence[int]]:
    """Classes of the bank counted from 0 in both parts, −1 for one that only queries have; the labels."""
    labels, bank = np.unique(bank_labels, return_inverse=True)
    position = np.searchsorted(labels, query_labels).clip(max=len(labels) - 1)
    return bank, np.where(labels[position] == query_labels, position, -1), labels.tolist()
