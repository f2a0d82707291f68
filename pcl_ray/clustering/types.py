"""What the E-step hands to the M-step, and how it travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PickledAsNumpy:
    """A dataclass of CPU tensors that travels through Ray's object store as numpy arrays and is read there
    without copying: treat the tensors as read-only, an in-place write would change every reader's.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        arrays = [value.numpy() if isinstance(value, Tensor) else value for value in values]
        return _unpickled, (type(self), *arrays)


@dataclass(frozen=True, eq=False)
class Clustering(PickledAsNumpy):
    """One clustering of the N images into K clusters."""

    prototypes: Tensor  # [K, C] float32, L2-normalised centroids
    # [N] int64, cluster of each image; −1 for one that could not be clustered and had no cluster before
    assignments: Tensor
    concentration: Tensor  # [K] float32, φ
    objective: float = float("nan")  # sum of squared distances to the raw centroids
    # [K] bool, prototypes that have images; None: all. The others are neither positives nor negatives
    valid: Tensor | None = None
    norms: Tensor | None = None  # [K] float32, lengths of the raw centroids: centroid = prototype · norm

    @property
    def num_clusters(self) -> int:
        return len(self.prototypes)

    @property
    def sizes(self) -> Tensor:
        """[K] int64, images in each cluster."""
        return torch.bincount(self.assignments[self.assignments >= 0], minlength=self.num_clusters)

    @property
    def centroids(self) -> Tensor | None:
        """[K, C] float32, the raw centroids; None where their lengths are not known."""
        return None if self.norms is None else self.prototypes * self.norms[:, None]


@dataclass(frozen=True, eq=False)
class ClusterSet:
    """The clusterings, one for each K, that epoch `epoch` trains with."""

    epoch: int
    clusterings: tuple[Clustering, ...]

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for a checkpoint."""
        return {
            "epoch": self.epoch,
            "clusterings": [
                {
                    "prototypes": c.prototypes,
                    # int32 halves the largest part of a checkpoint; K stays far below 2³¹
                    "assignments": c.assignments.to(torch.int32),
                    "concentration": c.concentration,
                    "objective": c.objective,
                    "valid": c.valid,
                    "norms": c.norms,
                }
                for c in self.clusterings
            ],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ClusterSet:
        return cls(
            state["epoch"],
            tuple(Clustering(**{**c, "assignments": c["assignments"].long()}) for c in state["clusterings"]),
        )


def _unpickled(kind: Any, *values: Any) -> Any:
    return kind(*(_shared(value) if isinstance(value, np.ndarray) else value for value in values))


def _shared(array: np.ndarray) -> Tensor:
    """A tensor on the array's own memory, even if read-only (torch would warn of writes that never come)."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    address, _ = array.__array_interface__["data"]
    return torch.from_numpy(_ReadOnly(address, array).view())


class _ReadOnly:
    """Presents a read-only array's memory as writeable to torch, and keeps the array alive."""

    def __init__(self, address: int, owner: np.ndarray):
        self.owner = owner
        self.__array_interface__ = {**owner.__array_interface__, "data": (address, False)}

    def view(self) -> np.ndarray:
        return np.asarray(self)
