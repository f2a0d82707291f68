"""The stages of a backbone, from its input on, and stages that keep their weights."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from torch import nn

from pcl_ray.config import EncoderConfig
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.model.encoder import Encoder
from pcl_ray.model.small_resnet import SmallResNet


def stages(backbone: nn.Module, config: EncoderConfig) -> list[list[str]]:
    """The names of a backbone's parameters by stage. The first stage is the stem, or the patches of a
    transformer with their positions, whose blocks are a stage each.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if isinstance(backbone, SmallResNet):
        ends = list(accumulate(config.blocks))
        return _grouped(names, lambda name: 0 if name.startswith("stem.") else _stage_of(name, ends))
    from torchvision.models import ResNet  # takes two seconds

    if isinstance(backbone, ResNet):
        return _grouped(names, lambda name: int(name[5]) if name.startswith("layer") else 0)
    from timm.models import group_parameters

    model: Any = backbone
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    return _grouped(names, lambda name: groups[name])


def _stage_of(name: str, ends: list[int]) -> int:
    """The stage of a parameter of one of SmallResNet's blocks, `blocks.3.conv1.weight`."""
    block = int(name.split(".")[1])
    return 1 + next(stage for stage, end in enumerate(ends) if block < end)


def _grouped(names: list[str], stage_of: Any) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(stage_of(name), []).append(name)
    return [groups[stage] for stage in sorted(groups)]


def freeze(encoder: Encoder, config: EncoderConfig) -> None:
    """Lets the first `encoder.freeze_stages` stages keep their weights, and their batch norms the statistics
    that they have. Raises ConfigError where the backbone has fewer.
    """
    parts = stages(encoder.backbone, config)
    if config.freeze_stages > len(parts):
        message = f"{config.backbone} has {len(parts)} stages; at most that"
        raise ConfigError([Problem("encoder.freeze_stages", config.freeze_stages, message)])
    frozen = {name for part in parts[: config.freeze_stages] for name in part}
    for name, parameter in encoder.backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    owners = {name.rpartition(".")[0] for name in frozen}
    encoder.frozen = tuple(sorted(f"backbone.{owner}" for owner in owners if owner))
