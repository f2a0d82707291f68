"""The numbers of one run, computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pcl_ray.config import OptimizerConfig, RunConfig
from pcl_ray.errors import ConfigError
from pcl_ray.plan import sizes
from pcl_ray.plan.checks import check
from pcl_ray.plan.cluster_counts import resolve_num_clusters
from pcl_ray.plan.e_step_epochs import e_step_epochs
from pcl_ray.plan.sizes import EStepMode


@dataclass(frozen=True)
class RunPlan:
    """The numbers of one run. Steps count from 0 over the whole run; epochs from 0."""

    num_images: int  # N
    num_holdout: int
    world_size: int
    devices: float  # GPUs, or workers where there are none: what a minute of the run costs
    batch_per_worker: int
    micro_batches: int  # forward passes of a worker in a step; their gradients are added up
    global_batch: int
    steps_per_epoch: int  # the incomplete last batch of an epoch is dropped; another permutation drops others
    epochs: int
    total_steps: int
    warmup_epochs: int
    num_clusters: tuple[int, ...]  # K, as counts
    negatives: tuple[int | None, ...]  # negative prototypes for each K; None: all others
    queue_size: int  # R
    # epochs that begin with new clusters; `epochs` stands for the final clustering
    e_step_epochs: tuple[int, ...]
    evaluation_epochs: tuple[int, ...]  # evaluated at the end of these epochs
    picture_epochs: tuple[int, ...]  # some of these: what is shown of the run is made at their end
    first_look: bool  # and before the first
    e_step_mode: EStepMode  # where features are clustered
    e_step_shards: int  # actors of mode sharded, else 0
    in_memory: bool  # images are in one array: of the source's own, or decoded at the start
    memory_side: int  # px: files decoded at the start are kept no larger
    loader_workers: int  # processes of each worker that decode
    threads: int  # of each worker's computing; what the cores allow may be fewer
    feature_bytes: int  # [N, C] as they travel
    assignment_bytes: int  # int64 for each clustering
    queue_bytes: int  # [R, C] float32
    optimizer: OptimizerConfig
    prototype_weight: float  # of the prototype term, once the ramp is over
    prototype_ramp_epochs: float
    momentum: float  # of the momentum encoder in the first step
    momentum_end: float  # towards which it goes

    def prototype_weight_at(self, step: int) -> float:
        """Weight of the prototype term in a step: after the warm-up a line from 0 to the full weight."""
        rising = self.prototype_ramp_epochs * self.steps_per_epoch
        done = step + 1 - self.warmup_epochs * self.steps_per_epoch
        if rising == 0 or done >= rising:
            return self.prototype_weight
        return self.prototype_weight * max(done, 0) / rising

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine to 0, steps at the milestones, or constant."""
        config, epoch = self.optimizer, step / self.steps_per_epoch
        if epoch < config.warmup_epochs:
            return config.lr * (step + 1) / math.ceil(config.warmup_epochs * self.steps_per_epoch)
        match config.schedule:
            case "cosine":
                done = (epoch - config.warmup_epochs) / (self.epochs - config.warmup_epochs)
                return config.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case "step":
                passed = sum(int(epoch) >= milestone for milestone in config.milestones)
                return config.lr * config.gamma**passed
            case "constant":
                return config.lr

    def momentum_at(self, step: int) -> float:
        """The momentum encoder's momentum in a step: along half a cosine (Grill et al., 2020, of BYOL)."""
        done = step / self.total_steps
        return self.momentum + (self.momentum_end - self.momentum) * 0.5 * (1 - math.cos(math.pi * done))

    def clusters_before(self, epoch: int) -> bool:
        """Whether epoch `epoch` begins with a new clustering (`epochs`: the final one, after training)."""
        return epoch in self.e_step_epochs

    def evaluates_after(self, epoch: int) -> bool:
        """Whether epoch `epoch` ends with an evaluation."""
        return epoch in self.evaluation_epochs

    def shows_after(self, epoch: int) -> bool:
        """Whether pictures of the clusters are made at the end of epoch `epoch`."""
        return epoch in self.picture_epochs

    def takes_fresh_features(self, epoch: int, fresh_every: int) -> bool:
        """Whether, with e_step.features = bank, the E-step before `epoch` makes a pass of its own. The first
        does, since the bank begins with it, and the final one, whose prototypes go with the exported encoder.
        """
        number = self.e_step_epochs.index(epoch) if epoch in self.e_step_epochs else 0
        return number == 0 or epoch == self.epochs or (fresh_every > 0 and number % fresh_every == 0)


def make(config: RunConfig, num_images: int, num_holdout: int = 0) -> RunPlan:
    """The plan of a run. Raises ConfigError where `check` finds a mistake."""
    problems, _ = check(config, num_images, num_holdout)
    if problems:
        raise ConfigError(problems)
    world_size = max(config.resources.workers, 1)
    epochs, encoder = config.train.epochs, config.encoder
    steps = num_images // config.train.batch_size
    counts = resolve_num_clusters(config.e_step.num_clusters, num_images)
    everything = num_images + num_holdout
    e_steps = e_step_epochs(config.e_step, epochs)
    every = config.evaluation.every_epochs
    # the report shows the last
    pictures = config.tracking.pictures if config.tracking.enabled else min(config.tracking.pictures, 1)
    evaluated = {epoch for epoch in range(epochs) if every and (epoch + 1) % every == 0} | {epochs - 1}
    return RunPlan(
        num_images=num_images,
        num_holdout=num_holdout,
        world_size=world_size,
        devices=world_size * (config.resources.gpus_per_worker or 1),
        batch_per_worker=config.train.batch_size // world_size,
        micro_batches=sizes.micro_batches(config.train.batch_size // world_size, config.train.micro_batch),
        global_batch=config.train.batch_size,
        steps_per_epoch=steps,
        epochs=epochs,
        total_steps=steps * epochs,
        warmup_epochs=config.e_step.warmup_epochs,
        num_clusters=counts,
        negatives=tuple(sizes.negatives(config, count) for count in counts),
        queue_size=config.loss.queue_size,
        # The last weights are clustered too, for the exported encoder and the reported agreement with labels.
        e_step_epochs=e_steps + ((epochs,) if e_steps else ()),
        evaluation_epochs=tuple(sorted(evaluated)),
        picture_epochs=_spread(sorted(evaluated), max(pictures - 1, min(pictures, 1))),
        first_look=pictures > 1,
        e_step_mode=sizes.e_step_mode(config, num_images),
        e_step_shards=sizes.e_step_shards(config, num_images),
        in_memory=sizes.in_memory(config, everything),
        memory_side=sizes.memory_side(config),
        loader_workers=sizes.loader_workers(config, everything),
        threads=sizes.threads(config, everything),
        feature_bytes=sizes.feature_bytes(config, num_images),
        assignment_bytes=num_images * 8 * len(counts),
        queue_bytes=config.loss.queue_size * config.encoder.dim * 4,
        optimizer=config.optimizer,
        prototype_weight=config.loss.prototype_weight,
        prototype_ramp_epochs=config.loss.prototype_ramp_epochs,
        momentum=encoder.momentum,
        momentum_end=encoder.momentum if encoder.momentum_end is None else encoder.momentum_end,
    )


def with_workers(config: RunConfig, plan: RunPlan, count: int) -> tuple[RunConfig, RunPlan]:
    """Configuration and plan as so many workers train by them: batches and views are the same.

    Where a worker has the images of several, batch norm takes the statistics of as many parts as all workers
    would: then the result is the same, too, up to rounding. Micro-batches cut the parts elsewhere.
    """
    if count == plan.world_size:
        return config, plan
    batch, at_most = plan.global_batch, config.train.micro_batch
    plan = replace(
        plan,
        world_size=count,
        devices=plan.devices / plan.world_size * count,
        batch_per_worker=batch // count,
        micro_batches=sizes.micro_batches(batch // count, at_most),
    )
    more = config.resources.workers // count
    if config.resources.workers % count or plan.micro_batches > 1 or config.encoder.batch_norm == "sync":
        return config, plan
    parts = config.encoder.batch_norm_parts * more
    return config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"batch_norm_parts": parts})}
    ), plan


def _spread(epochs: list[int], count: int) -> tuple[int, ...]:
    """Some of the epochs: at most `count`, evenly spread, the last among them."""
    step = len(epochs) / count if count else 0
    return tuple(
        sorted({epochs[min(math.ceil(step * (number + 1)), len(epochs)) - 1] for number in range(count)})
    )
