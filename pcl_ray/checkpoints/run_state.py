"""What is in a checkpoint: one file, written whole or not at all, with checksums, enough to go on exactly."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Collection, Mapping
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

# 2: the state of the E-step beside its clusters; 3: an E-step that is owed; 4: the images of the queue's
# keys; 5: an epoch that is under way
FORMAT = 5


class DamagedCheckpoint(RunFailed):
    """The file is not what was written, or was not written by us: the one before may be."""


class LaterFormat(RunFailed):
    """The checkpoint was written by a later version: it is not damaged, and nothing may go on without it."""


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


@dataclass(frozen=True, eq=False)
class EpochPart:
    """The part of an epoch that is trained already: what makes its figures and its workers go on exactly."""

    metrics: dict[str, float]  # of the epoch's record so far
    seconds: float  # since the epoch began, with its E-step
    tally: dict[str, Any]  # `meters.EpochTally.state_dict()`
    buffers: Tensor  # [W, n], floating-point buffers of each worker, in rank order: averaged between epochs

    @property
    def steps(self) -> int:
        """The steps of the epoch that are done; the next one is this."""
        return self.tally["seen"]


@dataclass
class RunState:
    """A run between two epochs, or within one. Rates, batches and views follow from (seed, epoch, image)."""

    epoch: int  # the next epoch to train, or that is trained
    learner: dict[str, Any]  # model, queue, optimizer
    clusters: ClusterSet | None  # what the next epoch trains with
    random_states: list[Tensor]  # torch's generator on each worker, in rank order
    history: list[dict[str, Any]]  # one entry an epoch: {"epoch", "step", "metrics"}
    encoder: EncoderConfig  # with the number of channels, enough to rebuild the encoder from this file alone
    channels: int
    e_step: EStepState = EStepState()
    part: EpochPart | None = None
    rollbacks: int = 0  # how often the run went back to an earlier state with a smaller learning rate


def copied(state: RunState) -> RunState:
    """The state as it is now, on the CPU: nothing that goes on training changes it any more.

    Of the history only the newest entry is copied, the others have their last figures: with them each
    checkpoint of a long run would copy megabytes.
    """
    return replace(
        state,
        learner=_copy(state.learner),
        random_states=_copy(state.random_states),
        history=[*state.history[:-1], *_copy(state.history[-1:])],
        e_step=replace(state.e_step, bank=_copy(state.e_step.bank)),
        part=None if state.part is None else EpochPart(**_copy(vars(state.part))),
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _copy(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_copy(part) for part in value])
    return value


def save(state: RunState, folder: Path, keep: int, kept_epochs: Collection[int] = ()) -> Path:
    """Writes `folder/epoch_00012.pt` (12 epochs done) and then removes those that it makes superfluous: all
    but the newest `keep` and those after `kept_epochs`.

    A crash or full disk leaves earlier checkpoints untouched. Raises RunFailed where it cannot be written.
    """
    target = epoch_files.path_of(folder, state.epoch, state.part.steps if state.part else 0)
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
        "part": None if state.part is None else vars(state.part),
        "rollbacks": state.rollbacks,
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
            f"the checkpoint after {epoch_files.progress_text(target)} could not be written to {folder}"
            f" ({_reason(error)}). {way_out}"
        ) from error
    epoch_files.prune(folder, keep, kept_epochs)
    return target


def load(path: Path, *, check: bool = True) -> RunState:
    """Reads a checkpoint; executes nothing in it. Raises DamagedCheckpoint, LaterFormat, or another RunFailed
    where the file cannot be reached.

    check: with its checksums, by which one bit that has flipped is noticed; about a second a GB.
    """
    try:
        if check:
            _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] > FORMAT:
            raise LaterFormat(
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
            part=EpochPart(**content["part"]) if content.get("part") else None,
            rollbacks=content.get("rollbacks", 0),
        )
    except RunFailed:
        raise
    except Exception as error:  # a cut or foreign file shows as one of many kinds of error
        out_of_reach = isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.EIO)
        kind = RunFailed if out_of_reach or isinstance(error, MemoryError) else DamagedCheckpoint
        raise kind(f"checkpoint {path} cannot be read ({_reason(error)})") from error


def _check_sums(path: Path) -> None:
    """Raises ValueError where a checksum of the file's parts is wrong: torch writes them and reads none."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError(f"the checksum of its part {wrong} is wrong: the file has changed on the disk")


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
