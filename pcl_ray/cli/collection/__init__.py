"""The verbs of collections: `embed`, and what is done with the embeddings."""

from pcl_ray.cli.collection.embed import EMBED
from pcl_ray.cli.collection.finding import DUPLICATES, OUTLIERS, SEARCH
from pcl_ray.cli.collection.labelling import LABEL, SAMPLE

__all__ = ["DUPLICATES", "EMBED", "LABEL", "OUTLIERS", "SAMPLE", "SEARCH"]
