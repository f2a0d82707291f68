from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equal_clusters import same
from one_shard import Labelled, clustered
from torch import Tensor, nn

from pcl_ray.clustering import Clustering, ClusterSet, concentration
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import (
    EStepRefused,
    ShardInput,
    ShardResult,
    When,
    cluster,
    cluster_shard,
    extract_features,
    merge_shards,
)


def settings(*num_clusters: int | float, **knobs: object) -> EStepConfig:
    return EStepConfig(
        num_clusters=num_clusters or (4,), **{"iterations": 10, "restarts": 1, "threads": 1, **knobs}
    )


def features(n: int = 120, dim: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def run(
    data: Tensor | np.ndarray, config: EStepConfig, *, epoch: int = 3, temperature: float = 0.2, seed: int = 0
) -> ClusterSet:
    return cluster(data, config, epoch=epoch, temperature=temperature, seed=seed)


def test_one_clustering_for_each_number_shares_of_the_images_included() -> None:
    found = run(features(), settings(5, 0.1, 0.25))
    assert found.epoch == 3
    assert [c.num_clusters for c in found.clusterings] == [5, 12, 30]
    for c in found.clusterings:
        assert c.assignments.shape == (120,)
        assert c.assignments.dtype == torch.long
        assert c.sizes.sum() == 120
        assert torch.allclose(c.prototypes.norm(dim=1), torch.ones(c.num_clusters), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_mean_concentration_is_the_temperature(temperature: float) -> None:
    for c in run(features(), settings(5, 12), temperature=temperature).clusterings:
        assert float(c.concentration.mean()) == pytest.approx(temperature, rel=1e-5)
        assert (c.concentration > 0).all()


@pytest.mark.parametrize("knobs", [{}, {"alpha": 1.0}, {"clip": (0.0, 100.0)}, {"normalise": False}])
def test_concentration_is_measured_from_the_raw_centroids(knobs: dict[str, object]) -> None:
    # converged: raw centroids are the means of the members
    data, config = features(), settings(5, iterations=200, **knobs)
    (c,) = run(data, config).clusterings
    means = torch.stack([data[c.assignments == j].mean(dim=0) for j in range(5)])
    assert torch.allclose(c.prototypes, F.normalize(means, dim=1), atol=1e-4)
    distances = (data - means[c.assignments]).norm(dim=1)
    expected = concentration(
        distances,
        c.assignments,
        5,
        alpha=config.alpha,
        temperature=0.2,
        clip=config.clip,
        normalise=config.normalise,
    )
    assert torch.allclose(c.concentration, expected, rtol=1e-3)
    assert c.objective == pytest.approx(float((distances**2).sum()), rel=1e-3)


def test_same_seed_and_epoch_same_clusters_else_others() -> None:
    data, config = features(), settings(10, 10)
    first = run(data, config)
    assert same(first, run(data, config))
    assert same(first, run(data.numpy(), config))
    assert not same(first, run(data, config, seed=1))
    assert not same(first, run(data, config, epoch=4))
    # the same K twice: two starting points
    assert not torch.equal(first.clusterings[0].assignments, first.clusterings[1].assignments)


def test_finds_the_groups_that_are_there() -> None:
    label = torch.arange(90) % 3
    data = F.normalize(torch.eye(8)[label] + 0.05 * features(90), dim=1)
    (c,) = run(data, settings(3, restarts=5)).clusterings
    assert len({(a, b) for a, b in zip(label.tolist(), c.assignments.tolist(), strict=True)}) == 3


def test_leaves_the_features_alone() -> None:
    data = features()
    before = data.clone()
    run(data, settings(5))
    assert torch.equal(data, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_features_that_are_not_finite(value: float) -> None:
    data = features()
    data[7, 2], data[40, 0] = value, value
    with pytest.raises(EStepRefused, match=r"before epoch 4.*2 of 120.*\[7, 40\].*optimizer\.lr"):
        run(data, settings(4))


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_refuses_collapsed_features(noise: float) -> None:
    data = F.normalize(
        torch.ones(120, 8) + noise * torch.randn(120, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    with pytest.raises(EStepRefused, match=r"before epoch 4.*collapsed.*optimizer\.lr"):
        run(data, settings(4))


@pytest.mark.parametrize("n", [9, 97, 1001])
def test_refuses_more_clusters_than_distinct_features(n: int) -> None:
    data = features(5)[torch.arange(n) % 5]
    with pytest.raises(EStepRefused, match=rf"6 clusters.*only 5 of the {n}.*e_step\.num_clusters"):
        run(data, settings(6))
    assert run(data, settings(5)).clusterings[0].num_clusters == 5  # exactly as many is enough


def test_refuses_more_clusters_than_images() -> None:
    with pytest.raises(EStepRefused, match="50 clusters.*there are 20"):
        run(features(20), settings(50))


def test_a_refusal_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least as many images"):
        run(features(3), settings(4))


def mixture(n: int = 1500, dim: int = 16, groups: int = 60, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=draw)
    return F.normalize(centres[torch.arange(n) % groups] + 0.6 * torch.randn(n, dim, generator=draw), dim=1)


def drifted(data: Tensor, by: float, seed: int = 9) -> Tensor:
    return F.normalize(
        data
        + by * torch.randn(data.shape, generator=torch.Generator().manual_seed(seed)) / data.shape[1] ** 0.5,
        dim=1,
    )


def rotated(data: Tensor) -> Tensor:
    turn, _ = torch.linalg.qr(
        torch.randn(data.shape[1], data.shape[1], generator=torch.Generator().manual_seed(3))
    )
    return data @ turn


def step(
    data: Tensor, previous: ClusterSet | None = None, *, k: int = 40, epoch: int = 4, **knobs: object
) -> Labelled:
    config = settings(k, cold_iterations=20, **knobs)
    result = clustered(data, config, When(epoch), previous=previous)
    assert result.warnings == []
    return result.clusterings[0]


def first_step(data: Tensor, k: int = 40) -> ClusterSet:
    return run(data, settings(k, cold_iterations=20), epoch=3)


def share_unchanged(found: Labelled, before: ClusterSet) -> float:
    return float((found.labels == before.clusterings[0].assignments).float().mean())


def means_over(data: Tensor, labels: Tensor, k: int) -> Tensor:
    return torch.stack([data[labels == j].double().mean(dim=0) for j in range(k)])


@pytest.mark.parametrize("by", [0.1, 0.3])
def test_a_warm_start_keeps_the_numbers_of_the_clusters_and_is_no_worse_than_a_cold_one(by: float) -> None:
    data = mixture()
    before, later = first_step(data), drifted(data, by)
    warm, cold = step(later, before), step(later)
    assert (warm.figures["cold"], cold.figures["cold"]) == (0, 1)
    assert share_unchanged(warm, before) > 0.8
    assert share_unchanged(cold, before) < 0.2
    assert warm.objective <= 1.01 * cold.objective
    assert warm.figures["passes"] <= 10 < cold.figures["passes"]


def test_a_warm_start_begins_with_the_means_of_the_new_features_over_the_last_labels() -> None:
    data = mixture()
    before, later = first_step(data), drifted(data, 0.3)
    old = before.clusterings[0].assignments
    found = step(later, before, iterations=1)  # one pass: nothing is moved after it
    means = means_over(later, old, 40)
    assert torch.allclose(found.centroids.double(), means, atol=1e-7)
    assert not torch.allclose(found.centroids, before.clusterings[0].centroids, atol=1e-2)
    nearest = torch.cdist(later.double(), means).argmin(dim=1)
    assert torch.equal(found.labels, nearest)
    assert found.figures["changed"] == pytest.approx(float((nearest != old).double().mean()))
    assert found.figures["passes"] == 1


def test_the_last_labels_outlive_a_rotation_of_the_space_and_the_last_centroids_do_not() -> None:
    data = mixture()
    before, later = first_step(data), rotated(data)
    by_labels, by_centroids = step(later, before), step(later, before, warm_start="centroids")
    assert by_labels.figures["cold"] == 0
    assert by_labels.objective <= 1.0001 * before.clusterings[0].objective
    assert share_unchanged(by_labels, before) > 0.95
    assert by_centroids.figures["cold"] == 1


def test_a_start_from_the_last_centroids() -> None:
    data = mixture()
    before, later = first_step(data), drifted(data, 0.1)
    old = before.clusterings[0].centroids
    found = step(later, before, warm_start="centroids", iterations=1)
    assert torch.equal(found.centroids, old)
    assert torch.equal(found.labels, torch.cdist(later.double(), old.double()).argmin(dim=1))
    settled = step(later, before, warm_start="centroids")
    assert settled.figures["cold"] == 0
    assert share_unchanged(settled, before) > 0.8
    assert settled.objective < found.objective
    without_lengths = ClusterSet(
        3,
        (
            Clustering(
                *(
                    getattr(before.clusterings[0], name)
                    for name in ("prototypes", "assignments", "concentration")
                )
            ),
        ),
    )
    # a file of an older version
    assert step(later, without_lengths, warm_start="centroids").figures["cold"] == 1


def equal_steps(a: Labelled, b: Labelled) -> bool:
    return (
        all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("labels", "centroids", "concentration", "valid")
        )
        and a.objective == b.objective
    )


@pytest.mark.parametrize("nested", [False, True])
def test_without_warm_starts_the_last_clusters_play_no_part(nested: bool) -> None:
    data = mixture()
    before, later = run(data, settings(40, 10)), drifted(data, 0.1)
    config = settings(40, 10, warm_start="none", nested=nested)
    with_last, alone = (
        cluster(later, config, epoch=4, temperature=0.2, seed=0, previous=previous)
        for previous in (before, None)
    )
    assert same(with_last, alone)
    assert [c.objective for c in with_last.clusterings] == [c.objective for c in alone.clusterings]


def changed(before: ClusterSet, **what: object) -> ClusterSet:
    (c,) = before.clusterings
    values = {
        "prototypes": c.prototypes,
        "assignments": c.assignments,
        "concentration": c.concentration,
        "objective": c.objective,
        "norms": c.norms,
    }
    return ClusterSet(before.epoch, (Clustering(**{**values, **what}),))


@pytest.mark.parametrize("warm_start", ["labels", "centroids"])
def test_a_first_pass_much_worse_than_the_last_end_is_given_up_for_a_cold_run(warm_start: str) -> None:
    data = mixture()
    before, later = first_step(data), drifted(data, 0.3)
    first = step(later, before, warm_start=warm_start, iterations=1).objective
    for factor, cold in ((1 / 1.29, 0), (1 / 1.31, 1)):
        last = changed(before, objective=first * factor)
        assert step(later, last, warm_start=warm_start).figures["cold"] == cold
    # nothing is known
    assert step(later, changed(before, objective=float("nan")), warm_start=warm_start).figures["cold"] == 0


def test_of_two_cold_runs_after_a_jump_the_better_is_kept() -> None:
    data = mixture()
    before, later = first_step(data), mixture(seed=5)
    last = changed(before, objective=0.1)
    assert step(later, last).objective <= step(later).objective
    better = [
        step(mixture(seed=seed), last).objective < step(mixture(seed=seed)).objective for seed in range(5, 13)
    ]
    assert 0 < sum(better) < 8


def test_labels_that_say_nothing_any_more_are_given_up_for_a_cold_run() -> None:
    data = mixture()
    before = first_step(data)
    labels = before.clusterings[0].assignments
    unknown = changed(before, objective=float("inf"))
    # of the images got any label: about so many change at the first pass
    for share, cold in ((0.4, 0), (0.8, 1)):
        wrong = torch.rand(1500, generator=torch.Generator().manual_seed(0)) < share
        mixed = torch.where(
            wrong, torch.randint(40, (1500,), generator=torch.Generator().manual_seed(1)), labels
        )
        found = step(data, changed(unknown, assignments=mixed))
        assert found.figures["cold"] == cold
        if not cold:
            assert 0.3 < found.figures["changed"] < 0.5
    assert equal_steps(step(data, changed(unknown, assignments=mixed)), step(data))


@pytest.mark.parametrize("warm_start", ["labels", "centroids", "none"])
def test_another_number_of_clusters_or_images_begins_anew(warm_start: str) -> None:
    data = mixture()
    before = first_step(data)
    assert equal_steps(step(data, before, k=30, warm_start=warm_start), step(data, k=30))
    for n in (1400, 1500):
        other = changed(before, assignments=before.clusterings[0].assignments[: 2900 - n])
        assert equal_steps(step(data[:n], other, warm_start=warm_start), step(data[:n]))
    more = cluster(
        data, settings(40, 30, warm_start=warm_start), epoch=4, temperature=0.2, seed=0, previous=before
    )
    # there was no second clustering to begin with
    assert [c.num_clusters for c in more.clusterings] == [40, 30]


def test_images_and_clusters_that_the_last_labels_leave_out_are_taken_in() -> None:
    data = mixture()
    before = first_step(data)
    labels = before.clusterings[0].assignments.clone()
    labels[labels == 7] = 8  # cluster 7 is empty now
    labels[::50] = -1
    found = step(data, changed(before, assignments=labels))
    assert found.figures["cold"] == 0
    assert found.valid.all()
    assert (found.labels >= 0).all()
    assert found.objective <= 1.02 * before.clusterings[0].objective
    at_once = step(data, changed(before, assignments=labels), iterations=1)
    assert (at_once.centroids.norm(dim=1) > 0.3).all()  # cluster 7 begins beside another one, not at zero


def test_half_precision_is_clustered_nearly_the_same() -> None:
    data = mixture()
    before = first_step(data)
    whole, half = step(data, before), step(data.half(), before)
    assert (whole.labels == half.labels).float().mean() > 0.995
    assert half.objective == pytest.approx(whole.objective, rel=1e-3)
    assert half.centroids.dtype == torch.float32


def test_labels_travel_as_int32_and_come_together_by_id() -> None:
    data = mixture(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    result = clustered(data[order], settings(4, 9), When(4), ids=order).result
    assert (result.labels.dtype, result.labels.shape) == (torch.int32, (2, 100))
    follower = replace(result, ids=order[:30], labels=result.labels[:, :30], clusterings=())
    leader = replace(result, ids=order[30:], labels=result.labels[:, 30:])
    sent = [pickle.loads(pickle.dumps(part)) for part in (follower, leader)]
    assert same(merge_shards(sent, 4, 100), run(data, settings(4, 9), epoch=4))


def test_features_that_have_not_all_come_are_refused() -> None:
    with pytest.raises(EStepRefused, match="features of 100 images arrived, there are 120"):
        cluster_shard(ShardInput(features(100), 120), settings(4), When(3), temperature=0.2, seed=0)


class Probe(nn.Module):
    """Its features tell the images and whether it was in training mode."""

    def forward(self, views: Tensor) -> Tensor:
        mode = torch.full((len(views), 1), float(self.training), dtype=views.dtype)
        return torch.cat([views.flatten(1).mean(dim=1, keepdim=True), mode], dim=1)


@pytest.mark.parametrize("training", [True, False])
def test_features_are_extracted_in_evaluation_mode(training: bool) -> None:
    encoder = Probe().train(training)
    ids = torch.tensor([4, 0, 3, 1, 2])
    batches = [(i[:, None, None, None].expand(-1, 1, 2, 2).float(), i) for i in ids.split(2)]
    shard = extract_features(encoder, batches, torch.device("cpu"))
    assert shard.indices.tolist() == ids.tolist()
    assert shard.features.tolist() == [[i, 0.0] for i in ids.tolist()]
    assert shard.features.dtype == np.float32
    assert encoder.training is training


def test_no_batches_give_an_empty_shard() -> None:
    assert len(extract_features(Probe(), [], torch.device("cpu")).indices) == 0


def through_the_store(value: Any) -> Any:
    """A copy as Ray hands it over: arrays lie in memory that cannot be written to."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[memoryview(bytes(buffer)).toreadonly() for buffer in buffers])


def test_results_travel_without_a_copy_and_come_together_from_read_only_memory() -> None:
    data = mixture(100)
    config = settings(4, 9)
    result = clustered(data, config, When(4)).result
    assert same(merge_shards([through_the_store(result)], 4, 100), run(data, config, epoch=4))
    refused = ShardResult(torch.empty(0, dtype=torch.long), torch.empty(0, 0, dtype=torch.int32), reason="no")
    arrived = through_the_store(refused)
    assert (arrived.reason, arrived.labels.shape, len(arrived.ids)) == ("no", (0, 0), 0)
    with pytest.raises(ValueError, match="assignments of 100 images arrived, there are 120"):
        merge_shards([result], 4, 120)
