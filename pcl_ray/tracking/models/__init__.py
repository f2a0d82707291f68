"""Models in MLflow: what a run has learned, to be loaded, served and compared by its figures.

checkpoint ─→ Embedder ─┬→ encoder: the momentum encoder as an exported graph (pt2): normalised views
                        │  → unit vectors
                        └→ embedder: pyfunc from code (served_model.py + this package + safetensors):
                           pictures → embeddings, prototypes ─→ registry

Neither holds a pickle, so both load with MLflow's defaults. Everything goes through a client of its own with
explicit ids: MLflow's active run, experiment and tracking URI stay as they are, and other threads may log
meanwhile. Importing this room loads torch.
"""

from pcl_ray.tracking.models.request import LoggedModels, ModelRequest
from pcl_ray.tracking.models.upload import log

__all__ = ["LoggedModels", "ModelRequest", "log"]
