"""The M-step: one epoch of momentum contrast with ProtoNCE, given the clusters of the E-step.

two views, indices → query encoder (gradients) ─┬─ InfoNCE against key and queue ──────────────────┐
                   → momentum encoder (shuffled) ┘  ProtoNCE against prototype assignments[index] ─┴→ loss → optimizer → EMA → enqueue
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.errors import RunFailed
from pcl_ray.losses import first_is_right, instance_logits, prototype_logits, prototype_loss, sample_negatives
from pcl_ray.model import KeyQueue, MomentumPair, encoder, optimizers
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.gather import all_gather, encode_shuffled, mean_over_workers, rank, world_size
from pcl_ray.plan import RunPlan


@dataclass
class Learner:
    """Everything that the M-step changes."""

    pair: MomentumPair
    queue: KeyQueue
    optimizer: Optimizer
    query: nn.Module  # pair.query, wrapped for data-parallel training where there are several workers
    device: torch.device
    bank: FeatureBank | None = None  # filled as a by-product, with e_step.features = bank

    def state_dict(self) -> dict[str, Any]:
        """All but the bank, of which each worker has a part."""
        return {"model": self.pair.state_dict(), "queue": self.queue.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pair.load_state_dict(state["model"])
        self.queue.load_state_dict(state["queue"])
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass
class EpochMetrics:
    """Means over the epoch and over the workers; `train/` names as they are logged."""

    values: dict[str, float]
    images: int  # over all workers
    seconds: float
    data_seconds: float  # of them waiting for images, on this worker
    last_step: int  # global step of the last batch


@dataclass
class _Meter:
    """Sums on the device: no step waits for it. Row s of `losses` tells which step went wrong."""

    names: tuple[str, ...]
    device: torch.device
    rows: list[Tensor] = field(default_factory=list)

    def add(self, values: list[Tensor]) -> None:
        self.rows.append(torch.stack([value.detach().float() for value in values]))

    def read(self) -> tuple[Tensor, Tensor]:
        """Means over workers of every step [steps, names] and over the steps [names], on the CPU; empties the meter."""
        table = mean_over_workers(torch.stack(self.rows)).cpu()
        self.rows.clear()
        return table, table.mean(dim=0)


def build_learner(config: RunConfig, device: torch.device) -> Learner:
    """A fresh learner; the same weights and queue on every worker, from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        pair = MomentumPair.of(encoder.build(config.encoder, config.data.channels), config.encoder.momentum)
        queue = KeyQueue(config.loss.queue_size, config.encoder.dim)
    if config.encoder.batch_norm == "sync" and world_size() > 1:
        pair.query, pair.key = (encoder.with_sync_batch_norm(part, config.encoder) for part in (pair.query, pair.key))
    pair, queue = pair.to(device), queue.to(device)
    query = pair.query
    if world_size() > 1:
        # Statistics are averaged once before each evaluation pass; sending them at every forward pass is wasted time.
        query = DistributedDataParallel(query, broadcast_buffers=False)
    return Learner(pair, queue, optimizers.build(config.optimizer, pair.query), query, device)


def run_epoch(
    learner: Learner,
    batches: Iterable[Any],
    clusters: ClusterSet | None,
    config: RunConfig,
    plan: RunPlan,
    epoch: int,
    on_progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    switch: Callable[[int], ClusterSet | None] = lambda step: None,
) -> EpochMetrics:
    """Trains one epoch. `batches` yields `.query_views`, `.key_views` [b, channels, S, S] and `.indices` [b]; `clusters` None: InfoNCE alone.

    `on_progress(step, means)` is called on every worker each `train.log_every_steps` steps. `switch(i)` is asked before step i of the epoch, on every
    worker; from then on the clusters that it gives are trained with. Raises RunFailed at the first loss that is not finite.
    """
    learner.pair.train()
    shared = _on_device(clusters, learner.device) if clusters is not None and config.loss.prototype_weight > 0 else []
    meter = _Meter(_metric_names(len(shared)), learner.device)
    sums, step, start, waited = torch.zeros(len(meter.names)), epoch * plan.steps_per_epoch, time.perf_counter(), 0.0
    every, unread, seen = config.train.log_every_steps, 0, 0
    for batch, wait in _timed(batches):
        waited += wait
        if (newer := switch(seen)) is not None and shared:
            shared = _on_device(newer, learner.device)
        for group in learner.optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        meter.add(_train_step(learner, batch, shared, config, plan, step))
        step, unread, seen = step + 1, unread + 1, seen + 1
        if unread == every or seen == plan.steps_per_epoch:
            table, means = meter.read()
            _stop_if_not_finite(table, epoch, step - unread, plan, config)
            sums += table.sum(dim=0)
            unread = 0
            on_progress(step - 1, _named(meter.names, means))
    assert seen == plan.steps_per_epoch, f"{seen} batches came, {plan.steps_per_epoch} were planned"
    seconds = time.perf_counter() - start
    return EpochMetrics(_named(meter.names, sums / seen), seen * plan.global_batch, seconds, waited, step - 1)


def _train_step(learner: Learner, batch: Any, shared: list[_Prototypes], config: RunConfig, plan: RunPlan, step: int) -> list[Tensor]:
    device, loss_config = learner.device, config.loss
    query_views, key_views = batch.query_views.to(device, non_blocking=True), batch.key_views.to(device, non_blocking=True)
    with _precision(config, device):
        query_BC = learner.query(query_views)
        key_BC = _keys(learner, key_views, config, step)
    query_BC, key_BC = query_BC.float(), key_BC.float()

    logits = instance_logits(query_BC, key_BC, learner.queue.keys, loss_config.temperature)
    instance = first_is_right(logits)
    values = [instance, (logits.argmax(dim=1) == 0).float().mean(), (query_BC - key_BC).square().sum(dim=1).mean()]
    loss = instance
    if shared:
        terms = [_prototype_term(query_BC, batch.indices, part, config, plan, step, m) for m, part in enumerate(shared)]
        prototype = torch.stack([term for term, _ in terms]).mean()
        loss = loss + loss_config.prototype_weight * prototype
        values += [prototype, *(accuracy for _, accuracy in terms)]

    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learner.optimizer.step()
    learner.pair.update()
    keys = all_gather(key_BC)
    learner.queue.enqueue(keys)
    if learner.bank is not None:
        learner.bank.update(all_gather(batch.indices.to(device)), keys)
    return [loss, *values]


@torch.no_grad()
def _keys(learner: Learner, views: Tensor, config: RunConfig, step: int) -> Tensor:
    if config.encoder.batch_norm == "shuffle":
        return encode_shuffled(learner.pair.key, views, seed=_seed(config.seed, step))
    return learner.pair.key(views)


@dataclass(frozen=True)
class _Prototypes:
    prototypes_KC: Tensor
    concentration_K: Tensor
    assignments_N: Tensor  # stays on the CPU, shared by all workers of the node: only a batch of it is copied
    valid_K: Tensor | None  # None where every prototype has images and every image a prototype


def _on_device(clusters: ClusterSet, device: torch.device) -> list[_Prototypes]:
    return [_Prototypes(c.prototypes.to(device), c.concentration.to(device), c.assignments, _mask(c, device)) for c in clusters.clusterings]


def _mask(clustering: Clustering, device: torch.device) -> Tensor | None:
    """Which prototypes take part; None where there is nothing to leave out."""
    valid = clustering.valid
    if (valid is None or bool(valid.all())) and not len(clustering.assignments[clustering.assignments < 0]):
        return None
    return (torch.ones(clustering.num_clusters, dtype=torch.bool) if valid is None else valid).to(device)


def _prototype_term(query_BC: Tensor, indices: Tensor, part: _Prototypes, config: RunConfig, plan: RunPlan, step: int, which: int) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of one clustering."""
    positives_B = part.assignments_N[indices].to(query_BC.device, non_blocking=True)
    negatives_M = None
    if (count := plan.negatives[which]) is not None:
        # All workers draw the same negatives, and the other workers' positives are columns too: the loss is that of the whole batch.
        everywhere = all_gather(positives_B)
        generator = torch.Generator(device=query_BC.device).manual_seed(_seed(config.seed, step, which))
        drawn = sample_negatives(len(part.prototypes_KC), everywhere, count, generator, part.valid_K)
        here = len(positives_B)
        others = torch.cat([everywhere[: rank() * here], everywhere[(rank() + 1) * here :]])
        negatives_M = torch.cat([others, drawn])
    logits, target_B = prototype_logits(
        query_BC,
        part.prototypes_KC,
        part.concentration_K,
        positives_B,
        negatives_M,
        mask_duplicates=config.loss.mask_duplicates,
        valid_K=part.valid_K,
    )
    # Right is the prototype, not the column: without masking several columns may hold the image's own one, all with the same logit.
    chosen_B = logits.argmax(dim=1) if negatives_M is None else torch.cat([positives_B, negatives_M])[logits.argmax(dim=1)]
    return prototype_loss(logits, target_B, positives_B, part.valid_K), (chosen_B == positives_B).float().mean()


def _precision(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    wanted = config.train.precision
    if device.type == "cuda" and (wanted == "bf16" or (wanted == "auto" and torch.cuda.is_bf16_supported(including_emulation=False))):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def _metric_names(num_clusterings: int) -> tuple[str, ...]:
    names = ("train/loss", "train/loss_instance", "train/accuracy_instance", "eval/alignment")
    return names + (("train/loss_prototype", *(f"train/accuracy_prototype_{m}" for m in range(num_clusterings))) if num_clusterings else ())


def _named(names: tuple[str, ...], means: Tensor) -> dict[str, float]:
    return dict(zip(names, means.tolist(), strict=True))


def _stop_if_not_finite(table: Tensor, epoch: int, first_step: int, plan: RunPlan, config: RunConfig) -> None:
    wrong = (~torch.isfinite(table[:, 0])).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        step = first_step + row
        guilty = "the instance term" if not torch.isfinite(table[row, 1]) else "the prototype term"
        raise RunFailed(
            f"the loss is {float(table[row, 0])} in epoch {epoch + 1}, step {step + 1} ({guilty}; learning rate {plan.lr_at(step):.3g}, "
            f"temperature {config.loss.temperature}). Most likely the learning rate is too high or the temperature too low: "
            "try a tenth of optimizer.lr, optimizer.warmup_epochs, or a higher loss.temperature"
        )


def _timed(batches: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds spent waiting for it."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
