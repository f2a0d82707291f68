"""What a run does where its loss or weights are not finite: it ends, or goes back with a smaller step."""

from __future__ import annotations

import math

from torch import nn

from pcl_ray.config import TrainConfig
from pcl_ray.config.figures import ROLLBACKS
from pcl_ray.errors import NotFinite, RunFailed
from pcl_ray.model.learner import Learner

_MOST = 3
_FACTOR = 0.5  # of the learning rate, each time


class Rollbacks:
    """How often the run has gone back, and what follows from it for the learning rate."""

    def __init__(self, settings: TrainConfig):
        self._allowed = settings.on_divergence == "roll_back"
        self.count = 0  # over all starts of the run
        self.of_this_start = 0

    @property
    def rate_scale(self) -> float:
        """What the planned learning rate is multiplied by."""
        return _FACTOR**self.count

    def after(self, failure: NotFinite) -> str:
        """Counts one more; gives back the sentence for it. Raises RunFailed where the run has to end."""
        if not self._allowed:
            raise failure
        if self.count >= _MOST:
            raise RunFailed(
                f"{failure}. The run has gone back {_MOST} times already, each time to half of it"
            )
        self.count, self.of_this_start = self.count + 1, self.of_this_start + 1
        return (
            f"{failure}. Going back to the last good checkpoint with {self.rate_scale:g} of the learning rate"
            f" ({self.count} of {_MOST} times; train.on_divergence=roll_back)"
        )

    def figures(self) -> dict[str, float]:
        """The count, once there is one."""
        return {ROLLBACKS.name: float(self.count)} if self.count else {}


def stop_if_weights_are_not_finite(learner: Learner, epoch: int, step: int) -> None:
    """Raises NotFinite, on all workers alike, whose weights are the same: before there are features of them,
    or a checkpoint. epoch and step: the last ones trained, counted from 0.
    """
    norm = nn.utils.get_total_norm(list(learner.pair.parameters()))
    if not math.isfinite(float(norm)):
        raise NotFinite(
            f"the weights are not finite after epoch {epoch + 1}, step {step + 1}. Most likely the learning"
            " rate is too high: try a tenth of optimizer.lr, or optimizer.warmup_epochs"
        )
