"""Runs as MLflow has them, for lists: read, and closed where their process was killed. Private to the
commands that look at runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcl_ray.config.figures import DEVICE_MINUTES, HEADLINES, first_of
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.support.redaction import public_uri, said_of
from pcl_ray.tracking import saved_views
from pcl_ray.tracking.address import is_server
from pcl_ray.tracking.client import open_client
from pcl_ray.tracking.store import RUN_TAG

_STATES = {"RUNNING": "running", "FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
_PARENT = "mlflow.parentRunId"
_JOB_TAG, _WAITS_TAG = "ray.submission_id", "pcl_ray.waits_for"


@dataclass(frozen=True)
class RecordedRun:
    """What a list shows. figure: the first that it has of kNN accuracy, effective rank, loss."""

    name: str
    run_id: str
    state: str
    user: str
    began: float  # s since 1970
    ended: float | None
    epoch: int  # epochs done
    epochs: int
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
    """The newest runs of the experiment. trials: those of sweeps too. state: only these. Raises RunFailed
    where the store does not answer.
    """
    wanted = {said: name for name, said in _STATES.items()}
    if state and state not in wanted:
        raise ConfigError(f"--state {state!r}: one of {', '.join(sorted(wanted))}")
    try:
        client = open_client(uri, retries=1)
        there = client.get_experiment_by_name(experiment)
        if there is None:
            return []
        found, token = [], None
        while len(found) < limit:
            query = f"attributes.status = '{wanted[state]}'" if state else ""
            page = client.search_runs(
                [there.experiment_id],
                query,
                max_results=200,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += [run for run in page if trials or _PARENT not in run.data.tags]
            if not (token := page.token):
                break
    except Exception as error:  # MLflow's and its database's many kinds
        raise RunFailed(f"MLflow at {public_uri(uri)} does not answer ({said_of(error, uri)})") from None
    return [_as_seen(run, uri, there.experiment_id) for run in found[:limit]]


def mark_killed(uri: str, run_id: str) -> None:
    """A run whose process was killed reads RUNNING for ever. Raises RunFailed where the store does not
    answer.
    """
    try:
        client = open_client(uri, retries=1)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
    except Exception as error:
        raise RunFailed(f"MLflow at {public_uri(uri)} does not answer ({said_of(error, uri)})") from None


def _as_seen(run: Any, uri: str, experiment_id: str) -> RecordedRun:
    metrics = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
    params, tags = run.data.params, run.data.tags
    done = int(metrics["epoch"]) + 1 if "epoch" in metrics else 0
    epochs = _whole(params.get("train.epochs", ""))
    state = _STATES.get(run.info.status, run.info.status.lower())
    server = public_uri(uri).rstrip("/")
    headline = first_of(HEADLINES, metrics)
    figure = headline.name if headline else ""
    return RecordedRun(
        name=tags.get(RUN_TAG) or run.info.run_name or run.info.run_id,
        run_id=run.info.run_id,
        state=state,
        user=tags.get("mlflow.user", ""),
        began=(run.info.start_time or time.time() * 1000) / 1000,
        ended=run.info.end_time / 1000 if run.info.end_time else None,
        epoch=done,
        epochs=epochs,
        left_s=_left_s(metrics, params, done, epochs) if state == "running" else None,
        figure=figure,
        value=metrics.get(figure),
        knobs={
            name: params[name]
            for name in ("loss.temperature", "e_step.alpha", "e_step.num_clusters")
            if name in params
        },
        submission_id=tags.get(_JOB_TAG, ""),
        waits_for=tags.get(_WAITS_TAG, "") if state == "running" else "",
        link=saved_views.link(server, experiment_id, run_id=run.info.run_id) if is_server(server) else "",
    )


def _left_s(metrics: Mapping[str, float], params: Mapping[str, str], done: int, epochs: int) -> float | None:
    """By the mean of its epochs so far, which are known as minutes of all its devices."""
    if done < 1 or DEVICE_MINUTES.name not in metrics:
        return None
    return (
        metrics[DEVICE_MINUTES.name]
        * 60
        / max(1, _whole(params.get("resources.workers", "")))
        / done
        * (epochs - done)
    )


def _whole(text: str) -> int:
    """0 for what is no such number: anybody may write into the experiment."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
