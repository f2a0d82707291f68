"""The neighbours of kNN over Ray: a part of the bank a task, the nearest of all parts merged here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from torch import Tensor

from pcl_ray.errors import RunFailed
from pcl_ray.evaluation.neighbours import merged, nearest_neighbours, without_own
from pcl_ray.evaluation.protocols.settings import NeighbourSearch
from pcl_ray.on_ray.connection import connected

PART_ROWS = 100_000  # of the bank in one task
PART_QUERIES = 20_000
_AHEAD = 2  # tasks for each core or GPU that may be waiting
_TIMEOUT_S = 1800.0  # of one task, its waiting for a place on the cluster included


@contextmanager
def search_on_ray(
    say: Callable[[str], None] = lambda text: None, *, rows: int = PART_ROWS, queries: int = PART_QUERIES
) -> Iterator[NeighbourSearch]:
    """A search as `nearest_neighbours`, on the cluster that RAY_ADDRESS names or on a Ray of our own, as long
    as the context lasts. rows, queries: of one task.

    A task takes a GPU where the cluster has one, else a core. The search raises RunFailed where Ray cannot be
    reached, or a task fails or does not end in half an hour.
    """
    with connected(1):
        gpus = ray.cluster_resources().get("GPU", 0)
        slots = int(gpus or ray.cluster_resources().get("CPU", 1))
        say(f"neighbours are searched over Ray, in {slots} tasks at a time")

        def search(bank: Tensor, query: Tensor, count: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
            return _searched(_Bank(bank, query, rows, queries), count, own, slots, bool(gpus))

        yield search


class _Bank:
    """Bank and queries in Ray's store, in parts, each put there when the first task needs it."""

    def __init__(self, bank: Tensor, query: Tensor, rows: int, queries: int):
        self.bank, self.query = bank, query
        self.bank_starts = list(range(0, len(bank), rows))
        self.query_starts = list(range(0, len(query), queries))
        self._rows, self._queries = rows, queries
        self._query_refs: dict[int, ray.ObjectRef] = {}

    def part_of_bank(self, start: int) -> ray.ObjectRef:
        return ray.put(np.ascontiguousarray(self.bank[start : start + self._rows].cpu().numpy()))

    def part_of_queries(self, start: int) -> ray.ObjectRef:
        if start not in self._query_refs:
            part = self.query[start : start + self._queries].cpu().numpy()
            self._query_refs[start] = ray.put(np.ascontiguousarray(part))
        return self._query_refs[start]


def _searched(data: _Bank, count: int, own: Tensor | None, slots: int, gpu: bool) -> tuple[Tensor, Tensor]:
    """The nearest of all parts. Results are merged in the order of the parts, so that equal cosines come out
    the same each time.
    """
    wanted = count + (own is not None)
    task = ray.remote(_nearest_of_part).options(num_cpus=0 if gpu else 1, num_gpus=int(gpu), max_retries=2)
    columns: dict[int, tuple[Tensor, Tensor]] = {}
    waiting: list[tuple[int, ray.ObjectRef]] = []
    try:
        for bank_start in data.bank_starts:
            part = data.part_of_bank(bank_start)
            for start in data.query_starts:
                while len(waiting) >= _AHEAD * slots:
                    _take(waiting, columns, wanted)
                waiting.append((start, task.remote(part, data.part_of_queries(start), bank_start, wanted)))
        while waiting:
            _take(waiting, columns, wanted)
    except GetTimeoutError:
        raise RunFailed(
            f"a part of the neighbours was not found within {_TIMEOUT_S:.0f} s: has the cluster a free"
            f" {'GPU' if gpu else 'CPU'}? `ray status` tells"
        ) from None
    except RayError as error:
        raise RunFailed(f"the neighbours could not be found: {str(error).strip().splitlines()[-1]}") from None
    finally:
        for _, reference in waiting:
            ray.cancel(reference)
    parts = [columns[start] for start in data.query_starts]
    cosine, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    return (cosine, rows) if own is None else without_own(cosine, rows, own, min(count, len(data.bank) - 1))


def _take(
    waiting: list[tuple[int, ray.ObjectRef]], columns: dict[int, tuple[Tensor, Tensor]], count: int
) -> None:
    """Waits for the first of the tasks, and merges what it found."""
    start, reference = waiting[0]
    cosine, rows = (torch.tensor(part) for part in ray.get(reference, timeout=_TIMEOUT_S))
    del waiting[0]
    before = columns.get(start)
    columns[start] = (cosine, rows) if before is None else merged(before, (cosine, rows), count)


def _nearest_of_part(
    bank: np.ndarray, query: np.ndarray, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of one part of the bank, which begins at row `start`; a task."""
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1") or 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # copies: arrays of the store are read-only, which torch warns of
    cosine, rows = nearest_neighbours(torch.tensor(bank), torch.tensor(query), count, device=device)
    return cosine.numpy(), rows.numpy() + start
