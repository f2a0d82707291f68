"""When clusters are made, when they come into force, and what a run does where an E-step brings none.

epoch e − 1 ─→ features (a pass, or the bank) ─→ EStep.begin ─→ PendingEStep ─→ answer: clusters of epoch e,
                                                    │                           or the earlier ones, or none
                                                    └ with e_step.overlap: epoch e trains on the earlier
                                                      clusters meanwhile
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from pcl_ray.checkpoints.run_state import EStepState
from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import E_STEP_SECONDS, EVALUATION_SECONDS, FAILURES, FEATURE_SECONDS
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import Learner
from pcl_ray.model.bank import FeatureBank
from pcl_ray.model.distributed import world_size
from pcl_ray.plan import RunPlan
from pcl_ray.training.e_step_actor import EStepAnswer
from pcl_ray.training.e_step_shards import TRAIN, EStepRequest
from pcl_ray.training.events import Event, Post
from pcl_ray.training.feature_pass import FeaturePass
from pcl_ray.training.worker_checkpoints import Progress

_POLL_STEPS = 8  # with overlap: steps between two looks whether the E-step is done


class PendingEStep(Protocol):
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
    ) -> PendingEStep: ...


@dataclass(frozen=True)
class EStepOutput:
    """What an E-step or an evaluation brought, as far as it is there."""

    clusters: ClusterSet | None = None  # new ones
    encoder_figures: dict[str, float] = field(default_factory=dict)  # of the epoch that made the encoder
    # of the epoch that is trained now or, between two epochs, is recorded next: seconds that it waited, too
    epoch_figures: dict[str, float] = field(default_factory=dict)


class EStepSchedule:
    """New clusters for the next epoch and figures of the last one, where the plan asks for either.

    Without overlap all of it happens in `begin`. With it, `switch` and `finish` bring the answer in during
    the next epoch. All three put new clusters, and how E-steps have ended of late, into `progress`.
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
        post: Post,
    ):
        """attempt: a name of this start of the run, the same on all workers, that no other start has."""
        self._attempt = attempt
        self._learner = learner
        self._features = features
        self._progress = progress
        self._settings = config.e_step
        self._plan = plan
        self._e_step = e_step
        self._post = post
        self._pending: PendingEStep | None = None
        self._epoch = 0
        self._clustering = False

    def begin(self, epoch: int, *, evaluate: bool, anew: bool = False) -> EStepOutput:
        """Features of the encoder as it is, and the E-step before `epoch`; waits unless they may overlap.

        anew: there is an E-step also where the plan has none, and it is waited for.
        """
        plan, progress = self._plan, self._progress
        self._epoch = epoch
        self._clustering = anew or plan.clusters_before(epoch)
        if not self._clustering and not evaluate:
            return EStepOutput()
        self._post(Event("phase", epoch, text="features"))
        encoder_figures = self._features.lidar(self._learner) if evaluate else {}
        start = time.perf_counter()
        shards = self._shards(epoch, evaluate)
        figures = {FEATURE_SECONDS.name: time.perf_counter() - start}
        self._post(Event("phase", epoch, text="clustering" if self._clustering else "evaluation"))
        request = EStepRequest(
            epoch,
            self._clustering,
            evaluate,
            world_size(),
            self._features.num_images,
            *self._features.sample_sizes,
            step=epoch * plan.steps_per_epoch - 1 if epoch else None,
            show=evaluate and plan.shows_after(epoch - 1),
            final=evaluate and epoch == plan.epochs,
        )
        before = progress.clusters
        self._pending = self._e_step.begin(f"{self._attempt}/{epoch}", request, shards, before)
        if anew or not self._may_overlap(epoch):
            figures |= self._conclude(self._pending, start)
        elif self._clustering:
            figures[E_STEP_SECONDS.name] = time.perf_counter() - start
        return EStepOutput(self._newer_than(before), encoder_figures, figures)

    @property
    def is_pending(self) -> bool:
        """Whether an E-step goes on while the epoch trains."""
        return self._pending is not None

    def switch(self, step_in_epoch: int) -> EStepOutput | None:
        """What an overlapping E-step brought, once, at the step where all workers change over; else None."""
        if self._pending is None:
            return None
        fixed = self._settings.switch_step
        if fixed is not None:
            due = step_in_epoch == fixed
        else:
            due = step_in_epoch % _POLL_STEPS == 0 and self._pending.ready()
        return self.finish() if due else None

    def finish(self) -> EStepOutput | None:
        """Waits for what is still under way, and gives back what it brought; None where nothing is."""
        if self._pending is None:
            return None
        before = self._progress.clusters
        figures = self._conclude(self._pending, time.perf_counter())
        waited = {E_STEP_SECONDS.name: figures.pop(E_STEP_SECONDS.name, 0.0)}
        return EStepOutput(self._newer_than(before), figures, waited)

    def _may_overlap(self, epoch: int) -> bool:
        """Whether the E-step before `epoch` may overlap it: it is trained, and there are clusters for it."""
        has_clusters = self._progress.clusters is not None and self._progress.e_step.usable
        return self._settings.overlap and has_clusters and epoch < self._plan.epochs

    def _newer_than(self, before: ClusterSet | None) -> ClusterSet | None:
        clusters = self._progress.clusters
        return clusters if clusters is not before else None

    def _shards(self, epoch: int, evaluate: bool) -> dict[str, FeatureShard]:
        """This worker's features, by part of the images: from the bank, or from a pass over the images."""
        learner, settings, features = self._learner, self._settings, self._features
        banked = settings.features == "bank" and self._clustering
        fresh = learner.bank is None or self._plan.takes_fresh_features(epoch, settings.fresh_every)
        if banked and learner.bank is not None and not fresh:
            shards = {TRAIN: learner.bank.shard()}
            return shards | features.labelled(learner) if evaluate else shards
        shards = features.train(learner, labelled=evaluate)
        if banked:
            learner.bank = FeatureBank.of(shards[TRAIN], settings.bank_momentum, learner.device)
        return shards

    def _conclude(self, pending: PendingEStep, start: float) -> dict[str, float]:
        """Waits for the answer, and makes it what the next epoch trains with; gives back its figures, and
        with those of an E-step the seconds since `start`.
        """
        self._pending = None
        answer = pending.wait()
        if answer.outcome == "refused" or answer.missing:
            reason = answer.refused if answer.refused else f"lacks {answer.missing}"
            raise RunFailed(f"the E-step {reason}")
        if answer.snapshot is not None:
            shown = answer.snapshot
            self._post(Event("snapshot", self._epoch, shown.step, snapshot=shown))
        for text in answer.warnings:
            self._post(Event("warning", self._epoch, text=f"the E-step {text}"))
        progress = self._progress
        if answer.refused:
            self._go_on_without(answer)
        elif answer.clusters is not None:
            progress.clusters, progress.e_step = answer.clusters, EStepState(concluded=self._epoch)
        if not self._clustering:
            return dict(answer.metrics)
        waited = time.perf_counter() - start - answer.metrics.get(EVALUATION_SECONDS.name, 0.0)
        failures = float(progress.e_step.failures)
        return answer.metrics | {E_STEP_SECONDS.name: waited, FAILURES.name: failures}

    def _go_on_without(self, answer: EStepAnswer) -> None:
        """The E-step brought no clusters: the last good ones stay in force, or the next epoch trains on
        InfoNCE alone. Raises RunFailed where that has happened `e_step.patience` times in a row.
        """
        progress, limit = self._progress, self._settings.patience
        failures = progress.e_step.failures + 1
        usable = answer.outcome == "rejected" and progress.clusters is not None
        progress.e_step = EStepState(usable, failures, self._epoch)
        if failures >= limit and self._epoch < self._plan.epochs:
            raise RunFailed(
                f"the E-step {answer.refused}. That was the {_ordinal(failures)} time in a row"
                f" (e_step.patience = {limit})"
            )
        if usable:
            consequence = "the last good clustering stays in force"
        else:
            consequence = "the next epoch trains on InfoNCE alone"
        text = f"the E-step {answer.refused}. Meanwhile {consequence} ({failures} of {limit} times in a row)"
        self._post(Event("warning", self._epoch, text=text))


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
