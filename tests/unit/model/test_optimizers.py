from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pcl_ray.config import OptimizerConfig
from pcl_ray.model.optimizers import LARS, build


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


Numbers = list[float]


def reference_step(
    weight: Numbers,
    grad: Numbers,
    momentum: Numbers,
    *,
    adapt: bool,
    lr: float,
    mu: float,
    decay: float,
    trust: float,
) -> None:
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
    matrix, bias, zero = (
        nn.Parameter(t)
        for t in (torch.randn(3, 4, generator=draw), torch.randn(4, generator=draw), torch.zeros(2, 2))
    )
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
    assert isinstance(optimizer, kind)
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0.25
    assert name == "adamw" or group["momentum"] == 0.8
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("decays", [True, False])
def test_without_gradients_only_weights_that_decay_shrink(name: str, decays: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data.fill_(2.0)
        parameter.grad = torch.zeros_like(parameter)
    settings = OptimizerConfig(name=name, lr=0.5, momentum=0, weight_decay=0.1, decay_biases=decays)
    optimizer = build(settings, model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    optimizer.step()
    for label, parameter in model.named_parameters():
        # lars scales its step to a thousandth of the weights' norm
        shrunk = 2 - 0.5 * 2 * (1e-3 if name == "lars" else 0.1)
        expected = shrunk if parameter.ndim > 1 or (decays and name != "lars") else 2.0
        assert torch.allclose(parameter, torch.full_like(parameter, expected)), label


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_state_whose_biases_do_not_decay_is_gone_on_with(name: str) -> None:
    settings = OptimizerConfig(name=name, lr=0.05, weight_decay=0.1, decay_biases=False)
    whole, part = (convolutions(torch.channels_last) for _ in range(2))
    stepped(whole, build(settings, whole), 4)
    first = build(settings, part)
    stepped(part, first, 2)
    again = build(settings, part)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(part, again, 2, first=2)
    for one, other in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [group["weight_decay"] for group in again.param_groups] == [0.1, 0.0]


def test_a_model_without_biases_has_no_second_kind_of_weights_to_step() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = build(OptimizerConfig(decay_biases=False), model)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)


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


def tensor_by_tensor(
    weights: list[Tensor],
    grads: list[Tensor | None],
    momenta: list[Tensor],
    *,
    lr: float,
    mu: float,
    decay: float,
    trust: float,
) -> None:
    """One LARS step, one tensor after the other and in float64, in place."""
    for weight, grad, momentum in zip(weights, grads, momenta, strict=True):
        if grad is None:
            continue
        update = grad.double()
        if weight.ndim > 1:
            update = update + decay * weight
            scale = trust * weight.norm() / update.norm()
            update = update * (scale if weight.norm() > 0 and update.norm() > 0 else 1.0)
        momentum.mul_(mu).add_(update)
        weight.sub_(lr * momentum)


SHAPES = st.lists(
    st.sampled_from([(), (1,), (5,), (1, 1), (3, 2), (4, 1, 3, 3), (2, 3, 1, 1), (3, 4, 3, 3)]),
    min_size=1,
    max_size=6,
)
KINDS = ("random", "zero weight", "zero gradient", "both zero", "no gradient", "tiny", "huge")


@given(
    shapes=SHAPES,
    seed=st.integers(0, 1000),
    decay=st.sampled_from([0.0, 0.1]),
    mu=st.sampled_from([0.0, 0.9]),
    last=st.booleans(),
    data=st.data(),
)
def test_lars_over_all_tensors_at_once_is_lars_tensor_by_tensor(
    shapes: list[tuple[int, ...]], seed: int, decay: float, mu: float, last: bool, data: st.DataObject
) -> None:
    draw = torch.Generator().manual_seed(seed)
    kinds = [data.draw(st.sampled_from(KINDS)) for _ in shapes]
    factors = {"zero weight": 0.0, "both zero": 0.0, "tiny": 1e-12, "huge": 1e12}
    parameters = [
        nn.Parameter(factors.get(kind, 1.0) * torch.randn(shape, generator=draw))
        for shape, kind in zip(shapes, kinds, strict=True)
    ]
    if last:
        for parameter in parameters:
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    weights = [parameter.detach().double() for parameter in parameters]
    momenta = [torch.zeros_like(weight) for weight in weights]
    optimizer = LARS(parameters, lr=0.5, momentum=mu, weight_decay=decay, trust=0.01)
    for _ in range(3):
        for parameter, kind in zip(parameters, kinds, strict=True):
            grad = torch.randn(parameter.shape, generator=draw) * (
                0.0 if kind in ("zero gradient", "both zero") else 1.0
            )
            parameter.grad = None if kind == "no gradient" else grad
        grads = [parameter.grad for parameter in parameters]
        before = [None if grad is None else grad.clone() for grad in grads]
        optimizer.step()
        tensor_by_tensor(weights, before, momenta, lr=0.5, mu=mu, decay=decay, trust=0.01)
        for grad, kept in zip(grads, before, strict=True):
            assert grad is None or torch.equal(grad, kept)  # gradients are only read
    for parameter, weight in zip(parameters, weights, strict=True):
        assert torch.isfinite(parameter).all()
        assert torch.allclose(parameter.double(), weight, rtol=1e-4, atol=1e-5)


def test_lars_without_any_gradient_does_nothing() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))]
    optimizer = LARS(weights, lr=1.0)
    optimizer.step()
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in weights)
    assert not optimizer.state


@pytest.mark.parametrize("only", ["vectors", "matrices"])
def test_lars_of_one_kind_of_tensors_alone(only: str) -> None:
    shape = (4,) if only == "vectors" else (2, 2)
    weight = nn.Parameter(torch.full(shape, 2.0))
    weight.grad = torch.full(shape, 3.0)
    LARS([weight], lr=0.5, trust=0.01).step()
    # A matrix: 0.01 · ‖w‖ / ‖g‖ = 0.01 · 4 / 6.
    expected = 2.0 - 0.5 * 3.0 * (1.0 if only == "vectors" else 0.01 * 4 / 6)
    assert torch.allclose(weight, torch.full(shape, expected))


def test_lars_keeps_the_settings_of_its_groups_apart() -> None:
    fast, slow = (nn.Parameter(torch.full((3,), 1.0)) for _ in range(2))
    optimizer = LARS([fast], lr=1.0)
    optimizer.add_param_group({"params": [slow], "lr": 0.1})
    for weight in (fast, slow):
        weight.grad = torch.full((3,), 1.0)
    optimizer.step()
    assert torch.allclose(fast, torch.zeros(3))
    assert torch.allclose(slow, torch.full((3,), 0.9))


def test_lars_gives_back_what_a_closure_gives() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = LARS([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert torch.allclose(weight, torch.full((2,), 0.8))


def convolutions(layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    # No bias before batch norm: its gradient is 0 but for rounding, which AdamW would blow up.
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    return model.to(memory_format=layout)


def stepped(model: nn.Module, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        model(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_fused_optimizer_is_the_plain_one(name: str, layout: torch.memory_format) -> None:
    models = [convolutions(layout) for _ in range(2)]
    settings = [OptimizerConfig(name=name, lr=0.05, weight_decay=0.1, fused=fused) for fused in (True, False)]
    optimizers = [build(config, model) for config, model in zip(settings, models, strict=True)]
    assert [optimizer.param_groups[0]["fused"] for optimizer in optimizers] == [True, None]
    for model, optimizer in zip(models, optimizers, strict=True):
        stepped(model, optimizer, 5)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_how_weights_lie_in_memory_changes_no_step(name: str) -> None:
    models = [convolutions(layout) for layout in (torch.contiguous_format, torch.channels_last)]
    for model in models:
        stepped(model, build(OptimizerConfig(name=name, lr=0.05), model), 5)
    assert models[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_state_is_gone_on_with_fused_or_not(name: str, before: bool, after: bool) -> None:
    whole, part = (convolutions(torch.channels_last) for _ in range(2))
    stepped(whole, build(OptimizerConfig(name=name, lr=0.05, fused=before), whole), 4)
    first = build(OptimizerConfig(name=name, lr=0.05, fused=before), part)
    stepped(part, first, 2)
    again = build(OptimizerConfig(name=name, lr=0.05, fused=after), part)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(part, again, 2, first=2)
    for one, other in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_where_torch_has_no_fused_step_it_chooses() -> None:
    elsewhere = nn.Linear(2, 2, device="meta")
    for name in ("sgd", "adamw"):
        assert build(OptimizerConfig(name=name, fused=True), elsewhere).param_groups[0]["fused"] is None


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adamw", AdamW)])
def test_steps_are_torchs_own(name: str, kind: type[Optimizer]) -> None:
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.01)
        optimizer: Optimizer = build(config, model)
        if not ours:
            momentum = {"momentum": config.momentum} if name == "sgd" else {}
            optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.01, fused=True, **momentum)  # type: ignore
        for factor in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(factor))).square().sum().backward()
            optimizer.step()
        results.append(model.weight)
    assert torch.equal(*results)
