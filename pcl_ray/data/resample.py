"""Crop, resize and flip of a whole batch, each image with a box of its own: two batched matrix products.

Bilinear resizing with antialiasing is linear, one axis after the other. For each image a matrix takes the
rows of its box to the rows of the view, another the columns; a flip is the other order of the same columns.
On one image this is what torchvision's `resized_crop` computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 1e-3  # px: for boxes whose edge is a pixel's centre


def resample(images: Tensor, boxes: Tensor, size: int, flipped: Tensor | None = None) -> Tensor:
    """[B, channels, H, W] float to [B, channels, size, size].

    boxes: [B, 4] float32, top, left, height, width in pixels, fractions allowed; flipped: [B] bool.
    """
    count, channels, height, width = images.shape
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size, flipped)
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size, None)
    across = torch.bmm(images.reshape(count, channels * height, width), columns.transpose(1, 2)).view(
        count, channels, height, size
    )
    return torch.matmul(rows[:, None], across)


def _weights(start: Tensor, length: Tensor, pixels: int, size: int, flipped: Tensor | None) -> Tensor:
    """[B, size, pixels]: how much each pixel counts in each pixel of the view; rows sum to 1.

    A triangle around the view pixel's centre, two pixels of the coarser grid wide, cut off at the box.
    """
    positions = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    scale = (length / size)[:, None]
    if flipped is None:
        centres = start[:, None] + positions * scale
    else:
        centres = start[:, None] + torch.where(flipped[:, None], size - positions, positions) * scale
    grid = torch.arange(pixels, device=start.device, dtype=torch.float32) + 0.5
    # At least one pixel is inside, however narrow the box.
    inside = (grid - (start + length / 2)[:, None]).abs_() < length.clamp(min=1.0)[:, None] / 2 + _SLACK
    reach = scale.clamp(min=1.0)[:, :, None]
    weights = (grid - centres[:, :, None]).abs_().div_(-reach).add_(1.0).clamp_(min=0.0).mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))
