"""The configuration of one run: its knobs, recipes, overrides, and every mistake reported at once.

Imports neither torch nor numpy, so that a wrong key is answered in a third of a second.
"""

from pcl_ray.config.knobs import describe, properties
from pcl_ray.config.loading import (
    as_words,
    load,
    load_leniently,
    load_stored,
    names_of,
    parse,
    recipe_names,
    recipe_text,
    with_overrides,
)
from pcl_ray.config.public import public_config, secret_knobs, stored_secret
from pcl_ray.config.run_config import RunConfig
from pcl_ray.config.sections import (
    AugmentConfig,
    DataConfig,
    EncoderConfig,
    EStepConfig,
    EvaluationConfig,
    KnobProperties,
    LossConfig,
    NumClusters,
    OptimizerConfig,
    ResourcesConfig,
    Section,
    TrackingConfig,
    TrainConfig,
)

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
    "RunConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "describe",
    "figures",
    "fault_figures",
    "knn_figures",
    "final_figures",
    "knobs",
    "as_words",
    "load",
    "load_leniently",
    "load_stored",
    "names_of",
    "parse",
    "plain_yaml",
    "properties",
    "protocol_figures",
    "public_config",
    "published_figures",
    "recipe_names",
    "recipe_text",
    "secret_knobs",
    "sections",
    "stored_secret",
    "with_overrides",
]
