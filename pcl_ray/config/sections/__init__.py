"""The sections of a run's configuration: every knob with its default, its properties, its range, a sentence.

Imports neither torch nor numpy, so that `--help` and a wrong key are answered at once.
"""

from pcl_ray.config.sections.base import KnobProperties, Section
from pcl_ray.config.sections.images import AugmentConfig, DataConfig
from pcl_ray.config.sections.method import EncoderConfig, EStepConfig, LossConfig, NumClusters
from pcl_ray.config.sections.running import EvaluationConfig, ResourcesConfig, TrackingConfig
from pcl_ray.config.sections.training import OptimizerConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EStepConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "KnobProperties",
    "LossConfig",
    "NumClusters",
    "OptimizerConfig",
    "ResourcesConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
]
