"""The random views by torchvision, one image after the other: the slow reference (`augment.engine:
torchvision`) of what `views.py` makes for whole batches.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.transforms import InterpolationMode, v2

from pcl_ray.config import AugmentConfig
from pcl_ray.data.colour import blur_size
from pcl_ray.data.draws import ERASED_AREA, ERASED_RATIO, crop_shares
from pcl_ray.plan import small_crop_size

_MARGINS = 5  # sides of the view: at the largest shift, angle and shear no pixel comes from farther away


def random_view(config: AugmentConfig, channels: int, *, small: bool = False) -> nn.Module:
    """The v1 (MoCo's first set, PCL v1) or v2 augmentation (SimCLR's, PCL v2) of uint8 images [channels, H,
    W]. Steps that change nothing on grey images are left out.

    small: a view of `augment.small_crops`. All randomness comes from torch's global generator.
    """
    colour = channels == 3
    strength = config.jitter
    jitter = v2.ColorJitter(strength, strength, strength if colour else 0, config.hue if colour else 0)
    grey = [v2.RandomGrayscale(config.grey)] if colour and config.grey else []
    size = small_crop_size(config) if small else config.image_size
    crop = v2.RandomResizedCrop(size, scale=crop_shares(config, small=small), antialias=True)
    warp = _warp(config, size)
    flip = [v2.RandomHorizontalFlip(config.flip)] if config.flip else []
    jittered: list[nn.Module] = []
    if strength or (colour and config.hue):
        jittered = [jitter] if config.version == "v1" else [v2.RandomApply([jitter], p=0.8)]
    if config.version == "v1":
        return v2.Compose([crop, *warp, *grey, *jittered, *flip, *_erasing(config)])
    blur: list[nn.Module] = []
    if config.blur:
        gaussian = v2.GaussianBlur(blur_size(size), (0.1, 2.0))
        blur = [v2.RandomApply([gaussian], p=config.blur)]
    return v2.Compose([crop, *warp, *jittered, *grey, *blur, *flip, *_erasing(config)])


def _warp(config: AugmentConfig, side: int) -> list[nn.Module]:
    """Shift, rotation and shear within a margin that repeats the edge."""
    if not (config.shift or config.rotate or config.shear):
        return []
    affine = v2.RandomAffine(
        (-config.rotate, config.rotate),
        # as shares of the view, not of the margin's 5 × 5 views
        translate=(config.shift / _MARGINS, config.shift / _MARGINS),
        shear=config.shear or None,
        interpolation=InterpolationMode.BILINEAR,
    )
    return [v2.Pad(_MARGINS // 2 * side, padding_mode="edge"), affine, v2.CenterCrop(side)]


def _erasing(config: AugmentConfig) -> list[nn.Module]:
    """A rectangle in the mean colour; of bytes, which are normalised later."""
    if not config.erase:
        return []
    mean: Any = [round(255 * value) for value in config.mean]  # annotated as one number in torchvision
    return [v2.RandomErasing(config.erase, ERASED_AREA, ERASED_RATIO, value=mean)]
