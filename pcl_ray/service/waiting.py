"""Training that waits for images: whether it does, and which knob helps."""

from __future__ import annotations

import torch

from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan

_TOLERATED = 0.1  # of the time of an M-step


class WaitingForData:
    """Speaks once in a run. The first epoch, in which loader processes start, counts only where it is the only one."""

    def __init__(self, config: RunConfig, plan: RunPlan, device: torch.device):
        self._config, self._plan, self._device = config, plan, device
        self._silent = False

    def said_after(self, number: int, share: float) -> str:
        """What to tell the user after the run's epoch `number` (0: the first since it began or went on), in which `share` of the time was waiting; or ""."""
        if share <= _TOLERATED or self._silent or (number == 0 and self._plan.epochs > 1):
            return ""
        self._silent = True
        return f"training waits for images {share:.0%} of the time: {self._help()}"

    def _help(self) -> str:
        plan, resources = self._plan, self._config.resources
        if self._config.augment.engine == "torchvision":
            return "augment.engine=batch makes the views many times faster"
        if not plan.in_memory:
            more = f"raise data.loader_workers (now {plan.loader_workers} a worker) and with it resources.cpus_per_worker (now {resources.cpus_per_worker:g})"
            return f"{more}, or keep the decoded images in memory with data.in_memory=true, which takes {self._gigabytes():.1f} GB"
        if self._device.type == "cuda":
            return f"raise data.prefetch (now {2 if self._config.data.prefetch is None else self._config.data.prefetch}) or resources.cpus_per_worker"
        return "for an encoder this small making the views is a large part of the work; augment.hue=0 and augment.blur=0 save most of it"

    def _gigabytes(self) -> float:
        plan = self._plan
        return (plan.num_images + plan.num_holdout) * plan.memory_side**2 * self._config.data.channels / 1e9
