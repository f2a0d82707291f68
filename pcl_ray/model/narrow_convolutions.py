"""Strided 1 × 1 convolutions of very few channels, computed so that the CPU's kernels keep to their buffers.

oneDNN 3.12, as torch 2.14.1 has it, writes past its buffers on CPUs with AVX2 but without AVX-512: in the
backward pass of a 1 × 1 convolution with a stride, in channels_last, with 6 input channels or fewer. Of 3,296
shapes under glibc's malloc check (kernels of 1 to 7, strides 1 and 2, groups, 1 to 64 channels, both layouts,
with and without gradients) no others were affected, and none where there is AVX-512.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_MOST_CHANNELS = 6  # that one output channel is made of


def subsample_first(module: nn.Module) -> list[str]:
    """Lets such convolutions see every stride-th pixel alone, with stride 1: the same sums by another kernel.
    Weights and their names stay. Returns the names of these layers.
    """
    names = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and _is_affected(layer):
            layer.register_forward_pre_hook(_Subsampling(*layer.stride))
            layer.stride = (1, 1)
            names.append(name)
    return names


def _is_affected(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.in_channels // layer.groups <= _MOST_CHANNELS
    )


class _Subsampling:
    """Takes every stride-th row and column of a layer's input [B, C, H, W]."""

    def __init__(self, rows: int, columns: int):
        self._rows, self._columns = rows, columns

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        (images,) = inputs
        return (images[:, :, :: self._rows, :: self._columns],)
