"""The E-step actor: gathers what the workers send, clusters, measures, and is the one that says which
clusters come next.

    single       every worker: push(key, "train", rows …) ─→ rank 0: run(key, request, …)
                    └→ assemble → cluster → quality, evaluation → EStepAnswer
    distributed, every worker or shard clusters its rows with the others, then: push_result(key, labels …)
    sharded         ─→ rank 0: run(key, request, …) → merge → quality, evaluation of a sample → EStepAnswer

A plain class: `on_ray.launch` wraps it. The answer is a return value and not something the actor puts
into the store, so that it outlives the actor. A restarted actor is empty; `run` then says what is missing and
the workers push again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pcl_ray import snapshot
from pcl_ray.clustering import ClusterSet, quality
from pcl_ray.config import RunConfig
from pcl_ray.evaluation import measure, measure_clusters
from pcl_ray.features import FeatureShard, Gathering
from pcl_ray.snapshot import Exhibit
from pcl_ray.training.e_step_shards import EStepRequest, Outcome, ShardAnswer, attempt, merged
from pcl_ray.training.system_metrics import SystemWatch

_EVALUATION_ROWS = 200_000  # where the features stay with the workers, so many are sent for evaluation


@dataclass(frozen=True)
class EStepAnswer:
    """What comes of an E-step. It has new clusters, or says why not."""

    clusters: ClusterSet | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    refused: str = ""  # why there are no new clusters; trying again does not help
    # refused: the run cannot go on; collapsed: train without prototypes; rejected: keep the earlier clusters
    outcome: Outcome = "clustered"
    missing: str = ""  # what has not arrived, because the actor was restarted; pushing again helps
    warnings: tuple[str, ...] = ()
    snapshot: Exhibit | None = None


@dataclass
class _Part:
    """Features of one part of the images (train or holdout) as they arrive."""

    # from workers that did not say how many there will be
    pieces: list[FeatureShard] = field(default_factory=list)
    gathering: Gathering | None = None
    done: int = 0  # workers that have sent all

    def add(self, shard: FeatureShard, total: int | None) -> None:
        if total is None:
            self.pieces.append(shard)
            return
        if self.gathering is None:
            self.gathering = Gathering(total)
        self.gathering.add(shard)

    def whole(self, total: int) -> np.ndarray:
        gathering = self.gathering or Gathering(total)
        for piece in self.pieces:
            gathering.add(piece)
        return gathering.whole()


class EStepActor:
    """What is pushed is kept for one key at a time: a push under a new key drops the old."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._lock = threading.Lock()
        self._key = ""
        self._parts: dict[str, _Part] = {}
        self._results: list[ShardAnswer] = []

    def ping(self) -> None:
        """Answers as soon as the actor is up."""

    def watch(self, interval_s: float, board: Any) -> None:
        """How busy this process and its node are, every so many seconds, to the driver's board."""
        SystemWatch(interval_s, board.post.remote, process="e_step")

    def push(
        self,
        key: str,
        part: str,
        indices: np.ndarray,
        features: np.ndarray,
        total: int | None = None,
        done: bool = True,
    ) -> None:
        """Some of one worker's features of a part (train or holdout), of `total` images; `done` with its
        last.

        Arrays come in as top-level arguments: Ray hands those over without copying, and they are copied to
        their place at once.
        """
        with self._lock:
            self._under(key)
            held = self._parts.setdefault(part, _Part())
            held.add(FeatureShard(indices, features), total)
            held.done += done

    def push_result(self, key: str, answer: ShardAnswer) -> None:
        """What a worker or shard found, where clustering is theirs."""
        with self._lock:
            self._under(key)
            self._results.append(answer)

    def _under(self, key: str) -> None:
        if key != self._key:
            self._key, self._parts, self._results = key, {}, []

    def run(
        self,
        key: str,
        request: EStepRequest,
        previous: ClusterSet | None,
        labels: np.ndarray | None,
        holdout_labels: np.ndarray | None,
        results: int = 0,
        *given: ShardAnswer,
    ) -> EStepAnswer:
        """Clusters and measures what was pushed under `key`; or merges `results` answers, `given` or pushed.
        Features that cannot be clustered are no error: see EStepAnswer.
        """
        with self._lock:
            parts, answers = (
                (self._parts, [*self._results, *given]) if key == self._key else ({}, list(given))
            )
            if key == self._key:
                self._parts, self._results = {}, []
        if missing := _missing(request, parts, len(answers), results):
            return EStepAnswer(missing=missing)
        stride = evaluation_stride(request.num_images) if results else 1
        features = parts["train"].whole(-(-request.num_images // stride)) if "train" in parts else None
        start = time.perf_counter()
        answer = EStepAnswer()
        if request.cluster:
            if not results:
                assert features is not None
                answers = [
                    attempt(
                        torch.from_numpy(features),
                        None,
                        request,
                        self._config,
                        previous,
                        gpu=self._config.resources.e_step_gpus > 0,
                    )
                ]
            answer = _concluded(answers, request, previous)
            if answer.outcome == "refused":
                return answer
            answer.metrics["perf/cluster_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        if request.evaluate:
            assert features is not None
            holdout = parts["holdout"].whole(request.num_holdout) if request.num_holdout else None
            of_features = labels if labels is None else labels[::stride]
            answer.metrics.update(
                measure(features, of_features, holdout, holdout_labels, None, self._config.evaluation)
            )
            answer.metrics.update(measure_clusters(answer.clusters, labels))
            if request.show:
                answer = _with_snapshot(
                    answer, features, stride, request, answer.clusters or previous, labels
                )
            answer.metrics["perf/evaluation_seconds"] = time.perf_counter() - start
        return answer


def _with_snapshot(
    answer: EStepAnswer,
    features: np.ndarray,
    stride: int,
    request: EStepRequest,
    clusters: ClusterSet | None,
    labels: np.ndarray | None,
) -> EStepAnswer:
    """A picture less is no reason to lose an E-step."""
    ids = np.arange(0, request.num_images, stride)
    step = 0 if request.step is None else request.step
    try:
        made = snapshot.make(
            features, ids, clusters, labels, epoch=request.epoch, step=step, num_images=request.num_images
        )
    except Exception as error:
        return replace(
            answer, warnings=(*answer.warnings, f"cannot be shown ({type(error).__name__}: {error})")
        )
    return replace(answer, snapshot=made)


def evaluation_stride(num_images: int) -> int:
    """Every so many images are evaluated where the features are not in the actor anyway."""
    return -(-num_images // _EVALUATION_ROWS)


def _missing(request: EStepRequest, parts: dict[str, _Part], arrived: int, results: int) -> str:
    if request.cluster and arrived < results:
        return f"{results - arrived} of {results} results"
    wanted = ["train"] if request.evaluate or not results else []
    for part in [*wanted, "holdout"] if request.evaluate and request.num_holdout else wanted:
        if (done := parts[part].done if part in parts else 0) < request.shards:
            return f"{request.shards - done} of {request.shards} shards of {part} features"
    return ""


def _concluded(answers: list[ShardAnswer], request: EStepRequest, previous: ClusterSet | None) -> EStepAnswer:
    """The answer that the processes, who all agree, have come to."""
    first = next((answer for answer in answers if answer.common), answers[0])
    if first.outcome != "clustered":
        return EStepAnswer(metrics=dict(first.figures), refused=first.reason, outcome=first.outcome)
    clusters = merged(answers, request)
    return EStepAnswer(clusters, _quality(clusters, previous, first), warnings=first.warnings)


def _quality(clusters: ClusterSet, previous: ClusterSet | None, answer: ShardAnswer) -> dict[str, float]:
    # of other knobs, perhaps fewer: a member of a population that took over
    earlier = previous.clusterings if previous is not None else ()
    before = [earlier[m] if m < len(earlier) else None for m in range(len(clusters.clusterings))]
    return dict(answer.figures) | {
        f"cluster/{m}/{name}": value
        for m, (clustering, old, common) in enumerate(
            zip(clusters.clusterings, before, answer.common, strict=True)
        )
        for name, value in {
            "k": float(clustering.num_clusters),
            **quality(clustering, old),
            **common[-1],
        }.items()
    }
