"""Crop, resize and flip of a whole batch, each image with a box of its own: two batched matrix products. And
what is no product of rows and columns: shift, rotation and shear of the view that they made.

Bilinear resizing with antialiasing is linear, one axis after the other. For each image a matrix takes the
rows of its box to the rows of the view, another the columns; a flip is the other order of the same columns.
On one image this is what torchvision's `resized_crop` computes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
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


def warp(views: Tensor, warps: np.ndarray) -> Tensor:
    """Shears, rotates about the centre and then shifts each view of [B, channels, S, S] by its own amounts.

    warps: [B, 4] float64, shift to the right and down as shares of the side, rotation (clockwise) and shear
    (of rows along x) in radians. On one view this is torchvision's `affine`, but what comes in from outside
    repeats the nearest pixel of the edge. So a background of any brightness goes on as it was; zeros would
    be black wedges in pictures on white, from which angle and shift could be read off instead of the object.
    Shifts are rounded to whole pixels: alone they do not blur.
    """
    side = views.shape[-1]
    across, down = 2 * np.rint(warps[:, :2] * side).T / side  # in grid_sample's units, half a side
    cosine, sine, slope = np.cos(warps[:, 2]), np.sin(warps[:, 2]), np.tan(warps[:, 3])
    # From a pixel of the result back to where it was: (rotation · shear)⁻¹ (pixel − shift).
    back = np.empty((len(warps), 2, 3), dtype=np.float32)
    back[:, 0, 0], back[:, 0, 1] = cosine - slope * sine, sine + slope * cosine
    back[:, 1, 0], back[:, 1, 1] = -sine, cosine
    back[:, :, 2] = -(back[:, :, 0] * across[:, None] + back[:, :, 1] * down[:, None])
    matrices = torch.from_numpy(back).to(views.device, non_blocking=True)
    grid = F.affine_grid(matrices, list(views.shape), align_corners=False)
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="border", align_corners=False)


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
