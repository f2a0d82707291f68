"""MLflow: what a run records there, and the only room that knows MLflow."""

from pcl_ray.tracking.attachments import NOTE, DataSet
from pcl_ray.tracking.run import (
    PENDING_FILE,
    MlflowRun,
    NullRun,
    check_uri,
    open_run,
    public_config,
    run_tags,
    secret_knobs,
    stored_secret,
    tracking_uri,
    ui_command,
)
from pcl_ray.tracking.saved_views import Sweep
from pcl_ray.tracking.store import RUN_TAG

__all__ = [
    "NOTE",
    "PENDING_FILE",
    "RUN_TAG",
    "DataSet",
    "MlflowRun",
    "NullRun",
    "Sweep",
    "check_uri",
    "open_run",
    "public_config",
    "run_tags",
    "secret_knobs",
    "stored_secret",
    "tracking_uri",
    "ui_command",
]
