"""What `pcl-ray evaluate` records in MLflow."""

from pcl_ray.tracking.evaluations.recording import EvaluationRecord, record_evaluation

__all__ = ["EvaluationRecord", "record_evaluation"]
