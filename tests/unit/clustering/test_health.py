"""How clusterings fail, a test for each way seen, through the whole E-step; φ is the paper's, or says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from one_shard import Labelled, OneShard, clustered
from random_features import with_twins
from torch import Tensor

from pcl_ray.clustering import Clustering, ClusterSet, health
from pcl_ray.clustering.points import Moments, Points
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import Collapsed, EStepRefused, Rejected, When, cluster
from pcl_ray.losses import proto_nce, prototype_logits, sample_negatives

TEMPERATURE = 0.2


def noise(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def healthy(n: int = 2000, dim: int = 32, groups: int = 100, spread: float = 0.1, seed: int = 0) -> Tensor:
    centres = unit(noise(groups, dim, seed))
    return unit(centres[torch.arange(n) % groups] + spread * noise(n, dim, seed + 1))


def attempt(
    data: Tensor,
    *num_clusters: int,
    previous: ClusterSet | None = None,
    step: int | None = None,
    **knobs: object,
) -> OneShard:
    config = EStepConfig(
        num_clusters=num_clusters, **{"restarts": 1, "threads": 1, "cold_iterations": 10, **knobs}
    )
    result = clustered(data, config, When(3, step), temperature=TEMPERATURE, previous=previous)
    for found in result.clusterings:
        assert torch.isfinite(found.concentration).all()
        assert (found.concentration > 0).all()
        assert found.concentration.shape == found.valid.shape == (len(found.centroids),)
        assert torch.equal(
            found.valid, torch.bincount(found.labels[found.labels >= 0], minlength=len(found.valid)) > 0
        )
        assert math.isfinite(found.objective)
    return result


def definition(data: Tensor, found: Labelled, alpha: float = 10.0) -> list[float]:
    """Equation 12 for each cluster, nan for those with one image or none."""
    phi = []
    for j, centroid in enumerate(found.centroids.double()):
        distances = [
            float((data[i].double() - centroid).norm())
            for i in (found.labels == j).nonzero().flatten().tolist()
        ]
        phi.append(
            sum(distances) / (len(distances) * math.log(len(distances) + alpha))
            if len(distances) > 1
            else math.nan
        )
    return phi


def check_definition(data: Tensor, found: Labelled) -> None:
    """For φ neither clipped nor scaled: the definition if finite and positive, else something that is."""
    expected = definition(data, found)
    positive = [value for value in expected if value > 1e-6]
    for value, phi in zip(expected, found.concentration.tolist(), strict=True):
        if value > 1e-6:
            assert phi == pytest.approx(value, rel=1e-4)
        elif math.isnan(value):
            assert phi == pytest.approx(max(positive, default=TEMPERATURE), rel=1e-4)
        else:
            assert phi > 0


RAW = {"clip": (0.0, 100.0), "normalise": False}


@pytest.mark.parametrize("k", [20, 100])
def test_healthy_features(k: int) -> None:
    data = healthy()
    result = attempt(data, k)
    assert result.warnings == []
    assert result.clusterings[0].valid.all()
    assert result.clusterings[0].figures["phi_zeros"] == 0
    check_definition(data, attempt(data, k, **RAW).clusterings[0])


def test_half_as_many_clusters_as_images() -> None:
    data = healthy(400, groups=200)
    (found,) = attempt(data, 200).clusterings
    sizes = torch.bincount(found.labels, minlength=200)
    assert (sizes == 1).sum() > 30
    assert found.figures["phi_imputed"] == int((sizes <= 1).sum())
    # the weakest pull
    assert torch.equal(
        found.concentration[sizes <= 1], found.concentration.max().expand(int((sizes <= 1).sum()))
    )
    check_definition(data, attempt(data, 200, **RAW).clusterings[0])


def test_as_many_clusters_as_images_is_exact_and_phi_the_temperature() -> None:
    data = healthy(300)
    (found,) = attempt(data, 300).clusterings
    assert sorted(found.labels.tolist()) == list(range(300))
    assert torch.equal(found.centroids[found.labels], data)
    assert found.objective < 1e-9
    assert found.concentration.tolist() == pytest.approx([TEMPERATURE] * 300)


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(
        EStepRefused, match=r"before epoch 4: 401 clusters need at least as many images, there are 400"
    ):
        attempt(healthy(400), 401)


def broken(value: float, *ids: int, n: int) -> Tensor:
    data = healthy(n, dim=8, groups=20)
    data[list(ids), 3] = value
    return data


def previous_of(labels: Tensor, k: int, objective: float = float("nan"), dim: int = 8) -> ClusterSet:
    return ClusterSet(2, (Clustering(unit(noise(k, dim)), labels, torch.full((k,), 0.2), objective),))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_row_that_is_not_finite_among_many_is_left_out(value: float) -> None:
    data = broken(value, 7, n=10000)
    result = attempt(data, 20, step=1200)
    (found,) = result.clusterings
    assert found.labels[7] == -1
    assert (found.labels[torch.arange(10000) != 7] >= 0).all()
    assert torch.isfinite(found.centroids).all()
    (warning,) = result.warnings
    assert "before epoch 4 (encoder of step 1200)" in warning
    assert "features of 1 of 10000 images" in warning
    assert "[7]" in warning


def test_a_row_left_out_keeps_the_cluster_it_had() -> None:
    clean = healthy(10000, dim=8, groups=20)
    config = EStepConfig(num_clusters=(20,), restarts=1, threads=1, cold_iterations=5)
    before = cluster(clean, config, epoch=2, temperature=TEMPERATURE, seed=0)
    had = int(before.clusterings[0].assignments[7])
    warm = attempt(broken(math.nan, 7, n=10000), 20, previous=before).clusterings[0]
    assert warm.figures["cold"] == 0
    assert warm.labels[7] == had
    # After a cold start the numbers of the clusters mean something else.
    cold = attempt(broken(math.nan, 7, n=10000), 20, previous=before, warm_start="none").clusterings[0]
    assert cold.labels[7] == -1
    assert attempt(broken(math.nan, 7, n=10000), 21, previous=before).clusterings[0].labels[7] == -1


@pytest.mark.parametrize("warm_start", ["labels", "none"])
def test_a_row_left_out_of_nested_clusterings(warm_start: str) -> None:
    clean = healthy(10000, dim=8, groups=20)
    config = EStepConfig(num_clusters=(20, 4), restarts=1, threads=1, cold_iterations=5, nested=True)
    before = cluster(clean, config, epoch=2, temperature=TEMPERATURE, seed=0)
    result = attempt(broken(math.nan, 7, n=10000), 20, 4, previous=before, nested=True, warm_start=warm_start)
    expected = [int(c.assignments[7]) for c in before.clusterings] if warm_start == "labels" else [-1, -1]
    assert [int(c.labels[7]) for c in result.clusterings] == expected


@pytest.mark.parametrize(("value", "what"), [(math.nan, "not finite"), (math.inf, "not finite")])
def test_more_rows_that_are_not_finite_are_refused_by_number_epoch_and_step(value: float, what: str) -> None:
    with pytest.raises(
        EStepRefused,
        match=(
            rf"before epoch 4 \(encoder of step 1200\): .* 3 of 2000 images are {what}.*\[5, 70,"
            r" 800\].*optimizer\.lr"
        ),
    ):
        attempt(broken(value, 70, 5, 800, n=2000), 20, step=1200)


def test_zero_vectors_in_one_row_of_a_hundred_are_refused() -> None:
    data = healthy(2000)
    data[::100] = 0
    with pytest.raises(EStepRefused, match=r"20 of 2000 images are zero vectors.*\[0, 100, 200, 300, 400\]"):
        attempt(data, 20)


@pytest.mark.parametrize("length", [0.0, 0.4, 2.0])
def test_a_vector_far_from_length_one_among_many_is_left_out(length: float) -> None:
    data = healthy(10000, dim=8, groups=20)
    data[77] *= length
    result = attempt(data, 20)
    assert result.clusterings[0].labels[77] == -1
    assert int((result.clusterings[0].labels < 0).sum()) == 1
    assert "[77]" in result.warnings[0]


def test_rows_that_are_not_finite_are_named_and_not_the_zero_vectors_before_them() -> None:
    data = broken(math.nan, 500, 600, n=2000)
    data[:3] = 0
    with pytest.raises(
        EStepRefused, match=r"2 of 2000 images are not finite, the first at index \[500, 600\]"
    ):
        attempt(data, 20)


def test_rows_left_out_are_no_starting_points() -> None:
    # Zeros in their place would be nearer to most images than any image is: one dominant cluster.
    data = unit(noise(20000, 64))
    data[[4, 5000]] = math.nan
    result = attempt(data, 10000, cold_iterations=1, shortlist_from=0)  # half of the images are drawn
    assert torch.bincount(result.clusterings[0].labels[result.clusterings[0].labels >= 0]).max() < 30
    assert len(result.warnings) == 1


@pytest.mark.parametrize("offset", [0.0, 1e-6])
def test_identical_features_and_noise_around_one_point_have_collapsed(offset: float) -> None:
    data = unit(unit(noise(1, 32)) + offset * noise(2000, 32, 1))
    with pytest.raises(
        Collapsed, match=r"before epoch 4: the features have collapsed onto one point.*loss\.queue_size"
    ):
        attempt(data, 200)


@pytest.mark.parametrize("k", [24, 1200])
def test_a_run_that_really_collapsed(k: int) -> None:
    # Random-pair cosine 1 − 1e-9, all rows different: k-means left 92 % of clusters empty, φ was 0.2 for all.
    data = unit(unit(noise(1, 64)) + 4e-6 * noise(1500, 64, 1))
    assert len(data.unique(dim=0)) == 1500
    cosine = float((data[:750].double() * data[750:].double()).sum(dim=1).mean())
    assert 1 - cosine < 2e-9
    with pytest.raises(Collapsed, match="collapsed onto one point") as refusal:
        attempt(data, k)
    assert refusal.value.figures["cluster/cone"] == pytest.approx(1, abs=1e-6)


def cone(cosine: float, n: int = 2000, dim: int = 32) -> Tensor:
    """Unit vectors, two of which have this cosine on average."""
    away = noise(n, dim, 1)
    away[:, 0] = 0
    return math.sqrt(cosine) * torch.eye(dim)[0] + math.sqrt(1 - cosine) * unit(away)


def test_a_narrow_cone_has_collapsed_and_a_wider_one_is_clustered() -> None:
    with pytest.raises(
        Collapsed,
        match=r"collapsed into a cone.*mean cosine of two images 1\.000.*e_step\.collapse_cone = 0\.999",
    ):
        attempt(cone(0.9995), 20)
    assert attempt(cone(0.998), 20).warnings == []
    with pytest.raises(Collapsed, match="collapsed into a cone"):
        attempt(cone(0.998), 20, collapse_cone=0.99)


@pytest.mark.parametrize("dim", [32, 600])
def test_features_of_rank_four_in_a_cone_have_collapsed(dim: int) -> None:
    # k-means leaves nothing empty and φ is in order: nothing else shows it.
    data = unit(noise(2000, 4, 1) @ noise(4, dim, 2) / math.sqrt(dim) + unit(noise(1, dim, 3)))
    with pytest.raises(
        Collapsed, match=rf"collapsed into (3|4)\.\d of {dim} dimensions.*e_step\.collapse_rank"
    ):
        attempt(data, 20)
    assert attempt(data, 20, collapse_rank=3.0).clusterings[0].valid.all()
    assert attempt(healthy(dim=dim), 20).figures["cluster/rank"] > 15


def duplicated(n: int, dim: int, spread: float) -> Tensor:
    data = healthy(n, dim, spread=spread)
    data[::2] = data[0]
    return data


@pytest.mark.parametrize(
    ("n", "k", "dim", "spread"),
    [(4000, 400, 32, 0.1), (4000, 1000, 32, 0.1), (2000, 250, 16, 0.05), (20000, 500, 16, 0.1)],
)
def test_copies_of_one_image_are_one_cluster_and_a_warning(n: int, k: int, dim: int, spread: float) -> None:
    data = duplicated(n, dim, spread)
    result = attempt(data, k, shortlist_from=0)
    (found,) = result.clusterings
    own = found.labels[0]
    assert torch.equal(found.labels == own, torch.arange(n) % 2 == 0)
    assert torch.equal(found.centroids[own], data[0])
    # and not so small that it outweighs all others
    assert found.concentration[own] == found.concentration.min()
    assert found.concentration.max() / found.concentration.min() < 10
    (warning,) = result.warnings
    assert "one cluster holds 50% of the images" in warning
    assert "look for duplicate images" in warning


def test_a_stray_image_among_the_copies_is_no_reason_to_refuse() -> None:
    data = duplicated(4000, 16, 1.0)
    result = attempt(data, 400)
    (found,) = result.clusterings
    members = found.labels == found.labels[0]
    assert members[::2].all()
    assert 2000 < members.sum() <= 2010
    assert "one cluster holds 50% of the images, all but a few with the same features" in result.warnings[0]


def test_images_in_a_pattern_do_not_look_collapsed() -> None:
    # With more images than the gauges look at, every second one would be a copy of the same.
    data = duplicated(40000, 16, 0.1)
    with_pattern = health.gauges(Points.of(data))
    assert with_pattern.spread > 0.3
    assert health.collapse(with_pattern, 16, cone=0.999, rank=5.0) == ""


def test_more_clusters_than_distinct_features_are_refused() -> None:
    data = healthy(150)[torch.arange(1500) % 150]
    with pytest.raises(
        EStepRefused,
        match=r"200 clusters were asked for, but only 150 of the 1500 features differ.*e_step\.num_clusters",
    ):
        attempt(data, 200)
    (found,) = attempt(data, 150).clusterings  # exactly as many is enough
    assert torch.bincount(found.labels).tolist() == [10] * 150
    assert found.concentration.tolist() == pytest.approx([TEMPERATURE] * 150)


def test_a_dominant_cluster_of_a_warm_start_is_clustered_anew() -> None:
    # In noise a mean of very many points is nearer to all than a mean of few: large clusters stay large.
    data, draw = unit(noise(2000, 400)), torch.Generator().manual_seed(0)
    labels = torch.where(torch.arange(2000) % 5 < 3, 0, torch.randint(1, 100, (2000,), generator=draw))
    result = attempt(data, 100, previous=previous_of(labels, 100, dim=400))
    (found,) = result.clusterings
    assert found.figures["cold"] == 1
    assert torch.bincount(found.labels).max() < 300
    (warning,) = result.warnings
    assert "clustering 0: the first try could not be used" in warning
    assert "one of 100 clusters holds" in warning


def test_a_dominant_cluster_that_comes_again_is_rejected() -> None:
    # Short vectors attract everything, as zero vectors did.
    data = unit(noise(2000, 400))
    data[::50] *= 0.51
    with pytest.raises(
        Rejected,
        match=(
            r"before epoch 4: no usable clustering with K = 100: .*one of 100 clusters holds \d\d% of the"
            r" images"
        ),
    ) as refusal:
        attempt(data, 100)
    assert refusal.value.figures["cluster/spread"] > 0.9


def test_clusters_that_stay_empty_are_rejected() -> None:
    data = with_twins(healthy(150), 100, 1500)
    with pytest.raises(Rejected, match="no usable clustering with K = 200: 50 of 200 clusters are empty"):
        attempt(data, 200)


def with_an_empty_cluster() -> tuple[Tensor, OneShard]:
    data = with_twins(healthy(200), 1, 2000)
    return data, attempt(data, 201)


def test_one_empty_cluster_of_many_is_kept_and_marked() -> None:
    _, result = with_an_empty_cluster()
    (found,) = result.clusterings
    assert int((~found.valid).sum()) == 1
    published = result.published(3).clusterings[0]
    assert torch.equal(published.valid, found.valid)
    assert torch.equal(published.sizes > 0, found.valid)


def test_an_empty_cluster_is_nobodys_positive_nor_negative() -> None:
    _, result = with_an_empty_cluster()
    clustering = result.published(3).clusterings[0]
    (empty,) = (~clustering.valid).nonzero().flatten().tolist()
    assert empty not in clustering.assignments
    query, positives = unit(noise(8, 32, 5)), clustering.assignments[:8].clone()
    logits, _ = prototype_logits(
        query, clustering.prototypes, clustering.concentration, positives, valid_K=clustering.valid
    )
    assert (logits[:, empty] == -math.inf).all()
    assert torch.isfinite(logits[:, clustering.valid]).all()
    drawn = sample_negatives(201, positives, 201, torch.Generator().manual_seed(0), clustering.valid)
    assert sorted(drawn.tolist()) == sorted(set(range(201)) - {empty} - set(positives.tolist()))


def reference_proto_nce(
    query: Tensor,
    prototypes: Tensor,
    phi: Tensor,
    positives: list[int],
    negatives: list[int] | None,
    mask: bool,
    valid: list[bool],
) -> float:
    """Equation 11, second term, over prototypes that stand for images; images of other ones add nothing."""
    total = 0.0
    for row, (q, own) in enumerate(zip(query.tolist(), positives, strict=True)):
        if own < 0 or not valid[own]:
            continue

        def score(j: int, q: list[float] = q) -> float:
            return math.exp(
                sum(a * b for a, b in zip(q, prototypes[j].tolist(), strict=True)) / float(phi[j])
            )

        if negatives is None:
            others = [j for j in range(len(valid)) if valid[j] and j != own]
        else:
            columns = [j for column, j in enumerate(positives) if column != row] + negatives
            others = [j for j in columns if j >= 0 and valid[j] and not (mask and j == own)]
        total -= math.log(score(own) / (score(own) + sum(score(j) for j in others)))
    return total / len(positives)


@given(
    batch=st.integers(1, 6),
    k=st.integers(2, 8),
    seed=st.integers(0, 1000),
    mask=st.booleans(),
    sampled=st.booleans(),
    data=st.data(),
)
def test_proto_nce_with_invalid_prototypes_equals_the_reference(
    batch: int, k: int, seed: int, mask: bool, sampled: bool, data: st.DataObject
) -> None:
    query, prototypes = unit(noise(batch, 4, seed).double()), unit(noise(k, 4, seed + 1).double())
    phi = 0.1 + 0.3 * torch.rand(k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    valid = data.draw(st.lists(st.booleans(), min_size=k, max_size=k))
    positives = data.draw(st.lists(st.integers(-1, k - 1), min_size=batch, max_size=batch))
    negatives = data.draw(st.lists(st.sampled_from(range(k)), unique=True, max_size=k)) if sampled else None
    query.requires_grad_()
    prototypes.requires_grad_()
    drawn = None if negatives is None else torch.tensor(negatives, dtype=torch.long)
    loss = proto_nce(
        query,
        prototypes,
        phi,
        torch.tensor(positives),
        drawn,
        mask_duplicates=mask,
        valid_K=torch.tensor(valid),
    )
    expected = reference_proto_nce(
        query.detach(), prototypes.detach(), phi, positives, negatives, mask, valid
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)

    loss.backward()
    assert torch.isfinite(query.grad).all()
    assert torch.isfinite(prototypes.grad).all()
    out = [row for row, own in enumerate(positives) if own < 0 or not valid[own]]
    assert (query.grad[out] == 0).all()
    assert (prototypes.grad[~torch.tensor(valid)] == 0).all()


@given(k=st.integers(1, 30), count=st.integers(0, 40), seed=st.integers(0, 500), data=st.data())
def test_sampled_negatives_are_valid_distinct_and_never_positives(
    k: int, count: int, seed: int, data: st.DataObject
) -> None:
    valid = data.draw(st.lists(st.booleans(), min_size=k, max_size=k))
    positives = data.draw(st.lists(st.integers(-1, k - 1), min_size=1, max_size=20))
    drawn = sample_negatives(
        k, torch.tensor(positives), count, torch.Generator().manual_seed(seed), torch.tensor(valid)
    ).tolist()
    allowed = {j for j in range(k) if valid[j]} - set(positives)
    assert set(drawn) <= allowed
    assert len(drawn) == len(set(drawn)) == min(count, len(allowed))


@given(
    n=st.integers(1, 60),
    distinct=st.integers(1, 60),
    k=st.integers(2, 60),
    seed=st.integers(0, 1000),
    half=st.booleans(),
    nested=st.booleans(),
    raw=st.booleans(),
)
def test_any_features_are_refused_or_give_a_phi_that_is_defined(
    n: int, distinct: int, k: int, seed: int, half: bool, nested: bool, raw: bool
) -> None:
    data = unit(noise(distinct, 3, seed))[torch.arange(n) % distinct]
    data = data.half() if half else data
    try:
        result = attempt(
            data,
            k,
            max(2, k // 3),
            nested=nested,
            collapse_rank=0.0,
            cold_iterations=3,
            **(RAW if raw else {}),
        )
    except (Collapsed, Rejected):
        return
    except EStepRefused:
        result = None
    if result is None:
        assert k > len(data.unique(dim=0))
        return
    for found in result.clusterings:
        if raw:
            check_definition(data.float(), found)
        else:
            assert float(found.concentration.mean()) == pytest.approx(TEMPERATURE, rel=1e-4)


def test_gauges_equal_brute_force() -> None:
    data = healthy(500, dim=12)
    found = health.gauges(Points.of(data))
    wide = data.double().numpy()
    cosines = wide @ wide.T
    assert found.cone == pytest.approx(cosines.mean(), rel=1e-9)
    assert found.spread == pytest.approx(np.square(wide - wide.mean(axis=0)).sum(axis=1).mean(), rel=1e-9)
    singular = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    assert found.rank == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_gauges_of_very_many_images_come_from_some_of_them() -> None:
    data = healthy(40000, dim=8, groups=1000)
    some, every = health.gauges(Points.of(data)), health.gauges(Points.of(data[:8000]))
    assert some.spread == pytest.approx(every.spread, rel=0.05)
    assert some.rank == pytest.approx(every.rank, rel=0.05)
    order = torch.randperm(40000, generator=torch.Generator().manual_seed(0))
    assert health.gauges(Points.of(data[order], order)).figures() == pytest.approx(some.figures(), rel=1e-9)


@pytest.mark.parametrize("half", [False, True])
def test_rows_that_cannot_be_used(half: bool) -> None:
    data = unit(noise(8, 4))
    data[1, 2], data[3, 0] = math.nan, math.inf
    data[4] = 0
    data[5] *= 1.6
    data[6] *= 1.4
    not_finite, off = health.unusable(data.half() if half else data)
    assert not_finite.nonzero().flatten().tolist() == [1, 3]
    assert off.nonzero().flatten().tolist() == [4, 5]
    assert [len(mask) for mask in health.unusable(data[:0])] == [0, 0]


def moments_of(sizes: list[int], scatter: list[float] | None = None) -> Moments:
    counts = torch.tensor(sizes)
    within = counts.double() if scatter is None else torch.tensor(scatter, dtype=torch.float64)
    return Moments(counts, torch.zeros(len(sizes), 2, dtype=torch.float64), within, 0.0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([10] * 100, []),
        ([10] * 99 + [0], []),
        ([10] * 98 + [0, 0], ["2 of 100 clusters are empty"]),
        ([10] * 75 + [1] * 25, []),
        ([10] * 74 + [1] * 26, ["26 of 100 clusters hold one image"]),
        ([2] * 74 + [1] * 26, []),  # so few images for so many clusters
        ([10] * 999 + [1110], []),
        ([10] * 999 + [1111], ["one of 1000 clusters holds 10% of the images"]),
        ([10] * 99 + [240], []),
        ([10] * 99 + [250], ["one of 100 clusters holds 20% of the images"]),
        ([10, 990], []),  # of two clusters one may well be large
    ],
)
def test_faults_and_their_limits(sizes: list[int], expected: list[str]) -> None:
    assert health.faults(moments_of(sizes), sum(sizes)) == expected
    assert health.duplicates(moments_of(sizes), sum(sizes)) == ""


@pytest.mark.parametrize("within", [0.0, 1e-3])
def test_copies_are_no_fault_but_a_warning_and_do_not_count_as_images_for_the_others(within: float) -> None:
    moments = moments_of([1000] + [1] * 60 + [4] * 139, [within * 1000] + [0.0] * 60 + [4.0] * 139)
    assert health.faults(moments, 1616) == []  # 616 others for 200 clusters: singletons are to be expected
    assert health.duplicates(moments, 1616).startswith("one cluster holds 62% of the images")
    assert health.faults(
        moments_of([1000] + [1] * 60 + [4] * 139, [100.0] + [0.0] * 60 + [4.0] * 139), 1616
    ) == ["60 of 200 clusters hold one image", "one of 200 clusters holds 62% of the images"]
