"""What the M-step changes: encoder, momentum encoder, queue, feature bank, and the optimizer's rules."""

from pcl_ray.model.encoder import Encoder
from pcl_ray.model.momentum import MomentumPair
from pcl_ray.model.queue import KeyQueue, image_groups

__all__ = [
    "Encoder",
    "KeyQueue",
    "MomentumPair",
    "bank",
    "distributed",
    "divergence",
    "encoder",
    "image_groups",
    "learner",
    "optimizers",
    "weights",
]
