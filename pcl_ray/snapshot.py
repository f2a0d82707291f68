"""What is shown of an E-step: prototypes with the images nearest to them, how clusterings lie in each other,
and a sample of features for a map.

Made where the features are (`make`), small enough to travel; drawn where the images are. Plain numpy, as
everything that Ray carries.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.support.files import atomic_file

Role = Literal["tightest", "loosest", "largest", "smallest"]
ROLES: tuple[Role, ...] = ("tightest", "loosest", "largest", "smallest")
NEAREST, FARTHEST = 12, 4  # images of a prototype
MAP_POINTS = 600  # t-SNE of more takes many times as long, beside the training
_PIECE = 65536  # rows
_EACH = 4  # prototypes for each role
_SHOWN = 96  # prototypes of one clustering that are shown with images


@dataclass(frozen=True, eq=False)
class Shown:
    """One clustering of the N images. Roles, parents and sizes are of all K prototypes; images of the P
    chosen ones.
    """

    concentration: np.ndarray  # [K] float32, φ
    sizes: np.ndarray  # [K] int64, images
    # [K] int64, prototype of the next coarser clustering that holds most of its images; −1 in the coarsest
    # and for an empty cluster
    parents: np.ndarray
    parent_shares: np.ndarray  # [K] float32, the share of its images that it holds
    chosen: np.ndarray  # [P] int64, rising
    nearest: np.ndarray  # [P, NEAREST] int64, images, the nearest first; −1 where it has fewer
    farthest: np.ndarray  # [P, FARTHEST] int64, images, the farthest last; −1 where it has fewer
    top_class: np.ndarray  # [P] int64, its most frequent label; −1 where none is known
    top_share: np.ndarray  # [P] float32, the share of its labelled images

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    def roles(self) -> dict[Role, np.ndarray]:
        """For each role up to 4 of the chosen prototypes, no prototype twice."""
        return roles_of(self.concentration, self.sizes)

    def row_of(self, prototype: int) -> int:
        """Of `nearest` and so on. Raises KeyError where the prototype is not shown."""
        row = int(np.searchsorted(self.chosen, prototype))
        if row == len(self.chosen) or self.chosen[row] != prototype:
            raise KeyError(prototype)
        return row


@dataclass(frozen=True, eq=False)
class Exhibit:
    """What is shown after `epoch` epochs. Without clusters (in the warm-up) the map alone."""

    epoch: int
    step: int  # global step: that of the last batch trained, 0 before the first
    num_images: int  # N, in all that was clustered
    clusterings: tuple[Shown, ...] = ()  # in the order of e_step.num_clusters
    sample: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n] images on the map
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))  # [n, C]
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n]; −1 without
    assignments: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))  # [M, n]
    # [n, 2] on the map, once it is drawn
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.float32))
    map_name: str = ""  # t-SNE, UMAP, PCA
    note: str = ""  # what the reader should know, e.g. that these are a sample's clusters

    def coarse_to_fine(self) -> list[int]:
        """Numbers of the clusterings by rising K."""
        return sorted(range(len(self.clusterings)), key=lambda m: self.clusterings[m].num_clusters)

    def images(self) -> np.ndarray:
        """[t] int64, every image that is shown, rising."""
        shown = [
            part.ravel()
            for clustering in self.clusterings
            for part in (clustering.nearest, clustering.farthest)
        ]
        found = np.unique(np.concatenate([*shown, np.empty(0, np.int64)]))
        return found[found >= 0]

    def renumbered(self, ids: np.ndarray) -> Exhibit:
        """The same where the images were numbers into `ids` [n]."""

        def whole(images: np.ndarray) -> np.ndarray:
            return np.where(images >= 0, ids[images], -1)

        shown = tuple(
            replace(c, nearest=whole(c.nearest), farthest=whole(c.farthest)) for c in self.clusterings
        )
        return replace(self, clusterings=shown, sample=whole(self.sample))

    def with_map(self, places: np.ndarray, name: str) -> Exhibit:
        return replace(self, places=places.astype(np.float32), map_name=name)


def make(
    features_nC: np.ndarray,
    ids_n: np.ndarray,
    clusters: ClusterSet | None,
    labels_N: np.ndarray | None,
    *,
    epoch: int,
    step: int,
    num_images: int,
    note: str = "",
) -> Exhibit:
    """From the features of the images `ids_n` (all, or a sample of the N that the assignments cover). Images
    are chosen among these.
    """
    order = (
        []
        if clusters is None
        else sorted(range(len(clusters.clusterings)), key=lambda m: clusters.clusterings[m].num_clusters)
    )
    shown: dict[int, Shown] = {}
    for coarser, m in zip([None, *order], order, strict=False):
        assert clusters is not None
        above = None if coarser is None else (clusters.clusterings[coarser], shown[coarser].chosen)
        shown[m] = _shown(features_nC, ids_n, clusters.clusterings[m], above, labels_N)
    picked = np.linspace(0, len(ids_n) - 1, min(MAP_POINTS, len(ids_n))).astype(np.int64)
    sample = ids_n[picked]
    known = np.full(len(sample), -1, np.int64) if labels_N is None else np.asarray(labels_N)[sample]
    assignments = (
        np.stack([c.assignments.numpy()[sample] for c in clusters.clusterings])
        if clusters
        else np.empty((0, len(sample)), np.int64)
    )
    features = features_nC[picked].astype(np.float16)
    return Exhibit(
        epoch,
        step,
        num_images,
        tuple(shown[m] for m in sorted(shown)),
        sample,
        features,
        known,
        assignments,
        note=note,
    )


def roles_of(concentration: np.ndarray, sizes: np.ndarray) -> dict[Role, np.ndarray]:
    """For each role up to 4 prototypes that have images, no prototype twice: with few prototypes later roles
    get fewer.
    """
    filled = np.flatnonzero(sizes > 0)
    by_phi, by_size = (
        filled[np.argsort(concentration[filled], kind="stable")],
        filled[np.argsort(sizes[filled], kind="stable")],
    )
    taken: set[int] = set()
    found: dict[Role, np.ndarray] = {}
    for role, ranked in zip(ROLES, (by_phi, by_phi[::-1], by_size[::-1], by_size), strict=True):
        mine = [int(k) for k in ranked if int(k) not in taken][: min(_EACH, -(-len(filled) // 4))]
        taken.update(mine)
        found[role] = np.array(mine, dtype=np.int64)
    return found


def _shown(
    features: np.ndarray,
    ids: np.ndarray,
    clustering: Clustering,
    above: tuple[Clustering, np.ndarray] | None,
    labels: np.ndarray | None,
) -> Shown:
    assignments, sizes, phi = (
        clustering.assignments.numpy(),
        clustering.sizes.numpy(),
        clustering.concentration.numpy(),
    )
    parents, shares = (
        _parents(assignments, above[0].assignments.numpy(), len(sizes))
        if above
        else (np.full(len(sizes), -1, np.int64), np.zeros(len(sizes)))
    )
    chosen = _chosen(phi, sizes, parents, above[1] if above else None)
    nearest, farthest = _images_of(chosen, features, ids, assignments[ids], clustering.prototypes.numpy())
    top, share = _classes(chosen, assignments, labels)
    return Shown(phi, sizes, parents, shares.astype(np.float32), chosen, nearest, farthest, top, share)


def _parents(fine: np.ndarray, coarse: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """[K], [K]: for each fine prototype the coarse one with most of its images, and the share it holds."""
    parents, shares = np.full(count, -1, np.int64), np.zeros(count)
    both = (fine >= 0) & (coarse >= 0)
    if not both.any():
        return parents, shares
    width = int(coarse.max()) + 1
    pairs, counts = np.unique(fine[both].astype(np.int64) * width + coarse[both], return_counts=True)
    child, parent = pairs // width, pairs % width
    # the last of each child has most, and the lowest number among equals
    order = np.lexsort((-parent, counts, child))
    last = np.flatnonzero(np.diff(child[order], append=-1))
    parents[child[order][last]] = parent[order][last]
    totals = np.bincount(fine[both], minlength=count)
    shares[child[order][last]] = counts[order][last] / totals[child[order][last]]
    return parents, shares


def _chosen(phi: np.ndarray, sizes: np.ndarray, parents: np.ndarray, above: np.ndarray | None) -> np.ndarray:
    """All, or those with a role and the largest; in a finer clustering the largest within each chosen parent
    first.
    """
    filled = np.flatnonzero(sizes > 0)
    if len(filled) <= _SHOWN:
        return filled
    with_role = np.concatenate(list(roles_of(phi, sizes).values()))
    by_size = filled[np.argsort(-sizes[filled], kind="stable")]
    if above is not None:
        # 0 for the largest child of its parent, 1 for the next
        place = _place_among_siblings(parents[by_size])
        inside = np.isin(parents[by_size], above)
        by_size = by_size[np.lexsort((place, ~inside))]
    rest = by_size[~np.isin(by_size, with_role)]
    return np.sort(np.concatenate([with_role, rest[: _SHOWN - len(with_role)]]))


def _place_among_siblings(parents: np.ndarray) -> np.ndarray:
    order = np.argsort(parents, kind="stable")
    first = np.flatnonzero(np.diff(parents[order], prepend=-2))
    lengths = np.diff(np.append(first, len(parents)))
    places = np.empty(len(parents), np.int64)
    places[order] = np.arange(len(parents)) - np.repeat(first, lengths)
    return places


def _images_of(
    chosen: np.ndarray, features: np.ndarray, ids: np.ndarray, assigned: np.ndarray, prototypes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[P, NEAREST], [P, FARTHEST] of each chosen prototype's own images, by cosine; farthest are never among
    the nearest.
    """
    nearest, farthest = (
        np.full((len(chosen), NEAREST), -1, np.int64),
        np.full((len(chosen), FARTHEST), -1, np.int64),
    )
    rows = np.flatnonzero(np.isin(assigned, chosen))
    cosine = np.empty(len(rows), np.float32)
    # a copy of all features at a time would be more than the actor was planned for
    for start in range(0, len(rows), _PIECE):
        some = rows[start : start + _PIECE]
        cosine[start : start + _PIECE] = np.einsum(
            "nc,nc->n", features[some].astype(np.float32), prototypes[assigned[some]]
        )
    order = rows[np.lexsort((rows, -cosine, assigned[rows]))]
    starts = np.searchsorted(assigned[order], chosen)
    ends = np.searchsorted(assigned[order], chosen, side="right")
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        near = ids[order[start : min(end, start + NEAREST)]]
        far = ids[order[max(start + len(near), end - FARTHEST) : end]]
        nearest[row, : len(near)], farthest[row, : len(far)] = near, far
    return nearest, farthest


def _classes(
    chosen: np.ndarray, assignments: np.ndarray, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    top, share = np.full(len(chosen), -1, np.int64), np.zeros(len(chosen), np.float32)
    if labels is None:
        return top, share
    known = (np.asarray(labels) >= 0) & np.isin(assignments, chosen)
    if not known.any():
        return top, share
    rows, of = np.searchsorted(chosen, assignments[known]), np.asarray(labels)[known]
    table = np.zeros((len(chosen), int(of.max()) + 1), np.int64)
    np.add.at(table, (rows, of), 1)
    some = table.sum(axis=1) > 0
    top[some] = table[some].argmax(axis=1)
    share[some] = table[some].max(axis=1) / table[some].sum(axis=1)
    return top, share


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures of the images that an exhibit shows."""

    ids: np.ndarray  # [t] int64, rising
    pixels: np.ndarray  # [t, s, s, 3] uint8

    def of(self, image: int) -> np.ndarray | None:
        """[s, s, 3] uint8; None for one that is not here."""
        row = int(np.searchsorted(self.ids, image))
        return self.pixels[row] if row < len(self.ids) and self.ids[row] == image else None


_OF_SHOWN = (
    "concentration",
    "sizes",
    "parents",
    "parent_shares",
    "chosen",
    "nearest",
    "farthest",
    "top_class",
    "top_share",
)
_OF_EXHIBIT = ("sample", "features", "labels", "assignments", "places")


def save(path: Path, exhibit: Exhibit, thumbnails: Thumbnails) -> None:
    """One .npz file, whole or not at all. Raises OSError."""
    told = {
        "epoch": exhibit.epoch,
        "step": exhibit.step,
        "num_images": exhibit.num_images,
        "map_name": exhibit.map_name,
        "note": exhibit.note,
    }
    arrays: dict[str, Any] = {"told": np.array(json.dumps(told | {"clusterings": len(exhibit.clusterings)}))}
    arrays |= {name: getattr(exhibit, name) for name in _OF_EXHIBIT} | {
        "thumbnail_ids": thumbnails.ids,
        "thumbnails": thumbnails.pixels,
    }
    for m, shown in enumerate(exhibit.clusterings):
        arrays |= {f"{m}/{name}": getattr(shown, name) for name in _OF_SHOWN}
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> tuple[Exhibit, Thumbnails] | None:
    """What `save` wrote; None where there is no such file, or it is damaged. Nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            told = json.loads(str(arrays["told"]))
            count = told.pop("clusterings")
            shown: Sequence[Shown] = [
                Shown(**{name: arrays[f"{m}/{name}"] for name in _OF_SHOWN}) for m in range(count)
            ]
            exhibit = Exhibit(
                clusterings=tuple(shown), **told, **{name: arrays[name] for name in _OF_EXHIBIT}
            )
            return exhibit, Thumbnails(arrays["thumbnail_ids"], arrays["thumbnails"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile, zlib.error):
        return None
