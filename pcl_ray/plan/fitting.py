"""Knobs of a shipped recipe that follow from the pictures and the machine, where nobody has set them: what
the recipe `folder` leaves open, and what of any recipe so few images cannot have.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from pcl_ray.config import RunConfig

_BATCH = 32
_QUEUE_SHARE, _LARGEST_QUEUE = 0.8, 4096  # of the images, so that a key is rarely of the image itself
_STEPS = 700  # that a run should have at least: what the recipe was measured with
_MOST_EPOCHS = 200
_FEWER_EPOCHS = ((20_000, 30), (100_000, 20))  # from so many images on
_WARMUP = 0.2  # of the epochs
_IMAGES_FOR_RAY = 5_000  # below these Ray's start takes longer than it saves
_CORES_FOR_RAY, _MOST_WORKERS = 4, 4
_GPU_SIDE = 64  # px, of views where a GPU makes them


@dataclass(frozen=True)
class Surroundings:
    """What a recipe is fitted to."""

    images: int  # to train on
    side: int | None  # of a typical picture's shorter side, px; None where it is not known
    cores: int
    gpus: int
    on_cluster: bool  # of others: its machines are not this one


@dataclass(frozen=True)
class Fitting:
    """Knobs to change, and why, in a sentence each."""

    changes: dict[str, Any]
    notes: tuple[str, ...]


def fit(config: RunConfig, given: Set[str], around: Surroundings) -> Fitting:
    """What to change in a shipped recipe. given: knobs that the user has set, which stay."""
    if not around.images:
        return Fitting({}, ())
    choices = _choices(config, given, around) if config.train.fit_to_data else {}
    texts = [f"{name.partition('.')[2]} {value}" for name, value in choices.items()]
    notes = []
    if choices:
        of_size = f" of about {around.side} px" if around.side else ""
        notes.append(
            f"chosen for {around.images:,} pictures{of_size}, {around.cores} cores and"
            f" {around.gpus or 'no'} GPU{'s' * (around.gpus > 1)}: {', '.join(texts)}; a knob given wins"
        )
    reduced, why = _reduced(config, choices, given, around.images)
    return Fitting({**choices, **reduced}, (*notes, *why))


def _choices(config: RunConfig, given: Set[str], around: Surroundings) -> dict[str, Any]:
    """All that the recipe leaves open, whether it changes or not."""
    values: dict[str, Any] = {}
    if not around.on_cluster:
        values |= _machine(around)
    workers = max(_value(config, values, given, "resources.workers"), 1)
    batch = _BATCH
    while batch > max(around.images // 4, 2 * workers):
        batch //= 2
    values["train.batch_size"] = _multiple(batch, workers)
    batch = _value(config, values, given, "train.batch_size")
    steps = max(around.images // batch, 1)
    epochs = min(max(-(-_STEPS // steps), config.train.epochs), _MOST_EPOCHS)
    for images, fewer in _FEWER_EPOCHS:
        if around.images >= images:
            epochs = fewer
    values["train.epochs"] = epochs
    epochs = _value(config, values, given, "train.epochs")
    values["e_step.warmup_epochs"] = max(round(_WARMUP * epochs), 1)
    values["loss.queue_size"] = min(_power_of_two(_QUEUE_SHARE * around.images), _LARGEST_QUEUE)
    values["augment.image_size"] = _image_size(config, around)
    if workers == 1 and not _value(config, values, given, "resources.workers") and batch >= 4:
        values["encoder.batch_norm_parts"] = 2  # the same batch norm as two workers have
    return {name: value for name, value in values.items() if name not in given}


def _machine(around: Surroundings) -> dict[str, Any]:
    if around.gpus:
        several = around.gpus > 1 and around.images >= _IMAGES_FOR_RAY
        return {"resources.workers": around.gpus if several else 0, "resources.gpus_per_worker": 1}
    if around.images < _IMAGES_FOR_RAY or around.cores < _CORES_FOR_RAY:
        return {"resources.workers": 0}
    return {"resources.workers": min(around.cores, _MOST_WORKERS)}


def _image_size(config: RunConfig, around: Surroundings) -> int:
    """Views no larger than the pictures; larger ones than the recipe's where a GPU makes them."""
    size = max(config.augment.image_size, _GPU_SIDE) if around.gpus else config.augment.image_size
    if around.side is None or around.side >= size:
        return size
    return max(around.side // 8 * 8, min(16, size))


def _reduced(
    config: RunConfig, choices: dict[str, Any], given: Set[str], images: int
) -> tuple[dict[str, Any], list[str]]:
    """A batch and a queue that so few images can fill, where the recipe's are too large."""
    values, notes = dict(choices), []
    workers = max(_value(config, values, given, "resources.workers"), 1)
    batch = recipes_batch = _value(config, values, given, "train.batch_size")
    if batch > images >= 2 * workers and "train.batch_size" not in given:
        batch = _multiple(_power_of_two(images), workers)
        batch = batch if batch <= images else images // workers * workers
        values["train.batch_size"] = batch
        notes.append(
            f"train.batch_size = {batch}: the recipe's {recipes_batch} are more than the {images} images"
        )
    filled = images // batch * batch * _value(config, values, given, "train.epochs")
    queue = _value(config, values, given, "loss.queue_size")
    if queue > filled > 0 and "loss.queue_size" not in given:
        values["loss.queue_size"] = _power_of_two(filled)
        notes.append(
            f"loss.queue_size = {values['loss.queue_size']}: the whole run fills only {filled} places of the"
            f" recipe's {queue}"
        )
    changed = {name: value for name, value in values.items() if choices.get(name) != value}
    return changed, notes


def _value(config: RunConfig, values: dict[str, Any], given: Set[str], name: str) -> Any:
    section, _, knob = name.partition(".")
    stored = getattr(getattr(config, section), knob)
    return stored if name in given else values.get(name, stored)


def _power_of_two(at_most: float) -> int:
    """The largest one that is not more, at least 2."""
    return 2 ** max(int(at_most).bit_length() - 1, 1)


def _multiple(number: int, of: int) -> int:
    """The next multiple, at least two for each."""
    return max(-(-number // of), 2) * of
