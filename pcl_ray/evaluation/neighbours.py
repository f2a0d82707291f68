"""The exact nearest neighbours by cosine: the search behind the kNN classifier, on a CPU or a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOATS = 2**24  # of the bank, and of similarities, at a time: 64 MiB each
_GROUP = 8  # cosines whose largest stands for them
_WORTH_GROUPING = 4  # groups for each neighbour: with fewer, groups spare nothing


def nearest_neighbours(
    bank_NC: Tensor,
    query_QC: Tensor,
    count: int,
    *,
    own_rows_Q: Tensor | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """The largest cosines [Q, k] of each query, falling, and the rows [Q, k] int64 of the bank that have
    them, on the CPU, with k = min(count, N): exact, by float32 products.

    Features may be of any type and length; they are normalised here, and few of them are float32 at a time:
    the bank is taken in blocks of rows, and the nearest of each block are merged, so that memory does not
    grow with the bank. own_rows_Q: the row of the bank that each query is itself; it is no neighbour of its
    own (leave-one-out), and k is at most N − 1. device: where the products are made; None: where the bank is.
    """
    device = bank_NC.device if device is None else device
    if own_rows_Q is not None:
        cosine, rows = nearest_neighbours(bank_NC, query_QC, count + 1, device=device)
        return without_own(cosine, rows, own_rows_Q, min(count, len(bank_NC) - 1))
    best: tuple[Tensor, Tensor] | None = None
    rows = max(1, _FLOATS // bank_NC.shape[1])
    for start in range(0, len(bank_NC), rows):
        block = _unit(bank_NC[start : start + rows], device)
        parts = [
            _largest(_unit(queries, device) @ block.T, min(count, len(block)))
            for queries in query_QC.split(max(1, _FLOATS // len(block)))
        ]
        cosine, nearest = (torch.cat(column) for column in zip(*parts, strict=True))
        nearest += start
        best = (cosine, nearest) if best is None else merged(best, (cosine, nearest), count)
    assert best is not None, "the bank is not empty"
    return best[0].cpu(), best[1].cpu()


def merged(best: tuple[Tensor, Tensor], further: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest out of those of two parts of a bank: cosines [Q, k], falling, and rows [Q, k]."""
    cosine, rows = torch.cat([best[0], further[0]], dim=1), torch.cat([best[1], further[1]], dim=1)
    cosine, order = cosine.topk(min(count, cosine.shape[1]), dim=1)
    return cosine, rows.gather(1, order)


def _unit(rows: Tensor, device: torch.device) -> Tensor:
    return F.normalize(rows.to(device).float(), dim=1)


def _largest(cosine_QN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, falling, and their columns.

    On a CPU, of long rows, first the groups of eight with the largest maxima are found. The `count` largest
    entries lie in at most so many groups, and each of these has a maximum that is no smaller than the last
    of the entries: so they all lie in the `count` groups whose maxima are largest. That leaves an eighth of
    the row to be ordered.
    """
    groups = cosine_QN.shape[1] // _GROUP
    if cosine_QN.is_cuda or groups < _WORTH_GROUPING * count:
        return cosine_QN.topk(count, dim=1)
    whole = groups * _GROUP
    grouped = cosine_QN[:, :whole].unflatten(1, (groups, _GROUP))
    nearest_groups = grouped.amax(dim=2).topk(count, dim=1, sorted=False).indices
    columns = (nearest_groups[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)
    if whole < cosine_QN.shape[1]:
        rest = torch.arange(whole, cosine_QN.shape[1]).expand(len(columns), -1)
        columns = torch.cat([columns, rest], dim=1)
    values, positions = cosine_QN.gather(1, columns).topk(count, dim=1)
    return values, columns.gather(1, positions)


def without_own(cosine: Tensor, rows: Tensor, own_rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` neighbours that are not the query's own row, out of one more."""
    own = rows == own_rows.cpu()[:, None]
    own[:, -1] |= ~own.any(dim=1)  # copies of the query came first: one of them is left out in its stead
    shape = (len(rows), rows.shape[1] - 1)
    return cosine[~own].view(shape)[:, :count], rows[~own].view(shape)[:, :count]
