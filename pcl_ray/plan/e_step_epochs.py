"""Which epochs begin with new clusters."""

from __future__ import annotations

import math

from pcl_ray.config import EStepConfig


def e_step_epochs(e_step: EStepConfig, epochs: int) -> tuple[int, ...]:
    """The epochs below `epochs` that begin with new clusters: seldom at first, if so configured, then at
    every `every_epochs`; the first after the warm-up and the first after the early epochs in any case.
    """
    first, regular = e_step.warmup_epochs, e_step.warmup_epochs + e_step.early_epochs
    early = range(first, min(regular, epochs), e_step.early_every_epochs)
    return (*early, *range(regular, epochs, e_step.every_epochs))


def e_step_number(e_step: EStepConfig, epoch: int) -> int:
    """The number, from 0, of the E-step that is in force in `epoch`; negative during the warm-up."""
    after_warmup = epoch - e_step.warmup_epochs
    if after_warmup < e_step.early_epochs:
        return after_warmup // e_step.early_every_epochs
    early = math.ceil(e_step.early_epochs / e_step.early_every_epochs)
    return early + (after_warmup - e_step.early_epochs) // e_step.every_epochs
