"""The weights that a run begins with, where they are not random: `encoder.init_from`.

They are a checkpoint after no epoch, made by the driver: workers, wherever they are, go on from it as from
any other, and a run that is resumed needs the weights' file no more.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pcl_ray.checkpoints import run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.config import EncoderConfig, RunConfig
from pcl_ray.errors import ConfigError, DataError, Problem
from pcl_ray.model import encoder as encoders
from pcl_ray.model.encoder import Encoder
from pcl_ray.model.learner import Learner, build_learner
from pcl_ray.model.weights.adapting import adapt_input
from pcl_ray.model.weights.loading import LoadedWeights, read_weights


def begin_with(source: str, learner: Learner, config: RunConfig) -> str:
    """Gives a fresh learner the weights of a source: query and momentum encoder, and the queue where its
    features have the same head, size and dimension. Of a file with one encoder the momentum encoder is a
    copy. What the source lacks stays as it was drawn.

    Returns one line that says what was taken, adapted, left out. Raises DataError where the source cannot be
    read, or its backbone is another one.
    """
    weights = read_weights(source)
    try:
        averaged = read_weights(source, encoder="momentum")
    except DataError:  # a file that was made smaller, without its momentum encoder
        averaged = weights
    query, key = learner.pair.query, learner.pair.key
    assert isinstance(query, Encoder)
    assert isinstance(key, Encoder)
    changes, has_head = _fill(query, weights, config)
    _fill(key, averaged, config)
    notes = [weights.note]
    if changes:
        notes.append(f"adapted: {', '.join(changes)}")
    if not has_head:
        notes.append("the head is new")
    if averaged.queue is not None:
        fits = has_head and averaged.queue.shape == learner.queue.keys.shape
        if fits:
            _fill_queue(learner, averaged.queue)
        size = " × ".join(map(str, averaged.queue.shape))
        notes.append("queue taken over" if fits else f"queue of {size} left out")
    return "; ".join(notes)


def initial_checkpoint(config: RunConfig, folder: Path) -> tuple[Path, str]:
    """Writes the checkpoint of a run that begins with the weights of `encoder.init_from` into the folder of
    its checkpoints. Returns its path, and what was taken in one line. Raises DataError or RunFailed.
    """
    learner, note = _initial_learner(config)
    state = RunState(0, learner.state_dict(), None, [], [], config.encoder, config.data.channels)
    return run_state.save(state, folder, config.train.keep_checkpoints), note


def encoder_of_weights(config: RunConfig) -> EncoderConfig:
    """The run's encoder with the shape of the weights of `encoder.init_from`: their backbone, and their head
    where that is one of ours. Raises DataError for weights that cannot be read.
    """
    assert config.encoder.init_from is not None
    weights = read_weights(config.encoder.init_from)
    shape = weights.config.model_dump(include={"backbone", "stem", "width", "blocks", "stem_stride"})
    shaped = config.encoder.model_copy(update=shape)
    if not weights.has_head:
        return shaped
    head = weights.config.model_dump(include={"head", "head_width", "head_batch_norm", "dim"})
    with_head = shaped.model_copy(update=head)
    with torch.random.fork_rng(devices=[]):
        built = encoders.build(with_head, weights.channels).head.state_dict()
    theirs = weights.encoder.get_submodule("head").state_dict()
    same = {name: value.shape for name, value in built.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    return with_head if same else shaped


def problem_with(config: RunConfig) -> Problem | None:
    """Why the weights of `encoder.init_from` cannot be taken, or so many stages not frozen; None where they
    can. Reads the weights, and takes seconds.
    """
    try:
        _initial_learner(config)
    except DataError as error:
        return Problem("encoder.init_from", config.encoder.init_from, str(error))
    except ConfigError as error:
        return error.problems[0]
    return None


def _initial_learner(config: RunConfig) -> tuple[Learner, str]:
    """A learner with the weights that the run begins with, on the CPU; and what was taken, in one line."""
    plain = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    learner = build_learner(plain, torch.device("cpu"))
    source = config.encoder.init_from
    return learner, begin_with(source, learner, config) if source is not None else ""


def _fill(encoder: Encoder, weights: LoadedWeights, config: RunConfig) -> tuple[list[str], bool]:
    """Loads an encoder's backbone, and its head where that fits; says what was adapted, and whether."""
    source = weights.encoder
    assert isinstance(source.backbone, nn.Module)
    assert isinstance(source.head, nn.Module)
    state, changes = adapt_input(source.backbone.state_dict(), encoder.backbone.state_dict())
    try:
        encoder.backbone.load_state_dict(state)
    except RuntimeError:
        knobs = config.encoder.model_dump(include={"backbone", "width", "blocks"})
        theirs = weights.config.model_dump(include={"backbone", "width", "blocks"})
        if knobs["backbone"] != "small_resnet":
            knobs, theirs = {"backbone": knobs["backbone"]}, {"backbone": theirs["backbone"]}
        differing = [name for name in knobs if knobs[name] != theirs[name]] or ["backbone"]
        wanted = " ".join(f"encoder.{name}={_written(theirs[name])}" for name in differing)
        raise DataError(
            f"{str(weights.path)!r} holds another backbone than the run's ({_written(knobs['backbone'])}); it"
            f" takes {wanted}"
        ) from None
    own_head = encoder.head.state_dict()
    head = source.head.state_dict() if weights.has_head else {}
    has_head = bool(head) and {name: value.shape for name, value in head.items()} == {
        name: value.shape for name, value in own_head.items()
    }
    if has_head:
        encoder.head.load_state_dict(head)
    return changes, has_head


def _written(value: object) -> str:
    """A knob's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@torch.no_grad()
def _fill_queue(learner: Learner, keys: Tensor) -> None:
    """Its images are none of this run's."""
    learner.queue.keys.copy_(keys)
    learner.queue.indices.fill_(-1)
