"""One trial of a sweep: a run of its own under runs/, trained epoch by epoch. A plain class; `trainable`
wraps it for Ray Tune.

opening ── folder and warm-up are there ──→ training ──→ ended
   │  └─── the run has ended already ───────────────────→ ended
   └────── an error ────────────────────────→ failed ←── an error while training
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig, properties
from pcl_ray.data.images import Images
from pcl_ray.errors import ConfigError, DataError, RunFailed
from pcl_ray.runs import final_artifacts, preparation
from pcl_ray.runs.folder import CONFIG_FILE, Busy, RunFolder, SweepFolder, read_state_at
from pcl_ray.support.files import atomic_file
from pcl_ray.support.redaction import scrubbed
from pcl_ray.sweep import warm_ups
from pcl_ray.sweep.trial_point import TrialPoint, run_name_of, title_of
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.sweep.trials.recording import TrialRecording
from pcl_ray.sweep.warm_ups import Claim
from pcl_ray.training.events import Event, Post
from pcl_ray.training.training_task import TrainingTask

Phase = Literal["opening", "training", "failed", "ended"]

_WAIT_S = 2.0  # a trial that waits for another says so to Tune this often
_ALIVE_EVERY_S = 5.0


class WarmupClaims(Protocol):
    """`warm_ups.Warmups` as a trial sees it, wherever that runs."""

    def claim(self, key: str, trial: str) -> Claim: ...
    def alive(self, key: str, trial: str) -> None: ...
    def release(self, key: str, trial: str) -> None: ...


class Epochs(Protocol):
    """Trains the task: gives back how many epochs are done, one after the other. Raises RunFailed."""

    def __call__(self, task: TrainingTask, post: Post, /) -> Iterator[int]: ...


class Trial:
    """One point's run. `step` until its result says done; then, or at any time before, `close`."""

    def __init__(
        self,
        point: TrialPoint,
        context: SweepContext,
        train: Epochs,
        warmup_claims: WarmupClaims,
        images: Callable[[], Images] | None = None,
        *,
        wait_s: float = _WAIT_S,
    ):
        """images: of the training part, for pictures of the prototypes; None: none are drawn. wait_s: seconds
        between two looks whether the folder or the warm-up is free.
        """
        self.point = point
        self.phase: Phase = "opening"
        self.config = point.config(context.base)
        self.plan = context.plan(self.config)
        self.title = title_of(point, self.config, self.plan)
        self.name = run_name_of(context.sweep, point)
        self._context = context
        self._train = train
        self._warmup_claims = warmup_claims
        self._images = images
        self._wait_s = wait_s
        self._folder: RunFolder | None = None  # locked, as long as it is not None
        self._warmup: _HeldWarmup | None = None  # that this trial trains for others too
        self._recording: TrialRecording | None = None  # from the beginning of the training on
        self._epochs: Iterator[int] = iter(())
        self._failure = ""

    def step(self) -> dict[str, Any]:
        """Trains one epoch; its figures for Ray Tune. Raises RunFailed one step after a result that says
        failing, which Tune then takes for final.
        """
        if self.phase == "failed":
            raise RunFailed(self._failure)
        try:
            if self.phase == "opening" and (other_result := self._begin()) is not None:
                return other_result
            epochs_done = next(self._epochs, None)
        except (RunFailed, ConfigError, DataError) as error:
            return self._fail(str(error))
        except Exception as error:  # out of memory, a bug: it costs this trial
            if self._folder is not None:
                final_artifacts.write_traceback(self._folder)
            return self._fail(f"{type(error).__name__}: {error}")
        assert self._recording is not None
        if epochs_done is not None and epochs_done < self.plan.epochs:
            return self._recording.result()
        self._end("finished")
        return self._recording.result() | {"done": True}

    def close(self) -> None:
        """Ends a trial that has not come to its own end: its scheduler or user wants no more of it now."""
        if isinstance(self._epochs, Generator):
            self._epochs.close()
        if self._folder is not None:
            early = self._folder.read_state().get("state") == "stopped early"
            self._end("stopped early" if early else "stopped")

    def checkpoint(self) -> Path | None:
        """The newest of its own."""
        return epoch_files.latest(epoch_files.folder_of(RunFolder.path_of(self.name)))

    def take_over(self, donor: Path, exploit: dict[str, Any]) -> None:
        """Goes on from another member's checkpoint with the trial's own values, as population-based training
        does; clusters are made anew with them.
        """
        from pcl_ray.checkpoints import run_state  # torch

        earlier = read_state_at(RunFolder.path_of(self.name)).get("exploits", [])
        if earlier and earlier[-1] == exploit and self.checkpoint() is not None:
            return  # a process that was lost and came back: what was taken over has been trained on
        deadline = time.monotonic() + self.config.resources.start_timeout_s
        while not self._open():
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"the folder of run {self.name} was not free within resources.start_timeout_s"
                )
            time.sleep(self._wait_s)
        assert self._folder is not None
        run_state.take_over(donor, self._folder.checkpoints)
        self._folder.write_state(exploits=[*earlier, exploit], began=0)

    # opening →

    def _begin(self) -> dict[str, Any] | None:
        """Opening → training, then None. Else the result of a step in which nothing can be trained: the trial
        waits for another, or its run has ended already.
        """
        if not self._open():
            time.sleep(self._wait_s)
            return {"epoch": 0, "waiting": True}
        assert self._folder is not None
        if (result := self._result_of_ended_run(self._folder)) is not None:
            self._give_back()
            self.phase = "ended"
            return result
        preparation.begin_with_weights(self._folder, self.config, lambda text: None)
        self._recording = TrialRecording(self._folder, self._context, self.config, self.plan, self.title)
        self._recording.begin(self._images)
        leave_warmup = None
        if self._warmup is not None:
            leave_warmup = str(SweepFolder.path_of(self._context.sweep) / warm_ups.FOLDER / self._warmup.key)
        task = TrainingTask(self.config, self.plan, str(self._folder.path), leave_warmup)
        self._epochs = self._train(task, self._handle)
        self.phase = "training"
        return None

    def _open(self) -> bool:
        """Takes the folder, and the warm-up if there is one to share; False if another trial has either."""
        if self._folder is None:
            try:
                self._folder = self._opened_folder()
            except Busy:  # a second trial of the same point: it takes the first one's result
                return False
            self._folder.write_state(
                sweep=self._context.sweep,
                point=dict(self.point.values),
                seed=self.point.seed,
                member=self.point.member,
                title=self.title,
            )
        if self.point.member is not None:
            self._folder.write_config(self.config)
        elif differing := _differing(self._folder.read_config(), self.config):
            raise ConfigError(
                f"run {self.name} is there already with other settings ({', '.join(differing)}): remove it,"
                " or give the sweep another --name"
            )
        return self._share_warmup(self._folder)

    def _opened_folder(self) -> RunFolder:
        if (RunFolder.path_of(self.name) / CONFIG_FILE).is_file():
            return RunFolder.open(self.name)
        return RunFolder.create(self.name, self.config)

    def _share_warmup(self, folder: RunFolder) -> bool:
        """Whether training can begin."""
        newest = folder.newest_checkpoint()
        epochs_done = epoch_files.epochs_done(newest) if newest else 0
        shares = self._context.settings.shared_warmup and warm_ups.exists(self.config)
        if not shares or epochs_done >= self.plan.warmup_epochs:
            return True
        key = warm_ups.key_of(self.config)
        claim = self._warmup_claims.claim(key, self.name)
        if claim.kind == "wait" and not epochs_done:  # one that was interrupted in it rather trains on
            return False
        if claim.kind == "train" and self._warmup is None:
            self._warmup = _HeldWarmup(key, self.name, self._warmup_claims)
        elif claim.kind == "ready":
            link(Path(claim.path), folder.checkpoints)
            folder.write_state(began=self.plan.warmup_epochs)
        return True

    def _result_of_ended_run(self, folder: RunFolder) -> dict[str, Any] | None:
        """The result of a run that was trained to its end before; None where there is something to train."""
        state = folder.read_state()
        early = state.get("state") == "stopped early"
        whole = state.get("state") == "finished" and state.get("epochs") == self.plan.epochs
        if not early and not whole:
            return None
        summary = state.get("trial") or {}
        score = {"score": summary["score"]} if summary.get("score") is not None else {}
        return {
            "epoch": state.get("epochs", 0),
            "of": self.plan.epochs,
            "done": True,
            "known": True,
            "early": early,
            "run": self.name,
        } | score

    # training →

    def _handle(self, event: Event) -> None:
        if event.kind == "epoch" and event.epoch + 1 >= self.plan.warmup_epochs:
            self._release_warmup()  # its state lies in the folder of warm-ups by now
        assert self._recording is not None
        self._recording.handle(event)

    def _fail(self, reason: str) -> dict[str, Any]:
        self._failure = scrubbed(reason) or "unknown"  # Tune keeps it too
        if self._folder is not None:
            self._folder.write_state(error=self._failure)
        epochs_done = self._recording.epochs_done if self._recording is not None else 0
        self._end("failed")
        self.phase = "failed"
        return {"epoch": epochs_done, "failing": self._failure, "run": self.name}

    def _end(self, state: Any) -> None:
        """Writes down how the run ended, closes its MLflow run, gives folder and warm-up back."""
        self.phase = "ended"
        self._release_warmup()  # before all that takes time: others may wait for it
        if self._folder is None:
            return
        if self._recording is not None:
            self._recording.conclude(state)
        elif state == "failed":
            self._folder.write_state(state=state)
        self._give_back()

    def _give_back(self) -> None:
        self._release_warmup()
        if self._folder is not None:
            self._folder.lock.release()
            self._folder = None

    def _release_warmup(self) -> None:
        if self._warmup is not None:
            self._warmup.release()
            self._warmup = None


class _HeldWarmup:
    """A warm-up that the trial trains for others too. Until `release` it says every few seconds that it is
    still at it: a feature pass or a compilation may take minutes without any event.
    """

    def __init__(self, key: str, trial: str, claims: WarmupClaims):
        self.key = key
        self._trial = trial
        self._claims = claims
        self._released = threading.Event()
        threading.Thread(target=self._stay_alive, name="warm-up", daemon=True).start()

    def release(self) -> None:
        self._released.set()
        self._claims.release(self.key, self._trial)

    def _stay_alive(self) -> None:
        while not self._released.is_set():
            with suppress(Exception):  # an actor that is being restarted
                self._claims.alive(self.key, self._trial)
            self._released.wait(_ALIVE_EVERY_S)


def _differing(stored: RunConfig, wanted: RunConfig) -> list[str]:
    one, two = stored.flatten(), wanted.flatten()
    return [name for name in two if one.get(name) != two[name] and not properties(name).changeable_on_resume]


def link(source: Path, folder: Path) -> None:
    """The same file in another folder, whole or not at all: one file for all who go on from it, since
    checkpoints are never written in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / source.name) as partial:
        try:
            os.link(source, partial)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, partial)
