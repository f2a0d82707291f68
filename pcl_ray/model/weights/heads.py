"""Projection heads out of state dicts: layers of linear maps, batch norms and activations in their order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pcl_ray.config import EncoderConfig
from pcl_ray.model.weights.layouts import State


@dataclass(frozen=True, eq=False)
class Head:
    """A projection head. knobs: what it is in our configuration, None where ours has no such head; its
    weights fit ours then.
    """

    module: nn.Module
    inputs: int
    dim: int
    knobs: dict[str, object] | None


def activation_of(head: nn.Module) -> str:
    """The activation of a head, as `head_of` takes it."""
    return "gelu" if any(isinstance(layer, nn.GELU) for layer in head.modules()) else "relu"


def fit_head(encoder: nn.Module, state: State, activation: str) -> None:
    """Gives the encoder the head that the weights `head.…` are of, where it has been built with another one;
    none where there are no such weights.
    """
    given = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    own = {name: value.shape for name, value in encoder.get_submodule("head").state_dict().items()}
    if not given:
        encoder.head = nn.Identity()
    elif own != {name: value.shape for name, value in given.items()} and (head := head_of(given, activation)):
        encoder.head = head.module


def head_of(state: State, activation: str = "relu") -> Head | None:
    """The head of a layer (`weight`, `bias`) or of an nn.Sequential (`0.weight`, `2.running_mean`); None
    where these are no such weights. Between the layers that have weights is the activation.
    """
    if not state:
        return None
    if "weight" in state:
        state = {f"0.{name}": value for name, value in state.items()}
    numbers = {name.partition(".")[0] for name in state}
    if not all(number.isdigit() for number in numbers):
        return None
    layers: list[nn.Module] = []
    for number in range(max(map(int, numbers)) + 1):
        part = {
            name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{number}.")
        }
        function = nn.GELU() if activation == "gelu" else nn.ReLU()
        layer = _layer(part) if part else function
        if layer is None:
            return None
        layers.append(layer)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not linear:
        return None
    return _as_ours(layers) or Head(
        nn.Sequential(*layers), linear[0].in_features, linear[-1].out_features, None
    )


def _layer(part: State) -> nn.Module | None:
    """The layer of these weights, a linear map or batch norm."""
    weight = part.get("weight")
    if "running_mean" in part:
        layer: nn.Module = nn.BatchNorm1d(len(part["running_mean"]), affine=weight is not None)
    elif weight is not None and weight.ndim == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in part)
    else:
        return None
    if not any(value.is_meta for value in layer.state_dict().values()):  # else its weights come later
        with torch.no_grad():
            layer.load_state_dict(part, strict=False)
    return layer


def _as_ours(layers: list[nn.Module]) -> Head | None:
    """The head as `encoder.head` and its knobs would build it, where they can."""
    match layers:
        case [nn.Linear() as only] if only.bias is not None:
            return Head(only, only.in_features, only.out_features, {"head": "linear"})
        case [nn.Linear() as first, nn.ReLU(), nn.Linear() as last] if None not in (first.bias, last.bias):
            return Head(
                nn.Sequential(*layers), first.in_features, last.out_features, _mlp(first, batch_norm=False)
            )
        case [nn.Linear() as first, nn.BatchNorm1d() as norm, nn.ReLU(), nn.Linear() as last]:
            if last.bias is None or not norm.affine:
                return None
            if first.bias is not None and norm.running_mean is not None:
                # The norm takes the bias away: in training by the batch's mean, here by the running one.
                with torch.no_grad():
                    norm.running_mean -= first.bias
                first.register_parameter("bias", None)
            return Head(
                nn.Sequential(*layers), first.in_features, last.out_features, _mlp(first, batch_norm=True)
            )
    return None


def _mlp(first: nn.Linear, *, batch_norm: bool) -> dict[str, object]:
    width = None if first.out_features == first.in_features else first.out_features
    return {"head": "mlp", "head_width": width, "head_batch_norm": batch_norm}


def config_of(backbone: EncoderConfig, head: Head | None, width: int) -> EncoderConfig:
    """The configuration of an encoder with this head. Without one its features are the backbone's."""
    knobs = {} if head is None or head.knobs is None else head.knobs
    return backbone.model_copy(update={"dim": width if head is None else head.dim, **knobs})
