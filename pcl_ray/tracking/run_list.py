"""Runs as MLflow has them, for lists: read, and closed where their process was killed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pcl_ray.config.figures import (
    DEVICE_MINUTES,
    HEADLINES,
    SWEEP_BEST,
    SWEEP_BEST_SCORE,
    SWEEP_ENDED,
    SWEEP_FINISHED,
    SWEEP_STOPPED_EARLY,
    SWEEP_TRIALS,
    find,
    first_of,
    with_present_names,
)
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.support.redaction import error_line, public_uri
from pcl_ray.tracking import saved_views
from pcl_ray.tracking.address import is_server
from pcl_ray.tracking.client import open_client
from pcl_ray.tracking.reachability import reachable
from pcl_ray.tracking.store import PHASE_TAG, RUN_TAG, TRIALS_TAG, WAITS_TAG

_STATES = {"RUNNING": "running", "FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
_STATUSES = {state: status for status, state in _STATES.items()} | {"stopped early": "KILLED"}
_PARENT = "mlflow.parentRunId"
_RUNS_A_PAGE = 200
_JOB_TAG = "ray.submission_id"


@dataclass(frozen=True)
class RecordedRun:
    """What a list shows of a run. figure: the first that it has of kNN accuracy, effective rank, loss; of a
    sweep its objective, whose value is the best so far.
    """

    name: str
    kind: Literal["run", "sweep", "trial"]
    run_id: str
    state: str
    phase: str  # what it does beside training while it runs: starting, recording; "" while it trains
    user: str
    began: float  # s since 1970
    ended: float | None
    epoch: int  # epochs done
    epochs: int  # 0 of a sweep
    trials_ended: int  # of a sweep, as is the next
    trials: int  # 0 where it is not known
    left_s: float | None  # by its last epoch
    figure: str
    value: float | None
    knobs: Mapping[str, str]
    submission_id: str
    waits_for: str
    link: str


def recorded(
    uri: str, experiment: str, *, limit: int = 50, trials: bool = False, state: str = ""
) -> list[RecordedRun]:
    """The newest runs of the experiment.

    trials: those of sweeps too. state: only runs in this state. Raises RunFailed where the store does not
    answer, ConfigError for a state that there is not.
    """
    if state and state not in _STATES.values():
        raise ConfigError(f"--state {state!r}: one of {', '.join(sorted(_STATES.values()))}")
    _check_file(uri)
    query = f"attributes.status = '{_STATUSES[state]}'" if state else ""
    with _store_errors(uri):
        client = open_client(uri, retries=1)
        entry = client.get_experiment_by_name(experiment)
        if entry is None:
            return []
        runs: list[Any] = []
        token = None
        while len(runs) < limit:
            page = client.search_runs(
                [entry.experiment_id],
                query,
                max_results=_RUNS_A_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += [run for run in page if trials or _PARENT not in run.data.tags]
            if not (token := page.token):
                break
    return [_recorded_run(run, uri, entry.experiment_id) for run in runs[:limit]]


def close(uri: str, run_id: str, state: str) -> None:
    """Closes the run of a process that is gone, which would read RUNNING for ever. state: how it ended, as
    its folder says. Raises RunFailed where the store does not answer.
    """
    with _store_errors(uri):
        client = open_client(uri, retries=1)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, _STATUSES[state])


def delete(uri: str, run_id: str) -> None:
    """Deletes a run as the dashboard does: it can be restored until `mlflow gc`. One that is not there is
    deleted already. Raises RunFailed where the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    with _store_errors(uri):
        try:
            open_client(uri, retries=1).delete_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _check_file(uri: str) -> None:
    """Raises RunFailed for an sqlite file that MLflow would try to open for a minute."""
    if urlsplit(uri).scheme.startswith("sqlite"):
        level, text, advice = reachable(uri)
        if level == "failed":
            raise RunFailed(f"MLflow's store cannot be read: {text}; {advice}")


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Turns the errors of MLflow and of its databases, which are of many kinds, into RunFailed."""
    try:
        yield
    except Exception as error:
        raise RunFailed(f"MLflow at {public_uri(uri)} does not answer ({error_line(error, uri)})") from None


def _recorded_run(run: Any, uri: str, experiment_id: str) -> RecordedRun:
    finite = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
    metrics = with_present_names(finite)
    params, tags = run.data.params, run.data.tags
    kind = _kind(tags, metrics)
    epochs_done = int(metrics["epoch"]) + 1 if "epoch" in metrics else 0
    epochs = 0 if kind == "sweep" else _count(params.get("train.epochs", ""))
    state = _STATES.get(run.info.status, run.info.status.lower())
    server = public_uri(uri).rstrip("/")
    headline = first_of(HEADLINES, metrics)
    figure = headline.name if headline else ""
    figure, value = _best(tags, metrics) if kind == "sweep" else (figure, metrics.get(figure))
    return RecordedRun(
        name=tags.get(RUN_TAG) or run.info.run_name or run.info.run_id,
        kind=kind,
        run_id=run.info.run_id,
        state=state,
        phase=tags.get(PHASE_TAG, "") if state == "running" else "",
        user=tags.get("mlflow.user", ""),
        began=(run.info.start_time or time.time() * 1000) / 1000,
        ended=run.info.end_time / 1000 if run.info.end_time else None,
        epoch=epochs_done,
        epochs=epochs,
        trials_ended=_trials_ended(metrics),
        trials=_count(tags.get(TRIALS_TAG, "")) or int(metrics.get(SWEEP_TRIALS.name, 0)),
        left_s=_left_s(metrics, params, epochs_done, epochs) if state == "running" else None,
        figure=figure,
        value=value,
        knobs={
            name: params[name]
            for name in ("loss.temperature", "e_step.alpha", "e_step.num_clusters")
            if name in params
        },
        submission_id=tags.get(_JOB_TAG, ""),
        waits_for=tags.get(WAITS_TAG, "") if state == "running" else "",
        link=saved_views.link(server, experiment_id, run_id=run.info.run_id) if is_server(server) else "",
    )


def _kind(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Literal["run", "sweep", "trial"]:
    """Earlier versions did not say of a sweep that it is one, but recorded its figures."""
    if _PARENT in tags:
        return "trial"
    of_sweeps = (SWEEP_ENDED.name, SWEEP_TRIALS.name)
    return "sweep" if TRIALS_TAG in tags or any(name in metrics for name in of_sweeps) else "run"


def _trials_ended(metrics: Mapping[str, float]) -> int:
    """Trials that need no more training. A resumed sweep counts those that ended in earlier sessions."""
    concluded = sum(metrics.get(figure.name, 0.0) for figure in (SWEEP_FINISHED, SWEEP_STOPPED_EARLY))
    return int(max(metrics.get(SWEEP_ENDED.name, 0.0), concluded))


def _best(tags: Mapping[str, str], metrics: Mapping[str, float]) -> tuple[str, float | None]:
    """A sweep's objective, and its best value so far: a score is one where more is better."""
    objective = tags.get("objective.name", "")
    if SWEEP_BEST.name in metrics:
        return objective, metrics[SWEEP_BEST.name]
    entry = find(objective)
    more_is_better = entry is not None and entry[0].direction == "max"
    return objective, metrics.get(SWEEP_BEST_SCORE.name) if more_is_better else None


def _left_s(metrics: Mapping[str, float], params: Mapping[str, str], done: int, epochs: int) -> float | None:
    """The time left by the mean of the epochs done, which are recorded as minutes of all devices."""
    if done < 1 or DEVICE_MINUTES.name not in metrics:
        return None
    workers = max(1, _count(params.get("resources.workers", "")))
    return metrics[DEVICE_MINUTES.name] * 60 / workers / done * (epochs - done)


def _count(text: str) -> int:
    """The count that the text says; 0 where it says none: anybody may write into the experiment."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
