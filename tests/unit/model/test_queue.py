from __future__ import annotations

from collections import deque

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pcl_ray.model import KeyQueue, image_groups


def numbered(first: int, count: int, dim: int = 2) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, dim)


@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=12))
def test_queue_is_a_ring_of_the_last_keys(size: int, batches: list[int]) -> None:
    """Any batch sizes, also ones that do not divide the queue or exceed it, against a deque."""
    queue, sent = KeyQueue(size, 2, torch.Generator().manual_seed(0)), 0
    expected = deque((tuple(row) for row in queue.keys.tolist()), maxlen=size)
    images = deque([(-1, -1)] * size, maxlen=size)
    for count in batches:
        batch = numbered(sent, count)
        numbers = torch.arange(sent, sent + count)
        queue.enqueue(batch, numbers, numbers % 3)
        expected.extend(tuple(row) for row in batch.tolist())
        images.extend((number, number % 3) for number in numbers.tolist())
        sent += count
        assert queue.pointer == sent % size
        oldest_first = torch.roll(queue.keys, -queue.pointer, dims=0)
        assert [tuple(row) for row in oldest_first.tolist()] == list(expected)
        both = torch.roll(torch.stack([queue.indices, queue.groups], dim=1), -queue.pointer, dims=0)
        assert [tuple(row) for row in both.tolist()] == list(images)


def test_keys_that_come_without_images_are_nobodys() -> None:
    queue = KeyQueue(4, 2)
    queue.enqueue(numbered(0, 4), torch.arange(4))
    queue.enqueue(numbered(4, 1))
    assert queue.indices.tolist() == [-1, 1, 2, 3]


def test_images_in_no_cluster_are_groups_of_their_own() -> None:
    assignments = torch.tensor([5, -1, 0, 5, -1])
    groups = image_groups(torch.tensor([0, 1, 2, 3, 4, 1, -1, 5, 99]), assignments)
    assert groups.tolist() == [5, -3, 0, 5, -6, -3, -1, -1, -1]


def test_regrouping_follows_the_clusters_and_is_no_state() -> None:
    queue = KeyQueue(4, 2)
    queue.enqueue(numbered(0, 3), torch.tensor([2, 0, 1]), torch.tensor([7, 7, 7]))
    queue.regroup(torch.tensor([4, -1, 6]))
    assert queue.groups.tolist() == [6, 4, -3, -1]
    assert set(queue.state_dict()) == {"keys", "indices", "_extra_state"}


def test_a_state_without_images_is_read() -> None:
    queue, other = KeyQueue(3, 2), KeyQueue(3, 2)
    queue.enqueue(numbered(0, 2), torch.tensor([5, 6]))
    state = queue.state_dict()
    del state["indices"]
    other.enqueue(numbered(0, 3), torch.arange(3))
    other.load_state_dict(state)
    assert other.indices.tolist() == [-1, -1, -1]
    assert torch.equal(other.keys, queue.keys)
    assert "indices" not in state


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
    first.enqueue(numbered(0, 7), torch.arange(7))
    second = KeyQueue(5, 2)
    second.load_state_dict(first.state_dict())
    assert second.indices.tolist() == [5, 6, 2, 3, 4]
    assert second.pointer == first.pointer == 2
    for queue in (first, second):
        queue.enqueue(numbered(7, 4))
    assert torch.equal(first.keys, second.keys)
    assert second.keys[:, 0].tolist() == [10, 6, 7, 8, 9]
