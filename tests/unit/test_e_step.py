from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.clustering import ClusterSet, concentration
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import EStepRefused, cluster, extract_features


def settings(*num_clusters: int | float, **knobs: object) -> EStepConfig:
    return EStepConfig(num_clusters=num_clusters or (4,), **{"iterations": 10, "restarts": 1, "threads": 1, **knobs})


def features(n: int = 120, dim: int = 8, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def run(data: Tensor | np.ndarray, config: EStepConfig, *, epoch: int = 3, temperature: float = 0.2, seed: int = 0) -> ClusterSet:
    return cluster(data, config, epoch=epoch, temperature=temperature, seed=seed)


def same(a: ClusterSet, b: ClusterSet) -> bool:
    names = ("prototypes", "assignments", "concentration")
    return all(torch.equal(getattr(x, n), getattr(y, n)) for x, y in zip(a.clusterings, b.clusterings, strict=True) for n in names)


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
    data, config = features(), settings(5, iterations=200, **knobs)  # converged: raw centroids are the means of the members
    (c,) = run(data, config).clusterings
    means = torch.stack([data[c.assignments == j].mean(dim=0) for j in range(5)])
    assert torch.allclose(c.prototypes, F.normalize(means, dim=1), atol=1e-4)
    distances = (data - means[c.assignments]).norm(dim=1)
    expected = concentration(distances, c.assignments, 5, alpha=config.alpha, temperature=0.2, clip=config.clip, normalise=config.normalise)
    assert torch.allclose(c.concentration, expected, rtol=1e-3)
    assert c.objective == pytest.approx(float((distances**2).sum()), rel=1e-3)


def test_same_seed_and_epoch_same_clusters_else_others() -> None:
    data, config = features(), settings(10, 10)
    first = run(data, config)
    assert same(first, run(data, config))
    assert same(first, run(data.numpy(), config))
    assert not same(first, run(data, config, seed=1))
    assert not same(first, run(data, config, epoch=4))
    assert not torch.equal(first.clusterings[0].assignments, first.clusterings[1].assignments)  # the same K twice: two starting points


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
    data = F.normalize(torch.ones(120, 8) + noise * torch.randn(120, 8, generator=torch.Generator().manual_seed(0)), dim=1)
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
