"""MLflow's server with pages of ours beside its own, under the same address."""

from pcl_ray.tracking.dashboard.app import APP_NAME, PATH, Page, installed, served, with_pages

__all__ = ["APP_NAME", "PATH", "Page", "installed", "served", "with_pages"]
