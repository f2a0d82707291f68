"""Narrow convolutions: the same sums, and no byte beyond a buffer."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from pcl_ray.model.narrow_convolutions import subsample_first

MALLOC_CHECK = "libc_malloc_debug.so.0"


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_same_sums(size: int, layout: torch.memory_format) -> None:
    """Against plain layers that are contiguous: in the other layout they overwrite this process's memory."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(6, 12, 1, stride=2), nn.ReLU(), nn.Conv2d(12, 8, 1, stride=(2, 1), groups=2)
    )
    other = copy.deepcopy(plain).to(memory_format=layout)
    assert subsample_first(other) == ["0", "2"]
    assert other.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(5, 6, size, size)
    inputs = [images.clone().requires_grad_(), images.to(memory_format=layout, copy=True).requires_grad_()]
    outputs = [model(given) for model, given in zip((plain, other), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_other_layers_stay_as_they_are() -> None:
    for layer in (
        nn.Conv2d(7, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.Conv2d(4, 8, 1, stride=2, padding=1),
    ):
        assert subsample_first(layer) == []
    assert subsample_first(timm.create_model("resnet18", num_classes=0)) == []


TRAINING = """
import sys
import torch
from pcl_ray import config as configs
from pcl_ray.model.learner import build_learner

torch.set_num_threads(1)
for width in (4, 5, 6):
    for side in (8, 11):
        knobs = {"encoder.backbone": "small_resnet", "encoder.width": width, "encoder.blocks": [1, 1],
                 "encoder.dim": 8, "data.channels": 1, "loss.queue_size": 64}
        learner = build_learner(configs.with_overrides(configs.RunConfig(), knobs), torch.device("cpu"))
        images = torch.randn(32, 1, side, side).to(memory_format=learner.memory_format)
        for _ in range(8):
            learner.query(images).square().sum().backward()
            kept = [torch.randn(n) for n in range(1, 200)]  # what overwritten memory would be found by
        del kept
print("done")
"""


def test_training_narrow_encoders_overwrites_no_memory() -> None:
    """As on a CPU with AVX2 alone, every allocation checked by glibc. With plain strides it aborts there."""
    if not any(
        Path(folder, MALLOC_CHECK).exists() for folder in ("/lib/x86_64-linux-gnu", "/lib64", "/usr/lib")
    ):
        pytest.skip(f"glibc's {MALLOC_CHECK} is not here")
    checked = {
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "LD_PRELOAD": MALLOC_CHECK,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "1",
    }
    child = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env={**os.environ, **checked},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (child.returncode, child.stdout.strip()) == (0, "done"), child.stderr[-2000:]
