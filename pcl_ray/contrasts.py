"""What the images of one step are contrasted with: keys of the queue, prototypes of each clustering.

Everything that is drawn or looked up is so once a step, for all rows and workers; the loss of a part of the
batch is that of its rows in the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import LossConfig, RunConfig
from pcl_ray.losses import (
    draw_mates,
    first_is_right,
    instance_logits,
    mate_logits,
    prototype_logits,
    prototype_loss,
    sample_negatives,
)
from pcl_ray.model import KeyQueue, image_groups
from pcl_ray.model.distributed import all_gather, rank, world_size
from pcl_ray.plan import RunPlan

_MATES = 2**20  # what their draws are told from those of a clustering's negatives by


@dataclass(frozen=True)
class DevicePrototypes:
    """One clustering on the device of the training."""

    prototypes_KC: Tensor
    concentration_K: Tensor
    assignments_N: Tensor  # stays on the CPU, shared by all workers of the node: only a batch of it is copied
    valid_K: Tensor | None  # None where every prototype has images and every image a prototype
    num_valid: int  # known here: counting them in a step would wait for the device


@dataclass(frozen=True)
class ClusterTargets:
    """The clusters in force, as the terms of the loss take them."""

    prototypes: tuple[DevicePrototypes, ...]  # one for each clustering; none where that term has no weight
    # Assignments of the finest clustering, on the CPU; None where no term tells the queue's images apart.
    finest_N: Tensor | None

    @classmethod
    def of(cls, clusters: ClusterSet, queue: KeyQueue, config: LossConfig) -> ClusterTargets | None:
        """The targets of new clusters, to which the queue's images are assigned anew, which waits for the
        device; None where no term takes any.
        """
        device = queue.keys.device
        prototypes = clusters.clusterings if config.prototype_weight > 0 else ()
        finest_N: Tensor | None = None
        if config.queue_negatives == "other_clusters" or config.cluster_positives > 0:
            finest_N = max(clusters.clusterings, key=lambda clustering: clustering.num_clusters).assignments
            queue.regroup(finest_N)
        if not prototypes and finest_N is None:
            return None
        return cls(tuple(_prototypes(clustering, device) for clustering in prototypes), finest_N)


def _prototypes(clustering: Clustering, device: torch.device) -> DevicePrototypes:
    valid = clustering.valid
    count = clustering.num_clusters if valid is None else int(valid.sum())
    if count == clustering.num_clusters and not bool((clustering.assignments < 0).any()):
        mask = None
    else:
        mask = (torch.ones(clustering.num_clusters, dtype=torch.bool) if valid is None else valid).to(device)
    return DevicePrototypes(
        clustering.prototypes.to(device),
        clustering.concentration.to(device),
        clustering.assignments,
        mask,
        count,
    )


@dataclass(frozen=True)
class StepContrasts:
    """What the worker's part of one step's batch is contrasted with."""

    queue: QueueContrast
    prototypes: list[PrototypeContrast]
    prototype_weight: float
    mate_weight: float  # of the term whose positives are mates

    @classmethod
    def of(
        cls,
        targets: ClusterTargets | None,
        queue: KeyQueue,
        indices: Tensor,
        config: RunConfig,
        plan: RunPlan,
        step: int,
    ) -> StepContrasts:
        """`indices`: [b] int64, on the CPU, the images of the worker's part."""
        parts = targets.prototypes if targets is not None else ()
        finest_N = targets.finest_N if targets is not None else None
        return cls(
            QueueContrast(queue, indices, finest_N, config, step),
            [PrototypeContrast(part, indices, config, plan, step, m) for m, part in enumerate(parts)],
            plan.prototype_weight_at(step),
            config.loss.cluster_positives,
        )


@dataclass(frozen=True)
class QueueTerms:
    """The terms of some rows of the batch that contrast with the queue, and figures beside them; scalars."""

    instance: Tensor  # InfoNCE
    accuracy: Tensor  # how often the key is nearer than all negatives
    mates: Tensor | None  # InfoNCE with a mate's key as the positive, where that is part of the loss
    with_mate: Tensor | None  # share of the rows that have a mate


class QueueContrast:
    """The queue in one step: its keys, which of them are no negatives of an image, which are positives."""

    def __init__(
        self, queue: KeyQueue, indices: Tensor, finest_N: Tensor | None, config: RunConfig, step: int
    ):
        self._queue, self._temperature = queue, config.loss.temperature
        self._hides = config.loss.queue_negatives == "other_clusters"
        # [b], on the device; None where nobody asks whose keys the queue holds
        self.groups_B: Tensor | None = None
        self._mates_B: Tensor | None = None  # [b] rows of the queue, −1 for none
        if finest_N is None:
            return
        device = queue.keys.device
        self.groups_B = image_groups(indices, finest_N).to(device, non_blocking=True)
        if config.loss.cluster_positives > 0:
            generator = torch.Generator(device=device).manual_seed(seed_of(config.seed, step, _MATES))
            # of the whole batch, so that it does not matter how many workers share it
            uniform = torch.rand(
                world_size() * len(indices), dtype=torch.float64, generator=generator, device=device
            )
            self._mates_B = draw_mates(
                self.groups_B,
                indices.to(device, non_blocking=True),
                queue.groups,
                queue.indices,
                uniform.view(world_size(), -1)[rank()],
                len(finest_N),
            )

    def terms(self, query_BC: Tensor, key_BC: Tensor, rows: slice) -> QueueTerms:
        """The terms of the images `rows` of the worker's part of the batch."""
        keys_RC, same_BR = self._queue.keys, None
        if self.groups_B is not None:
            same_BR = self.groups_B[rows, None] == self._queue.groups
        hidden_BR = same_BR if self._hides else None
        logits = instance_logits(query_BC, key_BC, keys_RC, self._temperature, hidden_BR)
        instance, accuracy = first_is_right(logits), (logits.argmax(dim=1) == 0).float().mean()
        if self._mates_B is None:
            return QueueTerms(instance, accuracy, None, None)
        mates_B = self._mates_B[rows]
        has_mate_B = mates_B >= 0
        to_hide_BR = None if self._hides else same_BR
        logits = mate_logits(logits, query_BC, keys_RC[mates_B.clamp(min=0)], self._temperature, to_hide_BR)
        return QueueTerms(instance, accuracy, first_is_right(logits, has_mate_B), has_mate_B.float().mean())


class PrototypeContrast:
    """One clustering in one step: its images' prototypes, and negatives that all rows and workers share."""

    def __init__(
        self, part: DevicePrototypes, indices: Tensor, config: RunConfig, plan: RunPlan, step: int, which: int
    ):
        self._part, self._mask_duplicates = part, config.loss.mask_duplicates
        device = part.prototypes_KC.device
        self.positives_B = part.assignments_N[indices].to(device, non_blocking=True)
        self._first = 0
        self._everywhere = self.positives_B
        self._drawn: Tensor | None = None
        if (count := plan.negatives[which]) is not None:
            # Workers draw the same negatives, and all positives are columns: the loss is the whole batch's.
            self._first, self._everywhere = rank() * len(indices), all_gather(self.positives_B)
            generator = torch.Generator(device=device).manual_seed(seed_of(config.seed, step, which))
            num_prototypes = len(part.prototypes_KC)
            self._drawn = sample_negatives(
                num_prototypes, self._everywhere, count, generator, part.valid_K, num_valid=part.num_valid
            )

    def loss_and_accuracy(self, query_BC: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of the images `rows` of the worker's part of the batch. An image that has no
        prototype adds nothing to the loss and counts as wrong.
        """
        part, positives_B = self._part, self.positives_B[rows]
        negatives_M: Tensor | None = None
        if self._drawn is not None:
            before = self._everywhere[: self._first + rows.start]
            after = self._everywhere[self._first + rows.stop :]
            negatives_M = torch.cat([before, after, self._drawn])
        logits, target_B = prototype_logits(
            query_BC,
            part.prototypes_KC,
            part.concentration_K,
            positives_B,
            negatives_M,
            mask_duplicates=self._mask_duplicates,
            valid_K=part.valid_K,
        )
        # Right is the prototype, not the column: unmasked, several columns may hold it, with the same logit.
        best_B = logits.argmax(dim=1)
        predicted_B = best_B if negatives_M is None else torch.cat([positives_B, negatives_M])[best_B]
        right_B = (predicted_B == positives_B) & (positives_B >= 0)
        return prototype_loss(logits, target_B, positives_B, part.valid_K), right_B.float().mean()


def seed_of(*parts: int) -> int:
    """One seed from the run's, the step and what is drawn."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
