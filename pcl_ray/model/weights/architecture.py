"""Which backbone the weights of a state dict are, by their names and shapes, and their names in ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcl_ray.errors import DataError
from pcl_ray.model.encoder import TIMM_OPTIONS
from pcl_ray.model.weights.layouts import State

# Blocks of each stage and whether they are bottlenecks; what else tells a torchvision ResNet: `_resnet`.
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_WIDE = {"resnet50": "wide_resnet50_2", "resnet101": "wide_resnet101_2"}
_VIT_SIZES = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1280, 32): "huge",
}
# The parts of an nn.Sequential, as torchvision calls them: of its ResNet, and of lightly's for small images.
_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_SMALL_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
)


@dataclass(frozen=True)
class Architecture:
    """A backbone of ours."""

    backbone: str  # encoder.backbone
    channels: int
    stem: Literal["imagenet", "small"] = "imagenet"  # encoder.stem
    image_size: int = 224


def renamed(state: State) -> State:
    """A backbone's weights under the names of torchvision's ResNets or of timm."""
    if "conv_proj.weight" in state:
        return {_vit_name(name): value for name, value in state.items()}
    for first, parts in (("2.0.conv1.weight", _SMALL_PARTS), ("4.0.conv1.weight", _PARTS)):
        if first in state and "0.weight" in state:
            return {_part_name(name, parts): value for name, value in state.items()}
    return {name.replace(".shortcut.", ".downsample."): value for name, value in state.items()}


def _part_name(name: str, parts: tuple[str, ...]) -> str:
    number, dot, rest = name.partition(".")
    is_part = number.isdigit() and int(number) < len(parts)
    return f"{parts[int(number)] if is_part else number}{dot}{rest}".replace(".shortcut.", ".downsample.")


def _vit_name(name: str) -> str:
    for pattern, replacement in _TORCHVISION_VIT:
        name = re.sub(pattern, replacement, name)
    return name


def architecture_of(
    state: State, family: str, hint: str | None, settings: Mapping[str, Any], shown: str
) -> Architecture:
    """The backbone that these weights are. hint: the name that the file gives it. settings: of a config.json
    as model hubs have it, which may name a timm model. shown: what messages call the file.

    Raises DataError where it is none that we have.
    """
    described = settings.get("architecture")
    if isinstance(described, str) and (name := _timm_name(described)):
        return _timm(name, state, settings.get("model_args"))
    first = state.get("conv1.weight")
    if first is not None and "layer1.0.conv1.weight" in state and (name := _resnet(state)):
        if first.ndim != 4 or first.shape[0] != 64:
            raise DataError(
                f"{shown} holds a ResNet whose first convolution has {first.shape[0]} channels, ours have 64"
            )
        small = first.shape[-1] == 3
        return Architecture(name, first.shape[1], "small" if small else "imagenet", 32 if small else 224)
    if "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state:
        return _vit(state, family, shown)
    for word in (hint, Path(shown.strip("'")).name):
        if word and (name := _timm_name(word)):
            return _timm(name, state)
    raise DataError(
        f"{shown} is neither a pcl_ray checkpoint nor weights that are recognised: its names"
        f" ({', '.join(list(state)[:3]) or 'none'}, …) are those of no torchvision ResNet and no ViT. Of"
        ' another timm model, put a config.json with {"architecture": NAME} beside it'
    )


def _resnet(state: State) -> str | None:
    """The torchvision ResNet of these weights; None where it is another one."""
    counts = tuple(_blocks(state, f"layer{stage}.") for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in state
    name = _RESNETS.get((counts, bottleneck))
    extras = ("layer1.0.se.", "layer1.0.conv2.0.", "layer1.0.attn", "layer1.0.aa")
    if name is None or any(key.startswith(extras) for key in state):
        return None
    if not bottleneck:
        return name
    middle = state.get("layer1.0.conv2.weight")
    if middle is None or middle.ndim != 4:
        return None
    match tuple(middle.shape[:2]):
        case (64, 64):
            return name
        case (128, 128):
            return _WIDE.get(name)
        case (128, 4):
            return "resnext50_32x4d" if name == "resnet50" else None
    return None


def _blocks(state: State, prefix: str) -> int:
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)}
    return sum(number.isdigit() for number in numbers)


def _vit(state: State, family: str, shown: str) -> Architecture:
    """A ViT's name in timm, with what differs from that model there."""
    patches, depth = state["patch_embed.proj.weight"], _blocks(state, "blocks.")
    if patches.ndim != 4:
        raise DataError(f"{shown} holds a ViT whose patches have {patches.ndim} dimensions")
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[-1]
    size = _VIT_SIZES.get((width, depth))
    if size is None:
        raise DataError(
            f"{shown} holds a ViT of {depth} blocks and width {width}, which is none of"
            f" {', '.join(_VIT_SIZES.values())}; put a config.json with its timm name beside it"
        )
    tokens = state["pos_embed"].shape[1] if "pos_embed" in state else 0
    extra = ("cls_token" in state) + ("dist_token" in state)
    scaled, registers = "blocks.0.ls1.gamma" in state, "reg_token" in state
    own_positions = scaled and math.isqrt(tokens) ** 2 == tokens  # the class token has no position
    grid = math.isqrt(max(tokens - (0 if own_positions else extra), 0))
    image_size = grid * patch
    usual, options = 224, []
    if own_positions and not registers:
        name = f"deit3_{size}_patch{patch}_224"
    elif scaled and patch == 14:
        name, usual = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", 518
    elif "dist_token" in state:
        name = f"deit_{size}_distilled_patch{patch}_224"
    else:
        name = f"vit_{size}_patch{patch}_224"
    if not _timm_name(name) and (fallback := _timm_name(f"vit_{size}_patch16_224")):
        name = fallback
        options.append(f"patch_size={patch}")
    if family == "MoCo v3" and size == "small":
        options.append("num_heads=12")  # its vits.py; timm's has 6, and no shape tells
    if "cls_token" not in state:
        options += ["class_token=false", "global_pool=avg"]
    elif "fc_norm.weight" in state:
        options.append("global_pool=avg")
    if image_size and image_size != usual:
        options.append(f"img_size={image_size}")
    return Architecture(f"timm:{','.join([name, *options])}", channels, image_size=image_size or usual)


def _timm_name(word: str) -> str | None:
    """The timm model of this name, or that a file's name begins with; None where there is none."""
    import timm

    stem = word.removeprefix("timm:").partition(".")[0]
    return stem if timm.is_model(stem) else None


def _timm(name: str, state: State, arguments: Any = None) -> Architecture:
    """A timm model; one of the ResNets that torchvision has, too, is that. arguments: what a model hub's
    config.json says of it beside its name.
    """
    import timm

    settings = timm.get_pretrained_cfg(name)
    first = getattr(settings, "first_conv", None)
    first = first[0] if isinstance(first, tuple | list) else first
    weight = state.get(f"{first}.weight")
    channels = 3 if weight is None or weight.ndim != 4 else weight.shape[1]
    if name in (*_RESNETS.values(), *_WIDE.values(), "resnext50_32x4d"):
        return Architecture(name, channels)
    pairs = arguments.items() if isinstance(arguments, Mapping) else ()
    options = [f"{option}={value}" for option, value in pairs if option in TIMM_OPTIONS]
    size = settings.input_size[-1] if settings else 224
    return Architecture(f"timm:{','.join([name, *options])}", channels, image_size=size)
