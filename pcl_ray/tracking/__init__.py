"""MLflow: what a run records there. The only room that knows MLflow.

Other rooms open runs and look at them by the names below; `dashboard`, `evaluations`, `models` (which loads
torch), `reachability`, `run_list`, `saved_views` and `server` are modules of their own.
"""

from pcl_ray.tracking.address import check_uri, is_server, tracking_uri, ui_command
from pcl_ray.tracking.attachments import NOTE, DataSet
from pcl_ray.tracking.run import PENDING_FILE, MlflowRun, NullRun, open_run
from pcl_ray.tracking.saved_views import Sweep
from pcl_ray.tracking.store import PHASE_TAG, RUN_TAG, TRIALS_TAG, WAITS_TAG, RunDescription

__all__ = [
    "NOTE",
    "PENDING_FILE",
    "PHASE_TAG",
    "RUN_TAG",
    "TRIALS_TAG",
    "WAITS_TAG",
    "DataSet",
    "MlflowRun",
    "NullRun",
    "RunDescription",
    "Sweep",
    "check_uri",
    "dashboard",
    "evaluations",
    "is_server",
    "models",
    "open_run",
    "reachability",
    "run_list",
    "saved_views",
    "server",
    "tracking_uri",
    "ui_command",
]
