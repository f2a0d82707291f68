"""Encoders out of weights: our runs and checkpoints, and files of the authors' code and MoCo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcl_ray.config import AugmentConfig, EncoderConfig, RunConfig
from pcl_ray.errors import DataError
from pcl_ray.model import encoder as encoders
from pcl_ray.model.encoder import Encoder
from pcl_ray.model.weights import content as contents
from pcl_ray.model.weights.architecture import architecture_of, renamed
from pcl_ray.model.weights.heads import config_of, fit_head, head_of
from pcl_ray.model.weights.layouts import State, Which, layout_of
from pcl_ray.model.weights.settings import imagenet_view, read_settings, view_of
from pcl_ray.model.weights.source import SETTINGS_FILE, WeightsFile, locate
from pcl_ray.support.text import count

# What the layers of classifiers are called, and of decoders that reconstruct images.
_CLASSIFIERS = (
    *("fc.", "fc_norm.", "head.", "head_dist.", "heads.", "classifier.", "linear.", "last_linear."),
    *("mask_token", "decoder", "momentum_classifier.", "num_batches_tracked"),
)


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """An encoder, and what whoever gives it images has to know."""

    encoder: nn.Module  # on the CPU, for evaluation; `.backbone` and `.head`, nn.Identity where there is none
    config: EncoderConfig
    channels: int
    has_head: bool
    view: AugmentConfig  # image_size, mean and std are those that the weights know
    note: str  # one line: what it was recognised as; what was left out, adapted, not architecture
    path: Path
    run: RunConfig | None = None  # of the run whose checkpoint it is, where that lies beside
    epochs: int | None = None  # that it was trained, where it is ours
    queue: Tensor | None = None  # [R, C], the features of the momentum encoder in the file, the oldest first


def load_encoder(source: str | Path, *, encoder: Which = "query") -> nn.Module:
    """The encoder of a source, in evaluation mode on the CPU: images [B, channels, S, S] to unit vectors
    [B, C]; `.backbone` and `.head` apart.

    source and errors: see `read_weights`.
    """
    return read_weights(source, encoder=encoder).encoder


def read_weights(source: str | Path, *, encoder: Which = "query") -> LoadedWeights:
    """The weights of a run (its newest checkpoint), of the folder of a run, of one of its checkpoints, or of
    a file of weights: what `pcl-ray export` wrote, PCL's and MoCo's (v1, v2, v3), SwAV, DINO, solo-learn,
    lightly, and state dicts of torchvision's ResNets and of timm (see `layouts`), by torch or safetensors.

    encoder: the query encoder, or the momentum encoder (the teacher), in whose space prototypes are. A file
    with one encoder gives that. Nothing in the file is executed (`weights_only`). Raises DataError where
    there is no such run or file, where the file is none of these, is cut, or does not fit.
    """
    if encoder not in ("query", "momentum"):
        raise ValueError(f"encoder must be 'query' or 'momentum', not {encoder!r}")
    file = locate(source)
    content = contents.read(file.path)
    # fresh weights are drawn before they are replaced
    with torch.random.fork_rng(devices=[]), _damage_said(file.path):
        if isinstance(content, dict) and content.get("format") == "pcl_ray":
            return _ours(content, encoder, file)
        settings = read_settings(file.settings)
        ours = settings.get("pcl_ray")
        if isinstance(ours, dict) and ours.get("target") == "safetensors":
            return _exported(content, ours, file.path)
        return _foreign(content, encoder, file)


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """Makes a DataError of what a file raises in which something is missing or of another kind."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{str(path)!r} is damaged ({type(error).__name__}: {reason})") from error


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
    note = f"{which} encoder of a pcl_ray checkpoint after {count(content['epoch'], 'epoch')}"
    view = imagenet_view(channels)
    if file.run is not None:
        view = file.run.augment
    else:
        note += f"; the run's views are not beside it: ImageNet's, {view.image_size} px"
    encoder = _filled(model, state, misfit)
    keys = content["queue"]["keys"]
    pointer = content["queue"].get("_extra_state", {}).get("pointer", 0)
    queue = keys.roll(-pointer, 0)  # the oldest first, which are the first to go
    epochs = content["epoch"]
    return LoadedWeights(encoder, settings, channels, True, view, note, path, file.run, epochs, queue)


def _exported(state: State, settings: dict[str, Any], path: Path) -> LoadedWeights:
    """The weights that `pcl-ray export --to safetensors` wrote."""
    config, channels = EncoderConfig(**settings["encoder"]), settings["channels"]
    model = encoders.build(config, channels)
    fit_head(model, state, settings.get("activation", "relu"))
    misfit = f"{str(path)!r} does not fit the {config.backbone} of its {SETTINGS_FILE}"
    note = f"{settings['which']} encoder, exported by pcl_ray"
    view = AugmentConfig(**settings["view"])
    return LoadedWeights(_filled(model, state, misfit), config, channels, settings["head"], view, note, path)


def _foreign(content: Any, which: Which, file: WeightsFile) -> LoadedWeights:
    """The weights of a file that another project's code wrote."""
    shown = repr(str(file.path))
    layout = layout_of(content, which)
    if layout is None:
        raise DataError(f"{shown} is neither a pcl_ray checkpoint nor does it hold weights")
    if not layout.backbone:
        raise DataError(f"{shown} has no {layout.encoder}: {'; '.join(layout.notes)}")
    state = renamed(layout.backbone)
    architecture = architecture_of(
        state, layout.family, layout.architecture, read_settings(file.settings), shown
    )
    config = EncoderConfig(backbone=architecture.backbone, stem=architecture.stem)
    backbone, width = encoders.build_backbone(config, architecture.channels)
    head = head_of(layout.head, layout.activation)
    if head is not None and head.inputs != width:
        head = None
    config = config_of(config, head, width)
    kind = "no head" if head is None else f"a {config.head} head"
    misfit = f"{shown} does not fit a {architecture.backbone} with {kind}"
    left_out = [*layout.left_out, *_fill(backbone, state, misfit)]
    if head is None and layout.head:
        left_out.append("a projection head of another form")
    model = Encoder(backbone, nn.Identity() if head is None else head.module)
    note = "; ".join(
        [
            f"{layout.encoder} of {layout.family}: {architecture.backbone}, {kind}",
            *([f"left out: {', '.join(dict.fromkeys(left_out))}"] if left_out else []),
            *(
                [f"not architecture: {layout.missing_head}"]
                if layout.missing_head and not layout.head
                else []
            ),
        ]
    )
    view = view_of(file.settings, architecture.channels, architecture.image_size)
    return LoadedWeights(
        model.eval(),
        config,
        architecture.channels,
        head is not None,
        view,
        note,
        file.path,
        queue=layout.queue,
    )


def _fill(backbone: nn.Module, state: State, misfit: str) -> list[str]:
    """Loads a backbone's weights, and gives back the names of classifiers that are left out. Raises DataError
    with `misfit` where other weights are missing or left over.
    """
    own = backbone.state_dict()
    left_out = [name for name in state if name not in own and name.startswith(_CLASSIFIERS)]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own and name not in left_out]
    for problem, names in (("it lacks", missing), ("it has also", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(f"{misfit}: {problem} {names[0]}{more}")
    try:
        backbone.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    except RuntimeError as error:
        raise DataError(f"{misfit}: {str(error).splitlines()[1].strip()}") from None
    return list(dict.fromkeys(name.partition(".")[0] for name in left_out))


def _filled(model: nn.Module, state: dict[str, Tensor], misfit: str) -> nn.Module:
    """The model with these weights, for evaluation. Raises DataError with `misfit` where they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{misfit}: {str(error).splitlines()[1].strip()}") from None
    return model.eval()
