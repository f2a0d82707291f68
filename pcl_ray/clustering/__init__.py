"""k-means, concentration, and figures about clusterings."""

from pcl_ray.clustering.concentration import concentration
from pcl_ray.clustering.kmeans import KMeansResult, kmeans
from pcl_ray.clustering.quality import quality
from pcl_ray.clustering.types import Clustering, ClusterSet

__all__ = ["ClusterSet", "Clustering", "KMeansResult", "concentration", "kmeans", "quality"]
