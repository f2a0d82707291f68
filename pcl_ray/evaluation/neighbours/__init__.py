"""The exact nearest neighbours by cosine, for the kNN classifier."""

from pcl_ray.evaluation.neighbours.search import Neighbours, merged, nearest_neighbours, without_own

__all__ = ["Neighbours", "merged", "nearest_neighbours", "without_own"]
