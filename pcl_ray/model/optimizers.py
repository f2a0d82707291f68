"""SGD, AdamW and LARS on the query encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pcl_ray.config import OptimizerConfig


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017): each weight tensor's step is scaled by trust · ‖w‖ / ‖g + λw‖, then momentum.

    One-dimensional tensors (biases, normalisation) take plain momentum steps without weight decay, as in BYOL and SimCLR.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad
                if weight.ndim > 1:
                    update = update + group["weight_decay"] * weight
                    norm_w, norm_u = weight.norm(), update.norm()
                    scale = torch.where((norm_w > 0) & (norm_u > 0), group["trust"] * norm_w / norm_u, torch.ones_like(norm_w))
                    update = update * scale
                momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                momentum.mul_(group["momentum"]).add_(update)
                weight.add_(momentum, alpha=-group["lr"])
        return loss


def build(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    parameters = list(model.parameters())
    match config.name:
        case "sgd":
            return SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        case "adamw":
            return AdamW(parameters, config.lr, weight_decay=config.weight_decay)
        case "lars":
            return LARS(parameters, config.lr, config.momentum, config.weight_decay)
