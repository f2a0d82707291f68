"""A snapshot of an E-step, to be looked at: prototypes with the images nearest to them, how clusterings lie
in each other, and a sample of features for a map.

It is made where the features are, is small enough to travel, and is drawn where the images are. It is plain
numpy, as everything that Ray carries.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np

from pcl_ray.support.files import atomic_file
from pcl_ray.support.paths import path_text

if TYPE_CHECKING:  # who looks at snapshots needs no torch
    from pcl_ray.clustering import Clustering, ClusterSet

Role = Literal["tightest", "loosest", "largest", "smallest"]
ROLES: tuple[Role, ...] = ("tightest", "loosest", "largest", "smallest")
NEAREST, FARTHEST = 12, 4  # images of a prototype
MAP_POINTS = 600  # t-SNE of more takes many times as long, beside the training
_PIECE = 65536  # rows
_EACH = 4  # prototypes for each role
_MOST_MEMBERS = 100_000  # images of which every one is listed
_SHOWN = 96  # prototypes of one clustering that are shown with images


@dataclass(frozen=True, eq=False)
class ClusteringSnapshot:
    """One clustering of the N images. Concentrations, sizes and parents are of all K prototypes; images and
    classes are of P of them, the selected ones.
    """

    concentration: np.ndarray  # [K] float32, φ
    sizes: np.ndarray  # [K] int64, images
    # [K] int64, prototype of the next coarser clustering that holds most of its images; −1 in the coarsest
    # and for an empty cluster
    parents: np.ndarray
    parent_shares: np.ndarray  # [K] float32, the share of its images that it holds
    selected: np.ndarray  # [P] int64, rising: the prototypes that are shown with images
    nearest: np.ndarray  # [P, NEAREST] int64, images, the nearest first; −1 where it has fewer
    farthest: np.ndarray  # [P, FARTHEST] int64, images, the farthest last; −1 where it has fewer
    top_class: np.ndarray  # [P] int64, its most frequent label; −1 where none is known
    top_share: np.ndarray  # [P] float32, the share of its labelled images

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    def roles(self) -> dict[Role, np.ndarray]:
        """Up to 4 of the selected prototypes for each role, no prototype twice."""
        return roles_of(self.concentration, self.sizes)

    def row_of(self, prototype: int) -> int:
        """A selected prototype's row in `nearest`, `farthest`, `top_class`, `top_share`; else a KeyError."""
        row = int(np.searchsorted(self.selected, prototype))
        if row == len(self.selected) or self.selected[row] != prototype:
            raise KeyError(prototype)
        return row


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The clusterings and the map after `epoch` epochs; without clusters (in the warm-up) the map alone."""

    epoch: int
    step: int  # global step: that of the last batch trained, 0 before the first
    num_images: int  # N, in all that was clustered
    clusterings: tuple[ClusteringSnapshot, ...] = ()  # in the order of e_step.num_clusters
    sample: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n] images on the map
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))  # [n, C]
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n]; −1 without
    assignments: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))  # [M, n]
    # [n, 2] coordinates on the map, once it is drawn
    projection: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.float32))
    # [M, N] int32, the prototype of every image, −1 without; [M, 0] of too many images, and of a sample
    members: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int32))
    distances: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))  # of these, as in φ
    map_name: str = ""  # t-SNE, UMAP, PCA
    note: str = ""  # what the reader should know, e.g. that these are a sample's clusters

    def coarse_to_fine(self) -> list[int]:
        """Numbers of the clusterings by rising K."""
        return sorted(range(len(self.clusterings)), key=lambda m: self.clusterings[m].num_clusters)

    def images(self) -> np.ndarray:
        """[t] int64, every image that is shown, rising."""
        images = [np.empty(0, np.int64)]
        for clustering in self.clusterings:
            images += [clustering.nearest.ravel(), clustering.farthest.ravel()]
        numbers = np.unique(np.concatenate(images))
        return numbers[numbers >= 0]

    def renumbered(self, ids: np.ndarray) -> Snapshot:
        """The same snapshot with `ids[i]` in place of image i, where images were positions in `ids` [n]."""

        def whole(images: np.ndarray) -> np.ndarray:
            return np.where(images >= 0, ids[images], -1)

        clusterings = tuple(
            replace(clustering, nearest=whole(clustering.nearest), farthest=whole(clustering.farthest))
            for clustering in self.clusterings
        )
        is_whole = np.array_equal(ids, np.arange(len(ids)))
        return replace(
            self,
            clusterings=clusterings,
            sample=whole(self.sample),
            members=self.members if is_whole else self.members[:, :0],
            distances=self.distances if is_whole else self.distances[:, :0],
        )

    def with_map(self, projection: np.ndarray, name: str) -> Snapshot:
        """The same snapshot with coordinates [n, 2] of its sample, and the name of what projected it."""
        return replace(self, projection=projection.astype(np.float32), map_name=name)


def make_snapshot(
    features_nC: np.ndarray,
    ids_n: np.ndarray,
    clusters: ClusterSet | None,
    labels_N: np.ndarray | None,
    *,
    epoch: int,
    step: int,
    num_images: int,
    note: str = "",
) -> Snapshot:
    """The snapshot of a clustering.

    features_nC: the features of the images `ids_n`: of all N that the assignments cover, or of a sample of
    them; the images that are shown come from these. labels_N: −1 where an image has none. epoch: epochs done.
    """
    clusterings = clusters.clusterings if clusters is not None else ()
    coarse_to_fine = sorted(range(len(clusterings)), key=lambda m: clusterings[m].num_clusters)
    shown: dict[int, ClusteringSnapshot] = {}
    coarser: tuple[Clustering, np.ndarray] | None = None
    for m in coarse_to_fine:
        shown[m] = _clustering_snapshot(features_nC, ids_n, clusterings[m], coarser, labels_N)
        coarser = clusterings[m], shown[m].selected
    rows = np.linspace(0, len(ids_n) - 1, min(MAP_POINTS, len(ids_n))).astype(np.int64)
    sample = ids_n[rows]
    labels = np.full(len(sample), -1, np.int64) if labels_N is None else np.asarray(labels_N)[sample]
    assignments = np.empty((0, len(sample)), np.int64)
    if clusterings:
        assignments = np.stack([clustering.assignments.numpy()[sample] for clustering in clusterings])
    members, distances = _members(features_nC, ids_n, clusterings, num_images)
    return Snapshot(
        epoch,
        step,
        num_images,
        tuple(shown[m] for m in sorted(shown)),
        sample,
        features_nC[rows].astype(np.float16),
        labels,
        assignments,
        note=note,
        members=members,
        distances=distances,
    )


def _members(
    features_nC: np.ndarray, ids_n: np.ndarray, clusterings: Sequence[Clustering], num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """[M, N] int32, [M, N] float32: the prototype of every image, and how far its feature is from the raw
    centroid; NaN where the feature is elsewhere. [M, 0] of too many images, and of a sample's clusters.
    """
    count = len(clusterings)
    if not count or num_images > _MOST_MEMBERS or any(len(c.assignments) != num_images for c in clusterings):
        return np.empty((count, 0), np.int32), np.empty((count, 0), np.float32)
    members = np.stack([c.assignments.numpy() for c in clusterings]).astype(np.int32)
    distances = np.full(members.shape, np.nan, np.float32)
    for m, clustering in enumerate(clusterings):
        centroids = clustering.prototypes if clustering.centroids is None else clustering.centroids
        centroids_KC = centroids.numpy()
        for start in range(0, len(ids_n), _PIECE):
            ids = ids_n[start : start + _PIECE]
            apart = features_nC[start : start + _PIECE].astype(np.float32) - centroids_KC[members[m, ids]]
            distances[m, ids] = np.linalg.norm(apart, axis=1)
    distances[members < 0] = np.nan
    return members, distances


def roles_of(concentration: np.ndarray, sizes: np.ndarray) -> dict[Role, np.ndarray]:
    """Up to 4 prototypes with images for each role, none twice: with few, later roles get fewer."""
    filled = np.flatnonzero(sizes > 0)
    by_phi = filled[np.argsort(concentration[filled], kind="stable")]
    by_size = filled[np.argsort(sizes[filled], kind="stable")]
    most = min(_EACH, -(-len(filled) // 4))
    used: set[int] = set()
    roles: dict[Role, np.ndarray] = {}
    for role, ranked in zip(ROLES, (by_phi, by_phi[::-1], by_size[::-1], by_size), strict=True):
        prototypes = [int(k) for k in ranked if int(k) not in used][:most]
        used.update(prototypes)
        roles[role] = np.array(prototypes, dtype=np.int64)
    return roles


def _clustering_snapshot(
    features: np.ndarray,
    ids: np.ndarray,
    clustering: Clustering,
    coarser: tuple[Clustering, np.ndarray] | None,
    labels: np.ndarray | None,
) -> ClusteringSnapshot:
    """coarser: the next coarser clustering and its selected prototypes; None for the coarsest."""
    assignments, sizes = clustering.assignments.numpy(), clustering.sizes.numpy()
    phi = clustering.concentration.numpy()
    parents, shares = np.full(len(sizes), -1, np.int64), np.zeros(len(sizes))
    if coarser is not None:
        parents, shares = _parents(assignments, coarser[0].assignments.numpy(), len(sizes))
    selected = _selected(phi, sizes, parents, coarser[1] if coarser is not None else None)
    nearest, farthest = _images_of(selected, features, ids, assignments[ids], clustering.prototypes.numpy())
    top, share = _classes(selected, assignments, labels)
    return ClusteringSnapshot(
        phi, sizes, parents, shares.astype(np.float32), selected, nearest, farthest, top, share
    )


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


def _selected(
    phi: np.ndarray, sizes: np.ndarray, parents: np.ndarray, coarser: np.ndarray | None
) -> np.ndarray:
    """[P] all prototypes with images where they are few, else those with a role and the largest; in a finer
    clustering the largest within each selected parent first.
    """
    filled = np.flatnonzero(sizes > 0)
    if len(filled) <= _SHOWN:
        return filled
    with_role = np.concatenate(list(roles_of(phi, sizes).values()))
    by_size = filled[np.argsort(-sizes[filled], kind="stable")]
    if coarser is not None:
        rank = _rank_among_siblings(parents[by_size])
        inside = np.isin(parents[by_size], coarser)
        by_size = by_size[np.lexsort((rank, ~inside))]
    rest = by_size[~np.isin(by_size, with_role)]
    return np.sort(np.concatenate([with_role, rest[: _SHOWN - len(with_role)]]))


def _rank_among_siblings(parents: np.ndarray) -> np.ndarray:
    """[n] how many entries before each one have the same parent."""
    order = np.argsort(parents, kind="stable")
    first = np.flatnonzero(np.diff(parents[order], prepend=-2))
    lengths = np.diff(np.append(first, len(parents)))
    ranks = np.empty(len(parents), np.int64)
    ranks[order] = np.arange(len(parents)) - np.repeat(first, lengths)
    return ranks


def _images_of(
    selected: np.ndarray, features: np.ndarray, ids: np.ndarray, assigned: np.ndarray, prototypes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[P, NEAREST], [P, FARTHEST] of each prototype's own images, by cosine; never the same image in both."""
    nearest = np.full((len(selected), NEAREST), -1, np.int64)
    farthest = np.full((len(selected), FARTHEST), -1, np.int64)
    rows = np.flatnonzero(np.isin(assigned, selected))
    cosine = np.empty(len(rows), np.float32)
    # a copy of all features at a time would be more than the actor was planned for
    for start in range(0, len(rows), _PIECE):
        some = rows[start : start + _PIECE]
        cosine[start : start + _PIECE] = np.einsum(
            "nc,nc->n", features[some].astype(np.float32), prototypes[assigned[some]]
        )
    order = rows[np.lexsort((rows, -cosine, assigned[rows]))]
    starts = np.searchsorted(assigned[order], selected)
    ends = np.searchsorted(assigned[order], selected, side="right")
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        near = ids[order[start : min(end, start + NEAREST)]]
        far = ids[order[max(start + len(near), end - FARTHEST) : end]]
        nearest[row, : len(near)], farthest[row, : len(far)] = near, far
    return nearest, farthest


def _classes(
    selected: np.ndarray, assignments: np.ndarray, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """[P], [P]: the most frequent label of each selected prototype, −1 where none is known, and its share."""
    top, share = np.full(len(selected), -1, np.int64), np.zeros(len(selected), np.float32)
    if labels is None:
        return top, share
    labelled = (np.asarray(labels) >= 0) & np.isin(assignments, selected)
    if not labelled.any():
        return top, share
    rows, classes = np.searchsorted(selected, assignments[labelled]), np.asarray(labels)[labelled]
    table = np.zeros((len(selected), int(classes.max()) + 1), np.int64)
    np.add.at(table, (rows, classes), 1)
    some = table.sum(axis=1) > 0
    top[some] = table[some].argmax(axis=1)
    share[some] = table[some].max(axis=1) / table[some].sum(axis=1)
    return top, share


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures of the images that a snapshot shows."""

    ids: np.ndarray  # [t] int64, rising
    pixels: np.ndarray  # [t, s, s, 3] uint8
    # [N] utf-8 bytes, the files of all images, or shards and members; [0] where they have none
    names: np.ndarray = field(default_factory=lambda: np.empty(0, "S1"))

    def name(self, image: int) -> str:
        """What an image is called: its file, as `path_text`, or its number."""
        return path_text(os.fsdecode(self.names[image])) if 0 <= image < len(self.names) else f"image {image}"

    def picture(self, image: int) -> np.ndarray | None:
        """[s, s, 3] uint8; None for an image without a picture."""
        row = int(np.searchsorted(self.ids, image))
        return self.pixels[row] if row < len(self.ids) and self.ids[row] == image else None


# what the file calls an array: what the class calls it
_CLUSTERING_ARRAYS = {
    **{name: name for name in ("concentration", "sizes", "parents", "parent_shares")},
    "chosen": "selected",
    **{name: name for name in ("nearest", "farthest", "top_class", "top_share")},
}
_SNAPSHOT_ARRAYS = {
    **{name: name for name in ("sample", "features", "labels", "assignments")},
    "places": "projection",
}
_LATER_ARRAYS = ("members", "distances")


def save_snapshot(path: Path, snapshot: Snapshot, thumbnails: Thumbnails) -> None:
    """Writes one .npz file, whole or not at all. Raises OSError."""
    header = {
        "epoch": snapshot.epoch,
        "step": snapshot.step,
        "num_images": snapshot.num_images,
        "map_name": snapshot.map_name,
        "note": snapshot.note,
        "clusterings": len(snapshot.clusterings),
    }
    arrays: dict[str, Any] = {"told": np.array(json.dumps(header))}
    arrays |= {key: getattr(snapshot, name) for key, name in _SNAPSHOT_ARRAYS.items()}
    arrays |= {name: getattr(snapshot, name) for name in _LATER_ARRAYS}
    arrays |= {"thumbnail_ids": thumbnails.ids, "thumbnails": thumbnails.pixels, "names": thumbnails.names}
    for m, clustering in enumerate(snapshot.clusterings):
        arrays |= {f"{m}/{key}": getattr(clustering, name) for key, name in _CLUSTERING_ARRAYS.items()}
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_snapshot(path: Path) -> tuple[Snapshot, Thumbnails] | None:
    """What `save_snapshot` wrote; None for a missing or damaged file. Nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["told"]))
            clusterings = tuple(
                ClusteringSnapshot(**{name: arrays[f"{m}/{key}"] for key, name in _CLUSTERING_ARRAYS.items()})
                for m in range(header.pop("clusterings"))
            )
            whole = {name: arrays[key] for key, name in _SNAPSHOT_ARRAYS.items()}
            # earlier versions wrote none of these
            whole |= {name: arrays[name] for name in _LATER_ARRAYS if name in arrays}
            names = {"names": arrays["names"]} if "names" in arrays else {}
            snapshot = Snapshot(clusterings=clusterings, **header, **whole)
            return snapshot, Thumbnails(arrays["thumbnail_ids"], arrays["thumbnails"], **names)
    except (OSError, ValueError, KeyError, EOFError, TypeError, BadZipFile, zlib.error):
        return None
