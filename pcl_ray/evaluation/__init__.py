"""How good the features and the clusters are: with labels (kNN, agreement), and without (RankMe, α-ReQ,
LiDAR, uniformity).
"""

from pcl_ray.evaluation.knn import knn_accuracy
from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.measure import measure, measure_clusters
from pcl_ray.evaluation.unlabelled import alignment, areq, lidar, rankme, uniformity

__all__ = [
    "agreement",
    "alignment",
    "areq",
    "augmented",
    "knn_accuracy",
    "lidar",
    "measure",
    "measure_clusters",
    "rankme",
    "uniformity",
]
