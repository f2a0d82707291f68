"""What is measured while training, without making a step wait: losses and times are taken on the device."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pcl_ray.config.figures import COLLISIONS, FEATURE_STD, GRADIENT_NORM
from pcl_ray.model.distributed import all_gather, mean_over_workers

GAUGE_EVERY = 8  # steps: gauges cost a pass over all gradients, and change slowly


@torch.no_grad()
def gauges(query_BC: Tensor, parameters: Iterable[nn.Parameter], positives: Iterable[Tensor]) -> Tensor:
    """[2 + M] float32 on the device, of the batch of all workers, who all have to call it: gradient norm,
    feature std, collisions of M clusterings.

    query_BC: this worker's features. parameters: with their gradients. positives: for each clustering [B],
    the prototype of each of its images. Gradient norm: L2 over all of them. Feature std: mean over the
    dimensions of the standard deviation over the batch, times √C: 1 where unit features are spread evenly
    over the sphere, 0 where all are one. Collisions: share of the rows whose prototype is also another row's.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients).to(query_BC.device)
    features = all_gather(query_BC.detach())
    spread = features.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5
    return torch.stack([norm.float(), spread, *(_collisions(all_gather(own)) for own in positives)])


def gauge_names(num_clusterings: int) -> list[str]:
    """What `gauges` gives back, by name and in its order."""
    return [GRADIENT_NORM.name, FEATURE_STD.name, *(COLLISIONS.at(m).name for m in range(num_clusterings))]


def _collisions(positives_B: Tensor) -> Tensor:
    rows = positives_B.sort().values
    same = rows[1:] == rows[:-1]
    edge = same.new_zeros(1)
    shared = torch.cat([edge, same]) | torch.cat([same, edge])  # with the one before, or the one after
    return (shared & (rows >= 0)).float().mean()


@dataclass
class Meter:
    """Figures of each step, on the device until they are read. Row s tells which step went wrong."""

    names: tuple[str, ...]
    device: torch.device
    rows: list[Tensor] = field(default_factory=list)

    def add(self, row: Tensor) -> None:
        self.rows.append(row)

    def read(self) -> tuple[Tensor, Tensor]:
        """Means over workers, per step [steps, names] and in total [names], on the CPU; empties the meter."""
        table = mean_over_workers(torch.stack(self.rows)).cpu()
        self.rows.clear()
        return table, table.mean(dim=0)


class StepClock:
    """Seconds of each step, from tick to tick; on a GPU its own time, since the process is steps ahead."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []
        self._seconds: list[float] = []

    def tick(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def settle(self) -> None:
        """Turns the ticks so far into seconds; on a GPU, when it has reached the last of them."""
        for first, second in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event):
                self._seconds.append(first.elapsed_time(second) / 1000)
            elif isinstance(first, float) and isinstance(second, float):
                self._seconds.append(second - first)
        self._marks = self._marks[-1:]

    def seconds(self) -> list[float]:
        """The seconds of each step settled so far."""
        return list(self._seconds)

    def go_on(self, seconds: list[float]) -> None:
        """Begins with steps that an earlier start of the run has measured."""
        self._seconds = list(seconds)

    def quantiles(self) -> tuple[float, float]:
        """Median and 95th percentile of all steps settled so far; 0 where there are none."""
        if not self._seconds:
            return 0.0, 0.0
        # quantiles need two values at least
        seconds = self._seconds if len(self._seconds) > 1 else self._seconds * 2
        return statistics.median(seconds), statistics.quantiles(seconds, n=20, method="inclusive")[-1]


@dataclass
class EpochTally:
    """What an epoch has added up so far, as far as its means and its next steps need it. A checkpoint within
    the epoch keeps it, so that the figures of a run that was interrupted there are those of one that was not.
    """

    sums: Tensor  # [names] float32 on the CPU, over the steps whose figures were read
    seen: int = 0  # steps
    gauged: Tensor | None = None  # the last reading of the gauges, on the device
    seconds: float = 0.0
    waited: float = 0.0  # seconds for images, on this worker
    step_seconds: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU, and plain numbers."""
        gauged = None if self.gauged is None else self.gauged.cpu()
        return {**vars(self), "sums": self.sums.clone(), "gauged": gauged}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> EpochTally:
        tally = cls(**state)
        tally.sums = tally.sums.clone()  # it is added to
        if tally.gauged is not None:
            tally.gauged = tally.gauged.to(device)
        return tally


def memory_gb(device: torch.device) -> float:
    """GB at the peak: allocated on the GPU since `reset_memory`, or resident here since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory was not enough, of a GPU or of the machine."""
    # torch has a class for GPUs alone
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
