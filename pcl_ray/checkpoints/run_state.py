"""What is in a checkpoint: one file an epoch, written whole or not at all, enough to go on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_ray.checkpoints import epoch_files
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import EncoderConfig
from pcl_ray.errors import RunFailed
from pcl_ray.support.files import atomic_file

# 2: the state of the E-step beside its clusters; 3: an E-step that is owed; 4: the images of the queue's keys
FORMAT = 4


@dataclass(frozen=True, eq=False)
class EStepState:
    """How the last E-steps went."""

    usable: bool = True  # False: the features had collapsed, and the next epoch trains without prototypes
    failures: int = 0  # E-steps in a row without a clustering
    # The epoch before which the last E-step was, however it ended. One that is still under way is made again.
    concluded: int | None = None
    bank: Tensor | None = None  # [N, C], the feature bank
    owed: bool = False  # saved before the E-step and the evaluation that end its last epoch
    anew: bool = False  # its clusters are of other knobs: an E-step comes first, whatever the plan says


@dataclass
class RunState:
    """A run between two epochs. Rates, batches and views follow from (seed, epoch, image), not from state."""

    epoch: int  # the next epoch to train
    learner: dict[str, Any]  # model, queue, optimizer
    clusters: ClusterSet | None  # what the next epoch trains with
    random_states: list[Tensor]  # torch's generator on each worker, in rank order
    history: list[dict[str, Any]]  # one entry an epoch: {"epoch", "step", "metrics"}
    encoder: EncoderConfig  # with the number of channels, enough to rebuild the encoder from this file alone
    channels: int
    e_step: EStepState = EStepState()


def save(state: RunState, folder: Path, keep: int) -> Path:
    """Writes `folder/epoch_00012.pt` (12 epochs done) and then removes all but the newest `keep`.

    A crash or full disk leaves earlier checkpoints untouched. Raises RunFailed where it cannot be written.
    """
    target = epoch_files.path_of(folder, state.epoch)
    content = {
        "format": "pcl_ray",
        "version": FORMAT,
        "epoch": state.epoch,
        **state.learner,
        "clusters": None if state.clusters is None else state.clusters.state_dict(),
        "random_states": state.random_states,
        "history": state.history,
        "encoder": state.encoder.model_dump(),
        "channels": state.channels,
        "e_step": {
            name: getattr(state.e_step, name)
            for name in ("usable", "failures", "concluded", "bank", "owed", "anew")
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(target, sync=True, only_writer=True) as partial, partial.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        way_out = "There is none from before; free some space and start again"
        if last_good := epoch_files.latest(folder):
            way_out = f"The last good one is {last_good.name}: free some space and resume"
        raise RunFailed(
            f"the checkpoint after epoch {state.epoch} could not be written to {folder} ({_reason(error)})."
            f" {way_out}"
        ) from error
    epoch_files.prune(folder, keep)
    return target


def load(path: Path) -> RunState:
    """Reads a checkpoint; executes nothing in it. Raises RunFailed for a damaged file or a later version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] > FORMAT:
            raise RunFailed(
                f"checkpoint {path} has format {content['version']}, this version reads up to {FORMAT}:"
                " upgrade pcl_ray"
            )
        return RunState(
            epoch=content["epoch"],
            learner={name: content[name] for name in ("model", "queue", "optimizer")},
            clusters=None if content["clusters"] is None else ClusterSet.from_state_dict(content["clusters"]),
            random_states=content["random_states"],
            history=content["history"],
            encoder=EncoderConfig(**content["encoder"]),
            channels=content["channels"],
            e_step=_e_step_state(content),
        )
    except RunFailed:
        raise
    except Exception as error:  # a cut or foreign file shows as one of many kinds of error
        raise RunFailed(
            f"checkpoint {path} cannot be read ({_reason(error)}); remove it to go on from the one before"
        ) from error


def _e_step_state(content: Mapping[str, Any]) -> EStepState:
    if "e_step" in content:
        return EStepState(**content["e_step"])
    clusters = content["clusters"]  # of format 1, where only an E-step that brought clusters left a trace
    return EStepState(concluded=clusters["epoch"] if clusters else None)


def take_over(source: Path, folder: Path) -> Path:
    """Makes another run's checkpoint the only one of `folder`; returns its path. An E-step comes next.

    Raises as `load` and `save` do.
    """
    state = load(source)
    state.e_step = replace(state.e_step, concluded=None, failures=0, anew=state.clusters is not None)
    path = save(state, folder, keep=1)
    for other in epoch_files.complete(folder):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def _reason(error: BaseException) -> str:
    for cause in (error, error.__context__):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
