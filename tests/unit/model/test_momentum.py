from __future__ import annotations

import pytest
import torch
from small_encoder import built, images
from torch import nn

from pcl_ray.model import MomentumPair


def test_pair_starts_equal_and_only_the_query_learns() -> None:
    pair = MomentumPair.of(built(), 0.9)
    for (name, query), key in zip(pair.query.named_parameters(), pair.key.parameters(), strict=True):
        assert torch.equal(query, key), name
        assert query.data_ptr() != key.data_ptr()
        assert query.requires_grad
        assert not key.requires_grad
    (pair.query(images()) * pair.key(images()).flip(0)).sum().backward()
    assert all(parameter.grad is not None for parameter in pair.query.parameters())
    assert all(parameter.grad is None for parameter in pair.key.parameters())


@pytest.mark.parametrize("momentum", [0.999, 0.9, 0.5, 0.3])
def test_momentum_encoder_is_a_moving_average(momentum: float) -> None:
    pair, draw = MomentumPair(nn.Linear(3, 2), nn.Linear(3, 2), momentum), torch.Generator().manual_seed(0)
    averages = [parameter.detach().double().flatten().tolist() for parameter in pair.key.parameters()]
    for _ in range(20):
        for parameter in pair.query.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw))
        pair.update()
        for average, parameter in zip(averages, pair.query.parameters(), strict=True):
            for i, value in enumerate(parameter.detach().flatten().tolist()):
                average[i] = momentum * average[i] + (1 - momentum) * value
    for average, parameter in zip(averages, pair.key.parameters(), strict=True):
        assert parameter.flatten().tolist() == pytest.approx(average, rel=1e-4, abs=1e-6)


def test_momentum_zero_copies_the_query_exactly() -> None:
    pair = MomentumPair(built(0), built(1), 0.0)
    before = [parameter.clone() for parameter in pair.query.parameters()]
    pair.update()
    for old, query, key in zip(before, pair.query.parameters(), pair.key.parameters(), strict=True):
        assert torch.equal(query, key)
        assert torch.equal(query, old)  # the query is only read


def test_update_leaves_batch_norm_statistics_alone() -> None:
    pair = MomentumPair.of(built(), 0.5)
    pair.query(images())  # moves the statistics of the query only
    before = {name: buffer.clone() for name, buffer in pair.key.named_buffers()}
    pair.update()
    assert all(torch.equal(buffer, before[name]) for name, buffer in pair.key.named_buffers())
    moved = [
        name
        for name, buffer in pair.query.named_buffers()
        if "running_mean" in name and not torch.equal(buffer, before[name])
    ]
    assert moved
