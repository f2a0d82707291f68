"""The E-step in this process: the actor's class without the actor."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass

from pcl_ray.clustering import ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import RunFailed
from pcl_ray.features import FeatureShard
from pcl_ray.training.e_step_actor import EStepActor, EStepAnswer
from pcl_ray.training.e_step_schedule import PendingEStep
from pcl_ray.training.e_step_shards import EStepRequest


class LocalEStep:
    """An `EStep` in this process; with `e_step.overlap` in a thread, since clustering frees Python's lock."""

    def __init__(self, config: RunConfig, splits: DataSplits):
        self._actor = EStepActor(config)
        self._settings = config.e_step
        self._labels = splits.train.labels
        self._holdout_labels = splits.holdout.labels if splits.holdout is not None else None

    def begin(
        self, key: str, request: EStepRequest, shards: dict[str, FeatureShard], previous: ClusterSet | None
    ) -> PendingEStep:
        for part, shard in shards.items():
            self._actor.push(key, part, shard.indices, shard.features, request.total(part))
        answer: Future[EStepAnswer] = Future()

        def run() -> None:
            try:
                answer.set_result(self._actor.run(key, request, previous, self._labels, self._holdout_labels))
            except BaseException as error:  # carried to whoever waits
                answer.set_exception(error)

        if self._settings.overlap:
            threading.Thread(target=run, name="e-step", daemon=True).start()
        else:
            run()
        return _PendingInThread(answer, self._settings.timeout_s)


@dataclass(frozen=True)
class _PendingInThread:
    answer: Future[EStepAnswer]
    limit_s: float

    def ready(self) -> bool:
        return self.answer.done()

    def wait(self) -> EStepAnswer:
        try:
            return self.answer.result(timeout=self.limit_s)
        except TimeoutError:
            raise RunFailed(
                f"the E-step has not answered within e_step.timeout_s = {self.limit_s:g} s; raise it, or"
                " lower e_step.num_clusters"
            ) from None
