"""Encoders out of files: our checkpoints, and the `.pth.tar` files that the authors' code and MoCo write."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pcl_ray.config import EncoderConfig
from pcl_ray.errors import DataError
from pcl_ray.model import encoder as encoders


def load_encoder(path: str | Path, *, encoder: Literal["query", "momentum"] = "query") -> nn.Module:
    """The encoder of a checkpoint, in evaluation mode on the CPU: images [B, channels, S, S] to unit vectors
    [B, C]; `.backbone` and `.head` apart.

    Takes a checkpoint of ours, or a `.pth.tar` with `state_dict` keys `module.encoder_q.…` /
    `module.encoder_k.…`. Nothing in the file is executed (`weights_only`). Raises DataError where the file is
    neither, or does not fit.
    """
    path = Path(path).expanduser()
    if encoder not in ("query", "momentum"):
        raise ValueError(f"encoder must be 'query' or 'momentum', not {encoder!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"checkpoint {str(path)!r} does not exist") from None
    except Exception as error:  # torch raises many kinds here: pickle, zip and runtime errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{str(path)!r} cannot be read as a checkpoint: {reason}") from None
    if isinstance(content, dict) and content.get("format") == "pcl_ray":
        return _ours(content, encoder, path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return _published(content, encoder, path)
    raise DataError(f"{str(path)!r} is neither a pcl_ray checkpoint nor a .pth.tar with a state_dict")


def _ours(content: dict[str, Any], which: str, path: Path) -> nn.Module:
    """An encoder of a checkpoint of ours; which: "query" or "momentum"."""
    settings = EncoderConfig(**content["encoder"])
    model = encoders.build(settings, content["channels"])
    prefix = "query." if which == "query" else "key."
    state = {
        name.removeprefix(prefix): value
        for name, value in content["model"].items()
        if name.startswith(prefix)
    }
    misfit = f"{str(path)!r} does not fit its own {settings.backbone} with a {settings.head} head"
    return _filled(model, state, misfit)


def _published(content: dict[str, Any], which: str, path: Path) -> nn.Module:
    """An encoder of a file that the authors' code or MoCo wrote; which: "query" or "momentum"."""
    prefix = f"encoder_{'q' if which == 'query' else 'k'}."
    state: dict[str, Tensor] = {}
    for name, value in content["state_dict"].items():
        name = name.removeprefix("module.")
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            name = f"head.{name.removeprefix('fc.')}" if name.startswith("fc.") else f"backbone.{name}"
            state[name] = value
    head = "linear" if "head.weight" in state else "mlp"
    final = state.get("head.weight", state.get("head.2.weight"))
    if final is None:
        raise DataError(f"{str(path)!r} has no weights under '{prefix}' with a projection head 'fc'")
    name = content.get("arch") or "resnet50"
    try:
        settings = EncoderConfig(backbone=name, head=head, dim=final.shape[0])
    except ValueError:
        raise DataError(f"{str(path)!r} holds a {name!r}, which is no backbone of ours") from None
    first = state.get("backbone.conv1.weight")
    model = encoders.build(settings, 3 if first is None else first.shape[1])
    return _filled(model, state, f"{str(path)!r} does not fit a {name} with a {head} head")


def _filled(model: nn.Module, state: dict[str, Tensor], misfit: str) -> nn.Module:
    """The model with these weights, for evaluation. Raises DataError with `misfit` where they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{misfit}: {str(error).splitlines()[1].strip()}") from None
    return model.eval()
