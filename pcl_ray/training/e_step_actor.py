"""The E-step actor gathers what the workers send, clusters, measures, and decides which clusters come next.

    single       every worker: push(key, part, rows …) ─→ rank 0: run(key, request, …)
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

from pcl_ray.clustering import ClusterSet, quality
from pcl_ray.config import RunConfig
from pcl_ray.config.figures import CLUSTER_SECONDS, EVALUATION_SECONDS
from pcl_ray.e_step import Outcome, ShardInput, ShardResult, merge_shards
from pcl_ray.evaluation import (
    LabelledFeatures,
    LabelledSample,
    measure,
    measure_clusters,
    measure_final,
    measure_labelled,
    measure_references,
)
from pcl_ray.features import FeatureShard, Gathering
from pcl_ray.snapshot import Snapshot, make_snapshot
from pcl_ray.training.e_step_shards import (
    BANK,
    BANK_HEAD,
    BANK_PIXELS,
    QUERIES,
    QUERIES_HEAD,
    QUERIES_PIXELS,
    TRAIN,
    EStepRequest,
    shard_result,
)
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
    snapshot: Snapshot | None = None


@dataclass
class _Part:
    """Features of one part of the images as they arrive."""

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
    """Gathers features, or the results of others that cluster, and answers an EStepRequest. What is pushed is
    held for one key at a time: a push under a new key drops what came under the old one.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self._lock = threading.Lock()
        self._key = ""
        self._parts: dict[str, _Part] = {}
        self._results: list[ShardResult] = []

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
        """Takes some of a worker's features of a part, one of `e_step_shards`, of `total` images; `done`: the
        last.

        Arrays are top-level arguments: Ray hands them over uncopied, and each is copied to its place at once.
        """
        with self._lock:
            self._begin(key)
            gathered = self._parts.setdefault(part, _Part())
            gathered.add(FeatureShard(indices, features), total)
            gathered.done += done

    def push_result(self, key: str, result: ShardResult) -> None:
        """Takes the result of a worker or shard, where clustering is theirs."""
        with self._lock:
            self._begin(key)
            self._results.append(result)

    def _begin(self, key: str) -> None:
        if key != self._key:
            self._key, self._parts, self._results = key, {}, []

    def run(
        self,
        key: str,
        request: EStepRequest,
        previous: ClusterSet | None,
        labels: np.ndarray | None,
        holdout_labels: np.ndarray | None,
        num_results: int = 0,
        *results: ShardResult,
    ) -> EStepAnswer:
        """Clusters and measures what was pushed under `key`; or merges `num_results` results, given or
        pushed. Features that cannot be clustered are no error: see EStepAnswer.
        """
        parts, arrived = self._take(key)
        arrived += results
        if missing := _missing(request, parts, len(arrived), num_results):
            return EStepAnswer(missing=missing)
        if request.references:
            sample = self._sample(labels, holdout_labels).for_references()
            untrained = _labelled(parts, (BANK, QUERIES), sample, labels, holdout_labels)
            pixels = _labelled(parts, (BANK_PIXELS, QUERIES_PIXELS), sample, labels, holdout_labels)
            return EStepAnswer(metrics=measure_references(pixels, untrained, self._config.evaluation))
        stride = evaluation_stride(request.num_images) if num_results else 1
        features = parts[TRAIN].whole(-(-request.num_images // stride)) if TRAIN in parts else None
        start = time.perf_counter()
        answer = EStepAnswer()
        if request.cluster:
            if not num_results:
                assert features is not None
                shard = ShardInput(torch.from_numpy(features), request.num_images)
                gpu = self._config.resources.e_step_gpus > 0
                arrived = [shard_result(shard, request, self._config, previous, gpu=gpu)]
            answer = _concluded(arrived, request, previous)
            if answer.outcome == "refused":
                return answer
            answer.metrics[CLUSTER_SECONDS.name] = time.perf_counter() - start
        start = time.perf_counter()
        if request.evaluate:
            assert features is not None
            answer.metrics.update(measure(features))
            if request.labelled_parts:
                answer = self._with_labelled(answer, parts, request, labels, holdout_labels)
            answer.metrics.update(measure_clusters(answer.clusters, labels))
            if request.show:
                clusters = answer.clusters or previous
                answer = _with_snapshot(answer, features, stride, request, clusters, labels)
            answer.metrics[EVALUATION_SECONDS.name] = time.perf_counter() - start
        return answer

    def _with_labelled(
        self,
        answer: EStepAnswer,
        parts: dict[str, _Part],
        request: EStepRequest,
        labels: np.ndarray | None,
        holdout_labels: np.ndarray | None,
    ) -> EStepAnswer:
        """Adds the figures of the backbone's and the head's features on labelled images; after the last epoch
        those of `evaluation.final`, without which a trained encoder is still one.
        """
        settings = self._config.evaluation
        sample = self._sample(labels, holdout_labels)
        backbone = _labelled(parts, (BANK, QUERIES), sample, labels, holdout_labels)
        head = _labelled(parts, (BANK_HEAD, QUERIES_HEAD), sample, labels, holdout_labels)
        answer.metrics.update(measure_labelled(backbone, head, sample.reference_queries, settings))
        if not request.final:
            return answer
        try:
            answer.metrics.update(measure_final(backbone, settings))
        except Exception as error:
            text = f"lacks the figures of evaluation.final ({type(error).__name__}: {error})"
            return replace(answer, warnings=(*answer.warnings, text))
        return answer

    def _sample(self, labels: np.ndarray | None, holdout_labels: np.ndarray | None) -> LabelledSample:
        return LabelledSample.of(labels, holdout_labels, self._config.evaluation)

    def _take(self, key: str) -> tuple[dict[str, _Part], list[ShardResult]]:
        """Hands out what was pushed under `key`; the actor then holds it no longer."""
        with self._lock:
            if key != self._key:
                return {}, []
            parts, results = self._parts, self._results
            self._parts, self._results = {}, []
            return parts, results


def _labelled(
    parts: dict[str, _Part],
    names: tuple[str, str],
    sample: LabelledSample,
    labels: np.ndarray | None,
    holdout_labels: np.ndarray | None,
) -> LabelledFeatures:
    """The features of these two parts, bank and queries, with their labels."""
    assert labels is not None, "without labels nothing is pushed"
    assert holdout_labels is not None, "without labels nothing is pushed"
    bank, queries = names
    return LabelledFeatures(
        parts[bank].whole(len(sample.bank_B)),
        labels[sample.bank_B],
        parts[queries].whole(len(sample.queries_Q)),
        holdout_labels[sample.queries_Q],
    )


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
        made = make_snapshot(
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


def _missing(request: EStepRequest, parts: dict[str, _Part], arrived: int, num_results: int) -> str:
    """What has not been pushed; "" where nothing is missing."""
    if request.cluster and arrived < num_results:
        return f"{num_results - arrived} of {num_results} results"
    of_all = (request.evaluate or not num_results) and not request.references
    for part in (*((TRAIN,) if of_all else ()), *request.labelled_parts):
        done = parts[part].done if part in parts else 0
        if done < request.shards:
            return f"{request.shards - done} of {request.shards} shards of {part} features"
    return ""


def _concluded(results: list[ShardResult], request: EStepRequest, previous: ClusterSet | None) -> EStepAnswer:
    """The answer that the processes, who all agree, have come to."""
    leader = next((result for result in results if result.clusterings), results[0])
    if leader.outcome != "clustered":
        return EStepAnswer(metrics=dict(leader.figures), refused=leader.reason, outcome=leader.outcome)
    clusters = merge_shards(results, request.epoch, request.num_images)
    return EStepAnswer(clusters, _quality(clusters, previous, leader), warnings=leader.warnings)


def _quality(clusters: ClusterSet, previous: ClusterSet | None, leader: ShardResult) -> dict[str, float]:
    """The figures of the features and of each clustering, by the names that they are logged under."""
    # of other knobs, perhaps fewer: a member of a population that took over
    earlier = previous.clusterings if previous is not None else ()
    metrics = dict(leader.figures)
    for m, (clustering, shared) in enumerate(zip(clusters.clusterings, leader.clusterings, strict=True)):
        before = earlier[m] if m < len(earlier) else None
        figures = {"k": float(clustering.num_clusters), **quality(clustering, before), **shared.figures}
        metrics |= {f"cluster/{m}/{name}": value for name, value in figures.items()}
    return metrics
