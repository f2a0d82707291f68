"""Batch norm over parts of a batch, against encoders that see one part alone."""

from __future__ import annotations

import copy

import pytest
import torch
from small_encoder import SMALL, WIDE_HEAD, built, images
from torch import Tensor, nn

from pcl_ray.config import EncoderConfig
from pcl_ray.model import Encoder
from pcl_ray.model.distributed import encode_shuffled
from pcl_ray.model.partwise import PartwiseEncoder

HEADS = pytest.mark.parametrize("config", [SMALL, WIDE_HEAD], ids=["", "batch norm in the head"])
# Parts, and how many of 13 images each takes.
PARTS = pytest.mark.parametrize(
    ("parts", "sizes"), [(1, [13]), (2, [7, 6]), (4, [4, 3, 3, 3]), (6, [3, 2, 2, 2, 2, 2])]
)


def alone(encoder: Encoder, sizes: list[int]) -> list[tuple[Encoder, Tensor]]:
    """For each part a copy of the encoder that has seen nothing but it, and the features of the part."""
    copies = [copy.deepcopy(encoder) for _ in sizes]
    return [(twin, twin(part)) for twin, part in zip(copies, images(13).split(sizes), strict=True)]


@HEADS
@PARTS
def test_each_part_is_normalised_by_itself(config: EncoderConfig, parts: int, sizes: list[int]) -> None:
    encoder = built(0, config)
    expected = torch.cat([features for _, features in alone(encoder, sizes)])
    found = PartwiseEncoder(encoder, parts)(images(13))
    assert torch.equal(found, expected)
    assert torch.allclose(found, encoder(images(13)), atol=1e-5) is (parts == 1)


@HEADS
@PARTS
def test_gradients_are_the_sum_of_the_parts(config: EncoderConfig, parts: int, sizes: list[int]) -> None:
    encoder = built(0, config)
    weights = torch.randn(13, 6, generator=torch.Generator().manual_seed(1))
    twins = alone(encoder, sizes)
    for (_, features), part in zip(twins, weights.split(sizes), strict=True):
        (features * part).sum().backward()
    (PartwiseEncoder(encoder, parts)(images(13)) * weights).sum().backward()
    for number, (name, parameter) in enumerate(encoder.named_parameters()):
        expected = sum(list(twin.parameters())[number].grad for twin, _ in twins)
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-5), name


@HEADS
@PARTS
def test_running_statistics_take_the_mean_of_the_parts_steps(
    config: EncoderConfig, parts: int, sizes: list[int]
) -> None:
    encoder = built(0, config)
    encoder(torch.flip(images(5), [0]))  # they are not those of the start
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    twins = [dict(twin.named_buffers()) for twin, _ in alone(encoder, sizes)]
    PartwiseEncoder(encoder, parts)(images(13)).sum().backward()
    for name, value in encoder.named_buffers():
        if value.is_floating_point():
            expected = sum(twin[name] for twin in twins) / parts
            assert torch.allclose(value, expected, rtol=1e-5, atol=1e-6), name
            assert not torch.allclose(value, before[name]), name


def test_two_batches_before_a_backward_pass() -> None:
    encoder = PartwiseEncoder(built(), 3)
    (encoder(images(6)) * encoder(images(6).flip(0))).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_without_batch_norm_parts_change_nothing() -> None:
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.LayerNorm(256)), nn.Linear(256, 4))
    assert torch.allclose(PartwiseEncoder(encoder, 4)(images(9)), encoder(images(9)), atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3])
def test_one_worker_shuffles_keys_over_its_parts_as_so_many_workers_would(parts: int) -> None:
    rows, seen = torch.arange(6.0)[:, None], []

    def encode(mixed: Tensor) -> Tensor:
        seen.append(mixed.flatten().tolist())
        return 2 * mixed

    for seed in range(4):
        assert torch.equal(encode_shuffled(encode, rows, seed, parts=parts), 2 * rows)
    assert seen == [
        torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(4)
    ]
    assert all(order != sorted(order) for order in seen)
