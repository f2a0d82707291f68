"""The app that MLflow's server runs with pages of ours: the overview, reports, small pictures of prototypes.

`create` is the entry point of the group `mlflow.app` in pyproject.toml. Names of runs come from addresses:
only names that a run can have are looked for, and of its folder two files alone are shown.
"""

from __future__ import annotations

from typing import Any

from pcl_ray.errors import ConfigError
from pcl_ray.report import overview
from pcl_ray.runs.folder import REPORT_FILE, SNAPSHOT_FILE, RunFolder, SweepFolder
from pcl_ray.runs.overview import reading
from pcl_ray.snapshot import load_snapshot
from pcl_ray.support.paths import home
from pcl_ray.tracking.dashboard import PATH, Page, with_pages

PICTURE = "prototypes.png"
_KINDS: dict[str, type[RunFolder]] = {"runs": RunFolder, "sweeps": SweepFolder}


def create() -> Any:
    """MLflow's app with our pages."""
    return with_pages(page_of)


def page_of(rest: str) -> Page | None:
    """The page at `/pcl/REST`: the overview, a report, a picture of prototypes; None where there is none."""
    if not rest:
        runs = reading.runs()
        return Page(overview.html_of(runs, reading.sweeps(runs), PATH, str(home())).encode(errors="replace"))
    match rest.split("/"):
        case [kind, name, file] if kind in _KINDS:
            try:
                folder = _KINDS[kind].existing(name)
            except ConfigError:
                return None
            if file == REPORT_FILE and (folder / file).is_file():
                return Page((folder / file).read_bytes())
            if file == PICTURE and (shown := load_snapshot(folder / SNAPSHOT_FILE)) is not None:
                picture = overview.strip_of(*shown)
                return Page(picture, "image/png") if picture is not None else None
    return None
