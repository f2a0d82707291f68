"""Encoder, momentum encoder and queue."""

from __future__ import annotations

import importlib.util
from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pcl_ray import config as configs
from pcl_ray.config import EncoderConfig
from pcl_ray.errors import ConfigError
from pcl_ray.m_step import Learner, build_learner
from pcl_ray.model import Encoder, KeyQueue, MomentumPair
from pcl_ray.model.encoder import build

SMALL = EncoderConfig(backbone="small_resnet", width=4, blocks=(1, 1), dim=6)


def built(seed: int = 0, config: EncoderConfig = SMALL, channels: int = 1) -> Encoder:
    torch.manual_seed(seed)
    return build(config, channels)


def images(n: int = 3, channels: int = 1, side: int = 16) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "stem", "width"),
    [("small_resnet", "imagenet", 8), ("resnet18", "small", 512), ("resnet18", "imagenet", 512)],
)
def test_features_are_unit_vectors(backbone: str, stem: str, width: int, channels: int, head: str) -> None:
    model = built(
        0, EncoderConfig(backbone=backbone, stem=stem, width=4, blocks=(1, 1), head=head, dim=6), channels
    ).eval()
    with torch.no_grad():
        features, body = model(images(3, channels, 32)), model.backbone(images(3, channels, 32))
    assert features.shape == (3, 6)
    assert body.shape == (3, width)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(features[0], features[1])
    assert isinstance(model.head, nn.Linear if head == "linear" else nn.Sequential)


@pytest.mark.parametrize("blocks", [(1,), (2, 1, 1), (1, 2, 1, 1)])
@pytest.mark.parametrize("width", [4, 6])
def test_small_resnet_takes_any_depth_width_and_size(blocks: tuple[int, ...], width: int) -> None:
    model = built(0, EncoderConfig(backbone="small_resnet", width=width, blocks=blocks, dim=5)).eval()
    assert model.backbone.width == width * 2 ** (len(blocks) - 1)
    for side in (8, 13):
        assert model(images(2, 1, side)).shape == (2, 5)


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("imagenet", 8)])
def test_small_stem_keeps_the_resolution(stem: str, side: int) -> None:
    model, seen = built(0, EncoderConfig(backbone="resnet18", stem=stem, dim=4), 3).eval(), []
    model.backbone.layer1.register_forward_hook(lambda module, given, result: seen.append(result.shape[-2:]))
    model(images(1, 3, 32))
    assert seen == [(side, side)]


def test_timm_absent_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"encoder\.backbone = 'timm:vit_tiny'.*pip install timm") as caught:
        build(EncoderConfig(backbone="timm:vit_tiny"), 3)
    assert [problem.name for problem in caught.value.problems] == ["encoder.backbone"]


def test_same_seed_same_weights() -> None:
    first, again, other = (built(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])


def learner(seed: int) -> Learner:
    knobs = {"seed": seed, "data.channels": 1, "loss.queue_size": 8, "encoder.dim": 6}
    knobs |= {"encoder.backbone": "small_resnet", "encoder.width": 4, "encoder.blocks": [1, 1]}
    return build_learner(configs.with_overrides(configs.RunConfig(), knobs), torch.device("cpu"))


def test_learners_of_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = learner(1), learner(1), learner(2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.queue.keys, again.queue.keys)
    assert not torch.equal(first.queue.keys, other.queue.keys)
    weights = first.pair.state_dict()
    assert all(torch.equal(value, again.pair.state_dict()[name]) for name, value in weights.items())
    assert not torch.equal(weights["query.head.0.weight"], other.pair.state_dict()["query.head.0.weight"])


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


def numbered(first: int, count: int, dim: int = 2) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, dim)


@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=12))
def test_queue_is_a_ring_of_the_last_keys(size: int, batches: list[int]) -> None:
    """Any batch sizes, also ones that do not divide the queue or exceed it, against a deque."""
    queue, sent = KeyQueue(size, 2, torch.Generator().manual_seed(0)), 0
    expected = deque((tuple(row) for row in queue.keys.tolist()), maxlen=size)
    for count in batches:
        batch = numbered(sent, count)
        queue.enqueue(batch)
        expected.extend(tuple(row) for row in batch.tolist())
        sent += count
        assert queue.pointer == sent % size
        oldest_first = torch.roll(queue.keys, -queue.pointer, dims=0)
        assert [tuple(row) for row in oldest_first.tolist()] == list(expected)


def test_queue_starts_with_random_unit_vectors() -> None:
    queue = KeyQueue(50, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(50), atol=1e-5)
    assert torch.equal(queue.keys, KeyQueue(50, 8, torch.Generator().manual_seed(0)).keys)
    assert len(torch.unique(queue.keys, dim=0)) == 50


def test_queue_keeps_values_not_references_or_gradients() -> None:
    queue, batch = KeyQueue(4, 2), torch.ones(2, 2, requires_grad=True)
    queue.enqueue(batch * 3)
    assert not queue.keys.requires_grad
    assert queue.keys[:2].tolist() == [[3, 3], [3, 3]]


def test_queue_takes_other_precisions() -> None:
    queue = KeyQueue(4, 2)
    queue.enqueue(numbered(0, 3).to(torch.bfloat16))
    assert queue.keys.dtype == torch.float32
    assert queue.keys[:3, 0].tolist() == [0, 1, 2]


def test_queue_state_roundtrip_goes_on_where_it_stopped() -> None:
    first = KeyQueue(5, 2)
    first.enqueue(numbered(0, 7))
    second = KeyQueue(5, 2)
    second.load_state_dict(first.state_dict())
    assert second.pointer == first.pointer == 2
    for queue in (first, second):
        queue.enqueue(numbered(7, 4))
    assert torch.equal(first.keys, second.keys)
    assert second.keys[:, 0].tolist() == [10, 6, 7, 8, 9]
