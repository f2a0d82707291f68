"""Everything of a run that Ray holds: its actors and its trainer, plain classes that are wrapped here.

driver ── EventBoard   ← events of rank 0
       ├─ EStepActor   ← features of every worker, → ClusterSet
       ├─ EStepShard … ← in mode sharded: the features of a range of the images each
       └─ a trainer → controller → workers (`worker.run_worker`); one after the other where the number of
                                   workers may change (`reserving.elastic`)

Without torch, and so are driver and controller where there are no GPUs: two seconds each.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

import pcl_ray.config
from pcl_ray.config import ResourcesConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.on_ray import local_head_record, node_checks, shared_memory
from pcl_ray.on_ray.connection import SharedData, connected, share
from pcl_ray.on_ray.processes.actors import EStepActorProcess
from pcl_ray.on_ray.processes.lost_workers import explanation, last_line
from pcl_ray.on_ray.processes.worker_input import WorkerInput, WorkersEnd
from pcl_ray.on_ray.reserving import admission, elastic
from pcl_ray.on_ray.reserving.bundles import run_bundles, total
from pcl_ray.on_ray.reserving.elastic import WorkersLost
from pcl_ray.on_ray.starting import warm_start
from pcl_ray.support import worker_positions
from pcl_ray.support.text import count
from pcl_ray.training.events import Event, EventBoard
from pcl_ray.training.training_task import TrainingTask, longest_silence, longest_wait

if TYPE_CHECKING:
    from ray.train import BackendConfig
    from ray.train.torch import TorchTrainer

    from pcl_ray.on_ray.processes.trainer import LeanTrainer

_POLL_S = 0.5
# not in the placement group of the trial that may have started us, which has room for itself alone
_ANYWHERE = "DEFAULT"
_SLACK = 1e-6
_END_S = 10.0
_START_TRIES = 1  # worker groups that could not even start are tried once more, not for ever


def train_on_ray(task: TrainingTask, splits: DataSplits, handle: Callable[[Event], None]) -> None:
    """Trains with Ray Train workers; `handle` sees events. Raises RunFailed; ConfigError if it cannot fit."""
    resources = task.config.resources
    cpus = total(run_bundles(resources, task.plan.e_step_shards, resources.workers), "CPU")

    def check_nodes() -> None:
        node_checks.check(Path(task.run_dir), splits, task.config.data.path, resources.storage)

    handle(Event("phase", text="Ray to start" if not os.environ.get("RAY_ADDRESS") else "the cluster"))
    if not os.environ.get("RAY_ADDRESS") and (shortage := shared_memory.shortage(task.plan, splits)):
        handle(Event("warning", text=shortage))
    # A second of imports, while Ray starts its processes.
    threading.Thread(target=_load_trainer, name="imports", daemon=True).start()
    with warm_start.of_run(resources) as start, connected(cpus, start) as shared:
        # nodes that are added for the run can only be asked when they are there
        later = shared and resources.autoscaling
        if shared and not later:
            check_nodes()
        on_admission = check_nodes if later else None
        train_shared(task, share(splits), handle, queue=shared, on_admission=on_admission)


def _load_trainer() -> None:
    from pcl_ray.on_ray.processes import gloo_group, trainer  # noqa: F401


def train_shared(
    task: TrainingTask,
    data: SharedData,
    handle: Callable[[Event], None],
    *,
    queue: bool = True,
    on_admission: Callable[[], None] | None = None,
) -> None:
    """`train_on_ray` where Ray is connected and the data are in its store.

    queue: others may use the cluster too, and all start one after the other. on_admission: is called when the
    run's turn has come and its resources are free, and may still refuse.
    """
    config = task.config
    bundles = run_bundles(config.resources, task.plan.e_step_shards, config.resources.fewest_workers)
    if not config.resources.autoscaling:
        _check_cluster(config.resources, bundles)
        _check_nodes(bundles)
    if not queue:
        _train(task, data, handle, shared=False)
        return
    admitted = admission.admit(
        Path(task.run_dir).name,
        bundles,
        config.resources.queue_timeout_s,
        lambda text: handle(Event("waiting", text=text)),
    )

    def started(event: Event) -> None:
        if event.kind == "start":
            admitted.release()
        handle(event)

    try:
        if on_admission is not None:
            on_admission()
        _train(task, data, started, shared=True)
    finally:
        admitted.release()


def _train(task: TrainingTask, data: SharedData, handle: Callable[[Event], None], *, shared: bool) -> None:
    """Starts the actors, trains, and ends the actors."""
    config = task.config
    actor = start_e_step_actor(config)
    all_shards = task.plan.e_step_shards
    shards = tuple(start_shard_actor(config, number, all_shards) for number in range(all_shards))
    board: Any = (
        ray.remote(EventBoard).options(num_cpus=0, max_restarts=-1, scheduling_strategy=_ANYWHERE).remote()
    )
    try:
        up = _ActorStart((actor, *shards), config.resources)
        if config.tracking.enabled and config.tracking.system_metrics_s:
            actor.watch.remote(config.tracking.system_metrics_s, board)
        positions = Path(task.run_dir) / worker_positions.FOLDER / uuid.uuid4().hex[:8]
        worker_input = WorkerInput(task, data, actor, board, positions, shards)

        def fit(workers: int, more_room: Callable[[], bool]) -> bool:
            trainer = _trainer(worker_input, workers, shared=shared)
            phase = f"{count(workers, 'worker')} and the E-step actor to start"
            handle(Event("phase", text=phase))
            return _fit(trainer, worker_input, up, handle, more_room)

        if elastic.is_elastic(config):
            up.wait()  # what is free shows only beside the actors
            elastic.train(config, fit, handle)
        else:
            fit(config.resources.workers, lambda: False)
        worker_positions.remove(Path(task.run_dir))
    finally:
        for started in (actor, board, *shards):
            with suppress(RayError):
                ray.kill(started)


def _check_cluster(resources: ResourcesConfig, bundles: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError where the whole run does not fit on the cluster, however free it is."""
    cluster = ray.cluster_resources()
    knobs = {
        "GPU": ("resources.gpus_per_worker", resources.gpus_per_worker),
        "CPU": ("resources.cpus_per_worker", resources.cpus_per_worker),
    }
    for kind, (name, value) in knobs.items():
        needed, all_of_it = total(bundles, kind), cluster.get(kind, 0)
        if needed > all_of_it + _SLACK:
            message = (
                f"the workers and the E-step actor need {needed:g} {kind}s together, the cluster has"
                f" {all_of_it:g}; ask for less, or set resources.autoscaling=true where the cluster adds"
                " nodes by itself"
            )
            raise ConfigError([Problem(name, value, message)])


def _check_nodes(bundles: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError where a part of the run fits on no node, however free it is."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for part in bundles:
        if not any(
            all(node.get(kind, 0) + _SLACK >= amount for kind, amount in part.items()) for node in nodes
        ):
            largest = max((node.get("CPU", 0) for node in nodes), default=0)
            message = (
                f"no node has the {admission.resources_text([part])} that one part of the run needs together;"
                f" the largest has {largest:g} CPUs"
            )
            raise ConfigError([Problem("resources.cpus_per_worker", part.get("CPU", 0), message)])


def start_e_step_actor(config: pcl_ray.config.RunConfig) -> Any:
    """The handle of a new EStepActor."""
    resources = config.resources
    # Never a silent second try on an empty instance (max_task_retries): the workers push again.
    options: Any = {
        "num_cpus": resources.e_step_cpus,
        "num_gpus": resources.e_step_gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 8,
    }
    return ray.remote(EStepActorProcess).options(**options, scheduling_strategy=_ANYWHERE).remote(config)


def start_shard_actor(config: pcl_ray.config.RunConfig, number: int, count: int) -> Any:
    """The handle of a new EStepShard, number `number` of `count`."""
    from pcl_ray.on_ray.processes.shard_actor import EStepShardActor  # torch

    # SPREAD: they exist because their features do not fit on one machine.
    options: Any = {
        "num_cpus": config.resources.e_step_cpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 4,
        "scheduling_strategy": "SPREAD",
    }
    return ray.remote(EStepShardActor).options(**options).remote(config, number, count)


class _ActorStart:
    """The actors on their way up, beside the workers: both load torch for seconds."""

    def __init__(self, actors: Sequence[Any], resources: ResourcesConfig):
        self._waiting = [actor.ping.remote() for actor in actors]
        self._resources = resources
        self._deadline = time.monotonic() + resources.start_timeout_s

    def wait(self) -> None:
        """Returns when all are up. Raises as `check` does."""
        while self._waiting:
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """Returns at once. Raises RunFailed where one could not start, or has not in time."""
        if not self._waiting:
            return
        ready, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=0)
        try:
            ray.get(ready)
        except RayActorError as error:
            raise RunFailed(f"the E-step actor could not start: {last_line(error)}") from error
        if self._waiting and time.monotonic() > self._deadline:
            resources = self._resources
            raise RunFailed(
                "the E-step actor did not start within resources.start_timeout_s ="
                f" {resources.start_timeout_s:g} s: no node has {resources.e_step_cpus:g} CPUs and"
                f" {resources.e_step_gpus:g} GPUs free"
            )


def _trainer(worker_input: WorkerInput, workers: int, *, shared: bool) -> LeanTrainer | TorchTrainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    task = worker_input.task
    resources = task.config.resources
    variables = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": 0.5,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": resources.start_timeout_s,
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": longest_wait(task.config),
    }
    # the watcher is a process, and nobody takes this machine away from us
    if not shared or local_head_record.is_lone_head(os.environ.get("RAY_ADDRESS", "")):
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = 0
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    # Any: Ray picks the classes of one of its two Train versions at run time, out of a type checker's sight.
    limits: Any = {"max_failures": resources.max_failures, "controller_failure_limit": _START_TRIES}
    if elastic.is_elastic(task.config):  # others take their place, perhaps fewer
        limits = {"max_failures": 0, "controller_failure_limit": 0}
    failures: Any = FailureConfig(**limits)
    settings: Any = {
        "scaling_config": ScalingConfig(
            num_workers=workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
        ),
        # Ray Train resumes by name from its checkpoints; ours are in run_dir, so an attempt has a new name.
        "run_config": RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.join(task.run_dir, "ray"),
            failure_config=failures,
        ),
    }
    loop: Any = run_worker  # Ray declares None
    settings["train_loop_config"] = {"input": worker_input}
    timeout_s = int(longest_wait(task.config))
    try:
        from pcl_ray.on_ray.processes.trainer import LeanTrainer
    except ImportError:  # a Ray whose inside is another one: with all its helpers
        from ray.train.torch import TorchConfig, TorchTrainer

        return TorchTrainer(loop, torch_config=TorchConfig(timeout_s=timeout_s), **settings)
    return LeanTrainer(loop, shared=shared, backend_config=_process_group(resources, timeout_s), **settings)


def run_worker(config: dict[str, WorkerInput]) -> WorkersEnd:
    """`worker.run_worker`, imported where it runs: the controller, which sends this on, needs no torch."""
    from pcl_ray.on_ray import worker

    return worker.run_worker(config["input"])


def _process_group(resources: ResourcesConfig, timeout_s: int) -> BackendConfig:
    if not resources.gpus_per_worker:
        from pcl_ray.on_ray.processes.gloo_group import GlooGroupConfig

        return GlooGroupConfig(timeout_s)
    from ray.train.torch import TorchConfig  # torch, in driver and controller

    return TorchConfig(backend="nccl", timeout_s=timeout_s)


def _fit(
    trainer: LeanTrainer | TorchTrainer,
    worker_input: WorkerInput,
    actors: _ActorStart,
    handle: Callable[[Event], None],
    more_room: Callable[[], bool],
) -> bool:
    """Runs the trainer in a thread, so this one can show events, take signals and notice a standstill; and
    where there is more room, has the workers pause. Gives back whether the run has ended.
    """
    task, board = worker_input.task, worker_input.board
    ended: futures.Future[Any] = futures.Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:  # carried to the thread that waits
            ended.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    limit = longest_silence(task.config)
    last_sign = time.monotonic()
    try:
        # Not the thread's join: Python 3.11 takes a thread for ended when a signal's handler raised in that.
        while not ended.done():
            futures.wait([ended], _POLL_S)
            actors.check()
            if _handle_events(board, handle):
                last_sign = time.monotonic()
            if more_room():
                board.ask_to_pause.remote()
            if time.monotonic() - last_sign > limit:
                raise RunFailed(
                    f"no sign of life from the workers for {limit:.0f} s; see resources.step_timeout_s and"
                    " e_step.timeout_s"
                )
    finally:
        if not ended.done() and hasattr(trainer, "end"):
            trainer.end()
            futures.wait([ended], _END_S)
    _handle_events(board, handle)
    error = ended.exception()
    if error is not None:
        raise WorkersLost(explanation(error, worker_input.positions)) from error
    end: WorkersEnd = ended.result().return_value
    if end.problem:
        raise RunFailed(end.problem)
    return not end.paused


def _handle_events(board: Any, handle: Callable[[Event], None]) -> bool:
    """Handles what was posted since the last call; gives back whether any of it shows a run that goes on."""
    try:
        events = ray.get(board.take.remote(), timeout=30)
    except (RayActorError, GetTimeoutError):
        return False  # the board is back soon; figures of an epoch are in its checkpoint as well
    for event in events:
        handle(event)
    # a node is measured also where nothing trains any more
    return any(event.kind != "system" for event in events)
