"""What a run takes of a cluster: its parts, its turn among others, and with how many workers it goes on."""

__all__ = ["admission", "bundles", "elastic"]
