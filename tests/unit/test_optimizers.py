from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from pcl_ray.config import OptimizerConfig
from pcl_ray.model.optimizers import LARS, build


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


Numbers = list[float]


def reference_step(weight: Numbers, grad: Numbers, momentum: Numbers, *, adapt: bool, lr: float, mu: float, decay: float, trust: float) -> None:
    """One LARS step (You et al., 2017, algorithm 1) on Python numbers, in place."""
    update = list(grad)
    if adapt:
        update = [g + decay * w for g, w in zip(grad, weight, strict=True)]
        scale = trust * norm(weight) / norm(update) if norm(weight) > 0 and norm(update) > 0 else 1.0
        update = [scale * u for u in update]
    for i, u in enumerate(update):
        momentum[i] = mu * momentum[i] + u
        weight[i] -= lr * momentum[i]


def test_lars_is_the_reference_over_several_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix, bias, zero = (nn.Parameter(t) for t in (torch.randn(3, 4, generator=draw), torch.randn(4, generator=draw), torch.zeros(2, 2)))
    parameters = [matrix, bias, zero]
    expected = [p.detach().double().flatten().tolist() for p in parameters]
    momenta = [[0.0] * p.numel() for p in parameters]
    optimizer = LARS(parameters, lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    for _ in range(4):
        for weight, momentum, parameter in zip(expected, momenta, parameters, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            # Biases and normalisation are one-dimensional: plain momentum, no weight decay.
            gradient, adapt = parameter.grad.flatten().tolist(), parameter.ndim > 1
            reference_step(weight, gradient, momentum, adapt=adapt, lr=0.5, mu=0.9, decay=0.1, trust=0.01)
        optimizer.step()
    for weight, parameter in zip(expected, parameters, strict=True):
        assert parameter.detach().flatten().tolist() == pytest.approx(weight, rel=1e-4, abs=1e-6)


def test_lars_leaves_parameters_without_gradient_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.ones(2, 2)
    LARS([used, unused], lr=1.0).step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert (used < 1).all()


def test_lars_goes_on_from_its_state() -> None:
    def stepped(steps: int, weight: nn.Parameter, optimizer: LARS) -> nn.Parameter:
        for _ in range(steps):
            weight.grad = weight.detach() + 1
            optimizer.step()
        return weight

    whole = nn.Parameter(torch.ones(2, 3))
    stepped(4, whole, LARS([whole], lr=1.0))
    half = nn.Parameter(torch.ones(2, 3))
    optimizer = LARS([half], lr=1.0)
    stepped(2, half, optimizer)
    again = LARS([half], lr=1.0)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(stepped(2, half, again), whole)


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adamw", AdamW), ("lars", LARS)])
def test_built_by_name_with_the_settings(name: str, kind: type) -> None:
    model = nn.Linear(3, 2)
    optimizer = build(OptimizerConfig(name=name, lr=0.5, momentum=0.8, weight_decay=0.25), model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0.25
    assert name == "adamw" or group["momentum"] == 0.8
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adamw", 0.05), ("lars", 5.0)])
def test_each_goes_downhill(name: str, lr: float) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 4), torch.randn(32, 4)
    optimizer = build(OptimizerConfig(name=name, lr=lr), model)
    losses = []
    for _ in range(30):
        loss = (model(inputs) - inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
