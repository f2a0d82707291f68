"""Encoders out of weights: our runs and checkpoints, and files of the authors' code and MoCo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pcl_ray.config import AugmentConfig, EncoderConfig, RunConfig
from pcl_ray.errors import DataError
from pcl_ray.model import encoder as encoders
from pcl_ray.model.weights import content as contents
from pcl_ray.model.weights.source import WeightsFile, locate

Which = Literal["query", "momentum"]


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """An encoder, and what whoever gives it images has to know."""

    encoder: nn.Module  # on the CPU, for evaluation; `.backbone` and `.head`, nn.Identity where there is none
    config: EncoderConfig
    channels: int
    has_head: bool
    view: AugmentConfig  # image_size, mean and std are those that the weights know
    note: str  # one line: what it was recognised as; what was left out, adapted, not found
    path: Path
    run: RunConfig | None = None  # of the run whose checkpoint it is, where that lies beside


def load_encoder(source: str | Path, *, encoder: Which = "query") -> nn.Module:
    """The encoder of a source, in evaluation mode on the CPU: images [B, channels, S, S] to unit vectors
    [B, C]; `.backbone` and `.head` apart.

    source and errors: see `read_weights`.
    """
    return read_weights(source, encoder=encoder).encoder


def read_weights(source: str | Path, *, encoder: Which = "query") -> LoadedWeights:
    """The weights of a run (its newest checkpoint), of the folder of a run, of one of its checkpoints, or of
    a `.pth.tar` with `state_dict` keys `module.encoder_q.…` / `module.encoder_k.…`.

    encoder: the query encoder, or the momentum encoder, in whose space prototypes are. Nothing in the file is
    executed (`weights_only`). Raises DataError where there is no such run or file, where the file is neither,
    or does not fit.
    """
    if encoder not in ("query", "momentum"):
        raise ValueError(f"encoder must be 'query' or 'momentum', not {encoder!r}")
    file = locate(source)
    content = contents.read(file.path)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn before they are replaced
        if isinstance(content, dict) and content.get("format") == "pcl_ray":
            return _ours(content, encoder, file)
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            return _published(content, encoder, file.path)
    raise DataError(f"{str(file.path)!r} is neither a pcl_ray checkpoint nor a .pth.tar with a state_dict")


def imagenet_view(channels: int, image_size: int = 224) -> AugmentConfig:
    """The view of weights whose file says nothing of images: ImageNet's statistics, of grey images the mean
    over the colours.
    """
    usual = AugmentConfig(image_size=image_size)
    if channels == len(usual.mean):
        return usual
    mean, std = (sum(values) / len(values) for values in (usual.mean, usual.std))
    return AugmentConfig(image_size=image_size, mean=(mean,) * channels, std=(std,) * channels)


def _ours(content: dict[str, Any], which: Which, file: WeightsFile) -> LoadedWeights:
    """The weights of a checkpoint of ours."""
    path, channels = file.path, content["channels"]
    settings = EncoderConfig(**content["encoder"])
    model = encoders.build(settings, channels)
    prefix = "query." if which == "query" else "key."
    state = {
        name.removeprefix(prefix): value
        for name, value in content["model"].items()
        if name.startswith(prefix)
    }
    misfit = f"{str(path)!r} does not fit its own {settings.backbone} with a {settings.head} head"
    note = f"{which} encoder of a pcl_ray checkpoint after {content['epoch']} epochs"
    view = imagenet_view(channels)
    if file.run is not None:
        view = file.run.augment
    else:
        note += f"; the run's views are not beside it: ImageNet's, {view.image_size} px"
    return LoadedWeights(_filled(model, state, misfit), settings, channels, True, view, note, path, file.run)


def _published(content: dict[str, Any], which: Which, path: Path) -> LoadedWeights:
    """The weights of a file that the authors' code or MoCo wrote."""
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
    channels = 3 if first is None else first.shape[1]
    model = _filled(
        encoders.build(settings, channels), state, f"{str(path)!r} does not fit a {name} with a {head} head"
    )
    note = f"{which} encoder of a MoCo or PCL file, {name} with a {head} head"
    return LoadedWeights(model, settings, channels, True, imagenet_view(channels), note, path)


def _filled(model: nn.Module, state: dict[str, Tensor], misfit: str) -> nn.Module:
    """The model with these weights, for evaluation. Raises DataError with `misfit` where they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{misfit}: {str(error).splitlines()[1].strip()}") from None
    return model.eval()
