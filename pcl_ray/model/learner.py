"""Everything that the M-step changes, put together: encoders in their memory format, data-parallel and
compiled where configured, optimizer, queue, bank.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pcl_ray.config import RunConfig
from pcl_ray.model import encoder, optimizers
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import any_worker, world_size
from pcl_ray.model.momentum import MomentumPair
from pcl_ray.model.narrow_convolutions import subsample_first
from pcl_ray.model.partwise import PartwiseEncoder
from pcl_ray.model.queue import KeyQueue
from pcl_ray.model.stages import freeze
from pcl_ray.plan import small_crop_size


@dataclass
class Learner:
    """Everything that the M-step changes."""

    pair: MomentumPair
    queue: KeyQueue
    optimizer: Optimizer
    # pair.query as it trains: compiled, in parts, and wrapped for data-parallel training by several workers.
    query: nn.Module
    key: nn.Module  # pair.key as it trains: compiled, in parts
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format  # of weights and views
    bank: FeatureBank | None = None  # filled as a by-product, with e_step.features = bank

    def state_dict(self) -> dict[str, Any]:
        """All but the bank, of which each worker has a part."""
        return {
            "model": self.pair.state_dict(),
            "queue": self.queue.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state. Momentum and weight decay stay those of the own configuration, which differ
        from the state's in a fork.
        """
        self.pair.load_state_dict(state["model"])
        self.queue.load_state_dict(state["queue"])
        own = [
            {name: group[name] for name in ("momentum", "weight_decay") if name in group}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)


def build_learner(
    config: RunConfig, device: torch.device, warn: Callable[[str], None] = lambda text: None
) -> Learner:
    """A fresh learner; the same weights and queue on every worker, from `config.seed`.

    `warn` is called with the reason why something that was wanted cannot be had.
    """
    if not config.train.compile:
        _leave_compiler_out()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        query = encoder.build(config.encoder, config.data.channels)
        if config.encoder.freeze_stages:
            freeze(query, config.encoder)
        pair = MomentumPair.of(query, config.encoder.momentum)
        queue = KeyQueue(config.loss.queue_size, config.encoder.dim)
    if config.encoder.batch_norm == "sync" and world_size() > 1:
        pair.query = encoder.with_sync_batch_norm(pair.query, config.encoder)
        pair.key = encoder.with_sync_batch_norm(pair.key, config.encoder)
    layout = torch.channels_last if config.train.memory_format == "channels_last" else torch.contiguous_format
    if device.type == "cpu":
        for part in (pair.query, pair.key):
            subsample_first(part)
    pair, queue = pair.to(device).to(memory_format=layout), queue.to(device)
    query, key = pair.query, pair.key
    if config.train.compile:
        query, key = _compiled(pair, config, device, layout, warn) or (query, key)
    if (parts := config.encoder.batch_norm_parts) > 1:
        query, key = PartwiseEncoder(query, parts), PartwiseEncoder(key, parts)
    if world_size() > 1:
        # Statistics are averaged once before each evaluation pass; at every forward pass it would be a waste.
        query = _data_parallel(query)
    return Learner(pair, queue, optimizers.build(config.optimizer, pair.query), query, key, device, layout)


def _leave_compiler_out() -> None:
    """Spares this process torch's compiler, whose import takes almost as long as torch's own: what optimizers
    and data-parallel models want left out of compiled code they mark at their first call, and import it for
    that. Where nothing is compiled they may be marked as they are.
    """
    disable = getattr(torch, "_disable_dynamo", None)
    if disable is None or "torch._dynamo" in sys.modules:
        return
    marking = disable(lambda: None).__code__
    for owner in (Optimizer, DistributedDataParallel):
        for method in vars(owner).values():
            while (inner := getattr(method, "__wrapped__", None)) is not None:
                if getattr(method, "__code__", None) is marking:
                    vars(inner).setdefault("__dynamo_disable", inner)
                method = inner


def _data_parallel(query: nn.Module) -> nn.Module:
    """The encoder wrapped for data-parallel training."""
    wrap = partial(DistributedDataParallel, query, broadcast_buffers=False, gradient_as_bucket_view=True)
    if "torch._dynamo" in sys.modules:
        return wrap()
    # It asks the compiler for one setting, of which this is the default: see `_leave_compiler_out`.
    settings = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    vars(torch)["_dynamo"] = SimpleNamespace(utils=settings)
    try:
        return wrap()
    except AttributeError:  # a version of torch that asks for more
        del vars(torch)["_dynamo"]
        return wrap()
    finally:
        vars(torch).pop("_dynamo", None)
        if "torch._dynamo" in sys.modules:  # as an import of it leaves it
            vars(torch)["_dynamo"] = sys.modules["torch._dynamo"]


def _compiled(
    pair: MomentumPair,
    config: RunConfig,
    device: torch.device,
    layout: torch.memory_format,
    warn: Callable[[str], None],
) -> tuple[nn.Module, nn.Module] | None:
    """Both encoders compiled by torch.compile, after a first pass over made-up images that leaves no trace;
    None, on all workers, where one worker cannot compile them.
    """
    reason = ""
    buffers = [buffer.clone() for buffer in pair.buffers()]
    count = config.train.batch_size // world_size()
    count = math.ceil(min(count, config.train.micro_batch or count) / config.encoder.batch_norm_parts)
    small = count * config.augment.small_crops
    shapes = [(count, config.augment.image_size), (small, small_crop_size(config.augment))]
    views, *small_views = [
        torch.zeros(number, config.data.channels, size, size, device=device).contiguous(memory_format=layout)
        for number, size in shapes
        if number
    ]
    query: Any = pair.query
    key: Any = pair.key
    try:
        query, key = torch.compile(pair.query), torch.compile(pair.key)
        pair.train()
        with precision(config, device):
            for part in (views, *small_views):
                query(part).sum().backward()
            with torch.no_grad():
                key(views)
    # a missing C++ compiler, a model that cannot be traced …: torch raises many kinds
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    pair.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(pair.buffers(), buffers, strict=True):
            buffer.copy_(before)
    if any_worker(bool(reason), device):
        warn(f"train.compile: {reason or 'it failed on another worker'}; going on without")
        torch._dynamo.reset()
        return None
    return query, key


def views_for(learner: Learner, views: Tensor) -> Tensor:
    """Views [b, channels, S, S] on the learner's device, in its memory format."""
    return views.to(learner.device, non_blocking=True).contiguous(memory_format=learner.memory_format)


def precision(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which the encoders compute in bf16, where that is configured and the device has it. On a
    CPU it has to be asked for: which CPU has it would decide what a run learns.
    """
    if config.train.precision == "fp32":
        return nullcontext()
    if device.type != "cuda":
        if config.train.precision == "auto":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)
    if config.train.precision == "bf16" or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
