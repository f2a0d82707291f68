"""What is shown of an E-step: against loops over all images, through a file, and for the odd cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.snapshot import (
    FARTHEST,
    NEAREST,
    Snapshot,
    Thumbnails,
    load_snapshot,
    make_snapshot,
    roles_of,
    save_snapshot,
)

N, C = 400, 8


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustering(k: int, features: np.ndarray, seed: int) -> Clustering:
    draw = np.random.default_rng(seed)
    prototypes = unit(draw.normal(size=(k, C)))
    assignments = (features @ prototypes.T).argmax(axis=1)
    phi = draw.uniform(0.1, 0.3, size=k).astype(np.float32)
    return Clustering(torch.from_numpy(prototypes), torch.from_numpy(assignments), torch.from_numpy(phi))


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, ClusterSet, np.ndarray, Snapshot]:
    draw = np.random.default_rng(0)
    features = unit(draw.normal(size=(N, C)))
    labels = draw.integers(0, 5, size=N)
    labels[::7] = -1
    clusters = ClusterSet(3, (clustering(30, features, 1), clustering(7, features, 2)))
    return (
        features,
        clusters,
        labels,
        make_snapshot(features, np.arange(N), clusters, labels, epoch=3, step=17, num_images=N),
    )


def test_images_of_a_prototype_are_its_own_nearest_first(made: tuple) -> None:
    features, clusters, _, shown = made
    for part, found in zip(shown.clusterings, clusters.clusterings, strict=True):
        for row, prototype in enumerate(part.selected):
            members = np.flatnonzero(found.assignments.numpy() == prototype)
            ranked = members[
                np.argsort(-(features[members] @ found.prototypes.numpy()[prototype]), kind="stable")
            ]
            near = part.nearest[row][part.nearest[row] >= 0]
            far = part.farthest[row][part.farthest[row] >= 0]
            assert near.tolist() == ranked[:NEAREST].tolist()
            assert far.tolist() == ranked[max(len(near), len(ranked) - FARTHEST) :].tolist()


def test_parents_hold_most_images_of_their_children(made: tuple) -> None:
    _, clusters, _, shown = made
    assert shown.coarse_to_fine() == [1, 0]
    fine, coarse = (c.assignments.numpy() for c in clusters.clusterings)
    part = shown.clusterings[0]
    for prototype in range(30):
        counts = np.bincount(coarse[fine == prototype], minlength=7)
        if counts.sum():
            assert part.parents[prototype] == counts.argmax()
            assert part.parent_shares[prototype] == pytest.approx(counts.max() / counts.sum())
        else:
            assert part.parents[prototype] == -1
    assert (shown.clusterings[1].parents == -1).all()


def test_top_classes_count_known_labels_alone(made: tuple) -> None:
    _, clusters, labels, shown = made
    part, assigned = shown.clusterings[1], clusters.clusterings[1].assignments.numpy()
    for row, prototype in enumerate(part.selected):
        counts = np.bincount(labels[(assigned == prototype) & (labels >= 0)], minlength=5)
        assert (part.top_class[row], part.top_share[row]) == (
            counts.argmax(),
            pytest.approx(counts.max() / counts.sum()),
        )


def test_roles_take_no_prototype_twice_and_none_without_images() -> None:
    sizes = np.array([0, 5, 9, 1, 30, 7, 7, 2, 12, 3])
    phi = np.linspace(0.3, 0.1, 10).astype(np.float32)
    roles = roles_of(phi, sizes)
    taken = np.concatenate(list(roles.values()))
    assert len(set(taken.tolist())) == len(taken) == 9
    assert 0 not in taken
    assert roles["tightest"].tolist() == [9, 8, 7]
    assert roles["loosest"].tolist() == [1, 2, 3]
    assert roles["largest"][0] == 4


def test_many_prototypes_are_cut_to_those_with_a_role_and_the_largest_children() -> None:
    draw = np.random.default_rng(1)
    features = unit(draw.normal(size=(3000, C)))
    clusters = ClusterSet(0, (clustering(300, features, 3), clustering(4, features, 4)))
    shown = make_snapshot(features, np.arange(3000), clusters, None, epoch=1, step=0, num_images=3000)
    fine = shown.clusterings[0]
    assert len(fine.selected) == 96
    assert set(np.concatenate(list(fine.roles().values()))) <= set(fine.selected)
    for parent in range(4):
        children = np.flatnonzero(fine.parents == parent)
        assert children[fine.sizes[children].argmax()] in fine.selected
    assert (fine.top_class == -1).all()
    with pytest.raises(KeyError):
        fine.row_of(next(k for k in range(300) if k not in fine.selected))


def test_of_a_sample_only_its_images_are_shown(made: tuple) -> None:
    features, clusters, labels, _ = made
    ids = np.arange(0, N, 3)
    shown = make_snapshot(features[ids], ids, clusters, labels, epoch=1, step=0, num_images=N)
    assert set(shown.images()) <= set(ids)
    assert shown.clusterings[0].sizes.sum() == N  # sizes are of all
    assert shown.assignments.shape == (2, len(shown.sample))
    assert (shown.assignments[0] == clusters.clusterings[0].assignments.numpy()[shown.sample]).all()


def test_without_clusters_there_is_the_map_alone() -> None:
    shown = make_snapshot(unit(np.ones((5, C))), np.arange(5), None, None, epoch=1, step=0, num_images=5)
    assert shown.clusterings == ()
    assert shown.images().tolist() == []
    assert shown.labels.tolist() == [-1] * 5
    assert shown.coarse_to_fine() == []


def test_renumbered_images_are_those_of_the_sample(made: tuple) -> None:
    shown = made[3]
    moved = shown.renumbered(np.arange(N) * 10)
    assert moved.images().tolist() == (shown.images() * 10).tolist()
    assert (moved.clusterings[0].nearest[moved.clusterings[0].nearest < 0] == -1).all()


def test_a_file_gives_back_what_was_saved_and_a_broken_one_nothing(made: tuple, tmp_path: Path) -> None:
    shown = made[3].with_map(np.zeros((len(made[3].sample), 2)), "PCA")
    pictures = Thumbnails(shown.images(), np.zeros((len(shown.images()), 4, 4, 3), np.uint8))
    path = tmp_path / "exhibit.npz"
    save_snapshot(path, shown, pictures)
    back, thumbnails = load_snapshot(path) or pytest.fail("nothing came back")
    assert (back.epoch, back.step, back.map_name, back.num_images) == (3, 17, "PCA", N)
    for one, two in zip(back.clusterings, shown.clusterings, strict=True):
        assert all(
            (getattr(one, name) == getattr(two, name)).all()
            for name in ("selected", "nearest", "farthest", "parents", "sizes", "concentration")
        )
    assert thumbnails.picture(int(shown.images()[0])) is not None
    assert thumbnails.picture(N + 5) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes(byte ^ 255 for byte in whole[2000:2400]) + whole[2400:])
    assert load_snapshot(path) is None
    path.write_bytes(whole[:500])
    assert load_snapshot(path) is None
    assert load_snapshot(tmp_path / "none.npz") is None
