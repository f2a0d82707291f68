"""The feature bank: momentum features of the M-step, stored by image, so that the E-step needs no pass.

As in DeepCluster-v2 and ODC, a row is the feature of a training view, averaged over the epochs. Images that
an epoch left out keep their old row.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.features import FeatureShard


class FeatureBank:
    """Rows of the images first … last − 1, this worker's part of the data set. Begins with an evaluation
    pass, so that no row is ever unset.
    """

    def __init__(self, first: int, rows_nC: Tensor, momentum: float):
        self.first, self.momentum = first, momentum
        self._count = len(rows_nC)
        # One row more, for other workers' images: without a branch on the batch no step waits for the device.
        self._rows = torch.cat([rows_nC, rows_nC.new_zeros(1, rows_nC.shape[1])])

    @classmethod
    def of(cls, shard: FeatureShard, momentum: float, device: torch.device) -> FeatureBank:
        """The bank that begins with a worker's contiguous shard."""
        first = int(shard.indices[0]) if len(shard.indices) else 0
        assert (shard.indices == np.arange(first, first + len(shard.indices))).all(), (
            "a bank holds a contiguous part of the images"
        )
        return cls(first, torch.from_numpy(shard.features).to(device), momentum)

    @property
    def rows(self) -> Tensor:
        """[n, C], in data set order."""
        return self._rows[: self._count]

    @torch.no_grad()
    def update(self, indices_B: Tensor, keys_BC: Tensor) -> None:
        """Takes in a batch, which may hold images of other workers: row ← normalised momentum · row + (1 −
        momentum) · key. No image twice in a batch.
        """
        positions = indices_B.to(self._rows.device) - self.first
        own = (positions >= 0) & (positions < self._count)
        positions = torch.where(own, positions, self._count)
        mixed = self.momentum * self._rows[positions].float() + (1 - self.momentum) * keys_BC.float()
        self._rows[positions] = F.normalize(mixed, dim=1).to(self._rows.dtype)

    def shard(self) -> FeatureShard:
        """The rows as the E-step takes them; a copy."""
        return FeatureShard(np.arange(self.first, self.first + self._count), self.rows.cpu().numpy().copy())
