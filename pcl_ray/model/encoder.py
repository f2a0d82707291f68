"""The encoder f_θ: backbone, projection head, L2 normalisation."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.config import EncoderConfig, RunConfig, plain_yaml
from pcl_ray.errors import ConfigError, Problem
from pcl_ray.model.small_resnet import SmallResNet, initialise
from pcl_ray.plan import small_crop_size
from pcl_ray.support.text import alike

# What may be said of a timm model beside its name: shapes, and nothing that reads or fetches a file.
TIMM_OPTIONS = {
    *("class_token", "depth", "drop_path_rate", "drop_rate", "embed_dim", "global_pool", "img_size"),
    *("init_values", "mlp_ratio", "num_heads", "patch_size", "reg_tokens", "window_size"),
}


class Encoder(nn.Module):
    """Images [B, channels, S, S] to unit vectors [B, C]. `backbone` gives [B, width] for transfer.

    frozen: the names of layers that stay in evaluation mode while the others train.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.backbone(images))

    def project(self, features: Tensor) -> Tensor:
        """The backbone's features [B, width] to unit vectors [B, C]."""
        return F.normalize(self.head(features), dim=1)


def build(config: EncoderConfig, channels: int) -> Encoder:
    """A fresh encoder, from torch's global random state. Raises ConfigError if timm is needed and missing."""
    backbone, width = build_backbone(config, channels)
    return Encoder(backbone, _head(config, width))


def _head(config: EncoderConfig, width: int) -> nn.Module:
    """The projection head, of a backbone's features [B, width] to [B, C]."""
    if config.head == "linear":
        return nn.Linear(width, config.dim)
    hidden = config.head_width or width
    # Batch norm takes the mean away, and a bias with it.
    normalisation = [nn.BatchNorm1d(hidden)] if config.head_batch_norm else []
    return nn.Sequential(
        nn.Linear(width, hidden, bias=not config.head_batch_norm),
        *normalisation,
        nn.ReLU(inplace=True),
        nn.Linear(hidden, config.dim),
    )


def build_backbone(config: EncoderConfig, channels: int) -> tuple[nn.Module, int]:
    """A fresh backbone, and the width of its features. Raises as `build` does."""
    if config.backbone == "small_resnet":
        small = SmallResNet(config.width, config.blocks, channels, config.stem_stride)
        return small, small.width
    if config.backbone.startswith("timm:"):
        return _timm_backbone(config.backbone, channels)
    from torchvision import models  # takes two seconds, with torch's compiler: only where it is needed

    resnet = getattr(models, config.backbone)(weights=None)
    width = resnet.fc.in_features
    resnet.fc = nn.Identity()
    if config.stem == "small":
        resnet.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    elif channels != 3:
        resnet.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    initialise(resnet.conv1)
    return resnet, width


def timm_problem(backbone: str) -> Problem | None:
    """What is wrong with a `timm:NAME` or `timm:NAME,option=value,…` backbone, if anything."""
    if importlib.util.find_spec("timm") is None:
        return Problem(
            "encoder.backbone",
            backbone,
            "timm is not installed; `pip install timm`, or choose a torchvision ResNet",
        )
    import timm

    name, *words = backbone.removeprefix("timm:").split(",")
    if not timm.is_model(name):
        near = alike(name, timm.list_models(), 5)
        message = f"timm has no such model; near: {', '.join(near) or 'none'}"
        return Problem("encoder.backbone", backbone, message)
    for word in words:
        option, equals, value = word.partition("=")
        if not equals or option.strip() not in TIMM_OPTIONS:
            allowed = ", ".join(sorted(TIMM_OPTIONS))
            return Problem("encoder.backbone", backbone, f"{word!r}: NAME,option=value with one of {allowed}")
        try:
            plain_yaml.load(value)
        except ValueError as error:
            return Problem(
                "encoder.backbone", backbone, f"{option.strip()} has no value that can be read: {error}"
            )
    return None


def timm_options(backbone: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a backbone in which `timm_problem` finds nothing."""
    name, *words = backbone.removeprefix("timm:").split(",")
    pairs = (word.split("=", 1) for word in words)
    return name, {option.strip(): plain_yaml.load(value) for option, value in pairs}


def view_problem(config: RunConfig) -> Problem | None:
    """Why a timm backbone does not take the views of this configuration, if it does not. Computes nothing:
    only the shapes go through the model.
    """
    augment, channels = config.augment, config.data.channels
    sizes = {"augment.image_size": augment.image_size}
    if augment.small_crops:
        sizes["augment.small_crop_size"] = small_crop_size(augment)
    try:
        with torch.device("meta"):
            model, _ = build_backbone(config.encoder, channels)
    except ConfigError as error:
        return error.problems[0]
    except (NotImplementedError, RuntimeError):  # some of timm's models compute while they are built
        return None
    for name, size in sizes.items():
        try:
            model.eval()(torch.empty(1, channels, size, size, device="meta"))
        except (NotImplementedError, TypeError):
            return None
        except Exception as error:  # an assertion of timm's, or shapes that do not fit
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return Problem(name, size, f"{config.encoder.backbone} does not take it: {reason}")
    return None


def _timm_backbone(backbone: str, channels: int) -> tuple[nn.Module, int]:
    """The model of a `timm:…` backbone, and the width of its features."""
    if problem := timm_problem(backbone):
        raise ConfigError([problem])
    import timm

    name, options = timm_options(backbone)
    create = partial(timm.create_model, name, pretrained=False, num_classes=0, in_chans=channels, **options)
    try:
        try:
            # Transformers take views of any size then: their position embeddings are resized on the way.
            model = create(dynamic_img_size=True)
        except TypeError:  # a model without position embeddings
            model = create()
    except NotImplementedError:  # on the meta device
        raise
    except Exception as error:  # timm raises many kinds, for options that a model does not take
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problem = Problem("encoder.backbone", backbone, f"timm cannot build it: {reason}")
        raise ConfigError([problem]) from None
    # Some of timm's models end in a layer of their own, wider or narrower than the last features.
    width: Any = getattr(model, "head_hidden_size", None) or model.num_features
    return model, width


def with_sync_batch_norm(model: nn.Module, config: EncoderConfig) -> nn.Module:
    """The model with batch statistics over all workers. timm's conversion keeps its layers' activations."""
    if config.backbone.startswith("timm:"):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
