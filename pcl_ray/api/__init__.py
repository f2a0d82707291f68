"""pcl_ray from Python: what the command line does, as functions.

train, resume, fork, sweep ─→ Run (or SweepResult)          open_run(name) ─→ Run
   Run ─→ figures, encoder, clusters, embed, report
"""

from pcl_ray.api.experiments import fork, open_run, resume, train
from pcl_ray.api.run import Run
from pcl_ray.api.run_clusters import RunClustering

__all__ = ["Run", "RunClustering", "fork", "open_run", "resume", "train"]
