"""Nearest neighbours by cosine out of bfloat16 products, which some CPUs make several times faster.

Candidates are found in bfloat16 and decided in float32; a bound on the rounding proves that none is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 8  # a candidate more for so many neighbours, and
_FURTHER = 32  # so many more
_GROUPS = (32, 4)  # entries of a row whose largest stands for them, and of what is left after that
_ACCUMULATED = 1e-5  # rounding of float32 sums of unit vectors' products, generously
_OUTPUT = 2.0**-8  # relative rounding of a product that is stored as bfloat16, twice what it can be


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself: AMX or AVX-512 BF16."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for it
    return any(getattr(torch.cpu, check, bool)() for check in checks)


class CandidateSearch:
    """The search among the unit rows of one block of a bank [N, C] float32, on a CPU."""

    def __init__(self, unit_NC: Tensor):
        self._bank = unit_NC
        self._coarse = unit_NC.bfloat16()
        self._error = float((self._coarse.float() - unit_NC).norm(dim=1).max()) if len(unit_NC) else 0.0

    def nearest(self, unit_QC: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The largest cosines [Q, count] of unit queries, falling, their rows [Q, count], and whether each
        query's are proved to be the largest [Q] bool.

        A product in bfloat16 differs from the exact one by at most ε = ‖q̂ − q‖ ‖x̂‖ + ‖q‖ ‖x̂ − x‖ (Cauchy and
        Schwarz), and by the rounding of the result. Whatever is no candidate has a product below the last
        candidate's, so its cosine is at most that plus ε: where the last of the `count` cosines, made in
        float32, is no smaller, nothing is missing.
        """
        coarse = unit_QC.bfloat16()
        products = coarse @ self._coarse.T
        wanted = min(len(self._bank), count + count // _SLACK + _FURTHER)
        approximate, rows = largest(products, wanted)
        least = approximate.float().amin(dim=1)
        # by index_select, which copies rows several times faster than an index of two dimensions
        candidates = self._bank.index_select(0, rows.flatten()).view(*rows.shape, -1)
        exact = torch.bmm(candidates, unit_QC[:, :, None])[:, :, 0]
        values, order = exact.topk(count, dim=1)
        error = (coarse.float() - unit_QC).norm(dim=1) * (1 + self._error) + self._error
        limit = least + error + _OUTPUT * (least.abs() + error) + _ACCUMULATED
        proved = (values[:, -1] >= limit) | (wanted == len(self._bank))
        return values, rows.gather(1, order), proved


def largest(rows_QN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest entries of each row [Q, count], in no order, and their columns [Q, count].

    Long rows are taken in groups. The `count` largest entries lie in at most so many groups, and each of
    these has a maximum that is no smaller than the last of the entries: so they all lie in the `count` groups
    with the largest maxima, and only these are looked at. Twice, with ever smaller groups.
    """
    columns: Tensor | None = None
    values = rows_QN
    for size in _GROUPS:
        groups = values.shape[1] // size
        if groups < 2 * count:
            continue
        values, in_groups = _in_largest_groups(values, groups, size, count)
        columns = in_groups if columns is None else columns.gather(1, in_groups)
    result = values.topk(count, dim=1, sorted=False)
    positions = result.indices
    return result.values, positions if columns is None else columns.gather(1, positions)


def _in_largest_groups(values_QN: Tensor, groups: int, size: int, count: int) -> tuple[Tensor, Tensor]:
    """The entries of the `count` groups with the largest maxima, and those that are in no group; with their
    columns. A group is every so many-th column: maxima over whole rows of memory are made fastest.
    """
    whole = groups * size
    grouped = values_QN[:, :whole].unflatten(1, (size, groups))
    best = grouped.amax(dim=1).topk(count, dim=1, sorted=False).indices
    columns = (best[:, None, :] + torch.arange(0, whole, groups)[None, :, None]).flatten(1)
    if whole < values_QN.shape[1]:
        rest = torch.arange(whole, values_QN.shape[1]).expand(len(columns), -1)
        columns = torch.cat([columns, rest], dim=1)
    return values_QN.gather(1, columns), columns
