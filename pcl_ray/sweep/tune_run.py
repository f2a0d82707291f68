"""Ray Tune, wired: the data and the office of warm-ups into Ray, one process a trial, as many as the cluster
holds.
"""

from __future__ import annotations

import threading
import time
import warnings
from contextlib import suppress
from typing import Any

import ray
from ray import tune
from rich.console import Console

from pcl_ray.config import RunConfig
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, Problem, RunFailed
from pcl_ray.on_ray import admission, connection, node_checks
from pcl_ray.runs.folder import SweepFolder
from pcl_ray.support.paths import home
from pcl_ray.support.redaction import CLOUD_KEYS
from pcl_ray.sweep import capacity, driver, pickle_safety, results
from pcl_ray.sweep.driver import Ended
from pcl_ray.sweep.point import run_name_of
from pcl_ray.sweep.progress import Follow
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.space import search
from pcl_ray.sweep.trainable import POINT, Shared, TrialProcess, point_of, resources
from pcl_ray.sweep.trial import Setting
from pcl_ray.sweep.warm_ups import Warmups
from pcl_ray.training.training_task import longest_silence

_LOOK_EVERY_S = 30.0


def run(
    folder: SweepFolder,
    asked: SweepRequest,
    setting: Setting,
    splits: DataSplits,
    tracker: Any,
    console: Console,
    *,
    resumed: bool,
) -> Ended:
    """Trains all trials, or those that are left. Raises ConfigError where not one fits the cluster, RunFailed
    where Tune itself fails.
    """
    driver.quiet_tune()
    _keep_keys_out_of_runtime_environments()
    trial = capacity.bundles(setting.base, asked.plan)
    with connection.connected(sum(cpus for cpus, _ in trial)) as others:
        if not setting.base.resources.autoscaling:
            concurrency(asked, setting)  # what can never fit is said before anything is waited for
        if others and not setting.base.resources.autoscaling:
            node_checks.check(folder.path, splits, setting.base.data.path)
        if others:
            _wait_for_room(folder, trial, setting.base, console)
        if others and setting.base.resources.autoscaling:
            node_checks.check(folder.path, splits, setting.base.data.path)
        at_a_time = concurrency(asked, setting)
        office: Any = (
            ray.remote(Warmups)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=3)
            .remote(str(folder.path / "warmups"))
        )
        shared = Shared(connection.share(splits), office)
        listed = search.points(asked.space, asked.settings, setting.base)
        total = (
            len(listed)
            if listed is not None
            else search.samples(asked.space, asked.settings) * asked.settings.seeds
        )
        if asked.settings.scheduler == "pbt" and setting.base.resources.workers and at_a_time < total:
            message = (
                f"a population whose members have workers trains all at once, and {at_a_time} fit the"
                " cluster; use fewer, or resources.workers=0"
            )
            raise ConfigError([Problem("sweep.samples", total, message)])
        console.print(
            f"sweep       {folder.name}: {total} trials, {at_a_time} at a time, in {folder.path}",
            markup=False,
            soft_wrap=True,
        )
        done = [
            record.run_name
            for record in results.records(folder.name)
            if record.state in ("finished", "stopped early")
        ]
        with driver.interruptible(asked.settings.budget_s) as (stop, nudge, reasons):
            follow = Follow(
                console,
                setting.objective,
                setting.settings,
                setting.base.train.epochs,
                total,
                tracker,
                lambda: stop(follow.failed_of),
                ended_before=done,
                first_end=results.preload,
                each_turn=nudge,
                run_of=lambda trial: run_name_of(
                    setting.sweep, point_of(trial.config, setting.base.seed, trial.trial_id)
                ),
            )
            watching = threading.Event()
            try:
                _watch(folder.name, longest_silence(setting.base), stop, watching)
                tuner = _tuner(folder, asked, setting, shared, listed, total, at_a_time, follow, resumed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tuner.fit()
            except tune.TuneError as error:
                raise RunFailed(f"Ray Tune failed: {str(error).strip().splitlines()[-1]}") from error
            finally:
                watching.set()
                follow.end()
        return reasons[0] if reasons else Ended()


def _keep_keys_out_of_runtime_environments() -> None:
    """Tune hands the cloud's keys to its trials by their runtime environment, which Ray writes into its logs.
    Ours get them with the `Setting`.
    """
    with suppress(ImportError, AttributeError):  # of Tune's inside; another version may not do it any more
        from ray.tune.execution import class_cache

        class_cache.ENV_VARS_TO_PROPAGATE = set(class_cache.ENV_VARS_TO_PROPAGATE) - set(CLOUD_KEYS)


def _wait_for_room(
    folder: SweepFolder, trial: list[capacity.Bundle], base: RunConfig, console: Console
) -> None:
    """Until one trial fits beside what others run; from then on Tune starts the next whenever there is
    room.
    """

    def say(text: str) -> None:
        console.print(text or "there is room now", markup=False, soft_wrap=True)
        folder.write_state(waits_for=text)

    parts = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in trial]
    admission.take(
        folder.name,
        [{kind: amount for kind, amount in part.items() if amount} for part in parts],
        base.resources.queue_timeout_s,
        say,
    ).release()


def _watch(sweep: str, limit_s: float, stop: Any, ended: threading.Event) -> None:
    """Ends the sweep where no trial has given a sign of life for longer than any step and E-step may take."""
    begun = time.time()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            seen = [lock.stat().st_mtime for lock in (home() / "runs").glob(f"{sweep}.*/lock")]
            if time.time() - max([begun, *seen]) > limit_s:
                stop(
                    f"no sign of life from any trial for {limit_s:.0f} s; see resources.step_timeout_s and"
                    " e_step.timeout_s"
                )
                return

    threading.Thread(target=look, name="watch", daemon=True).start()


def concurrency(asked: SweepRequest, setting: Setting) -> int:
    """Trials at a time on the cluster that is connected."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = capacity.trials_at_a_time(capacity.bundles(setting.base, asked.plan), nodes)
    if not fits:
        cpus, gpus = (sum(part) for part in zip(*capacity.bundles(setting.base, asked.plan), strict=True))
        has = ray.cluster_resources()
        message = (
            f"one trial takes {gpus:g} GPUs and {cpus:g} CPUs with its E-step actor, which no node or set of"
            " nodes has free together"
        )
        raise ConfigError(
            [
                Problem(
                    "resources.workers",
                    setting.base.resources.workers,
                    f"{message}; the cluster has {has.get('GPU', 0):g} and {has.get('CPU', 0):g}",
                )
            ]
        )
    return min(fits, asked.settings.concurrency or fits)


# A population is compared as a whole, so that all its members are there from the start; Ray lets them take
# turns where they do not fit.
def _tuner(
    folder: SweepFolder,
    asked: SweepRequest,
    setting: Setting,
    shared: Shared,
    listed: list[dict[str, Any]] | None,
    total: int,
    at_a_time: int,
    follow: Follow,
    resumed: bool,
) -> tune.Tuner:
    place = pickle_safety.make_private(folder.path)
    trainable: Any = tune.with_resources(
        tune.with_parameters(TrialProcess, setting=setting, shared=shared), resources(setting.base)
    )
    experiment = place / "experiment"
    settings = asked.settings
    if resumed and tune.Tuner.can_restore(str(experiment)):
        tuner = tune.Tuner.restore(
            str(experiment), trainable=trainable, resume_unfinished=True, resume_errored=True
        )
        local: Any = tuner._local_tuner  # the only way to give a restored experiment another callback
        local._run_config.callbacks = [follow]
        local._tune_config.max_concurrent_trials = None if settings.scheduler == "pbt" else at_a_time
        return tuner
    algorithm: Any = None
    param_space: dict[str, Any] = {}
    if settings.scheduler == "pbt":
        assert listed is not None
        param_space = search.population_space(listed, asked.space)
    elif listed is not None:
        algorithm = search.Listed([{POINT: point} for point in listed])
    else:
        algorithm = search.optuna(asked.space, settings)
    return tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            scheduler=search.scheduler(asked.space, settings, setting.base),
            num_samples=1 if settings.scheduler == "pbt" else total,
            max_concurrent_trials=None if settings.scheduler == "pbt" else at_a_time,
            reuse_actors=setting.base.resources.workers == 0,
        ),
        run_config=tune.RunConfig(
            name="experiment",
            storage_path=str(place),
            callbacks=[follow],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4) if settings.scheduler == "pbt" else None,
            failure_config=tune.FailureConfig(max_failures=settings.process_failures),
            verbose=0,
        ),
    )
