"""Weights of one input fitted to another: channels, the size of the first kernel, position embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.model.weights.layouts import State


def adapt_input(state: State, own: State) -> tuple[State, list[str]]:
    """The weights, those of the input with the shapes of `own`; and what was changed, in words. Other weights
    are given back as they are, whether they fit or not.
    """
    first = next((name for name, value in own.items() if value.ndim == 4 and value.shape[1] in (1, 3)), "")
    fitted, changes = dict(state), []
    if first in state and state[first].shape != own[first].shape and state[first].ndim == 4:
        weight, notes = _of_first_layer(state[first], own[first].shape)
        fitted[first] = weight
        changes += [f"{first} ({note})" for note in notes]
    name = "pos_embed"
    if name in state and name in own and state[name].shape != own[name].shape:
        positions = _of_positions(state[name], own[name].shape)
        if positions is not None:
            fitted[name] = positions
            changes.append(f"{name} ({_grid(state[name])} to {_grid(own[name])})")
    return fitted, changes


def _of_first_layer(weight: Tensor, shape: torch.Size) -> tuple[Tensor, list[str]]:
    """The first layer's kernels [out, channels, h, w] for other channels and another size.

    Kernels of three colours are summed for one: a grey picture gives what the same in three channels gave.
    Kernels are resized bilinearly, and scaled so that an even area gives what it gave.
    """
    notes = []
    if weight.shape[1] == 3 and shape[1] == 1:
        weight = weight.sum(1, keepdim=True)
        notes.append("grey from three channels")
    elif weight.shape[1] == 1 and shape[1] == 3:
        weight = weight.repeat(1, 3, 1, 1) / 3
        notes.append("three channels from grey")
    if weight.shape[2:] != shape[2:]:
        before = weight.shape[2:]
        resized = F.interpolate(weight.float(), tuple(shape[2:]), mode="bilinear", antialias=True)
        weight = (resized * (math.prod(before) / math.prod(shape[2:]))).to(weight.dtype)
        notes.append(f"{before[0]}×{before[1]} resized to {shape[2]}×{shape[3]}")
    return weight, notes


def _of_positions(positions: Tensor, shape: torch.Size) -> Tensor | None:
    """Position embeddings [1, extra + h², width] for another square grid, the extra tokens' as they are."""
    if positions.ndim != 3 or len(shape) != 3 or positions.shape[2] != shape[2]:
        return None
    for extra in (0, 1, 2):
        old, new = (math.isqrt(max(count - extra, 0)) for count in (positions.shape[1], shape[1]))
        if old * old == positions.shape[1] - extra and new * new == shape[1] - extra:
            from timm.layers import resample_abs_pos_embed

            return resample_abs_pos_embed(positions, [new, new], [old, old], num_prefix_tokens=extra)
    return None


def _grid(positions: Tensor) -> str:
    side = math.isqrt(positions.shape[1])
    return f"{side}×{side}"
