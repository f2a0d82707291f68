"""The held-out part of pictures, chosen so that copies of a picture stay on one side."""

from __future__ import annotations

import numpy as np

from pcl_ray.data.inspection.looks_cache import Looks
from pcl_ray.data.pictures import twins


def groups_of(looks: Looks) -> np.ndarray:
    """[N] int64: pictures with equal numbers are copies of each other."""
    hashes = looks.difference_hashes if looks.has_miniatures else None
    return twins.groups(looks.content_hashes, hashes, looks.miniatures, looks.shapes, looks.contrasts)


def holdout_of(order: np.ndarray, count: int, group: np.ndarray) -> np.ndarray:
    """[N] bool: `count` pictures that are held out, a few less where no whole group fits any more.

    order: [N] all pictures in a random order, of which the first `count` would be held out if all were alone.
    Of a group on both sides all go to the training part, and the next ones in the order take their places.
    """
    wanted = np.zeros(len(order), bool)
    wanted[order[:count]] = True
    sizes = np.bincount(group)
    held_of = np.bincount(group, wanted).astype(np.int64)
    accepted = held_of == sizes
    left = count - int(sizes[accepted].sum())
    for number in group[order[count:]].tolist():
        if left <= 0:
            break
        if not held_of[number] and sizes[number] <= left and not accepted[number]:
            accepted[number] = True
            left -= int(sizes[number])
    return accepted[group]


def separated(holdout: np.ndarray, group: np.ndarray) -> int:
    """How many held-out pictures have a copy in the training part. holdout: [N] bool."""
    in_training = np.bincount(group, ~holdout) > 0
    return int((holdout & in_training[group]).sum())
