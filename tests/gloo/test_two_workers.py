"""Two processes on one global batch against one process: the same loss, gradients, weights and queue.

The processes start once and write what they saw to files; the tests compare those. Batch norm couples the
images of a worker's batch, so most encoders here normalise by groups within each image instead: then two
workers must equal one, up to the order of float sums. With batch norm, one must that takes twice as many
parts of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import gloo_member, saved_by_workers
from small import GREY_ENCODER
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from pcl_ray import config as configs
from pcl_ray import m_step
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.data.images import ArrayImages
from pcl_ray.data.reading import Readers
from pcl_ray.errors import RunFailed
from pcl_ray.evaluation.augmented import AugmentedViews
from pcl_ray.m_step import EpochCourse, run_epoch
from pcl_ray.model import encoder
from pcl_ray.model.distributed import (
    all_gather,
    all_gather_together,
    average_buffers,
    encode_shuffled,
    mean_over_workers,
    rank,
    world_size,
)

WORLD, BATCH, STEPS, N = 2, 8, 3, 24
CPU = torch.device("cpu")
KNOBS = GREY_ENCODER | {
    "encoder.dim": 6,
    "encoder.momentum": 0.9,
    "encoder.batch_norm": "plain",
    "loss.queue_size": 20,  # no multiple of the batch: it wraps within one
    "e_step.num_clusters": [5, 12],
    "e_step.warmup_epochs": 0,
    "optimizer.lr": 0.05,
    "train.batch_size": BATCH,
    "train.log_every_steps": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "instance": {"loss.prototype_weight": 0},
    "all": {"loss.negative_prototypes": "all"},
    "sampled": {"loss.negative_prototypes": 3},
    "unmasked": {"loss.negative_prototypes": 3, "loss.mask_duplicates": False},
    "shuffled": {"loss.negative_prototypes": 3, "encoder.batch_norm": "shuffle"},
    "other clusters": {"loss.queue_negatives": "other_clusters"},
    "cluster positives": {"loss.cluster_positives": 0.5},
    "symmetric": {"loss.symmetric": True},
    "symmetric, shuffled": {
        "loss.symmetric": True,
        "encoder.batch_norm": "shuffle",
        "encoder.batch_norm_parts": 2,
    },
    "accumulated": {"loss.negative_prototypes": 3, "train.micro_batch": 2},
    # 8 images as 3 + 3 + 2, 4 as 2 + 2
    "accumulated unevenly": {
        "loss.negative_prototypes": 3,
        "train.micro_batch": 3,
        "encoder.batch_norm": "shuffle",
    },
    "accumulated, unmasked": {
        "loss.negative_prototypes": 3,
        "train.micro_batch": 2,
        "loss.mask_duplicates": False,
    },
    "accumulated, all": {"loss.negative_prototypes": "all", "train.micro_batch": 2},
    "accumulated, other clusters": {"loss.queue_negatives": "other_clusters", "train.micro_batch": 2},
    "small views": {"loss.negative_prototypes": 3, "augment.small_crops": 3},
    "accumulated, small views": {
        "loss.negative_prototypes": 3,
        "augment.small_crops": 3,
        "train.micro_batch": 3,
    },
    "accumulated, cluster positives": {"loss.cluster_positives": 0.5, "train.micro_batch": 2},
    "accumulated, symmetric": {"loss.symmetric": True, "train.micro_batch": 2},
    "symmetric, small views": {"loss.symmetric": True, "augment.small_crops": 2, "train.micro_batch": 3},
}
EXCHANGES: list[dict[str, Any]] = [
    {},
    {"train.micro_batch": 2},
    {"loss.symmetric": True},
    {"loss.symmetric": True, "train.micro_batch": 2, "augment.small_crops": 2},
    {"augment.small_crops": 2},
]
SAME_AS = {
    "accumulated": "sampled",
    "accumulated unevenly": "sampled",
    "accumulated, unmasked": "unmasked",
    "accumulated, all": "all",
    "accumulated, other clusters": "other clusters",
    "accumulated, small views": "small views",
    "accumulated, cluster positives": "cluster positives",
    "accumulated, symmetric": "symmetric",
}


# Parts of the global batch that are normalised each by itself, and whether keys are shuffled over them.
PARTS = [(2, "plain"), (2, "shuffle"), (4, "plain"), (4, "shuffle")]


@dataclass
class Batch:
    query_views: Tensor
    key_views: Tensor
    indices: Tensor
    small_views: tuple[Tensor, ...] = ()


def without_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(2, child.num_features))
        else:
            without_batch_norm(child)
    return module


@contextmanager
def group_normalised() -> Iterator[None]:
    """Within it `build_learner` builds its usual encoder, with the batch norm exchanged."""
    original = encoder.build
    encoder.build = lambda *arguments: without_batch_norm(original(*arguments))
    try:
        yield
    finally:
        encoder.build = original


def part(rows: Tensor) -> Tensor:
    """This worker's rows of a global batch."""
    return rows.chunk(world_size())[rank()]


def my_batches(num_small: int = 0) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(3)
    for ids in torch.randperm(N, generator=draw).split(BATCH):
        one, two = (torch.randn(BATCH, 1, 8, 8, generator=draw) for _ in range(2))
        yield Batch(part(one), part(two), part(ids), small_of(one, num_small))


def small_of(views: Tensor, count: int) -> tuple[Tensor, ...]:
    """This worker's rows of so many small views, each another corner of a view."""
    return tuple(part(views[:, :, number : number + 4, number : number + 4]) for number in range(count))


def clusters() -> ClusterSet:
    """Few enough clusters that a batch holds several images of one, also across the two workers."""
    draw = torch.Generator().manual_seed(4)

    def one(k: int) -> Clustering:
        phi = 0.1 + 0.2 * torch.rand(k, generator=draw)
        return Clustering(
            F.normalize(torch.randn(k, 6, generator=draw), dim=1), torch.randint(k, (N,), generator=draw), phi
        )

    return ClusterSet(0, (one(5), one(12)))


def train(knobs: dict[str, Any]) -> dict[str, Any]:
    """Three steps of the real M-step: metrics of each, gradients of the first, and the state at the end."""
    config = configs.with_overrides(configs.RunConfig(), KNOBS | {"train.epochs": 4} | knobs)
    plan = plans.make(config, N)
    with group_normalised():
        learner = m_step.build_learner(config, CPU)
    gradients: list[dict[str, Tensor]] = []
    learner.optimizer.register_step_pre_hook(
        lambda *arguments: gradients.append(
            {name: parameter.grad.clone() for name, parameter in learner.pair.query.named_parameters()}
        )
    )
    metrics: list[dict[str, float]] = []
    result = run_epoch(
        learner,
        my_batches(config.augment.small_crops),
        clusters(),
        config,
        plan,
        0,
        EpochCourse(on_progress=lambda step, means: metrics.append(means)),
    )
    return {
        "metrics": metrics,
        "gradients": gradients[0],
        "weights": learner.pair.state_dict(),
        "queue": learner.queue.keys,
        "queue's images": torch.stack([learner.queue.indices, learner.queue.groups]),
        "pointer": learner.queue.pointer,
        "images": result.images,
        "parallel": isinstance(learner.query, DistributedDataParallel),
    }


def exchange() -> dict[str, Any]:
    """The functions of `gather`, each on rows that tell their worker."""
    torch.manual_seed(rank())
    images = torch.arange(3.0)[:, None] + 10 * (rank() + 1)
    seen: list[Tensor] = []

    def encode(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows * 2

    norm = nn.BatchNorm1d(2)
    norm.running_mean[:] = torch.tensor([1.0, 2.0]) * (rank() + 1)
    norm.running_var[:] = 4.0 * (rank() + 1)
    norm.num_batches_tracked += 5 + rank()
    weight = norm.weight.detach().clone()
    average_buffers(norm)
    average_buffers(nn.Linear(2, 2))  # has none: nothing to do, and no worker waits for another
    return {
        "gathered": all_gather(images),
        "gathered together": all_gather_together(
            images.expand(3, 2), torch.arange(3) - 2**40 * rank(), torch.tensor([True, False, rank() == 1])
        ),
        "gathered ids": all_gather(torch.arange(3).flip(0) + rank()),
        "gathered strided": all_gather(torch.arange(6.0).view(2, 3).T + 10 * rank()),
        "mean": mean_over_workers(torch.tensor([1.0, 5.0]) * (rank() + 1)),
        "shuffled": [encode_shuffled(encode, images, seed=seed) for seed in range(4)],
        "images": images,
        "encoded": seen,
        "norm": norm.state_dict(),
        "weight kept": torch.equal(weight, norm.weight),
        "rank": (rank(), world_size()),
    }


def fail() -> str:
    """One worker's images are broken: both must stop, or one would wait for the other for ever."""
    config = configs.with_overrides(configs.RunConfig(), KNOBS | {"train.epochs": 4})
    learner = m_step.build_learner(config, CPU)
    batches = list(my_batches())
    if rank() == 1:
        batches[1].key_views[0, 0, 0, 0] = float("nan")
    try:
        run_epoch(learner, batches, None, config, plans.make(config, N), 0)
    except RunFailed as error:
        return str(error)
    return "went on"


def buffers_after_batch_norm() -> dict[str, Any]:
    """Real batch norm: statistics differ between the workers until they are averaged."""
    config = configs.with_overrides(configs.RunConfig(), KNOBS | {"train.epochs": 4})
    learner = m_step.build_learner(config, CPU)
    run_epoch(learner, my_batches(), None, config, plans.make(config, N), 0)
    before = learner.pair.query.backbone.stem[1].running_mean.clone()
    average_buffers(learner.pair)
    probe = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "before": before,
        "after": learner.pair.query.backbone.stem[1].running_mean,
        "features": learner.pair.eval().query(probe).detach(),
    }


def exchanges_of_gradients(knobs: dict[str, Any]) -> int:
    """How often the workers average their gradients, all of which fit in one message, in three steps."""
    config = configs.with_overrides(
        configs.RunConfig(), KNOBS | {"train.epochs": 4, "resources.workers": world_size()} | knobs
    )
    learner = m_step.build_learner(config, CPU)
    sent: list[int] = []
    assert isinstance(learner.query, DistributedDataParallel)
    learner.query.register_comm_hook(
        None, lambda group, bucket: sent.append(bucket.index()) or allreduce_hook(group, bucket)
    )
    batches = my_batches(config.augment.small_crops)
    run_epoch(learner, batches, None, config, plans.make(config, N), 0)
    return len(sent)


def figures_of_views(num_images: int) -> dict[str, float]:
    """LiDAR of the same encoder and images, however many workers make the views."""
    knobs = {"augment.image_size": 8, "evaluation.lidar_images": num_images, "evaluation.lidar_views": 4}
    config = configs.with_overrides(configs.RunConfig(), KNOBS | {"train.epochs": 4} | knobs)
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8)
    learner = m_step.build_learner(config, CPU)
    return AugmentedViews(ArrayImages(pixels), config, CPU, Readers(config, CPU)).figures(learner)


def train_in_parts(parts: int, batch_norm: str) -> dict[str, Any]:
    """Three steps with batch norm over `parts` parts of the global batch of 16, in the head too."""
    knobs = {
        "train.batch_size": 16,
        "train.epochs": 1,
        "loss.negative_prototypes": 3,
        "encoder.batch_norm": batch_norm,
        "encoder.batch_norm_parts": parts // world_size(),
        "encoder.head_batch_norm": True,
        "resources.workers": world_size(),
    }
    config = configs.with_overrides(configs.RunConfig(), KNOBS | knobs)
    learner = m_step.build_learner(config, CPU)
    draw = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(3):
        one, two = (torch.randn(16, 1, 8, 8, generator=draw) for _ in range(2))
        batches.append(Batch(part(one), part(two), part(torch.arange(16)), small_of(two, 2)))
    metrics: list[dict[str, float]] = []
    run_epoch(
        learner,
        batches,
        clusters(),
        config,
        plans.make(config, 48),
        0,
        EpochCourse(on_progress=lambda _, means: metrics.append(means)),
    )
    average_buffers(learner.pair)
    state = learner.pair.state_dict()
    return {
        "metrics": metrics,
        "weights": {name: value for name, value in state.items() if value.is_floating_point()},
        "queue": learner.queue.keys,
    }


def everything() -> dict[str, Any]:
    with_workers = {"resources.workers": world_size()}
    return {name: train(knobs | with_workers) for name, knobs in CASES.items()} | {
        "exchange": exchange(),
        "failure": fail(),
        "batch norm": buffers_after_batch_norm(),
        "parts": {case: train_in_parts(*case) for case in PARTS},
        "views": [figures_of_views(num_images) for num_images in (15, N)],
        "exchanges": [exchanges_of_gradients(knobs) for knobs in EXCHANGES],
    }


def worker(number: int, folder: str) -> None:
    with gloo_member(number, WORLD, folder, timeout_s=60):
        torch.save(everything(), f"{folder}/worker_{number}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return saved_by_workers(worker, WORLD, tmp_path_factory.mktemp("gloo"), seconds=180)


@pytest.fixture(scope="module")
def one() -> Callable[[str], dict[str, Any]]:
    """The same steps in this process, without a process group; each case once."""
    return cache(lambda case: train(CASES[case] | {"resources.workers": 1}))


close = partial(torch.allclose, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_metrics_equal_one_process(
    two: list[dict[str, Any]], one: Callable[[str], dict[str, Any]], case: str
) -> None:
    expected = one(case)["metrics"]
    assert len(expected) == STEPS
    for results in two:
        for step in range(STEPS):
            assert results[case]["metrics"][step] == pytest.approx(expected[step], rel=1e-4, abs=1e-5)
    assert ("train/loss_prototype" in expected[0]) is (case != "instance")
    assert two[0][case]["metrics"] == two[1][case]["metrics"]


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_one_process(
    two: list[dict[str, Any]], one: Callable[[str], dict[str, Any]], case: str
) -> None:
    expected = one(case)["gradients"]
    for results in two:
        assert results[case]["parallel"]
        assert list(results[case]["gradients"]) == list(expected)
        for name, gradient in results[case]["gradients"].items():
            assert close(gradient, expected[name]), name
    assert any(gradient.abs().max() > 1e-2 for gradient in expected.values())  # far above the tolerance


@pytest.mark.parametrize("case", CASES)
def test_weights_and_queue_after_three_steps_equal_one_process(
    two: list[dict[str, Any]], one: Callable[[str], dict[str, Any]], case: str
) -> None:
    expected = one(case)
    for results in two:
        found = results[case]
        assert list(found["weights"]) == list(expected["weights"])
        for name, value in found["weights"].items():
            assert close(value, expected["weights"][name]), name
        assert close(found["queue"], expected["queue"])
        assert torch.equal(found["queue's images"], expected["queue's images"])
        assert (
            (found["pointer"], found["images"])
            == (expected["pointer"], expected["images"])
            == (BATCH * STEPS % 20, N)
        )


@pytest.mark.parametrize("case", CASES)
def test_workers_stay_equal_bit_by_bit(two: list[dict[str, Any]], case: str) -> None:
    first, second = (results[case] for results in two)
    assert torch.equal(first["queue"], second["queue"])
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_the_cases_differ(one: Callable[[str], dict[str, Any]]) -> None:
    # Else a knob that is ignored in both ways of running would pass everything above.
    losses = {case: one(case)["metrics"][0]["train/loss"] for case in CASES}
    assert len({round(losses[case], 4) for case in ("instance", "all", "sampled", "unmasked")}) == 4
    # only later is there an image of a cluster in the queue
    assert losses["other clusters"] == losses["all"]
    last = {case: one(case)["metrics"][-1]["train/loss_instance"] for case in ("all", "other clusters")}
    assert last["other clusters"] < last["all"] - 0.01
    assert one("cluster positives")["metrics"][-1]["train/images_with_mate"] > 0
    assert abs(losses["symmetric"] - losses["all"]) > 1e-3
    # one process has nobody to shuffle with
    assert losses["shuffled"] == pytest.approx(losses["sampled"], rel=1e-6)


@pytest.mark.parametrize("case", SAME_AS)
def test_accumulated_gradients_are_those_of_one_pass(
    two: list[dict[str, Any]], one: Callable[[str], dict[str, Any]], case: str
) -> None:
    for found, expected in [
        (one(case), one(SAME_AS[case])),
        *((results[case], results[SAME_AS[case]]) for results in two),
    ]:
        for step in range(STEPS):
            assert found["metrics"][step] == pytest.approx(expected["metrics"][step], rel=1e-4, abs=1e-5)
        for part in ("gradients", "weights"):
            assert all(close(value, expected[part][name]) for name, value in found[part].items())
        assert close(found["queue"], expected["queue"])


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_with_batch_norm_two_workers_equal_one_with_twice_the_parts(
    two: list[dict[str, Any]], case: tuple[int, str]
) -> None:
    expected = train_in_parts(*case)
    for results in two:
        found = results["parts"][case]
        for step, metrics in enumerate(found["metrics"]):
            assert metrics == pytest.approx(expected["metrics"][step], rel=1e-3, abs=1e-4)
        for name, value in found["weights"].items():  # running statistics among them
            assert torch.allclose(value, expected["weights"][name], rtol=1e-3, atol=1e-4), name
        assert torch.allclose(found["queue"], expected["queue"], atol=1e-3)


def test_the_cases_of_parts_differ() -> None:
    losses = [train_in_parts(*case)["metrics"][-1]["train/loss"] for case in [(1, "plain"), *PARTS]]
    assert len({round(loss, 3) for loss in losses}) == len(losses)


def test_gradients_are_exchanged_once_a_step_however_many_passes_it_takes(two: list[dict[str, Any]]) -> None:
    assert [results["exchanges"] for results in two] == [[STEPS] * len(EXCHANGES)] * WORLD


def test_rank_and_world(two: list[dict[str, Any]]) -> None:
    assert [tuple(results["exchange"]["rank"]) for results in two] == [(0, 2), (1, 2)]
    assert (rank(), world_size()) == (0, 1)


def test_all_gather_is_in_rank_order(two: list[dict[str, Any]]) -> None:
    for results in two:
        found = results["exchange"]
        assert found["gathered"].flatten().tolist() == [10, 11, 12, 20, 21, 22]
        assert found["gathered ids"].tolist() == [2, 1, 0, 3, 2, 1]
        assert found["gathered strided"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]
        features, ids, flags = found["gathered together"]
        assert features.tolist() == [[value, value] for value in (10.0, 11.0, 12.0, 20.0, 21.0, 22.0)]
        assert ids.tolist() == [0, 1, 2, -(2**40), 1 - 2**40, 2 - 2**40]
        assert flags.tolist() == [True, False, False, True, False, True]
        assert found["mean"].tolist() == [1.5, 7.5]


def test_shuffled_features_come_back_in_the_callers_order(two: list[dict[str, Any]]) -> None:
    for results in two:
        found = results["exchange"]
        for features in found["shuffled"]:
            assert torch.equal(features, found["images"] * 2)


def test_shuffling_mixes_the_batches_of_the_workers(two: list[dict[str, Any]]) -> None:
    rounds = list(zip(*(results["exchange"]["encoded"] for results in two), strict=True))
    # each image is encoded once
    assert all(sorted(torch.cat(parts).flatten().tolist()) == [10, 11, 12, 20, 21, 22] for parts in rounds)
    assert any(set(mine.flatten().tolist()) & {20, 21, 22} for mine, _ in rounds)
    # another permutation for another seed
    assert len({tuple(mine.flatten().tolist()) for mine, _ in rounds}) > 1


def test_average_buffers(two: list[dict[str, Any]]) -> None:
    for number, results in enumerate(two):
        found = results["exchange"]["norm"]
        assert found["running_mean"].tolist() == [1.5, 3.0]
        assert found["running_var"].tolist() == [6.0, 6.0]
        assert found["num_batches_tracked"] == 5 + number  # a count is no statistic
        assert results["exchange"]["weight kept"]


def test_averaged_statistics_let_all_workers_evaluate_alike(two: list[dict[str, Any]]) -> None:
    first, second = (results["batch norm"] for results in two)
    assert not torch.equal(first["before"], second["before"])
    assert torch.allclose(first["after"], (first["before"] + second["before"]) / 2, atol=1e-6)
    assert torch.equal(first["after"], second["after"])
    assert torch.equal(first["features"], second["features"])


def test_lidar_is_that_of_one_process(two: list[dict[str, Any]]) -> None:
    for number, num_images in enumerate((15, N)):  # an odd number: the workers have unequal parts
        first, second = (results["views"][number]["eval/lidar"] for results in two)
        assert first == second == pytest.approx(figures_of_views(num_images)["eval/lidar"], rel=1e-4)


def test_one_broken_worker_stops_both_with_the_same_message(two: list[dict[str, Any]]) -> None:
    assert "loss is nan in epoch 1, step 2" in two[0]["failure"]
    assert two[0]["failure"] == two[1]["failure"]


def test_without_a_process_group_everything_is_the_identity() -> None:
    rows, norm = torch.arange(6.0).view(3, 2), nn.BatchNorm1d(2)
    norm.running_mean[:] = 3.0
    average_buffers(norm)
    assert norm.running_mean.tolist() == [3.0, 3.0]
    assert torch.equal(all_gather(rows), rows)
    assert torch.equal(mean_over_workers(rows.clone()), rows)
    assert torch.equal(encode_shuffled(lambda images: images + 1, rows, seed=0), rows + 1)
