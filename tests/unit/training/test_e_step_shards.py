"""What a process does with its part of an E-step where its GPU has not enough memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pcl_ray.clustering.group import Group
from pcl_ray.config import RunConfig
from pcl_ray.e_step import ShardInput
from pcl_ray.errors import OutOfMemory
from pcl_ray.training.e_step_shards import EStepRequest, shard_result

N, C = 60, 8
CONFIG = RunConfig().model_copy(
    update={
        "e_step": RunConfig().e_step.model_copy(
            update={"num_clusters": (4,), "backend": "torch", "threads": 1}
        )
    }
)
REQUEST = EStepRequest(3, True, False, 1, N, 0, 0)


class TwoProcesses(Group):
    size = 2


def rows() -> Tensor:
    draw = np.random.default_rng(0).normal(size=(N, C)).astype(np.float32)
    return torch.nn.functional.normalize(torch.from_numpy(draw), dim=1)


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has no memory left."""

    def refuse(self: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(Tensor, "cuda", refuse)


@pytest.mark.usefixtures("full_gpu")
def test_the_cpu_clusters_instead_and_says_so() -> None:
    result = shard_result(ShardInput(rows(), N), REQUEST, CONFIG, None, gpu=True)
    expected = shard_result(ShardInput(rows(), N), REQUEST, CONFIG, None)
    assert torch.equal(result.labels, expected.labels)
    (warning,) = result.warnings
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in warning
    assert "more of it" not in warning
    assert "the CPU clustered" in warning
    assert expected.warnings == ()


@pytest.mark.usefixtures("full_gpu")
def test_in_a_group_the_others_cannot_know() -> None:
    with pytest.raises(OutOfMemory, match="e_step.mode=single"):
        shard_result(ShardInput(rows(), N, group=TwoProcesses()), REQUEST, CONFIG, None, gpu=True)
