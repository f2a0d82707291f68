"""Ray Tune, wired: data and warm-ups' actor into Ray, one process a trial, as many as the cluster holds."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from pcl_ray import tracking
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.on_ray import connection, node_checks
from pcl_ray.on_ray.reserving import admission, bundles
from pcl_ray.runs.folder import LOCK_FILE
from pcl_ray.support.paths import home
from pcl_ray.support.redaction import CLOUD_KEYS
from pcl_ray.sweep import earlier_pickles, pickle_safety
from pcl_ray.sweep.interruption import Interrupter, Interruption
from pcl_ray.sweep.progress import ProgressCallback
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.results import conclusion, trial_records
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.space import search
from pcl_ray.sweep.trial_point import POINT
from pcl_ray.sweep.trials.context import SweepContext
from pcl_ray.sweep.trials.trainable import RayHandles, TrialProcess
from pcl_ray.sweep.warm_ups import FOLDER as WARM_UPS_FOLDER
from pcl_ray.sweep.warm_ups import Warmups
from pcl_ray.training.training_task import longest_silence

_LOOK_EVERY_S = 30.0
_QUIET = {
    # one file of results for each trial and format: ours are in the runs' folders
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial has no score before its first evaluation
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class TrialSchedule:
    """Which trials there are, and how many of them train at a time."""

    listed: list[dict[str, Any]] | None  # every trial's point; None where a searcher suggests them one by one
    total: int
    at_a_time: int


def run(session: SweepSession, splits: DataSplits, *, resumed: bool) -> Interruption | None:
    """Trains all trials, or those that are left; gives back what ended it before that. Raises ConfigError
    where not one fits the cluster, RunFailed where Tune itself fails.
    """
    folder, request, context = session.folder, session.request, session.context
    quiet_tune()
    _keep_keys_out_of_runtime_environments()
    trial = bundles.trial_bundles(context.base.resources, request.plan.e_step_shards)
    with connection.connected(bundles.total(trial, "CPU")) as others:
        _wait_for_cluster(session, splits, others=others)
        schedule = schedule_of(request, context, concurrency(request, context, _nodes()))
        warmups: Any = (
            ray.remote(Warmups)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=3)
            .remote(str(folder.path / WARM_UPS_FOLDER))
        )
        handles = RayHandles(connection.share(splits), warmups)
        session.console.print(
            f"sweep       {folder.name}: {schedule.total} trials, {schedule.at_a_time} at a time, in"
            f" {folder.path}",
            markup=False,
            soft_wrap=True,
        )
        session.tracker.tag({tracking.TRIALS_TAG: str(schedule.total)})
        with Interrupter(request.settings.budget_s) as interrupter:
            progress = ProgressCallback(
                session,
                schedule.total,
                interrupter,
                ended_before=trial_records.ended(folder.name),
                first_end=conclusion.preload,
            )
            try:
                with (
                    _watched(folder.name, longest_silence(context.base), interrupter.fail),
                    earlier_pickles.readable(),
                ):
                    tuner = tuner_of(session, handles, schedule, progress, resumed=resumed)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        tuner.fit()
            except tune.TuneError as error:
                raise RunFailed(f"Ray Tune failed: {str(error).strip().splitlines()[-1]}") from error
            finally:
                progress.end()
        return interrupter.first


def quiet_tune() -> None:
    """Hides Tune's tables and warnings: ours say what the user needs. What is set already stands."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.data", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _keep_keys_out_of_runtime_environments() -> None:
    """Tune hands the cloud's keys to its trials by their runtime environment, which Ray writes into its logs.
    Ours get them with the `SweepContext`.
    """
    with suppress(ImportError, AttributeError):  # of Tune's inside; another version may not do it any more
        from ray.tune.execution import class_cache

        class_cache.ENV_VARS_TO_PROPAGATE = set(class_cache.ENV_VARS_TO_PROPAGATE) - set(CLOUD_KEYS)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_for_cluster(session: SweepSession, splits: DataSplits, *, others: bool) -> None:
    """Checks the nodes of the cluster, and waits until one trial fits beside what others run on it. Nodes
    that are added for the sweep can only be checked when they are there.
    """
    base = session.context.base
    autoscaling = base.resources.autoscaling
    if not autoscaling:
        concurrency(
            session.request, session.context, _nodes()
        )  # what never fits is refused before any waiting
    if not others:
        return
    if not autoscaling:
        node_checks.check(session.folder.path, splits, base.data.path)
    wait_for_room(session)
    if autoscaling:
        node_checks.check(session.folder.path, splits, base.data.path)


def wait_for_room(session: SweepSession) -> None:
    """Waits until one trial fits beside what others run; then Tune starts the next whenever there is room."""

    def say(text: str) -> None:
        session.console.print(text or "there is room now", markup=False, soft_wrap=True)
        session.folder.write_state(waits_for=text)

    resources = session.context.base.resources
    admission.admit(
        session.folder.name,
        bundles.trial_bundles(resources, session.request.plan.e_step_shards),
        resources.queue_timeout_s,
        say,
    ).release()


def concurrency(request: SweepRequest, context: SweepContext, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials at a time on these nodes ({"CPU": …, "GPU": …} each). Raises ConfigError where not one fits."""
    resources = context.base.resources
    trial = bundles.trial_bundles(resources, request.plan.e_step_shards)
    fits = bundles.fitting(trial, nodes)
    if not fits:
        message = (
            f"one trial takes {bundles.total(trial, 'GPU'):g} GPUs and {bundles.total(trial, 'CPU'):g} CPUs"
            " with its E-step actor, which no node or set of nodes has free together; the cluster has"
            f" {bundles.total(nodes, 'GPU'):g} and {bundles.total(nodes, 'CPU'):g}"
        )
        raise ConfigError([Problem("resources.workers", resources.workers, message)])
    return min(fits, request.settings.concurrency or fits)


def schedule_of(request: SweepRequest, context: SweepContext, at_a_time: int) -> TrialSchedule:
    """Raises ConfigError for a population that must train all at once, and cannot."""
    settings = request.settings
    listed = search.points(request.space, settings, context.base, request.recipe_point)
    total = search.num_trials(request.space, settings, context.base, request.recipe_point)
    if settings.scheduler == "pbt" and context.base.resources.workers and at_a_time < total:
        message = (
            f"a population whose members have workers trains all at once, and {at_a_time} fit the"
            " cluster; use fewer, or resources.workers=0"
        )
        raise ConfigError([Problem("sweep.samples", total, message)])
    return TrialSchedule(listed, total, at_a_time)


@contextmanager
def _watched(sweep: str, limit_s: float, fail: Callable[[str], None]) -> Iterator[None]:
    """Inside of the block, ends the sweep if no trial gives a sign of life for longer than any step takes."""
    begun = time.time()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            signs = [lock.stat().st_mtime for lock in (home() / "runs").glob(f"{sweep}.*/{LOCK_FILE}")]
            if time.time() - max([begun, *signs]) > limit_s:
                fail(
                    f"no sign of life from any trial for {limit_s:.0f} s; see resources.step_timeout_s and"
                    " e_step.timeout_s"
                )
                return

    threading.Thread(target=look, name="watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def tuner_of(
    session: SweepSession,
    handles: RayHandles,
    schedule: TrialSchedule,
    progress: ProgressCallback,
    *,
    resumed: bool,
) -> tune.Tuner:
    """Tune's experiment under the sweep's folder: the earlier one if the sweep is resumed, else a new one."""
    tune_folder = pickle_safety.make_private(session.folder.path)
    trainable: Any = tune.with_resources(
        tune.with_parameters(TrialProcess, context=session.context, handles=handles),
        tune.PlacementGroupFactory([bundles.trial_process_bundle(session.context.base.resources)]),
    )
    # All of a population start at once, since they are compared as a whole; Ray lets them take turns.
    population = session.request.settings.scheduler == "pbt"
    at_a_time = None if population else schedule.at_a_time
    experiment = tune_folder / "experiment"
    if resumed and tune.Tuner.can_restore(str(experiment)):
        tuner = tune.Tuner.restore(
            str(experiment), trainable=trainable, resume_unfinished=True, resume_errored=True
        )
        local: Any = tuner._local_tuner  # the only way to give a restored experiment another callback
        local._run_config.callbacks = [progress]
        local._tune_config.max_concurrent_trials = at_a_time
        return tuner
    return _new_tuner(session, schedule, trainable, at_a_time, experiment, progress)


def _new_tuner(
    session: SweepSession,
    schedule: TrialSchedule,
    trainable: Any,
    at_a_time: int | None,
    experiment: Path,
    progress: ProgressCallback,
) -> tune.Tuner:
    request, base = session.request, session.context.base
    space, settings = request.space, request.settings
    population = settings.scheduler == "pbt"
    algorithm: Any = None
    param_space: dict[str, Any] = {}
    if population:
        assert schedule.listed is not None
        param_space = search.population_space(schedule.listed, space)
    elif schedule.listed is not None:
        algorithm = search.Listed([{POINT: point} for point in schedule.listed])
    else:
        algorithm = search.optuna(space, settings)
        if request.recipe_point is not None:
            algorithm = search.after_recipe(algorithm, request.recipe_point, settings, base)
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            scheduler=search.scheduler(space, settings, base),
            num_samples=1 if population else schedule.total,
            max_concurrent_trials=at_a_time,
            reuse_actors=base.resources.workers == 0,
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=str(experiment.parent),
            callbacks=[progress],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4) if population else None,
            failure_config=tune.FailureConfig(max_failures=settings.process_failures),
            verbose=0,
        ),
    )
