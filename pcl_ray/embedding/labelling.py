"""Labels from few: a balanced sample by prototypes, for somebody to label, and the spreading of a few labels
along prototypes, with how sure each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcl_ray.embedding.memberships import Membership

_BLOCK = 2**22  # class probabilities that are held at a time
_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # labels that a coarser clustering's opinion may count for


def suitable(memberships: Sequence[Membership], count: int) -> Membership:
    """The finest of the clusterings (coarse to fine) that has a place in the sample for every prototype with
    images; the coarsest where none has.
    """
    fitting = [one for one in memberships if np.count_nonzero(one.sizes()) <= count]
    return fitting[-1] if fitting else memberships[0]


def quotas(sizes_K: np.ndarray, count: int) -> np.ndarray:
    """[K] how many images of each cluster a sample of `count` has: equally many, all of those that have
    fewer, what is left over for the largest; in all min(count, N).
    """
    order = np.argsort(sizes_K, kind="stable")
    shares = np.zeros(len(sizes_K), np.int64)
    left = min(count, int(sizes_K.sum()))
    # from the smallest on: whoever cannot fill an equal share leaves the rest to the larger ones
    for position, cluster in enumerate(order):
        shares[cluster] = min(sizes_K[cluster], left // (len(order) - position))
        left -= shares[cluster]
    return shares


def balanced_sample(membership: Membership, count: int, *, digests: np.ndarray | None = None) -> np.ndarray:
    """[min(count, N)] the images of the sample, prototype after prototype, of each the most typical first.

    Of a cluster with q places the images at the ranks 0, s/q, 2·s/q … of its s by distance: the nearest to
    the prototype, and then others, but never only the strange ones at its border. digests: equal for images
    that are the same bytes, of which only one takes part.
    """
    images = np.arange(len(membership.prototypes))
    if digests is not None:
        images = np.sort(np.unique(digests, return_index=True)[1])
    prototypes, distances = membership.prototypes[images], membership.distances[images]
    order = images[np.lexsort((distances, prototypes))]
    sizes = np.bincount(prototypes, minlength=membership.num_clusters)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    picked = [
        order[start + np.arange(share) * size // share]
        for start, size, share in zip(starts, sizes, quotas(sizes, count), strict=True)
        if share
    ]
    return np.concatenate(picked) if picked else np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class SpreadLabels:
    """The most probable class of every image."""

    classes: np.ndarray  # [n] int64; −1 where no labelled image shares any of its prototypes
    confidence: np.ndarray  # [n] float32, its probability: 0 … 1


def spread(
    prototypes: Sequence[np.ndarray], labelled: np.ndarray, classes: np.ndarray, num_classes: int
) -> SpreadLabels:
    """The class of every image from those of few: Dirichlet smoothing from coarse to fine prototypes.

        p₀(c) = share of class c among all labels,   p_m(c) = (n_mc + w · p_{m−1}(c)) / (n_m + w)

    with n_mc the labelled images of class c in the image's prototype of clustering m, n_m all of them. So a
    prototype with many labels decides by them, one without any leaves it to the coarser one around it. w
    is what makes the given labels most probable, each left out of the counts (empirical Bayes): where
    classes share prototypes, few labels in one say little.

    prototypes: of each clustering, coarse to fine, [n] int64. labelled: [L] images; classes: [L] theirs, 0 or
    more. Labelled images are treated like the others.
    """
    votes = _Votes(prototypes, labelled, classes, num_classes)
    return votes.decided(np.arange(len(prototypes[0])), votes.fitted_weight())


def left_out_accuracy(
    prototypes: Sequence[np.ndarray], labelled: np.ndarray, classes: np.ndarray, num_classes: int
) -> float:
    """The share of the labelled images, 0..1, that get their own class where only the others are labelled.
    Those that would get none count as wrong.
    """
    votes = _Votes(prototypes, labelled, classes, num_classes)
    result = votes.decided(labelled, votes.fitted_weight(), classes)
    return float((result.classes == classes).mean())


def _counts(of_images: np.ndarray, labelled: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """[K, classes] float32, labelled images of each class in each prototype."""
    counts = np.zeros((int(of_images.max()) + 1, num_classes), np.float32)
    np.add.at(counts, (of_images[labelled], classes), 1)
    return counts


class _Votes:
    """The labels in every prototype of every clustering."""

    def __init__(
        self, prototypes: Sequence[np.ndarray], labelled: np.ndarray, classes: np.ndarray, num_classes: int
    ):
        self._prototypes, self._labelled, self._classes = prototypes, labelled, classes
        self._tables = [_counts(of_images, labelled, classes, num_classes) for of_images in prototypes]
        self._totals = np.bincount(classes, minlength=num_classes).astype(np.float32)

    def fitted_weight(self) -> float:
        """The w under which the labels are most probable, each left out of the counts; of equal ones 1."""
        likelihoods = {}
        for weight in sorted(_WEIGHTS, key=lambda value: value != 1):
            shares, _ = self._shares(self._labelled, weight, self._classes)
            own = shares[np.arange(len(shares)), self._classes]
            likelihoods[weight] = float(
                np.log(np.maximum(own, 1e-3)).sum()
            )  # a class with one label has none
        return max(likelihoods, key=likelihoods.__getitem__)

    def decided(self, images: np.ndarray, weight: float, own: np.ndarray | None = None) -> SpreadLabels:
        """The classes of these images; own: the class of each, which is taken out of the counts."""
        best, sure = np.empty(len(images), np.int64), np.empty(len(images), np.float32)
        step = max(1, _BLOCK // len(self._totals))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            shares, votes = self._shares(images[part], weight, None if own is None else own[part])
            best[part] = np.where(votes > 0, shares.argmax(axis=1), -1)
            sure[part] = np.where(votes > 0, shares.max(axis=1), 0)
        return SpreadLabels(best, sure)

    def _shares(
        self, images: np.ndarray, weight: float, own: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[b, classes] p of the finest clustering, and [b] how many labels went into it."""
        removed = np.float32(0) if own is None else np.eye(len(self._totals), dtype=np.float32)[own]
        totals = np.broadcast_to(self._totals, (len(images), len(self._totals))) - removed
        shares = totals / np.maximum(totals.sum(axis=1, keepdims=True), 1)
        votes = np.zeros(len(images), np.float32)
        for of_images, table in zip(self._prototypes, self._tables, strict=True):
            counts = table[of_images[images]] - removed
            amount = counts.sum(axis=1, keepdims=True)
            shares = (counts + weight * shares) / (amount + weight)
            votes += amount[:, 0]
        return shares, votes
