"""The `pcl-ray` command: one module for each family of verbs."""

from pcl_ray.cli.command import entry, main

__all__ = ["entry", "main"]
