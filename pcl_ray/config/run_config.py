"""The configuration of one run.

A knob has one dotted name everywhere (`loss.temperature`): in recipes, on the command line, in sweep spaces,
in error messages and as MLflow parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pcl_ray.config.sections import (
    AugmentConfig,
    DataConfig,
    EncoderConfig,
    EStepConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    ResourcesConfig,
    Section,
    TrackingConfig,
    TrainConfig,
)
from pcl_ray.config.sections.base import TRAINING, knob


class RunConfig(Section):
    """One experiment. Frozen: what follows from it and the data is in `plan.RunPlan`."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    encoder: EncoderConfig = EncoderConfig()
    loss: LossConfig = LossConfig()
    e_step: EStepConfig = EStepConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = knob(0, TRAINING, "Seed of everything random in the run.", ge=0, le=2**31 - 1)

    def flatten(self) -> dict[str, Any]:
        """Every knob under its dotted name: {"loss.temperature": 0.2, …}."""
        return dict(leaves(self.model_dump()))

    def to_yaml(self) -> str:
        """The whole configuration as a recipe that `load` reads back."""
        tree = self.model_dump(mode="json")
        return yaml.dump(tree, Dumper=_ExactDumper, sort_keys=False, allow_unicode=True)


class _ExactDumper(yaml.SafeDumper):
    """Quotes texts that hold control characters: YAML would read some of them back as others."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_ExactDumper.add_representer(str, _ExactDumper.represent_str)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
