"""The M-step on a GPU: the views of the CPU, and steps that never wait for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import GREY_ENCODER

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.images import ArrayImages
from pcl_ray.data.loaders import TrainingLoader
from pcl_ray.data.views import Views
from pcl_ray.m_step import build_learner, run_epoch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
N = 64


def config_of(channels: int = 3, **knobs: object) -> RunConfig:
    base = GREY_ENCODER | {
        "data.channels": channels,
        "augment.mean": [0.5] * channels,
        "augment.std": [0.25] * channels,
    }
    fixed = {
        "augment.image_size": 24,
        "encoder.dim": 8,
        "loss.queue_size": 32,
        "e_step.num_clusters": [20, 40],
        "train.epochs": 5,
        "train.batch_size": 16,
    }
    return configs.with_overrides(
        RunConfig(), base | fixed | {"resources.gpus_per_worker": 1.0, "train.log_every_steps": 4} | knobs
    )


def images(channels: int = 3) -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (N, 32, 32, channels), dtype=np.uint8))


def clusters(plan: plans.RunPlan) -> ClusterSet:
    draw = torch.Generator().manual_seed(0)
    return ClusterSet(
        0,
        tuple(
            Clustering(
                F.normalize(torch.randn(k, 8, generator=draw), dim=1),
                torch.randint(k, (N,), generator=draw),
                torch.full((k,), 0.2),
            )
            for k in plan.num_clusters
        ),
    )


MOVED = {"augment.shift": 0.2, "augment.rotate": 30, "augment.shear": 10, "augment.erase": 0.5}
SMALL = {"augment.small_crops": 3}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("moved", [{}, MOVED, MOVED | SMALL])
def test_views_are_those_of_the_cpu(version: str, channels: int, moved: dict[str, float]) -> None:
    config = config_of(channels, **{"augment.version": version, "augment.hue": 0.3}, **moved)
    pixels, indices = torch.from_numpy(images(channels).pixels), torch.arange(N)
    for here, there in zip(
        *(Views(config, device).of_images(pixels, 3, indices) for device in (torch.device("cpu"), GPU)),
        strict=True,
    ):
        assert there.device.type == "cuda"
        assert torch.allclose(here, there.cpu(), atol=1e-3)


@pytest.mark.parametrize("negatives", ["all", 5])
@pytest.mark.parametrize("micro_batch", [None, 6])
@pytest.mark.parametrize(
    "loss",
    [{}, {"loss.queue_negatives": "other_clusters"}, {"loss.cluster_positives": 0.5, "loss.symmetric": True}],
    ids=["", "other clusters", "cluster positives, symmetric"],
)
def test_no_step_waits_for_the_device(
    negatives: str | int, micro_batch: int | None, loss: dict[str, object]
) -> None:
    config = config_of(
        **{
            "loss.negative_prototypes": negatives,
            "train.micro_batch": micro_batch,
            "train.log_every_steps": 100,
        }
        | loss
    )
    plan, learner = plans.make(config, N), build_learner(config, GPU)
    found = clusters(plan)
    # the first pass chooses kernels
    run_epoch(learner, TrainingLoader(images(), config, device=GPU).epoch(0), found, config, plan, 0)
    batches = list(TrainingLoader(images(), config, device=GPU).epoch(1))
    read = 0

    def watched() -> object:
        nonlocal read
        torch.cuda.set_sync_debug_mode("error")  # from the first step to the last; figures are read after it
        for batch in batches:
            read += 1
            if read == len(batches):
                torch.cuda.set_sync_debug_mode("default")
            yield batch

    try:
        run_epoch(learner, watched(), found, config, plan, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("moved", [{}, MOVED, MOVED | SMALL])
def test_the_views_of_a_step_are_made_without_waiting(moved: dict[str, float]) -> None:
    config = config_of(**moved)
    pixels, indices, views = (
        torch.from_numpy(images().pixels).pin_memory(),
        torch.arange(N),
        Views(config, GPU),
    )
    views.of_images(pixels, 0, indices)
    torch.cuda.set_sync_debug_mode("error")
    try:
        views.of_images(pixels, 1, indices)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_prefetched_batches_are_the_same() -> None:
    for ahead in (0, 3):
        config = config_of(**{"data.prefetch": ahead})
        batches = list(TrainingLoader(images(), config, device=GPU).epoch(2))
        if ahead == 0:
            expected = batches
    for one, other in zip(expected, batches, strict=True):
        assert torch.equal(one.query_views, other.query_views)
        assert torch.equal(one.indices, other.indices)


def test_training_in_bf16_falls_as_in_fp32() -> None:
    losses = {}
    for precision in ("bf16", "fp32"):
        config = config_of(**{"train.precision": precision, "optimizer.schedule": "constant"})
        plan, learner = plans.make(config, N), build_learner(config, GPU)
        loader = TrainingLoader(images(), config, device=GPU)
        losses[precision] = [
            run_epoch(learner, loader.epoch(epoch), clusters(plan), config, plan, epoch).values["train/loss"]
            for epoch in range(5)
        ]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
