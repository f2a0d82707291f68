"""Checkpoints: what is in one, which files there are, and the storages that keep them."""
