"""The M-step: one epoch of momentum contrast with ProtoNCE, given the clusters of the E-step.

two views, indices → query encoder (gradients) ──┬─ InfoNCE against key and queue ─────────────────┐
                   → momentum encoder (shuffled) ┘  ProtoNCE against prototype assignments[index] ─┴→ loss
                                                                   enqueue ← EMA ← optimizer ←─────────┘
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import (
    ACCURACY_INSTANCE,
    ACCURACY_PROTOTYPE,
    ALIGNMENT,
    LOSS,
    LOSS_INSTANCE,
    LOSS_MATES,
    LOSS_PROTOTYPE,
    WITH_MATE,
)
from pcl_ray.contrasts import ClusterTargets, StepContrasts, seed_of
from pcl_ray.errors import NotFinite, OutOfMemory
from pcl_ray.meters import (
    GAUGE_EVERY,
    EpochTally,
    Meter,
    StepClock,
    gauge_names,
    gauges,
    is_out_of_memory,
    memory_gb,
    reset_memory,
)
from pcl_ray.model.distributed import all_gather_together, encode_shuffled
from pcl_ray.model.learner import Learner, build_learner, precision, views_for
from pcl_ray.plan import RunPlan

__all__ = ["EpochCourse", "EpochMetrics", "Learner", "build_learner", "run_epoch"]


@dataclass(frozen=True)
class EpochCourse:
    """How an epoch is trained beside its batches and clusters: where it begins, and who is asked and told.

    on_progress(step, means): called on every worker each `train.log_every_steps` steps, and then, within the
    epoch, on_reading(tally), which may keep where the epoch is. switch(i): asked before step i of the epoch,
    on every worker; from then on the clusters that it gives are trained with. begun: the tally of an epoch of
    which an earlier start has trained some steps. rate_scale: of the learning rate that the plan has.
    """

    on_progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    switch: Callable[[int], ClusterSet | None] = lambda step: None
    on_reading: Callable[[EpochTally], None] = lambda tally: None
    begun: Mapping[str, Any] | None = None
    rate_scale: float = 1.0


@dataclass
class EpochMetrics:
    """Means over the epoch and over the workers; `train/` names as they are logged."""

    values: dict[str, float]
    images: int  # over all workers
    seconds: float
    data_seconds: float  # of them waiting for images, on this worker
    last_step: int  # global step of the last batch
    step_median: float  # seconds, on this worker
    step_p95: float
    memory_gb: float  # of the GPU, or resident


def run_epoch(
    learner: Learner,
    batches: Iterable[Any],
    clusters: ClusterSet | None,
    config: RunConfig,
    plan: RunPlan,
    epoch: int,
    course: EpochCourse | None = None,
) -> EpochMetrics:
    """Trains one epoch. `batches` yields `.query_views`, `.key_views` [b, channels, S, S], `.indices` [b] and
    `.small_views`, any number of [b, channels, s, s]; `clusters` None: InfoNCE alone.

    Of an epoch that has begun before, `batches` are those that are left. Raises NotFinite at the first loss
    that is not finite.
    """
    course = course or EpochCourse()
    learner.pair.train()
    targets: ClusterTargets | None = None
    if clusters is not None:
        targets = ClusterTargets.of(clusters, learner.queue, config.loss)
    num_clusterings = len(targets.prototypes) if targets is not None else 0
    meter = Meter((*_loss_names(targets, config), *gauge_names(num_clusterings)), learner.device)
    clock = StepClock(learner.device)
    reset_memory(learner.device)
    tally = EpochTally(torch.zeros(len(meter.names)))
    if course.begun is not None:
        tally = EpochTally.from_state_dict(course.begun, learner.device)
        clock.go_on(tally.step_seconds)
    first = epoch * plan.steps_per_epoch
    unread = 0  # steps of the epoch that the meter still holds
    start = time.perf_counter() - tally.seconds
    clock.tick()
    for batch, wait in _timed(batches):
        tally.waited += wait
        if (newer := course.switch(tally.seen)) is not None and targets is not None:
            targets = ClusterTargets.of(newer, learner.queue, config.loss)
        step = first + tally.seen
        for group in learner.optimizer.param_groups:
            group["lr"] = plan.lr_at(step) * course.rate_scale
        learner.pair.momentum = plan.momentum_at(step)
        gauge = tally.seen % GAUGE_EVERY == 0
        try:
            losses, fresh = _train_step(learner, batch, targets, config, plan, step, gauge=gauge)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(_memory_sentence(len(batch.indices), plan, step, error)) from error
        tally.gauged = fresh if fresh is not None else tally.gauged
        assert tally.gauged is not None
        meter.add(torch.cat([losses, tally.gauged]))  # between two readings the last one stands
        clock.tick()
        tally.seen, unread = tally.seen + 1, unread + 1
        ends = tally.seen == plan.steps_per_epoch
        if unread == config.train.log_every_steps or ends:
            table, means = meter.read()
            clock.settle()
            _stop_if_not_finite(table, meter.names, step + 1 - unread, plan, config, course.rate_scale)
            tally.sums += table.sum(dim=0)
            unread = 0
            course.on_progress(step, _named(meter.names, means))
            if not ends:
                tally.seconds, tally.step_seconds = time.perf_counter() - start, clock.seconds()
                course.on_reading(tally)
    assert tally.seen == plan.steps_per_epoch, f"{tally.seen} of {plan.steps_per_epoch} batches came"
    return EpochMetrics(
        _named(meter.names, tally.sums / tally.seen),
        tally.seen * plan.global_batch,
        time.perf_counter() - start,
        tally.waited,
        first + tally.seen - 1,
        *clock.quantiles(),
        memory_gb(learner.device),
    )


def _train_step(
    learner: Learner,
    batch: Any,
    targets: ClusterTargets | None,
    config: RunConfig,
    plan: RunPlan,
    step: int,
    *,
    gauge: bool,
) -> tuple[Tensor, Tensor | None]:
    """One optimizer step; returns its figures, on the device, with `gauge` those of `meters.gauges` too.

    Loss and figures are means over the query views, of which there are two with `loss.symmetric`; small views
    are further queries of the first one's key and prototypes, of which only the loss is shown (multi-crop:
    Caron et al., NeurIPS 2020). Where the worker's part of the batch is more than `train.micro_batch`, it
    takes several forward passes. Gradients of all passes are added up. The loss is that of the whole batch
    all the same: negatives are the queue's and the prototypes', drawn once a step. Only batch norm sees each
    pass alone.
    """
    pairs = _pairs_of_views(learner, batch, config)
    contrasts = StepContrasts.of(targets, learner.queue, batch.indices, config, plan, step)
    small_views = _image_by_image(learner, batch.small_views)
    learner.optimizer.zero_grad(set_to_none=True)
    figures, features, keys = [], [], []
    count, num_queries = len(batch.indices), len(pairs) + len(batch.small_views)
    for rows in _parts(count, plan.micro_batches):
        share = (rows.stop - rows.start) / count / len(pairs)
        for number, (query_views, key_views) in enumerate(pairs, start=1):
            with _exchange_of_gradients(learner, at_end=rows.stop == count and number == len(pairs)):
                with precision(config, learner.device):
                    query_BC = learner.query(query_views[rows])
                    key_BC = _keys(learner, key_views[rows], config, step)
                    small_BC = _features_of_small(learner, small_views, rows) if number == 1 else []
                query_BC, key_BC = query_BC.float(), key_BC.float()
                terms = [_losses(one_BC, key_BC, rows, contrasts) for one_BC in (query_BC, *small_BC)]
                loss, values = terms[0]
                if small_views is not None:  # all queries weigh alike, whichever pass they are in
                    loss = torch.stack([term for term, _ in terms]).sum() * (len(pairs) / num_queries)
                (loss if share == 1 else loss * share).backward()
            figures.append(torch.stack([value.detach().float() for value in (loss, *values)]) * share)
            if number == 1:
                keys.append(key_BC)
                features.append(query_BC.detach())
    gauged: Tensor | None = None
    if gauge:
        positives = (contrast.positives_B for contrast in contrasts.prototypes)
        gauged = gauges(torch.cat(features), learner.pair.query.parameters(), positives)
    learner.optimizer.step()
    learner.pair.update()
    _enqueue(learner, torch.cat(keys) if len(keys) > 1 else keys[0], batch.indices, contrasts.queue.groups_B)
    return torch.stack(figures).sum(dim=0) if len(figures) > 1 else figures[0], gauged


def _pairs_of_views(learner: Learner, batch: Any, config: RunConfig) -> list[tuple[Tensor, Tensor]]:
    """What the query encoder sees, each with what the momentum encoder sees of the same images. Features of
    the first pair are those that gauges, queue and bank take.
    """
    first, second = views_for(learner, batch.query_views), views_for(learner, batch.key_views)
    return [(first, second), (second, first)] if config.loss.symmetric else [(first, second)]


def _memory_sentence(count: int, plan: RunPlan, step: int, error: BaseException) -> str:
    """What to do where the memory was not enough for a pass of the worker's `count` images of a step."""
    rows = -(-count // plan.micro_batches)
    way_out = (
        f"train.micro_batch={rows // 2} takes about half" if rows > 3 else "take a smaller encoder or views"
    )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"out of memory in epoch {step // plan.steps_per_epoch + 1}, step {step + 1}, with {rows} images in a"
        f" pass ({reason}). {way_out}"
    )


def _parts(count: int, parts: int) -> list[slice]:
    """So many rows in parts of sizes as even as can be, the larger ones first."""
    ends = list(accumulate(count // parts + (part < count % parts) for part in range(parts)))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _enqueue(learner: Learner, keys_BC: Tensor, indices: Tensor, groups_B: Tensor | None) -> None:
    """Keys of the batch of all workers go into the queue, each with its image, and into the bank."""
    rows = [keys_BC, indices.to(learner.device, non_blocking=True)]
    rows += [groups_B] if groups_B is not None else []
    keys, images, *groups = all_gather_together(*rows)
    learner.queue.enqueue(keys, images, *groups)
    if learner.bank is not None:
        learner.bank.update(images, keys)


def _image_by_image(learner: Learner, small_views: Sequence[Tensor]) -> Tensor | None:
    """[b, n, channels, s, s], an image's small views side by side: the part of a batch that batch norm or a
    worker sees then has the small views of the images whose large ones it has. None without any.
    """
    if not small_views:
        return None
    return torch.stack([views.to(learner.device, non_blocking=True) for views in small_views], dim=1)


def _features_of_small(learner: Learner, small_views: Tensor | None, rows: slice) -> list[Tensor]:
    """The query encoder's features [b, C] float32 of each small view of the images `rows`, in one pass."""
    if small_views is None:
        return []
    part = small_views[rows]
    features = learner.query(views_for(learner, part.flatten(0, 1))).float()
    return list(features.unflatten(0, part.shape[:2]).unbind(dim=1))


def _exchange_of_gradients(learner: Learner, *, at_end: bool) -> AbstractContextManager[Any]:
    """A context for a backward pass: workers average their gradients once a step, in the last of them."""
    if at_end or not isinstance(learner.query, DistributedDataParallel):
        return nullcontext()
    return learner.query.no_sync()


def _losses(
    query_BC: Tensor, key_BC: Tensor, rows: slice, contrasts: StepContrasts
) -> tuple[Tensor, list[Tensor]]:
    """ProtoNCE (equation 11) of some rows of the batch, and the figures that are shown beside it."""
    terms = contrasts.queue.terms(query_BC, key_BC, rows)
    loss = terms.instance
    values = [terms.instance, terms.accuracy, (query_BC - key_BC).square().sum(dim=1).mean()]
    if contrasts.prototypes:
        per_clustering = [contrast.loss_and_accuracy(query_BC, rows) for contrast in contrasts.prototypes]
        prototype = torch.stack([term for term, _ in per_clustering]).mean()
        loss = loss + contrasts.prototype_weight * prototype
        values += [prototype, *(accuracy for _, accuracy in per_clustering)]
    if terms.mates is not None and terms.with_mate is not None:
        loss = loss + contrasts.mate_weight * terms.mates
        values += [terms.mates, terms.with_mate]
    return loss, values


def _loss_names(targets: ClusterTargets | None, config: RunConfig) -> list[str]:
    """The whole loss and what `_losses` gives back beside it, by name and in its order."""
    names = [LOSS.name, LOSS_INSTANCE.name, ACCURACY_INSTANCE.name, ALIGNMENT.name]
    if targets is not None and targets.prototypes:
        clusterings = range(len(targets.prototypes))
        names += [LOSS_PROTOTYPE.name, *(ACCURACY_PROTOTYPE.at(m).name for m in clusterings)]
    if targets is not None and config.loss.cluster_positives > 0:
        names += [LOSS_MATES.name, WITH_MATE.name]
    return names


@torch.no_grad()
def _keys(learner: Learner, views: Tensor, config: RunConfig, step: int) -> Tensor:
    if config.encoder.batch_norm == "shuffle":
        return encode_shuffled(
            lambda mixed: learner.key(views_for(learner, mixed)),
            views,
            seed=seed_of(config.seed, step),
            parts=config.encoder.batch_norm_parts,
        )
    return learner.key(views)


def _named(names: tuple[str, ...], means: Tensor) -> dict[str, float]:
    return dict(zip(names, means.tolist(), strict=True))


_TERMS = {
    LOSS_INSTANCE.name: "the instance term",
    LOSS_PROTOTYPE.name: "the prototype term",
    LOSS_MATES.name: "the term of cluster-mates",
}


def _stop_if_not_finite(
    table: Tensor, names: tuple[str, ...], first_step: int, plan: RunPlan, config: RunConfig, scale: float
) -> None:
    wrong = (~torch.isfinite(table[:, 0])).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        step = first_step + row
        epoch = step // plan.steps_per_epoch
        values = dict(zip(names, table[row].tolist(), strict=True))
        terms = [text for name, text in _TERMS.items() if not math.isfinite(values.get(name, 0.0))]
        guilty = terms[0] if terms else "their sum"
        raise NotFinite(
            f"the loss is {float(table[row, 0])} in epoch {epoch + 1}, step {step + 1} ({guilty}; learning"
            f" rate {plan.lr_at(step) * scale:.3g}, temperature {config.loss.temperature}). Most likely the"
            " learning rate is too high or the temperature too low: try a tenth of optimizer.lr,"
            " optimizer.warmup_epochs, or a higher loss.temperature"
        )


def _timed(batches: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """Each batch with the seconds spent waiting for it."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()
