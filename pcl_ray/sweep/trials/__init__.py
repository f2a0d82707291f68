"""The trials of a sweep: what runs in the process that Ray Tune starts for each of them."""

__all__ = ["context", "epoch_thread", "recording", "trainable", "trial"]
