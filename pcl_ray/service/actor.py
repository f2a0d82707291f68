"""The E-step actor: gathers the workers' features, clusters them, measures.

    every worker: push(key, part, indices, features) ─┐
                                                      ├→ shards of that key → assemble → cluster → quality, evaluation
    rank 0: run(key, request, …) ─────────────────────┘                                  → EStepAnswer, as the method's result

A plain class: `service.ray_setup` wraps it. The answer is a return value and not something the actor puts into the store, so that it outlives the
actor. A restarted actor is empty; `run` then says what is missing and the workers push again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from pcl_ray.clustering import ClusterSet, quality
from pcl_ray.config import RunConfig
from pcl_ray.e_step import EStepRefused, cluster
from pcl_ray.evaluation import measure
from pcl_ray.features import FeatureShard, assemble


@dataclass(frozen=True)
class EStepRequest:
    """What is wanted between epoch `epoch` − 1 and epoch `epoch`."""

    epoch: int
    cluster: bool
    evaluate: bool
    shards: int  # how many workers push
    num_images: int
    num_holdout: int


@dataclass(frozen=True)
class EStepAnswer:
    clusters: ClusterSet | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    refused: str = ""  # why the features cannot be clustered; trying again does not help
    missing: str = ""  # what has not arrived, because the actor was restarted; pushing again helps


class EStepActor:
    """Shards are kept for one key at a time: a push under a new key drops the old ones."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._lock = threading.Lock()
        self._key = ""
        self._shards: dict[str, list[FeatureShard]] = {}

    def ping(self) -> None:
        """Answers as soon as the actor is up."""

    def push(self, key: str, part: str, indices: np.ndarray, features: np.ndarray) -> None:
        """One worker's features of a part (train or holdout). Arrays come in as top-level arguments: Ray hands those over without copying."""
        with self._lock:
            if key != self._key:
                self._key, self._shards = key, {}
            self._shards.setdefault(part, []).append(FeatureShard(indices, features))

    def run(
        self,
        key: str,
        request: EStepRequest,
        previous: ClusterSet | None,
        labels: np.ndarray | None,
        holdout_labels: np.ndarray | None,
    ) -> EStepAnswer:
        """Clusters and measures what was pushed under `key`. Never raises for features that cannot be clustered: see EStepAnswer."""
        with self._lock:
            shards, self._shards = (self._shards, {}) if key == self._key else ({}, self._shards)
        for part in ("train", "holdout") if request.evaluate and request.num_holdout else ("train",):
            if (arrived := len(shards.get(part, []))) < request.shards:
                return EStepAnswer(missing=f"{request.shards - arrived} of {request.shards} shards of {part} features")
        features = assemble(shards["train"], request.num_images)
        metrics: dict[str, float] = {}
        clusters = None
        start = time.perf_counter()
        if request.cluster:
            try:
                clusters = self._cluster(features, request.epoch, previous)
            except EStepRefused as refusal:
                return EStepAnswer(refused=str(refusal))
            metrics |= _quality(clusters, previous)
            metrics["perf/cluster_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        if request.evaluate:
            holdout = assemble(shards["holdout"], request.num_holdout) if request.num_holdout else None
            metrics |= measure(features, labels, holdout, holdout_labels, clusters, self._config.evaluation)
            metrics["perf/evaluation_seconds"] = time.perf_counter() - start
        return EStepAnswer(clusters, metrics)

    def _cluster(self, features: np.ndarray, epoch: int, previous: ClusterSet | None) -> ClusterSet:
        config = self._config
        return cluster(
            features,
            config.e_step,
            epoch=epoch,
            temperature=config.loss.temperature,
            seed=config.seed,
            previous=previous,
            gpu=config.resources.e_step_gpus > 0,
        )


def _quality(clusters: ClusterSet, previous: ClusterSet | None) -> dict[str, float]:
    before = previous.clusterings if previous is not None else (None,) * len(clusters.clusterings)
    return {
        f"cluster/{m}/{name}": value
        for m, (clustering, old) in enumerate(zip(clusters.clusterings, before, strict=True))
        for name, value in {"k": float(clustering.num_clusters), **quality(clustering, old)}.items()
    }
