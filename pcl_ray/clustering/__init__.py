"""k-means over one or several processes, the concentration φ, and figures about clusterings."""

from pcl_ray.clustering.concentration import concentration
from pcl_ray.clustering.kmeans import KMeansResult, kmeans
from pcl_ray.clustering.quality import quality
from pcl_ray.clustering.types import Clustering, ClusterSet

__all__ = [
    "ClusterSet",
    "Clustering",
    "KMeansResult",
    "assign",
    "concentration",
    "faiss_state",
    "group",
    "health",
    "kmeans",
    "lloyd",
    "points",
    "quality",
    "search",
    "types",
]
