"""The verbs that look after what lies on the disk: `delete`, `prune`, `archive`, `unarchive`."""

from pcl_ray.cli.upkeep.archives import ARCHIVE, UNARCHIVE
from pcl_ray.cli.upkeep.removal import DELETE, PRUNE

__all__ = ["ARCHIVE", "DELETE", "PRUNE", "UNARCHIVE"]
