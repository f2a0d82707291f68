"""What the processes of a run load before their first step: a heavy library costs each process that has it
seconds of a core.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torch._dynamo", "torchvision", "ray", "mlflow", "sklearn", "scipy", "matplotlib", "faiss")
# What a process of each kind imports, and the heavy ones among it.
KINDS = {
    "driver": ("pcl_ray.cli.command, pcl_ray.runs.driver, pcl_ray.runs.gallery", set()),
    "driver of a run on Ray": ("pcl_ray.on_ray.launch", {"ray"}),
    "its trainer, and the controller": (
        "pcl_ray.on_ray.launch, pcl_ray.on_ray.processes.trainer, pcl_ray.on_ray.processes.gloo_group",
        {"ray"},
    ),
    "board": ("pcl_ray.training.events, pcl_ray.snapshot", set()),
    "E-step actor": ("pcl_ray.training.e_step_actor", {"torch"}),
    "worker": ("pcl_ray.on_ray.worker", {"torch", "ray"}),
    "run in one process": ("pcl_ray.training.loop, pcl_ray.training.local_e_step", {"torch"}),
}


def loaded(code: str) -> set[str]:
    """The heavy libraries that a process has loaded after this code."""
    code = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_process_loads_what_it_needs(kind: str) -> None:
    modules, heavy = KINDS[kind]
    assert loaded(f"import {modules}") == heavy


def test_a_step_of_the_training_needs_no_compiler_and_no_torchvision() -> None:
    """The encoder, the optimizer's first calls, data-parallel wrapping, the views of images."""
    code = """
import os, torch
from pcl_ray import config as configs
from pcl_ray.data.evaluation_view import evaluation_view
from pcl_ray.model.learner import build_learner
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
from pcl_ray.model import learner as learners
learners.world_size = lambda: 2  # that of one process would not be wrapped
config = configs.load("digits", ["encoder.batch_norm=plain"])
learner = build_learner(config, torch.device("cpu"))
assert type(learner.query).__name__ == "DistributedDataParallel"
learner.query(torch.randn(4, 1, 12, 12)).sum().backward()
learner.optimizer.step()
learner.optimizer.zero_grad()
learner.load_state_dict(learner.state_dict())
evaluation_view(config.augment)(torch.zeros(1, 8, 8, dtype=torch.uint8))
"""
    assert loaded(code) == {"torch"}


def test_what_is_compiled_finds_the_compiler() -> None:
    """Leaving it out does not keep it out: after an optimizer was made, torch.compile is torch.compile."""
    code = """
import torch
from pcl_ray import config as configs
from pcl_ray.model.learner import build_learner
build_learner(configs.load("digits"), torch.device("cpu"))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert "torch._dynamo" in loaded(code)
