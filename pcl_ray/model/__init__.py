"""Encoder, momentum encoder, queue."""

from pcl_ray.model.encoder import Encoder
from pcl_ray.model.momentum import MomentumPair
from pcl_ray.model.queue import KeyQueue

__all__ = ["Encoder", "KeyQueue", "MomentumPair"]
