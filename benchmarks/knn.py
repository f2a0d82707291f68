"""The kNN classifier against scikit-learn's brute force: 60,000 × 128 features, 10,000 queries, on a CPU.

All in one run, interleaved. scikit-learn's cosine is the same metric as ours; its Euclidean distance, of unit
features, ranks alike and has a faster kernel; it is shown beside. Classes and neighbours have to be equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor

from pcl_ray.evaluation.knn import ranked_classes
from pcl_ray.evaluation.neighbours import nearest_neighbours
from pcl_ray.evaluation.neighbours.candidates import has_fast_bfloat16

_BAR = 5.0  # times scikit-learn's speed
_NEIGHBOURS, _TEMPERATURE, _CLASSES = 200, 0.07, 100
_ROUNDING = 1e-5  # of cosines: neighbours that differ by less may change places


def main() -> int:
    options = common.parser(__doc__, repeats=3).parse_args()
    size, queries, repeats = (6000, 1000, 1) if options.quick else (60_000, 10_000, options.repeats)
    bank, of, query = _made(size, queries)
    report = common.Report("knn", options.quick)
    report.section(
        f"{size:,} × {bank.shape[1]}, {queries:,} queries, {_NEIGHBOURS} neighbours,"
        f" {torch.get_num_threads()} threads, bfloat16 products: {has_fast_bfloat16()}"
    )
    calls = _calls(bank, of, query)
    timed = common.interleaved(calls, repeats, warm_up=not options.quick)
    for name, times in timed.items():
        report.timing(name, times)
    for other, ours in (
        ("scikit-learn: classifier, cosine", "ours: classifier"),
        ("scikit-learn: neighbours, cosine", "ours: neighbours"),
        ("scikit-learn: neighbours, Euclidean", "ours: neighbours"),
    ):
        ratio = report.ratio(f"{other} / {ours}", timed[other], timed[ours])
        if "cosine" in other:
            report.claim(f"{ours}, times as fast as {other}", ratio, at_least=_BAR, full_size=True)
    ours = timed["ours: classifier"].results[0]
    equal = float((ours == timed["scikit-learn: classifier, cosine"].results[0]).mean())
    report.claim("share of queries in scikit-learn's class", equal, at_least=1.0)
    missing = _missing(
        bank,
        query,
        timed["ours: neighbours"].results[0],
        timed["scikit-learn: neighbours, cosine"].results[0],
    )
    report.claim("neighbours that scikit-learn has and we lack", float(missing), at_most=0.0)
    return report.end(options.json)


def _made(size: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of classes that overlap, the bank's classes, and queries."""
    dice = np.random.default_rng(0)
    centres = dice.standard_normal((_CLASSES, common.DIM))
    of = dice.integers(_CLASSES, size=size + queries)
    rows = centres[of] + 2 * dice.standard_normal((size + queries, common.DIM))
    unit = torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return unit[:size], torch.from_numpy(of[:size]), unit[size:]


def _calls(bank: Tensor, of: Tensor, query: Tensor) -> dict[str, Callable[[int], Any]]:
    rows, queries = bank.numpy(), query.numpy()
    cosine = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute", metric="cosine").fit(rows)
    euclidean = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(rows)
    classifier = KNeighborsClassifier(
        _NEIGHBOURS,
        algorithm="brute",
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / _TEMPERATURE),
    ).fit(rows, of.numpy())

    def classes(number: int) -> np.ndarray:
        found, nearest = nearest_neighbours(bank, query, _NEIGHBOURS)
        return ranked_classes(found, of[nearest], temperature=_TEMPERATURE)[:, 0].numpy()

    return {
        "ours: neighbours": lambda number: nearest_neighbours(bank, query, _NEIGHBOURS)[1].numpy(),
        "ours: classifier": classes,
        "scikit-learn: neighbours, cosine": lambda number: cosine.kneighbors(queries)[1],
        "scikit-learn: neighbours, Euclidean": lambda number: euclidean.kneighbors(queries)[1],
        "scikit-learn: classifier, cosine": lambda number: classifier.predict(queries),
    }


def _missing(bank: Tensor, query: Tensor, ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many of scikit-learn's neighbours are not among ours, and are nearer than our last by more than
    rounding.
    """
    count = 0
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        lacking = np.setdiff1d(other, own)
        if len(lacking):
            last = float((bank[own] @ query[number]).min())
            count += int((bank[lacking] @ query[number] > last + _ROUNDING).sum())
    return count


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
