"""What a run of the study is measured by: the momentum encoder's features of all images, backbone and head.

k-means at the true number of classes and the few-label probes come first; kNN and the linear probe beside
them. Classes, labels and draws are the same for all arms and seeds; only k-means begins anew with each seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.evaluation import knn_accuracy
from pcl_ray.evaluation.class_clusters import class_clusters
from pcl_ray.evaluation.few_labels import few_label_draws
from pcl_ray.evaluation.linear import linear_probe_accuracy
from pcl_ray.model.learner import build_learner
from pcl_ray.model.weights import load_encoder

PRIMARY = ("ami", "accuracy", "one_label", "five_labels")
SECONDARY = ("knn_20", "knn_200", "linear")
_MANY_CLASSES = 100
_DRAWS, _DRAWS_OF_MANY = 20, 5

Features = dict[str, Tensor]  # of the parts train and test, [N, D] float32


def figures(features: Features, splits: DataSplits, seed: int, *, secondary: bool = True) -> dict[str, float]:
    """The figures of PRIMARY, and with `secondary` those of SECONDARY and nmi; all 0..1, more is better.

    ami, accuracy: of k-means on the test images. one_label, five_labels: the nearest class mean, over 20
    draws (5 where there are over 100 classes). linear is left out where there are over 100 classes: it would
    take longer than the training.
    """
    assert splits.holdout is not None
    train, test = (torch.from_numpy(labels_of(part)) for part in (splits.train, splits.holdout))
    many = len(test.unique()) > _MANY_CLASSES
    clusters = class_clusters(features["test"], test, restarts=3 if many else 10, seed=seed)
    values = {"ami": clusters["ami"], "accuracy": clusters["accuracy"]}
    both = (features["train"], train, features["test"], test)
    for name, count in (("one_label", 1), ("five_labels", 5)):
        values[name] = class_mean_accuracy(*both, count, _DRAWS_OF_MANY if many else _DRAWS)
    values["knn_20"] = knn_accuracy(*both, neighbours=20)
    if secondary:
        values["nmi"] = clusters["nmi"]
        values["knn_200"] = knn_accuracy(*both, neighbours=200)
        if not many:
            values["linear"] = linear_probe_accuracy(*both)
    return values


def class_mean_accuracy(
    bank_NC: Tensor,
    labels_N: Tensor,
    query_QC: Tensor,
    query_labels_Q: Tensor,
    labels_per_class: int,
    draws: int,
) -> float:
    """The share of the queries that lie nearest, by cosine, to the mean of their class's few labelled images;
    the mean over the draws of `few_label_draws`. Labels are 0..classes−1, each class is in the bank.
    """
    bank, query = F.normalize(bank_NC, dim=1), F.normalize(query_QC, dim=1)
    shares = []
    for rows in few_label_draws(labels_N, labels_per_class, draws=draws):
        member_LM = F.one_hot(labels_N[rows]).T.float()
        means_LC = F.normalize(member_LM @ bank[rows], dim=1)
        shares.append(float(((query @ means_LC.T).argmax(dim=1) == query_labels_Q).float().mean()))
    return float(np.mean(shares))


def encoder_figures(
    encoder: nn.Module, config: RunConfig, splits: DataSplits, device: torch.device
) -> dict[str, dict[str, float]]:
    """The figures of the features before and behind the projection head."""
    backbone, head = encoder_features(encoder, config, splits, device)
    return {
        "backbone": figures(backbone, splits, config.seed),
        "head": figures(head, splits, config.seed, secondary=False),
    }


def of_checkpoint(
    checkpoint: Path, config: RunConfig, splits: DataSplits, device: torch.device
) -> dict[str, dict[str, float]]:
    """The figures of a run's momentum encoder."""
    return encoder_figures(load_encoder(checkpoint, encoder="momentum"), config, splits, device)


def of_untrained(config: RunConfig, splits: DataSplits, device: torch.device) -> dict[str, dict[str, float]]:
    """The figures of the encoder that a run begins with. Its batch norm has seen one pass over some training
    images, as the statistics of an untrained one are of no images at all.
    """
    encoder = build_learner(config, device).pair.key
    assert isinstance(encoder, nn.Module)
    encoder.train()
    with torch.no_grad():
        for number, (views, _) in enumerate(_views(splits.train, config, device)):
            encoder(views)
            if number == 50:
                break
    return encoder_figures(encoder.eval(), config, splits, device)


def of_pixels(splits: DataSplits, seed: int) -> dict[str, dict[str, float]]:
    """The figures of the images themselves."""
    assert splits.holdout is not None
    parts: dict[str, Any] = {"train": splits.train, "test": splits.holdout}
    pixels = {
        name: torch.from_numpy(part.pixels.reshape(len(part), -1).astype(np.float32) / 255)
        for name, part in parts.items()
    }
    return {"backbone": figures(pixels, splits, seed)}


@torch.no_grad()
def encoder_features(
    encoder: nn.Module, config: RunConfig, splits: DataSplits, device: torch.device
) -> tuple[Features, Features]:
    """Features of all images, in their order, on the CPU: of the backbone, and of the head, normalised."""
    encoder: Any = encoder.to(device).eval()
    backbone: Features = {}
    head: Features = {}
    for name, images in (("train", splits.train), ("test", splits.holdout)):
        assert images is not None
        before, behind = [], []
        for views, _ in _views(images, config, device):
            inner = encoder.backbone(views)
            before.append(inner.float().cpu())
            behind.append(F.normalize(encoder.head(inner), dim=1).float().cpu())
        backbone[name], head[name] = torch.cat(before), torch.cat(behind)
    return backbone, head


def _views(images: Any, config: RunConfig, device: torch.device) -> EvaluationLoader:
    return EvaluationLoader(images, config, device=device)


def labels_of(images: Any) -> np.ndarray:
    assert images.labels is not None
    return images.labels
