"""Weights in: encoders out of our runs and checkpoints, and out of the files of others.

source (run name, folder, file) ─→ source: which file ─→ content: what is in it ─→ loading: the encoder
"""

from pcl_ray.model.weights.initial import begin_with, initial_checkpoint, problem_with
from pcl_ray.model.weights.loading import LoadedWeights, load_encoder, read_weights

__all__ = [
    "LoadedWeights",
    "begin_with",
    "initial_checkpoint",
    "load_encoder",
    "problem_with",
    "read_weights",
]
