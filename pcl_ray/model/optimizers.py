"""SGD, AdamW and LARS on the query encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pcl_ray.config import OptimizerConfig

_FUSED_ON = ("cpu", "cuda")


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017): each weight tensor's step is scaled by trust · ‖w‖
    / ‖g + λw‖, then momentum.

    One-dimensional tensors (biases, normalisation) take plain momentum steps without weight decay, as in BYOL
    and SimCLR.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient; gives back what `closure` does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            trained = [weight for weight in group["params"] if weight.grad is not None]
            matrices = [weight for weight in trained if weight.ndim > 1]
            vectors = [weight for weight in trained if weight.ndim <= 1]
            updates = [weight.grad for weight in vectors] + self._scaled(
                matrices, group["weight_decay"], group["trust"]
            )
            weights = vectors + matrices
            if not weights:
                continue
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(weights, momenta, alpha=-group["lr"])
        return loss

    def _momentum(self, weight: Tensor) -> Tensor:
        if "momentum_buffer" not in self.state[weight]:
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return self.state[weight]["momentum_buffer"]

    def _scaled(self, weights: list[Tensor], decay: float, trust: float) -> list[Tensor]:
        """Gradients with weight decay, each times its tensor's trust ratio; 1 where weight or update is 0.
        All tensors at once, no wait for the device.
        """
        if not weights:
            return []
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        updates = torch._foreach_add(gradients, weights, alpha=decay)
        weight_norms = torch.stack(torch._foreach_norm(weights))
        update_norms = torch.stack(torch._foreach_norm(updates))
        usable = (weight_norms > 0) & (update_norms > 0)
        tiny = torch.finfo(update_norms.dtype).tiny
        scales = torch.where(usable, trust * weight_norms / update_norms.clamp(min=tiny), 1.0)
        return list(torch._foreach_mul(updates, list(scales.unbind())))


class _EagerSGD(SGD):
    """SGD whose step does not import torch's compiler, which takes as long as torch: nothing compiles it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return unwrap(SGD.step)(self, closure)


class _EagerAdamW(AdamW):
    """The same for AdamW."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return unwrap(AdamW.step)(self, closure)


def build(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The configured optimizer of the model's parameters."""
    parameters = list(model.parameters())
    can_fuse = all(parameter.device.type in _FUSED_ON for parameter in parameters)
    # None leaves the choice to torch: several kernels for many weights at once on a GPU, a loop elsewhere.
    fused = True if config.fused and can_fuse else None
    groups = parameters if config.decay_biases else _groups_by_decay(parameters)
    match config.name:
        case "sgd":
            return _EagerSGD(
                groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
            )
        case "adamw":
            return _EagerAdamW(groups, config.lr, weight_decay=config.weight_decay, fused=fused)
        case "lars":
            return LARS(groups, config.lr, config.momentum, config.weight_decay)


def _groups_by_decay(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The weights that decay, and beside them the biases and normalisations, which do not."""
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
