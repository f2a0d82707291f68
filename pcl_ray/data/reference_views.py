"""The two random views by torchvision, one image after the other: the slow reference (`augment.engine:
torchvision`) of what `views.py` makes for whole batches.
"""

from __future__ import annotations

from torch import nn
from torchvision.transforms import v2

from pcl_ray.config import AugmentConfig
from pcl_ray.data.colour import blur_size


def random_view(config: AugmentConfig, channels: int) -> nn.Module:
    """The v1 (MoCo's first set, PCL v1) or v2 augmentation (SimCLR's, PCL v2) of uint8 images [channels, H,
    W]. Steps that change nothing on grey images are left out.

    All randomness comes from torch's global generator.
    """
    colour = channels == 3
    strength = config.jitter
    jitter = v2.ColorJitter(strength, strength, strength if colour else 0, config.hue if colour else 0)
    grey = [v2.RandomGrayscale(config.grey)] if colour and config.grey else []
    crop = v2.RandomResizedCrop(config.image_size, scale=(config.min_crop, 1.0), antialias=True)
    flip = [v2.RandomHorizontalFlip(config.flip)] if config.flip else []
    jittered: list[nn.Module] = []
    if strength or (colour and config.hue):
        jittered = [jitter] if config.version == "v1" else [v2.RandomApply([jitter], p=0.8)]
    if config.version == "v1":
        return v2.Compose([crop, *grey, *jittered, *flip])
    blur: list[nn.Module] = []
    if config.blur:
        gaussian = v2.GaussianBlur(blur_size(config.image_size), (0.1, 2.0))
        blur = [v2.RandomApply([gaussian], p=config.blur)]
    return v2.Compose([crop, *jittered, *grey, *blur, *flip])
