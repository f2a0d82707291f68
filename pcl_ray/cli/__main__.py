"""`python -m pcl_ray.cli`: the same as `pcl-ray`."""

from pcl_ray.cli import entry

entry()
