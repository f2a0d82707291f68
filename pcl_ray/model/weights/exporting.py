"""An encoder in a format of others, with config.json, preprocessing.json and README.md: `pcl-ray export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pcl_ray import __version__
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.model.weights import formats
from pcl_ray.model.weights.heads import activation_of
from pcl_ray.model.weights.layouts import Which
from pcl_ray.model.weights.loading import LoadedWeights, read_weights
from pcl_ray.model.weights.readme import readme
from pcl_ray.model.weights.settings import read_settings
from pcl_ray.model.weights.source import SETTINGS_FILE

Target = Literal["torchvision", "timm", "safetensors", "onnx", "torch-export", "reference"]
PREPROCESSING_FILE, README_FILE = "preprocessing.json", "README.md"


def export(source: str, target: Target, folder: Path, *, head: bool = False, encoder: Which = "query") -> str:
    """Writes the encoder of a source to a new folder, or over an earlier export there; whole or not at all.

    head: with the projection head, so that it gives unit vectors in the prototypes' space; else the features
    of the backbone. Returns what the weights were recognised as. Raises DataError for a source that cannot be
    read, ConfigError for a format that cannot hold it, or a folder that holds something else.
    """
    check_folder(folder)
    weights = read_weights(source, encoder=encoder)
    if head and not weights.has_head:
        raise ConfigError(f"{source!r} has no projection head; leave out --head")
    if head and target == "timm":
        raise ConfigError("timm's models have no projection head; leave out --head, or --to safetensors")
    with_head = head or target == "reference"
    with whole_folder(folder) as partial:
        partial.mkdir()
        entries = _write(source, weights, target, partial, head=with_head)
        describe_export(partial, weights, source, target, encoder, head=with_head, entries=entries)
    return weights.note


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A path beside the folder, where a new one is to be made; it takes the folder's place at the end, or is
    removed where the block fails. Raises ConfigError where it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); give another --out") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Raises ConfigError where something else than an earlier export is in the folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        described = read_settings(folder / SETTINGS_FILE) if folder.is_dir() else {}
        if "pcl_ray" not in described:
            raise ConfigError(f"{folder} holds something else than an export; give another --out")


def describe_export(
    folder: Path,
    weights: LoadedWeights,
    source: str,
    target: str,
    encoder: Which,
    *,
    head: bool,
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, with further entries for those who read it, preprocessing.json and README.md."""
    entries = {**(entries or {}), "pcl_ray": _settings(weights, source, target, encoder, head=head)}
    steps = formats.preprocessing(weights.view, weights.channels)
    for name, content in ((SETTINGS_FILE, entries), (PREPROCESSING_FILE, steps)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / README_FILE).write_text(readme(weights, target, entries, head=head), encoding="utf-8")


def _write(
    source: str, weights: LoadedWeights, target: Target, folder: Path, *, head: bool
) -> dict[str, Any]:
    """Writes the weights; what else its readers look for in config.json."""
    match target:
        case "torchvision":
            formats.write_torchvision(weights, folder, head=head)
        case "timm":
            return formats.write_timm(weights, folder)
        case "safetensors":
            formats.write_safetensors(weights, folder, head=head)
        case "onnx":
            formats.write_onnx(weights, folder, head=head)
        case "torch-export":
            formats.write_graph(weights, folder, head=head)
        case "reference":
            formats.write_reference(
                read_weights(source), _momentum(source, weights), folder, epochs=weights.epochs or 0
            )
    return {}


def _momentum(source: str, weights: LoadedWeights) -> LoadedWeights:
    """The momentum encoder of a source; of a file without one the encoder that it has."""
    try:
        return read_weights(source, encoder="momentum")
    except DataError:
        return weights


def _settings(
    weights: LoadedWeights, source: str, target: str, which: Which, *, head: bool
) -> dict[str, Any]:
    view = weights.view.model_dump(mode="json", include={"image_size", "mean", "std"})
    return {
        "version": __version__,
        "target": target,
        "source": Path(source).name,
        "which": which,
        "note": weights.note,
        "head": head,
        "activation": activation_of(weights.encoder.get_submodule("head")),
        "num_features": formats.features_of(weights, head=head),
        "channels": weights.channels,
        "encoder": weights.config.model_dump(mode="json", exclude={"init_from", "freeze_stages"}),
        "view": view,
    }
