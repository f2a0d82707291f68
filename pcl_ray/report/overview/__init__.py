"""All runs and sweeps on one page, the first of the dashboard. Loads neither torch nor matplotlib."""

from pcl_ray.report.overview.entries import RunEntry, SweepEntry
from pcl_ray.report.overview.page import html_of
from pcl_ray.report.overview.strip import strip_of

__all__ = ["RunEntry", "SweepEntry", "html_of", "strip_of"]
