"""pcl_ray: Prototypical Contrastive Learning on Ray."""

__version__ = "0.1.0"
