"""The terms of a step that look at whose keys the queue holds, against plain loops over images and keys."""

from __future__ import annotations

import copy
import math
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equal_learners import assert_same
from small import GREY_ENCODER
from small_encoder import really_compiling, smallest
from torch import Tensor, nn

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.errors import RunFailed
from pcl_ray.m_step import EpochCourse, EpochMetrics, Learner, build_learner, run_epoch
from pcl_ray.model import encoder

N, SIDE, BATCH, DIM = 48, 6, 8, 6
STEPS = N // BATCH
CPU = torch.device("cpu")
KNOBS = GREY_ENCODER | {
    "encoder.dim": DIM,
    "encoder.momentum": 0.9,
    "loss.queue_size": 52,  # more than an epoch: a queue with older keys of a batch's own images
    "loss.temperature": 0.3,
    "e_step.num_clusters": [3, 7],
    "e_step.warmup_epochs": 2,
    "optimizer.lr": 0.05,
    "optimizer.schedule": "constant",
    "train.epochs": 9,
    "train.batch_size": BATCH,
    "train.log_every_steps": 1,
}
OTHERS = {"loss.queue_negatives": "other_clusters"}
MATES = {"loss.cluster_positives": 0.5}
SYMMETRIC = {"loss.symmetric": True}


@dataclass
class Batch:
    query_views: Tensor
    key_views: Tensor
    indices: Tensor
    small_views: tuple[Tensor, ...] = ()


def batches(epoch: int) -> Iterator[Batch]:
    draw = torch.Generator().manual_seed(50 + epoch)
    for ids in torch.randperm(N, generator=draw).split(BATCH):
        one, two = (torch.randn(BATCH, 1, SIDE, SIDE, generator=draw) for _ in range(2))
        yield Batch(one, two, ids)


def clusters(seed: int = 0, *, holes: bool = False) -> ClusterSet:
    """A coarse and a fine clustering; with holes a quarter of the images is in no cluster."""
    draw = torch.Generator().manual_seed(seed)

    def one(k: int) -> Clustering:
        assignments = torch.randint(k, (N,), generator=draw)
        if holes:
            assignments[torch.rand(N, generator=draw) < 0.25] = -1
        prototypes = F.normalize(torch.randn(k, DIM, generator=draw), dim=1)
        return Clustering(prototypes, assignments, 0.1 + 0.2 * torch.rand(k, generator=draw))

    return ClusterSet(2, (one(7), one(3)))  # the finest is not the last


@dataclass
class Training:
    """Two epochs of warm-up, then the epochs with clusters; the queue's images are noted beside it."""

    knobs: dict[str, Any]
    config: RunConfig = field(init=False)
    learner: Learner = field(init=False)
    images: deque[int] = field(init=False)
    losses: list[dict[str, float]] = field(default_factory=list)  # of each step

    def __post_init__(self) -> None:
        self.config = configs.with_overrides(RunConfig(), KNOBS | self.knobs)
        self.learner = build_learner(self.config, CPU)
        size = self.config.loss.queue_size
        self.images = deque([-1] * size, maxlen=size)

    def epoch(self, epoch: int, found: ClusterSet | None, **options: Any) -> EpochMetrics:
        done = run_epoch(
            self.learner,
            batches(epoch),
            found,
            self.config,
            plans.make(self.config, N),
            epoch,
            EpochCourse(on_progress=lambda step, means: self.losses.append(means), **options),
        )
        for batch in batches(epoch):
            self.images.extend(batch.indices.tolist())
        return done

    def warmed(self) -> Training:
        for epoch in range(2):
            self.epoch(epoch, None)
        return self

    def queue_oldest_first(self) -> list[tuple[Tensor, int]]:
        """The keys with their images, by this test's own notes."""
        keys = torch.roll(self.learner.queue.keys, -self.learner.queue.pointer, dims=0)
        return list(zip(keys, self.images, strict=True))


def one_step(training: Training, found: ClusterSet) -> tuple[dict[str, float], Tensor, Tensor, Tensor]:
    """Figures of one step, and what it saw: query and key features, and the images of the batch."""
    batch = next(batches(2))
    twin = copy.deepcopy(training.learner)
    twin.pair.train()
    with torch.no_grad():
        query, key = twin.pair.query(batch.query_views), twin.pair.key(batch.key_views)
    plan = replace(plans.make(training.config, N), steps_per_epoch=1)
    values = run_epoch(training.learner, [batch], found, training.config, plan, 2).values
    return values, query, key, batch.indices


def same_group(one: int, other: int, assignments: list[int]) -> bool:
    """Whether a key of image `other` is no negative of image `one`."""
    if other < 0:
        return False
    return one == other or (assignments[one] >= 0 and assignments[one] == assignments[other])


@pytest.fixture
def no_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders normalise by groups within each image, so that parts of a batch have the features they have
    in the whole.
    """
    monkeypatch.setattr(nn, "BatchNorm2d", partial(nn.GroupNorm, 2))


@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_keys_of_the_own_cluster_and_image_are_no_negatives(weight: float, holes: bool) -> None:
    training = Training(OTHERS | {"loss.prototype_weight": weight, "loss.queue_size": 92}).warmed()
    found, queue = clusters(holes=holes), training.queue_oldest_first()
    values, query, key, images = one_step(training, found)
    assignments = found.clusterings[0].assignments.tolist()
    total, right, hidden, own = 0.0, 0, 0, 0
    for q, k, image in zip(query, key, images.tolist(), strict=True):
        positive = math.exp(float(q @ k) / 0.3)
        scores = []
        for n, other in queue:
            if same_group(image, other, assignments):
                hidden += 1
                own += image == other and assignments[image] < 0
            else:
                scores.append(math.exp(float(q @ n) / 0.3))
        total -= math.log(positive / (positive + sum(scores)))
        right += positive > max(scores)
    assert hidden > 30
    assert (own > 0) is holes
    assert values["train/loss_instance"] == pytest.approx(total / BATCH, rel=1e-4)
    assert values["train/accuracy_instance"] == pytest.approx(right / BATCH)


def test_the_queue_holds_images_and_groups_beside_the_keys_all_the_time() -> None:
    training = Training(OTHERS).warmed()
    found, newer = clusters(), clusters(1)
    for epoch in (2, 3):
        training.epoch(epoch, found)
        queue = training.learner.queue
        assert torch.roll(queue.indices, -queue.pointer, dims=0).tolist() == list(training.images)
        assert torch.equal(queue.groups, found.clusterings[0].assignments[queue.indices])
    # clusters that change in the middle of an epoch
    training.epoch(4, found, switch=lambda step: newer if step == 3 else None)
    assert torch.equal(queue.groups, newer.clusterings[0].assignments[queue.indices])


def test_without_clusters_the_knob_does_nothing() -> None:
    on, off = Training(OTHERS).warmed(), Training({}).warmed()
    assert on.losses == off.losses
    assert_same(on.learner, off.learner)
    assert torch.equal(on.learner.queue.indices, off.learner.queue.indices)
    on.epoch(2, clusters())
    off.epoch(2, clusters())
    assert on.losses[-1]["train/loss_instance"] != off.losses[-1]["train/loss_instance"]


@pytest.mark.parametrize("knobs", [OTHERS, MATES], ids=["others", "mates"])
def test_the_warm_up_of_a_run_without_the_knob_serves_one_with_it(knobs: dict[str, Any]) -> None:
    straight, other = Training(knobs).warmed(), Training(knobs)
    other.learner.load_state_dict(copy.deepcopy(Training({}).warmed().learner.state_dict()))
    for training in (straight, other):
        training.epoch(2, clusters())
    assert straight.losses[-STEPS:] == other.losses[-STEPS:]
    assert_same(straight.learner, other.learner)


def test_of_an_old_checkpoints_queue_nothing_is_hidden_until_its_keys_have_left() -> None:
    training = Training(OTHERS).warmed()
    state = copy.deepcopy(training.learner.state_dict())
    del state["queue"]["indices"]
    resumed = Training(OTHERS)
    resumed.learner.load_state_dict(state)
    assert set(resumed.learner.queue.indices.tolist()) == {-1}
    plain = Training({})
    plain.learner.load_state_dict(copy.deepcopy(state))
    first = [one_step(which, clusters())[0]["train/loss_instance"] for which in (resumed, plain)]
    assert first[0] == first[1]
    for epoch in (3, 4):
        resumed.epoch(epoch, clusters())
    assert min(resumed.learner.queue.indices.tolist()) >= 0


@pytest.mark.parametrize("prototypes", [0.0, 1.0])
def test_rows_without_any_negative_are_no_trouble(prototypes: float) -> None:
    training = Training(OTHERS | {"loss.prototype_weight": prototypes, "loss.queue_size": 40}).warmed()
    one = Clustering(torch.eye(DIM)[:2], torch.zeros(N, dtype=torch.long), torch.full((2,), 0.2))
    training.epoch(2, ClusterSet(2, (one,)))
    assert {step["train/loss_instance"] for step in training.losses[-STEPS:]} == {0.0}
    assert {step["train/accuracy_instance"] for step in training.losses[-STEPS:]} == {1.0}
    assert all(bool(torch.isfinite(weight).all()) for weight in training.learner.pair.parameters())


@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
@pytest.mark.parametrize("negatives", ["all", "other_clusters"])
@pytest.mark.parametrize("prototypes", [0.0, 1.0])
def test_cluster_mates_are_positives_too(prototypes: float, negatives: str, holes: bool) -> None:
    knobs = MATES | {"loss.queue_negatives": negatives, "loss.prototype_weight": prototypes}
    training = Training(knobs | {"loss.queue_size": 92}).warmed()
    found, queue = clusters(holes=holes), training.queue_oldest_first()
    pointer, size = training.learner.queue.pointer, len(queue)
    values, query, _, images = one_step(training, found)
    assignments = found.clusterings[0].assignments.tolist()
    seed = int(np.random.SeedSequence((training.config.seed, 2, 2**20)).generate_state(1)[0])
    draws = torch.rand(BATCH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    total, with_mate = 0.0, 0
    for q, image, draw in zip(query, images.tolist(), draws, strict=True):
        mates, scores = [], []
        for age, (n, other) in enumerate(queue):
            if not same_group(image, other, assignments):
                scores.append(math.exp(float(q @ n) / 0.3))
            elif other != image:
                mates.append((other, (pointer + age) % size, n))
        if mates:  # in the order of images, and of rows of the queue
            mates.sort(key=lambda mate: mate[:2])
            positive = math.exp(float(q @ mates[int(draw * len(mates))][2]) / 0.3)
            total -= math.log(positive / (positive + sum(scores)))
            with_mate += 1
    assert with_mate >= 4
    assert (with_mate < BATCH) is holes
    assert values["train/loss_cluster_positives"] == pytest.approx(total / BATCH, rel=1e-4)
    assert values["train/images_with_mate"] == pytest.approx(with_mate / BATCH)
    prototype = values.get("train/loss_prototype", 0.0)
    expected = values["train/loss_instance"] + prototypes * prototype + 0.5 * total / BATCH
    assert values["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_mates_act_from_the_first_clusters_on_and_leave_the_other_terms() -> None:
    on, off = Training(MATES).warmed(), Training({}).warmed()
    assert on.losses == off.losses
    assert_same(on.learner, off.learner)
    first = [one_step(training, clusters())[0] for training in (on, off)]
    assert {name: first[0][name] for name in first[1] if "loss_" in name} == {
        name: value for name, value in first[1].items() if "loss_" in name
    }
    assert not torch.equal(*(next(iter(training.learner.pair.query.parameters())) for training in (on, off)))


def test_where_no_image_has_a_mate_the_term_adds_nothing() -> None:
    training, plain = Training(MATES).warmed(), Training({}).warmed()
    alone = Clustering(F.normalize(torch.randn(N, DIM), dim=1), torch.arange(N), torch.full((N,), 0.2))
    for which in (training, plain):
        which.epoch(2, ClusterSet(2, (alone,)))
    assert {step["train/loss_cluster_positives"] for step in training.losses[-STEPS:]} == {0.0}
    assert {step["train/images_with_mate"] for step in training.losses[-STEPS:]} == {0.0}
    assert_same(training.learner, plain.learner)


def test_a_bad_term_of_mates_is_named() -> None:
    training = Training(MATES | {"loss.prototype_weight": 0}).warmed()
    training.learner.queue.keys[:] = float("inf")
    with pytest.raises(RunFailed, match="epoch 3, step 13 .the instance term"):
        training.epoch(2, clusters())


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("knobs", [{}, OTHERS | MATES], ids=["", "others, mates"])
def test_a_symmetric_step_is_the_mean_of_both_directions(
    knobs: dict[str, Any], size: int | None, no_batch_norm: None
) -> None:
    found, batch = clusters(), next(batches(2))
    swapped = Batch(batch.key_views, batch.query_views, batch.indices)
    one_way, other_way, both = (Training(knobs | more).warmed() for more in ({}, {}, {}))
    both.config = configs.with_overrides(
        both.config, {"loss.symmetric": True, "train.micro_batch": size or BATCH}
    )
    gradients, figures, keys = [], [], []
    for training, views in ((one_way, batch), (other_way, swapped), (both, batch)):
        plan = replace(plans.make(training.config, N), steps_per_epoch=1)
        seen: list[list[Tensor]] = []
        query = training.learner.pair.query
        training.learner.optimizer.register_step_pre_hook(
            lambda *rest, query=query, seen=seen: seen.append([p.grad.clone() for p in query.parameters()])
        )
        before = training.learner.queue.pointer
        figures.append(run_epoch(training.learner, [views], found, training.config, plan, 2).values)
        assert training.learner.queue.pointer == (before + BATCH) % 52  # a key an image
        keys.append(training.learner.queue.keys.clone())
        gradients.append(seen[0])
    for first, second, mean in zip(*gradients, strict=True):
        assert torch.allclose((first + second) / 2, mean, atol=1e-5)
    assert any(not torch.allclose(*pair, atol=1e-3) for pair in zip(*gradients[:2], strict=True))
    for name, value in figures[2].items():
        if name not in ("train/gradient_norm", "train/feature_std"):
            assert value == pytest.approx((figures[0][name] + figures[1][name]) / 2, rel=1e-4, abs=1e-5), name
    assert torch.allclose(keys[2], keys[0], atol=1e-6)  # those of the key view, as without the knob
    assert not torch.allclose(keys[2], keys[1], atol=1e-3)


@pytest.mark.parametrize("size", [None, 3])
def test_small_views_weigh_as_the_two_directions_do(size: int | None, no_batch_norm: None) -> None:
    batch = next(batches(2))
    small = replace(
        batch, small_views=tuple(batch.query_views[:, :, top : top + 4, :4].clone() for top in (0, 1, 2))
    )
    cases = {"one": ({}, small), "other": ({}, Batch(batch.key_views, batch.query_views, batch.indices))}
    cases["both"] = ({"loss.symmetric": True, "train.micro_batch": size or BATCH}, small)
    losses, keys = {}, {}
    for name, (knobs, views) in cases.items():
        training = Training(OTHERS | MATES).warmed()
        training.config = configs.with_overrides(training.config, knobs)
        plan = replace(plans.make(training.config, N), steps_per_epoch=1)
        values = run_epoch(training.learner, [views], clusters(), training.config, plan, 2).values
        losses[name], keys[name] = values["train/loss"], training.learner.queue.keys
    assert losses["both"] == pytest.approx((4 * losses["one"] + losses["other"]) / 5, rel=1e-4)
    assert torch.allclose(keys["both"], keys["one"], atol=1e-6)


def test_batch_norm_sees_each_view_alone() -> None:
    seen: list[tuple[str, int]] = []
    training = Training({"loss.symmetric": True, "train.micro_batch": 4})
    for name in ("query", "key"):
        getattr(training.learner, name).register_forward_pre_hook(
            lambda module, views, name=name: seen.append((name, len(views[0])))
        )
    training.epoch(0, None)
    assert seen == [("query", 4), ("key", 4)] * (STEPS * 2 * 2)


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("knobs", [OTHERS, MATES, OTHERS | MATES], ids=["others", "mates", "both"])
def test_parts_of_a_batch_see_the_negatives_of_the_whole(
    knobs: dict[str, Any], size: int, holes: bool
) -> None:
    whole, parts = Training(knobs).warmed(), Training(knobs | {"train.micro_batch": size}).warmed()
    results = [training.epoch(2, clusters(holes=holes)).values for training in (whole, parts)]
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-5)
    assert_same(whole.learner, parts.learner, tolerance=1e-4)


# Compiling. Encoders alone are compiled, so it is their second pass a step and what reads their features that
# could go wrong.


def graphs_compiled() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def trains_alike(knobs: dict[str, Any]) -> None:
    """Compiled and plain training through warm-up and clusters, and nothing compiled after the first pass."""
    compiled, plain = (
        Training(KNOBS | {"augment.image_size": SIDE, "train.compile": on} | knobs) for on in (True, False)
    )
    assert compiled.learner.query is not compiled.learner.pair.query
    first = graphs_compiled()
    assert first > 0
    for training in (compiled, plain):
        training.warmed().epoch(2, clusters(holes=True))
    assert graphs_compiled() == first
    for one, other in zip(compiled.losses, plain.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert_same(compiled.learner, plain.learner, tolerance=1e-3)


@pytest.mark.parametrize(
    "knobs",
    [
        SYMMETRIC,
        MATES,
        SYMMETRIC | OTHERS | MATES | {"train.micro_batch": 4},
        SYMMETRIC | {"encoder.batch_norm_parts": 2},
    ],
    ids=["symmetric", "mates", "parts of a batch", "parts of batch norm"],
)
def test_compiled_encoders_train_alike(knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compile_really = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_really(module, backend="aot_eager"))
    monkeypatch.setattr(encoder, "build", lambda *_: smallest(SIDE, DIM))
    torch._dynamo.reset()
    trains_alike(knobs)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_encoders_of_machine_code_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "build", lambda *_: smallest(SIDE, DIM))
    with really_compiling(tmp_path):
        trains_alike(SYMMETRIC | OTHERS | MATES)
        assert list(tmp_path.rglob("*.so"))
