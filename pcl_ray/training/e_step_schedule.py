"""What happens between two epochs: features, the E-step, figures; and what a run does where an E-step brings
no new clusters.

epoch e − 1 ─→ features (a pass, or the bank) ─→ EStep.begin ─→ Pending ─→ answer: clusters of epoch e,
                                                    │                      or the earlier ones, or none
                                                    └ with e_step.overlap: epoch e trains on the earlier
                                                      clusters meanwhile
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcl_ray.checkpoints.run_state import EStepState
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.data.reading import Readers
from pcl_ray.e_step import extract_features
from pcl_ray.errors import RunFailed
from pcl_ray.evaluation.augmented import AugmentedViews
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import Learner
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import rank, world_size
from pcl_ray.model.learner import precision, views_for
from pcl_ray.plan import RunPlan
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.events import Event, Post

_POLL_STEPS = 8  # with overlap: steps between two looks whether the E-step is done


class Pending(Protocol):
    """An E-step under way."""

    def ready(self) -> bool:
        """Whether it is done; the same on all workers, who all have to ask."""
        ...

    def wait(self) -> EStepAnswer:
        """The answer, the same for every worker. Raises RunFailed, on all workers, where there is none."""
        ...


class EStep(Protocol):
    """Where clusters come from: hands this worker's shards over, and does not wait."""

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> Pending: ...


@dataclass
class Progress:
    """Where the run is: between two epochs, exactly what a checkpoint keeps beside the learner."""

    epoch: int  # the next to train
    clusters: ClusterSet | None
    history: list[dict[str, Any]]
    e_step: EStepState = EStepState()


class LocalEStep:
    """The E-step in this process: the actor's class without the actor. With `e_step.overlap` in a thread,
    since clustering leaves Python's lock alone.
    """

    def __init__(self, config: RunConfig, splits: DataSplits):
        self._actor = EStepActor(config)
        self._settings = config.e_step
        self._labels = splits.train.labels
        self._holdout_labels = splits.holdout.labels if splits.holdout is not None else None

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> Pending:
        for part, shard in shards.items():
            self._actor.push(
                key,
                part,
                shard.indices,
                shard.features,
                request.num_images if part == "train" else request.num_holdout,
            )
        found: Future[EStepAnswer] = Future()

        def run() -> None:
            try:
                found.set_result(self._actor.run(key, request, previous, self._labels, self._holdout_labels))
            except BaseException as error:  # carried to whoever waits
                found.set_exception(error)

        if self._settings.overlap:
            threading.Thread(target=run, name="e-step", daemon=True).start()
        else:
            run()
        return _InThread(found, self._settings.timeout_s)


@dataclass(frozen=True)
class _InThread:
    found: Future[EStepAnswer]
    limit_s: float

    def ready(self) -> bool:
        return self.found.done()

    def wait(self) -> EStepAnswer:
        try:
            return self.found.result(timeout=self.limit_s)
        except TimeoutError:
            raise RunFailed(
                f"the E-step has not answered within e_step.timeout_s = {self.limit_s:g} s; raise it, or"
                " lower e_step.num_clusters"
            ) from None


class FeaturePass:
    """Momentum features of this worker's part of the images."""

    def __init__(self, splits: DataSplits, config: RunConfig, device: torch.device, readers: Readers):
        place: Any = {"rank": rank(), "world_size": world_size(), "device": device, "readers": readers}
        self.num_images, self.num_holdout, self._config, self._device = (
            len(splits.train),
            splits.num_holdout,
            config,
            device,
        )
        self._dtype = np.dtype(config.e_step.feature_dtype)
        self._train = EvaluationLoader(splits.train, config, **place)
        self._holdout = (
            EvaluationLoader(splits.holdout, config, **place) if splits.holdout is not None else None
        )
        self._augmented = (
            AugmentedViews(splits.train, config, device, readers) if config.evaluation.lidar_views else None
        )

    def train(self, learner: Learner) -> FeatureShard:
        return self._features(learner, self._train)

    def holdout(self, learner: Learner) -> FeatureShard | None:
        return self._features(learner, self._holdout) if self._holdout is not None else None

    def lidar(self, learner: Learner) -> dict[str, float]:
        """The figures from random views, where they are asked for."""
        return self._augmented.figures(learner) if self._augmented is not None else {}

    def some(self, learner: Learner, rows: np.ndarray) -> np.ndarray:
        """[n, C] float32 of these training images, made by this worker alone."""
        batches = np.array_split(rows, max(1, len(rows) // 64))
        return self._features(learner, self._train.batches(batches)).features.astype(np.float32, copy=False)

    def _features(self, learner: Learner, loader: Iterable[tuple[Tensor, Tensor]]) -> FeatureShard:
        with precision(self._config, self._device):  # as the keys of the M-step
            shard = extract_features(
                learner.pair.key, ((views_for(learner, views), ids) for views, ids in loader), self._device
            )
        return FeatureShard(shard.indices, shard.features.astype(self._dtype, copy=False))


class Between:
    """What happens between two epochs: new clusters for the next, figures of the last, where the plan asks
    for either.

    Without overlap all of it happens in `begin`. With it, `switch` and `finish` bring the answer in during
    the next epoch.
    """

    def __init__(
        self,
        attempt: str,
        learner: Learner,
        features: FeaturePass,
        progress: Progress,
        config: RunConfig,
        plan: RunPlan,
        e_step: EStep,
        tell: Post,
    ):
        self._attempt, self._learner, self._features, self._progress = attempt, learner, features, progress
        self._settings, self._plan, self._e_step, self._tell = config.e_step, plan, e_step, tell
        self._pending: Pending | None = None
        self._epoch, self._clustering = 0, False
        self._noted: dict[str, float] = {}

    def begin(self, epoch: int, evaluate: bool, *, anew: bool = False) -> None:
        """Features of the encoder as it is now, and the E-step before `epoch`; waits for it unless it may
        overlap with that epoch.

        anew: there is an E-step also where the plan has none, and it is waited for.
        """
        plan, config, progress = self._plan, self._settings, self._progress
        self._epoch, self._clustering = epoch, anew or plan.clusters_before(epoch)
        if not self._clustering and not evaluate:
            return
        self._tell(Event("phase", epoch, text="features"))
        if evaluate:
            # Straight to the epoch whose encoder this is: where an E-step is begun again after a stop, what
            # is noted goes to the next one.
            self._progress.history[-1]["metrics"] |= self._features.lidar(self._learner)
        start = time.perf_counter()
        shards = self._shards(epoch, evaluate)
        self._note({"perf/feature_seconds": time.perf_counter() - start})
        self._tell(Event("phase", epoch, text="clustering" if self._clustering else "evaluation"))
        step = epoch * plan.steps_per_epoch - 1 if epoch else None
        show = evaluate and plan.shows_after(epoch - 1)
        request = EStepRequest(
            epoch,
            self._clustering,
            evaluate,
            world_size(),
            self._features.num_images,
            self._features.num_holdout,
            step,
            show,
        )
        self._pending = self._e_step.begin(f"{self._attempt}/{epoch}", request, shards, progress.clusters)
        # With no clusters to train with meanwhile, and after the last epoch, there is nothing to overlap
        # with.
        if anew or not (
            config.overlap
            and progress.clusters is not None
            and progress.e_step.usable
            and epoch < plan.epochs
        ):
            self._note(self._take(start))
        elif self._clustering:
            self._note({"perf/e_step_seconds": time.perf_counter() - start})

    def _shards(self, epoch: int, evaluate: bool) -> dict[str, FeatureShard]:
        learner, settings = self._learner, self._settings
        banked = settings.features == "bank" and self._clustering
        if (
            banked
            and learner.bank is not None
            and not self._plan.takes_fresh_features(epoch, settings.fresh_every)
        ):
            train = learner.bank.shard()
        else:
            train = self._features.train(learner)
            if banked:
                learner.bank = FeatureBank.of(train, settings.bank_momentum, learner.device)
        holdout = self._features.holdout(learner) if evaluate else None
        return {"train": train} | ({"holdout": holdout} if holdout is not None else {})

    def switch(self, step_in_epoch: int) -> ClusterSet | None:
        """With overlap: the new clusters, before the step at which all workers change over to them."""
        if self._pending is None:
            return None
        fixed = self._settings.switch_step
        if (
            step_in_epoch == fixed
            if fixed is not None
            else step_in_epoch % _POLL_STEPS == 0 and self._pending.ready()
        ):
            return self.finish()
        return None

    def finish(self) -> ClusterSet | None:
        """Waits for what is still under way; gives back new clusters, if it brings any. The figures belong to
        the epoch whose encoder made the features.
        """
        if self._pending is None:
            return None
        before, last = self._progress.clusters, self._progress.history[-1]
        start = time.perf_counter()
        figures = self._take(start)
        # waited for in this epoch
        self._note({"perf/e_step_seconds": figures.pop("perf/e_step_seconds", 0.0)})
        last["metrics"] |= figures
        self._tell(Event("figures", last["epoch"], last["step"], figures))
        return self._progress.clusters if self._progress.clusters is not before else None

    def figures(self) -> dict[str, float]:
        """Of everything since the last call: what was measured, seconds in features, and in E-steps that
        training waited for.
        """
        taken, self._noted = self._noted, {}
        return taken

    def _take(self, start: float) -> dict[str, float]:
        """Waits for the answer, and makes it what the next epoch trains with."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        answer, progress = pending.wait(), self._progress
        if answer.outcome == "refused" or answer.missing:
            raise RunFailed(
                f"the E-step {answer.refused}" if answer.refused else f"the E-step lacks {answer.missing}"
            )
        if answer.exhibit is not None:
            self._tell(Event("exhibit", self._epoch, answer.exhibit.step, exhibit=answer.exhibit))
        for text in answer.warnings:
            self._tell(Event("warning", self._epoch, text=f"the E-step {text}"))
        if answer.refused:
            self._keep(answer)
        elif answer.clusters is not None:
            progress.clusters, progress.e_step = answer.clusters, EStepState(concluded=self._epoch)
        waited = time.perf_counter() - start - answer.metrics.get("perf/evaluation_seconds", 0.0)
        of_clustering = {"perf/e_step_seconds": waited, "cluster/failures": float(progress.e_step.failures)}
        return answer.metrics | (of_clustering if self._clustering else {})

    def _keep(self, answer: EStepAnswer) -> None:
        progress, limit = self._progress, self._settings.patience
        failures = progress.e_step.failures + 1
        usable = answer.outcome == "rejected" and progress.clusters is not None
        progress.e_step = EStepState(usable, failures, self._epoch)
        if failures >= limit and self._epoch < self._plan.epochs:
            raise RunFailed(
                f"the E-step {answer.refused}. That was the {_ordinal(failures)} time in a row"
                f" (e_step.patience = {limit})"
            )
        instead = (
            "the last good clustering stays in force" if usable else "the next epoch trains on InfoNCE alone"
        )
        self._tell(
            Event(
                "warning",
                self._epoch,
                text=(
                    f"the E-step {answer.refused}. Meanwhile {instead} ({failures} of {limit} times in a row)"
                ),
            )
        )

    def _note(self, figures: dict[str, float]) -> None:
        """Seconds add up: the first epoch of a run may have an E-step before it and one after."""
        summed = {
            name: self._noted[name] + value
            for name, value in figures.items()
            if name in ("perf/e_step_seconds", "perf/feature_seconds") and name in self._noted
        }
        self._noted |= figures | summed


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
