"""Whether training waits for images, and which knob helps then."""

from __future__ import annotations

import torch

from pcl_ray.config import RunConfig
from pcl_ray.plan import RunPlan, batches_ahead, decoded_bytes

_TOLERATED = 0.1  # of the time of an M-step


class InputStall:
    """Advice against waiting for images, given once in a run. The first epoch, in which loader processes
    start, counts only where it is the only one.
    """

    def __init__(self, config: RunConfig, plan: RunPlan, device: torch.device, epochs: int):
        """epochs: how many are to be trained now."""
        self._config, self._plan, self._device, self._epochs = config, plan, device, epochs
        self._given = False

    def advice_after(self, number: int, share: float) -> str:
        """The text for the user after epoch `number` (0: the first since the run began or went on), in which
        `share` of the time was waiting; or "".
        """
        if share <= _TOLERATED or self._given or (number == 0 and self._epochs > 1):
            return ""
        self._given = True
        if self._makes_views_between():
            return self._cheaper_views(share)
        remedy = self._remedy()
        return f"training waits for images {share:.0%} of the time: {remedy}" if remedy else ""

    def _makes_views_between(self) -> bool:
        """Whether nothing is waited for: the views are made between two steps, by the same process."""
        in_batches = self._config.augment.engine == "batch"
        return in_batches and self._plan.in_memory and self._device.type != "cuda"

    def _cheaper_views(self, share: float) -> str:
        """What can be left out of the views; "" where that is nothing."""
        costly = [f"{name}=0" for name in self._costly()]
        if not costly:
            return ""
        return (
            f"making the views takes {share:.0%} of a step, much for an encoder this small;"
            f" {' and '.join(costly)} would save most of it"
        )

    def _remedy(self) -> str:
        """The knob that helps; "" where none does."""
        plan, resources = self._plan, self._config.resources
        # Without Ray all cores are taken anyway.
        cpus = ""
        if resources.workers:
            cpus = f" and resources.cpus_per_worker (now {resources.cpus_per_worker:g})"
        if self._config.augment.engine == "torchvision":
            return "augment.engine=batch makes the views many times faster"
        if not plan.in_memory:
            gigabytes = decoded_bytes(self._config, plan.num_images + plan.num_holdout) / 1e9
            more = f"raise data.loader_workers (now {plan.loader_workers} a worker){cpus}"
            return (
                f"{more}, or keep the decoded images in memory with data.in_memory=true, which takes"
                f" {gigabytes:.1f} GB"
            )
        return f"raise data.prefetch (now {batches_ahead(self._config)}){cpus}"

    def _costly(self) -> list[str]:
        """The views' slow parts that are switched on, by their knobs."""
        augment = self._config.augment
        names = []
        if augment.hue > 0 and self._config.data.channels == 3:
            names.append("augment.hue")
        if augment.blur > 0 and augment.version == "v2":
            names.append("augment.blur")
        return names
