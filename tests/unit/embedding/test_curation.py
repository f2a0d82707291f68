"""What collections are good for, against slow references: duplicates, outliers, samples, spread labels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.embedding import duplicates, labelling, memberships, outliers
from pcl_ray.embedding.memberships import Membership


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def leaders_of(vectors: np.ndarray, threshold: float, order: np.ndarray) -> list[int]:
    """Hartigan's leader algorithm, one image after the other."""
    leaders: list[int] = []
    result = list(range(len(vectors)))
    for image in order.tolist():
        cosines = [float(vectors[image] @ vectors[leader]) for leader in leaders]
        if cosines and max(cosines) >= threshold:
            result[image] = leaders[int(np.argmax(cosines))]
        else:
            leaders.append(image)
    return result


@pytest.mark.parametrize("rows", [7, 64])
def test_duplicate_groups_are_those_of_the_slow_leader_algorithm(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", rows)
    draw = np.random.default_rng(2)
    centres = draw.standard_normal((12, 6))
    vectors = unit(centres[draw.integers(0, 12, 150)] + 0.15 * draw.standard_normal((150, 6)))
    order = draw.permutation(150)
    seen: list[tuple[int, int]] = []
    found = duplicates.duplicate_groups(
        vectors, 0.97, order_N=order, progress=lambda done, total: seen.append((done, total))
    )
    assert found.leaders.tolist() == leaders_of(vectors, 0.97, order)
    expected = (vectors * vectors[found.leaders]).sum(axis=1)
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
    assert seen[-1] == (150, 150)
    for images in found.members():
        assert len(images) > 1
        assert set(found.leaders[images].tolist()) == {int(images[0])}  # the leader comes first
        assert (np.diff(found.similarity[images[1:]]) <= 0).all()
    sizes = [len(images) for images in found.members()]
    assert sizes == sorted(sizes, reverse=True)


def test_images_are_not_chained() -> None:
    """Each is near the next, but the last is far from the first."""
    angles = np.linspace(0, 1.2, 13)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = duplicates.duplicate_groups(vectors, float(np.cos(0.25)))
    assert found.leaders.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12]


def test_equal_vectors_are_duplicates_at_any_threshold() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((40, 2048)))
    twice = np.concatenate([vectors, vectors])
    found = duplicates.duplicate_groups(twice, 1.0)
    assert found.leaders.tolist() == [*range(40), *range(40)]


def test_the_usual_threshold_is_a_hundredth_of_the_distance_of_random_images() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((300, 64)) + 0.5)
    pairs = [1 - float(vectors[i] @ vectors[j]) for i in range(300) for j in range(i)]
    assert duplicates.usual_threshold(vectors) == pytest.approx(1 - np.median(pairs) / 100, abs=1e-4)
    assert duplicates.usual_threshold(vectors[:1]) == 1


def test_outliers_are_far_from_prototypes_or_neighbours() -> None:
    far = [np.array([0.1, 0.5], np.float32), np.array([0.3, 0.1], np.float32)]
    np.testing.assert_allclose(outliers.prototype_scores(far), [0.2, 0.3], atol=1e-7)
    vectors = unit(np.random.default_rng(3).standard_normal((60, 5)))
    for neighbours in (1, 4, 200):
        scores = outliers.neighbour_scores(vectors, neighbours)
        for image in range(60):
            others = sorted(
                float(np.linalg.norm(vectors[image] - vectors[other]))
                for other in range(60)
                if other != image
            )
            assert scores[image] == pytest.approx(others[min(neighbours, 59) - 1], abs=1e-3)
    assert outliers.neighbour_scores(vectors[:1], 3).tolist() == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 60))
def test_quotas_are_as_equal_as_sizes_allow(sizes: list[int], count: int) -> None:
    shares = labelling.quotas(np.array(sizes), count).tolist()
    assert sum(shares) == min(count, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    # whoever has less than another has all that there is of it, or one less by the remainder
    for share, size in zip(shares, sizes, strict=True):
        assert share == size or share >= max(shares) - 1


def test_a_sample_is_balanced_typical_first_and_has_nothing_twice() -> None:
    prototypes = np.array([0] * 10 + [1] * 4 + [3] * 2)
    distances = np.array([*np.linspace(0.9, 0.0, 10), *[0.4, 0.1, 0.3, 0.2], 0.5, 0.1], np.float32)
    clustering = Membership(4, prototypes, distances)
    sample = labelling.balanced_sample(clustering, 8)
    assert sample.tolist() == [9, 6, 3, 11, 13, 12, 15, 14]
    assert np.bincount(prototypes[sample], minlength=4).tolist() == [3, 3, 0, 2]
    of_first = sample[prototypes[sample] == 0].tolist()
    assert of_first == [9, 6, 3]  # ranks 0, 10/3, 20/3 of ten
    digests = np.arange(16)
    digests[9] = digests[0]  # the nearest of cluster 0 is a copy of an earlier one
    assert 9 not in labelling.balanced_sample(clustering, 16, digests=digests)
    assert len(labelling.balanced_sample(clustering, 99)) == 16


def test_the_clustering_of_a_sample_has_a_place_for_each_prototype() -> None:
    made = [Membership(k, np.arange(40) % k, np.zeros(40, np.float32)) for k in (4, 10, 20)]
    assert labelling.suitable(made, 3).num_clusters == 4
    assert labelling.suitable(made, 10).num_clusters == 10
    assert labelling.suitable(made, 19).num_clusters == 10
    assert labelling.suitable(made, 500).num_clusters == 20


def slow_shares(
    prototypes: list[list[int]],
    labelled: list[int],
    classes: list[int],
    image: int,
    num: int,
    weight: Fraction,
) -> list[Fraction]:
    """p_M of one image, from the formula, in fractions."""
    shares = [Fraction(classes.count(c), max(1, len(classes))) for c in range(num)]
    for of_images in prototypes:
        own = [c for j, c in zip(labelled, classes, strict=True) if of_images[j] == of_images[image]]
        shares = [(own.count(c) + weight * shares[c]) / (len(own) + weight) for c in range(num)]
    return shares


def test_labels_are_spread_by_the_formula() -> None:
    draw = np.random.default_rng(4)
    fine = draw.integers(0, 9, 50)
    prototypes = [fine // 3, fine]
    labelled, classes = np.arange(0, 50, 4), draw.integers(0, 3, 13)
    votes = labelling._Votes(prototypes, labelled, classes, 3)
    result = labelling.spread(prototypes, labelled, classes, 3)
    lists = [part.tolist() for part in prototypes]
    weight = Fraction(votes.fitted_weight())
    for image in range(50):
        shares = slow_shares(lists, labelled.tolist(), classes.tolist(), image, 3, weight)
        assert result.confidence[image] == pytest.approx(float(max(shares)), abs=1e-6)
        assert shares[result.classes[image]] == max(shares)


def test_the_weight_makes_left_out_labels_most_probable() -> None:
    draw = np.random.default_rng(5)
    labelled = np.arange(40)
    for noise in (0.0, 0.7):  # pure prototypes, and mixed ones
        prototypes = [np.zeros(40, np.int64), np.arange(40) % 5]
        classes = np.where(draw.random(40) < noise, draw.integers(0, 5, 40), np.arange(40) % 5)
        votes = labelling._Votes(prototypes, labelled, classes, 5)
        lists = [part.tolist() for part in prototypes]
        likelihoods = {}
        for weight in labelling._WEIGHTS:
            total = 0.0
            for j in range(40):
                rest = [i for i in range(40) if i != j]
                shares = slow_shares(lists, rest, classes[rest].tolist(), j, 5, Fraction(weight))
                total += np.log(max(float(shares[classes[j]]), 1e-3))
            likelihoods[weight] = total
        assert likelihoods[votes.fitted_weight()] == pytest.approx(max(likelihoods.values()), abs=1e-4)


def test_without_a_labelled_image_in_its_prototypes_there_is_no_label() -> None:
    prototypes = [np.array([0, 0, 1, 1])]
    result = labelling.spread(prototypes, np.array([0]), np.array([0]), 1)
    assert result.classes.tolist() == [0, 0, -1, -1]
    assert result.confidence.tolist() == [1, 1, 0, 0]
    # the only label of its prototype: nothing is left to say it
    assert labelling.left_out_accuracy(prototypes, np.array([0]), np.array([0]), 1) == 0


def test_left_out_accuracy_is_that_of_spreading_without_each() -> None:
    draw = np.random.default_rng(6)
    prototypes, labelled = [draw.integers(0, 6, 60)], np.arange(0, 60, 2)
    classes = np.where(draw.random(30) < 0.7, prototypes[0][labelled] % 3, draw.integers(0, 3, 30))
    weight = labelling._Votes(prototypes, labelled, classes, 3).fitted_weight()
    right = 0
    for j in range(30):
        rest = np.delete(np.arange(30), j)
        shares = slow_shares(
            [prototypes[0].tolist()],
            labelled[rest].tolist(),
            classes[rest].tolist(),
            int(labelled[j]),
            3,
            Fraction(weight),
        )
        any_label = (prototypes[0][labelled[rest]] == prototypes[0][labelled[j]]).any()
        right += any_label and int(np.argmax([float(share) for share in shares])) == classes[j]
    assert labelling.left_out_accuracy(prototypes, labelled, classes, 3) == pytest.approx(right / 30)


def test_clusters_of_a_part_are_assigned_to_all() -> None:
    draw = np.random.default_rng(7)
    centres = unit(draw.standard_normal((4, 8)))
    which = draw.integers(0, 4, 400)
    vectors = unit(centres[which] + 0.02 * draw.standard_normal((400, 8)))
    for most in (2**20, 8 * 100):  # all rows, and a sample of a hundred
        made = memberships.clustered(vectors, 4, most=most)
        pairs = set(zip(which.tolist(), made.prototypes.tolist(), strict=True))
        assert len(pairs) <= 5  # as the four groups, but for an unlucky start
        for image in (0, 17, 399):
            own = vectors[made.prototypes == made.prototypes[image]]
            if most == 2**20:
                far = np.linalg.norm(vectors[image] - own.mean(axis=0))
                assert made.distances[image] == pytest.approx(far, abs=1e-3)
        assert made.sizes().sum() == 400
