"""The exact nearest neighbours by cosine: the search behind the kNN classifier, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_ray.evaluation.neighbours.candidates import CandidateSearch, has_fast_bfloat16, largest

_FLOATS = 2**24  # of the bank, and of similarities, at a time: 64 MiB each
_BLOCK = 128  # queries of one thread at a time on a CPU: their products stay near its core
_LONG = 8  # rows of the bank for each neighbour, from which on candidates are worth it
_TRIALS = 256  # queries after which candidates are given up where most of them had to be repeated

Neighbours = tuple[Tensor, Tensor]  # cosines [Q, k], falling, and rows [Q, k]


def nearest_neighbours(
    bank_NC: Tensor,
    query_QC: Tensor,
    count: int,
    *,
    own_rows_Q: Tensor | None = None,
    device: torch.device | None = None,
) -> Neighbours:
    """The largest cosines [Q, k] of each query, falling, and the rows [Q, k] int64 of the bank that have
    them, on the CPU, with k = min(count, N): exact, by products in float32.

    Features may be of any type and length; they are normalised here, and few of them are float32 at a time:
    the bank is taken in blocks of rows, and the nearest of each block are merged, so that memory does not
    grow with the bank. own_rows_Q: the row of the bank that each query is itself; it is no neighbour of its
    own (leave-one-out), and k is at most N − 1. device: where the products are made; None: where the bank is.
    """
    device = bank_NC.device if device is None else device
    if own_rows_Q is not None:
        cosine, rows = nearest_neighbours(bank_NC, query_QC, count + 1, device=device)
        return without_own(cosine, rows, own_rows_Q, min(count, len(bank_NC) - 1))
    best: Neighbours | None = None
    size = max(1, _FLOATS // bank_NC.shape[1])
    for start in range(0, len(bank_NC), size):
        block = _unit(bank_NC[start : start + size], device)
        wanted = min(count, len(block))
        if device.type == "cpu":
            cosine, rows = _on_cpu(block, query_QC, wanted)
        else:
            parts = query_QC.split(max(1, _FLOATS // len(block)))
            columns = [(_unit(part, device) @ block.T).topk(wanted, dim=1) for part in parts]
            cosine, rows = (torch.cat(column) for column in zip(*columns, strict=True))
        rows = rows + start
        best = (cosine, rows) if best is None else merged(best, (cosine, rows), count)
    assert best is not None, "the bank is not empty"
    return best[0].cpu(), best[1].cpu()


def merged(best: Neighbours, further: Neighbours, count: int) -> Neighbours:
    """The `count` nearest out of those of two parts of a bank: cosines [Q, k], falling, and rows [Q, k]."""
    cosine, rows = torch.cat([best[0], further[0]], dim=1), torch.cat([best[1], further[1]], dim=1)
    cosine, order = cosine.topk(min(count, cosine.shape[1]), dim=1)
    return cosine, rows.gather(1, order)


def without_own(cosine: Tensor, rows: Tensor, own_rows: Tensor, count: int) -> Neighbours:
    """The first `count` neighbours that are not the query's own row, out of one more."""
    own = rows == own_rows.cpu()[:, None]
    own[:, -1] |= ~own.any(dim=1)  # copies of the query came first: one of them is left out in its stead
    shape = (len(rows), rows.shape[1] - 1)
    return cosine[~own].view(shape)[:, :count], rows[~own].view(shape)[:, :count]


def _unit(rows: Tensor, device: torch.device) -> Tensor:
    return F.normalize(rows.to(device).float(), dim=1)


class _BlockSearch:
    """The search in one block of the bank, for queries that come in small blocks, from several threads."""

    def __init__(self, unit_NC: Tensor, count: int):
        self._bank, self._count = unit_NC, count
        long = len(unit_NC) >= _LONG * count
        self._candidates = CandidateSearch(unit_NC) if long and has_fast_bfloat16() else None
        self._tried = self._repeated = 0

    def nearest(self, query_QC: Tensor) -> Neighbours:
        """The nearest rows of queries of any type and length."""
        queries = _unit(query_QC, self._bank.device)
        candidates = self._candidates
        if candidates is None:
            return self._in_float32(queries)
        cosine, rows, proved = candidates.nearest(queries, self._count)
        if not bool(proved.all()):
            again = (~proved).nonzero().squeeze(1)
            cosine[again], rows[again] = self._in_float32(queries[again])
            self._repeated += len(again)
        self._tried += len(queries)
        if self._tried >= _TRIALS and 2 * self._repeated > self._tried:
            self._candidates = None  # so many cosines are nearly equal that rounding hides their order
        return cosine, rows

    def _in_float32(self, unit_QC: Tensor) -> Neighbours:
        values, columns = largest(unit_QC @ self._bank.T, self._count)
        values, order = values.sort(dim=1, descending=True)
        return values, columns.gather(1, order)


def _on_cpu(block_NC: Tensor, query_QC: Tensor, count: int) -> Neighbours:
    """The nearest rows of a block, by as many threads as torch has, each with queries of its own."""
    search = _BlockSearch(block_NC, count)
    size = max(1, min(_BLOCK, _FLOATS // len(block_NC)))
    parts = _in_threads([partial(search.nearest, part) for part in query_QC.split(size)])
    cosine, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    return cosine, rows


def _in_threads(calls: Sequence[Callable[[], Neighbours]]) -> list[Neighbours]:
    """What the calls give. Torch has one thread in each: operations this small lose more than they gain by
    being handed out, and wait for each other on a machine that has other work.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(calls) == 1:
        return [call() for call in calls]
    try:
        with ThreadPoolExecutor(threads, "neighbours", lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(lambda call: call(), calls))
    finally:
        torch.set_num_threads(threads)  # some libraries know one number for the whole process
