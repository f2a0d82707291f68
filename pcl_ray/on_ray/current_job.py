"""What a process knows of the Ray job that it drives, from the environment alone, without Ray."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field

from pcl_ray.support.redaction import scrubbed

ID_TAG = "ray.submission_id"
RUN_KEY = (
    "pcl_ray.run"  # in a job's metadata: the run that it trains, where that was known when it was submitted
)
# Ray's variable is not documented: without it, a run merely lacks its tags.
_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_ID_KEY = "job_submission_id"
_OWN_KEYS = ("job_", "submission", RUN_KEY)  # what metadata begin with that nobody gave by --metadata-json
_MOST_TAGS = 20
_PRIVATE = re.compile(r"token|passw|secret|credential|(^|[^a-z])key", re.IGNORECASE)


@dataclass(frozen=True)
class RayJob:
    """A submitted job."""

    id: str
    metadata: dict[str, str] = field(default_factory=dict)  # what was given by --metadata-json


def current() -> RayJob | None:
    """The job that this process is the driver of; None where it is none."""
    try:
        metadata = json.loads(os.environ.get(_VARIABLE, "")).get("metadata") or {}
        job_id = metadata.get(_ID_KEY)
    except (ValueError, AttributeError):
        return None
    if not isinstance(job_id, str) or not job_id:
        return None
    given = {str(key): str(value) for key, value in metadata.items() if not str(key).startswith(_OWN_KEYS)}
    return RayJob(job_id, given)


def tags() -> dict[str, str]:
    """MLflow's tags of the job: its id and metadata as job.NAME, without secrets. Empty without a job."""
    job = current()
    if job is None:
        return {}
    public = [name for name in job.metadata if not _PRIVATE.search(name)][:_MOST_TAGS]
    return {ID_TAG: job.id} | {f"job.{name}": scrubbed(job.metadata[name]) for name in public}


def hide_gpus() -> None:
    """Hides all GPUs from this process where it is a job's driver; to be called before torch is imported.

    A job's driver trains nothing itself, and Ray lets it see every GPU where no entrypoint resources were
    asked for: a context on one of them would take memory that a worker counts on.
    """
    if current() is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
