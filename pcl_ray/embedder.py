"""Where models look for their embedder that earlier versions recorded: their own code imports it from here,
and finds this package where it has been imported already.
"""

from pcl_ray.embedding.embedder import Embedder

__all__ = ["Embedder"]
