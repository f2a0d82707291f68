"""How good the features and the clusters are: with labels (kNN, linear probe, few labels, agreement), and
without (RankMe, α-ReQ, LiDAR, uniformity).
"""

from pcl_ray.evaluation.class_clusters import class_clusters, hungarian_accuracy
from pcl_ray.evaluation.few_labels import few_label_accuracy, few_label_draws
from pcl_ray.evaluation.final import measure_final
from pcl_ray.evaluation.knn import knn_accuracy
from pcl_ray.evaluation.labelled import LabelledFeatures, LabelledSample
from pcl_ray.evaluation.labels import agreement
from pcl_ray.evaluation.linear import linear_probe_accuracy
from pcl_ray.evaluation.measure import measure, measure_clusters, measure_labelled, measure_references
from pcl_ray.evaluation.unlabelled import alignment, areq, lidar, rankme, uniformity

__all__ = [
    "LabelledFeatures",
    "LabelledSample",
    "agreement",
    "alignment",
    "areq",
    "augmented",
    "class_clusters",
    "few_label_accuracy",
    "few_label_draws",
    "hungarian_accuracy",
    "knn_accuracy",
    "lidar",
    "linear_probe_accuracy",
    "measure",
    "measure_clusters",
    "measure_final",
    "measure_labelled",
    "measure_references",
    "neighbours",
    "protocols",
    "rankme",
    "uniformity",
]
