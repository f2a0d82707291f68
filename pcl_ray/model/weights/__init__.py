"""Weights in and out: encoders of our runs and checkpoints, in the files of others and out of them.

source (run name, folder, file) ─→ source: which file ─→ content: what is in it ─→ loading: the encoder
  ─→ initial: a run that begins with it; exporting: a folder that others read
"""

from pcl_ray.model.weights.exporting import check_folder, describe_export, export, whole_folder
from pcl_ray.model.weights.heads import activation_of, fit_head
from pcl_ray.model.weights.initial import begin_with, encoder_of_weights, initial_checkpoint, problem_with
from pcl_ray.model.weights.loading import LoadedWeights, load_encoder, read_weights

__all__ = [
    "LoadedWeights",
    "activation_of",
    "begin_with",
    "check_folder",
    "describe_export",
    "encoder_of_weights",
    "export",
    "fit_head",
    "initial_checkpoint",
    "load_encoder",
    "problem_with",
    "read_weights",
    "whole_folder",
]
