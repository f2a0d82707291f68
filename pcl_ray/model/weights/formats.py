"""Encoders as files that other programs read. Each function writes into a folder and says what it wrote."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pcl_ray.config import AugmentConfig, EncoderConfig
from pcl_ray.errors import ConfigError
from pcl_ray.model.encoder import timm_options
from pcl_ray.model.weights.layouts import State
from pcl_ray.model.weights.loading import LoadedWeights

TORCHVISION_FILE, REFERENCE_FILE = "model.pth", "model.pth.tar"
SAFETENSORS_FILE, ONNX_FILE, EXPORT_FILE = "model.safetensors", "model.onnx", "model.pt2"
_CROP_FROM = 64  # px: from this size on the evaluation view is cut out of an image of 8/7 of it


def write_torchvision(weights: LoadedWeights, folder: Path, *, head: bool) -> None:
    """A state dict with torchvision's names; the head as `fc`."""
    _check_torchvision(weights.config, "torchvision")
    torch.save(_torchvision_state(weights, head=head), folder / TORCHVISION_FILE)


def write_safetensors(weights: LoadedWeights, folder: Path, *, head: bool) -> None:
    """The encoder's own names, below `backbone.` and `head.`."""
    names = ("backbone.", "head.") if head else ("backbone.",)
    state = {name: value for name, value in weights.encoder.state_dict().items() if name.startswith(names)}
    save_file(_contiguous(state), folder / SAFETENSORS_FILE, metadata={"format": "pt"})


def write_timm(weights: LoadedWeights, folder: Path) -> dict[str, Any]:
    """A model of timm as a model hub has it; what its config.json has to say."""
    config, view = weights.config, weights.view
    if config.backbone == "small_resnet" or config.stem == "small":
        raise _impossible(config, "timm")
    import timm

    name, arguments = timm_options(config.backbone)
    backbone = weights.encoder.get_submodule("backbone")
    if not config.backbone.startswith("timm:") and not timm.is_model(name):
        raise _impossible(config, "timm")
    if getattr(backbone, "dynamic_img_size", False):
        arguments["dynamic_img_size"] = True
    save_file(_contiguous(backbone.state_dict()), folder / SAFETENSORS_FILE, metadata={"format": "pt"})
    usual = timm.get_pretrained_cfg(name)
    size = (weights.channels, view.image_size, view.image_size)
    described = {
        "input_size": list(size),
        "interpolation": "bilinear",
        "crop_pct": 0.875 if view.image_size >= _CROP_FROM else 1.0,
        "crop_mode": "center" if view.image_size >= _CROP_FROM else "squash",
        "mean": list(view.mean),
        "std": list(view.std),
        "num_classes": 0,
        "first_conv": getattr(usual, "first_conv", None),
        "classifier": getattr(usual, "classifier", None),
    }
    arguments = {**({"in_chans": weights.channels} if weights.channels != 3 else {}), **arguments}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": features_of(weights, head=False),
        "model_args": arguments,
        "pretrained_cfg": described,
    }


def write_reference(query: LoadedWeights, momentum: LoadedWeights, folder: Path, *, epochs: int) -> None:
    """A checkpoint as the authors' code and MoCo write it: both encoders and the queue."""
    config = query.config
    _check_torchvision(config, "reference")
    width = features_of(query, head=False)
    if not query.has_head or config.head_batch_norm or config.head_width not in (None, width):
        raise ConfigError(
            "the reference has a linear head, or one of two layers as wide as the features and without batch"
            " norm, and these weights do not; --to torchvision or safetensors take them"
        )
    if config.stem == "small" or query.channels != 3:
        raise ConfigError(
            "the reference has torchvision's stem for colour images, and these weights do not; --to"
            " torchvision or safetensors take them"
        )
    state: State = {}
    for name, weights in (("encoder_q", query), ("encoder_k", momentum)):
        tensors = _torchvision_state(weights, head=True)
        state |= {f"module.{name}.{key}": value for key, value in tensors.items()}
    if momentum.queue is not None:
        state["module.queue"] = momentum.queue.T.contiguous()
        state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    content = {"epoch": epochs, "arch": config.backbone, "state_dict": state}
    torch.save(content, folder / REFERENCE_FILE)


def write_graph(weights: LoadedWeights, folder: Path, *, head: bool) -> None:
    """torch.export's program, of normalised images [n, channels, S, S] for any n."""
    model, images = _traced(weights, head=head)
    batch = {0: torch.export.Dim("n")}
    program = _exported(lambda: torch.export.export(model, (images,), dynamic_shapes=(batch,)), weights)
    torch.export.save(program, folder / EXPORT_FILE)


def write_onnx(weights: LoadedWeights, folder: Path, *, head: bool) -> None:
    """An ONNX graph of normalised images [n, channels, S, S], `images`, for any n; it gives `features`."""
    model, images = _traced(weights, head=head)

    def export() -> Any:
        with redirect_stdout(io.StringIO()):  # it tells of its progress
            return torch.onnx.export(
                model,
                (images,),
                folder / ONNX_FILE,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    _exported(export, weights)


def features_of(weights: LoadedWeights, *, head: bool) -> int:
    """The number of features."""
    if head:
        return weights.config.dim
    with torch.no_grad():
        _, images = _traced(weights, head=False)
        return weights.encoder.get_submodule("backbone")(images).shape[1]


def _traced(weights: LoadedWeights, *, head: bool) -> tuple[nn.Module, Tensor]:
    """What is exported, and images for it: two, as a batch of one would be exported as always one."""
    size = weights.view.image_size
    model = weights.encoder if head else weights.encoder.get_submodule("backbone")
    return model.eval().requires_grad_(False), torch.zeros(2, weights.channels, size, size)


def _exported(export: Any, weights: LoadedWeights) -> Any:
    """What `export` gives. Raises ConfigError where the backbone cannot be exported as a graph."""
    try:
        return export()
    except Exception as error:  # torch has many kinds of its own, and backbones fail it in as many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{weights.config.backbone} cannot be exported as a graph: {reason}; --to safetensors takes it"
        ) from error


def _torchvision_state(weights: LoadedWeights, *, head: bool) -> State:
    state = dict(weights.encoder.get_submodule("backbone").state_dict())
    if head:
        layers = weights.encoder.get_submodule("head").state_dict()
        state |= {f"fc.{name}": value for name, value in layers.items()}
    return state


def _check_torchvision(config: EncoderConfig, target: str) -> None:
    if not hasattr(torchvision.models, config.backbone):
        raise _impossible(config, target)


def _impossible(config: EncoderConfig, target: str) -> ConfigError:
    stem = " with a small stem" if config.stem == "small" and config.backbone != "small_resnet" else ""
    return ConfigError(
        f"{target} has no {config.backbone}{stem}; --to safetensors, onnx, torch-export or mlflow take it"
    )


def _contiguous(state: State) -> State:
    """Copies: safetensors takes no tensors that share memory."""
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }


def preprocessing(view: AugmentConfig, channels: int) -> dict[str, Any]:
    """What has to be done with a picture before the encoder takes it, as `data.evaluation_view` does it."""
    size = view.image_size
    crop = size >= _CROP_FROM
    return {
        "channels": channels,
        "resize": {"shorter_side": size * 8 // 7} if crop else {"height": size, "width": size},
        "center_crop": size if crop else None,
        "interpolation": "bilinear",
        "antialias": True,
        "rescale": 1 / 255,
        "mean": list(view.mean),
        "std": list(view.std),
    }
