"""What a process knows of the Ray job that it is the driver of. Without Ray: the cluster tells its drivers by
the environment.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field

from pcl_ray.support.redaction import scrubbed

ID_TAG = "ray.submission_id"
# of a job's metadata: the run that it trains, where that was known when it was submitted
RUN_KEY = "pcl_ray.run"
_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_ID_KEY = "job_submission_id"
_OWN = ("job_", "submission", RUN_KEY)
_MOST = 20
_PRIVATE = re.compile(r"token|passw|secret|credential|(^|[^a-z])key", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    id: str
    metadata: dict[str, str] = field(default_factory=dict)  # what was given by --metadata-json


def current() -> Submission | None:
    """The job that this process is the driver of; None where it is none. Ray's variable is not documented:
    without it, a run merely lacks its tags.
    """
    try:
        told = json.loads(os.environ.get(_CONFIG, "")).get("metadata") or {}
        number = told.get(_ID_KEY)
    except (ValueError, AttributeError):
        return None
    if not isinstance(number, str) or not number:
        return None
    return Submission(
        number, {str(name): str(value) for name, value in told.items() if not str(name).startswith(_OWN)}
    )


def tags() -> dict[str, str]:
    """Of the job, for MLflow: its id, and its metadata as job.NAME, without what looks like a secret. Empty
    where there is none.
    """
    job = current()
    if job is None:
        return {}
    shown = [name for name in job.metadata if not _PRIVATE.search(name)][:_MOST]
    return {ID_TAG: job.id} | {f"job.{name}": scrubbed(job.metadata[name]) for name in shown}


def without_gpus() -> None:
    """A job's driver trains nothing itself, and Ray lets it see every GPU where no entrypoint resources were
    asked for: a context on one of them would take memory that a worker counts on. Before torch is imported.
    """
    if current() is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
