"""One epoch of training, on images so small that an epoch takes a fraction of a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equal_learners import assert_same
from small import GREY_ENCODER
from torch import Tensor, nn

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.e_step import cluster
from pcl_ray.errors import OutOfMemory, RunFailed
from pcl_ray.losses import info_nce, proto_nce
from pcl_ray.m_step import EpochCourse, EpochMetrics, Learner, build_learner, run_epoch
from pcl_ray.model.bank import FeatureBank
from pcl_ray.plan import RunPlan

N, SIDE = 64, 8
CPU = torch.device("cpu")
KNOBS = GREY_ENCODER | {
    "encoder.dim": 8,
    "encoder.momentum": 0.99,
    "loss.queue_size": 32,
    "e_step.num_clusters": [4, 6],
    "e_step.warmup_epochs": 0,
    "e_step.restarts": 1,
    "e_step.threads": 1,
    "optimizer.lr": 0.1,
    "optimizer.schedule": "constant",
    "train.epochs": 50,
    "train.batch_size": 16,
    "train.log_every_steps": 3,
}


@dataclass
class Batch:
    query_views: Tensor
    key_views: Tensor
    indices: Tensor
    small_views: tuple[Tensor, ...] = ()


def config_of(**changed: Any) -> RunConfig:
    return configs.with_overrides(
        RunConfig(), KNOBS | {name.replace("__", "."): value for name, value in changed.items()}
    )


def images() -> Tensor:
    """Four kinds of stripes; each image has its own noise."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 1, SIDE, SIDE, generator=draw)
    return kinds[torch.arange(N) % 4] + 0.5 * torch.randn(N, 1, SIDE, SIDE, generator=draw)


def batches(epoch: int = 0, size: int = 16) -> Iterator[Batch]:
    """Two noisy views of each image, in an order of the epoch."""
    draw, everything = torch.Generator().manual_seed(100 + epoch), images()
    for ids in torch.randperm(N, generator=draw).split(size):
        one, two = (
            everything[ids] + 0.2 * torch.randn(len(ids), 1, SIDE, SIDE, generator=draw) for _ in range(2)
        )
        yield Batch(one, two, ids)


def setup(**changed: Any) -> tuple[RunConfig, RunPlan, Learner]:
    config = config_of(**changed)
    # A plan refuses bf16 on CPUs that are slow at it; what it learns there is the same.
    plan = plans.make(config_of(**{**changed, "train__precision": "fp32"}), N)
    return config, plan, build_learner(config, CPU)


def clusters_of(learner: Learner, config: RunConfig, epoch: int = 0) -> ClusterSet:
    learner.pair.eval()
    with torch.no_grad():
        features = learner.pair.key(images())
    return cluster(features, config.e_step, epoch=epoch, temperature=config.loss.temperature, seed=0)


def trained(epochs: int, **changed: Any) -> tuple[Learner, list[EpochMetrics]]:
    config, plan, learner = setup(**changed)
    results = []
    for epoch in range(epochs):
        found = None if epoch < config.e_step.warmup_epochs else clusters_of(learner, config, epoch)
        results.append(run_epoch(learner, batches(epoch), found, config, plan, epoch))
    return learner, results


def test_info_nce_falls_over_the_epochs() -> None:
    _, results = trained(12, e_step__warmup_epochs=50)
    losses = [result.values["train/loss"] for result in results]
    # The first two epochs contrast with the random start of the queue, which is easy.
    assert sum(losses[-3:]) < 0.9 * sum(losses[2:5])


def test_bf16_on_a_cpu_learns_as_fp32_does() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        learner, results = trained(6, e_step__warmup_epochs=50, train__precision=precision)
        losses[precision] = [result.values["train/loss"] for result in results]
        assert all(parameter.dtype == torch.float32 for parameter in learner.pair.parameters())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


def kinds() -> ClusterSet:
    """One cluster for each kind of stripes, on axes of their own: right, and learnable."""
    return ClusterSet(0, (Clustering(torch.eye(8)[:4], torch.arange(N) % 4, torch.full((4,), 0.2)),))


@pytest.mark.parametrize("negatives", ["all", 2])
def test_training_pulls_images_to_their_prototypes(negatives: str | int) -> None:
    config, plan, learner = setup(loss__negative_prototypes=negatives, e_step__num_clusters=[4])
    found = kinds()

    def agreement() -> float:
        learner.pair.train()  # batch statistics, as in training
        with torch.no_grad():
            return float(
                F.cosine_similarity(learner.pair.query(images()), torch.eye(8)[torch.arange(N) % 4]).mean()
            )

    before = agreement()
    results = [run_epoch(learner, batches(epoch), found, config, plan, epoch).values for epoch in range(16)]
    assert results[-1]["train/loss_prototype"] < 0.5 * results[0]["train/loss_prototype"]
    assert results[-1]["train/accuracy_prototype_0"] > results[0]["train/accuracy_prototype_0"]
    assert agreement() > before + 0.2


def test_metrics_without_clusters() -> None:
    config, plan, learner = setup()
    result = run_epoch(learner, batches(), None, config, plan, 0)
    assert set(result.values) == {
        "train/loss",
        "train/loss_instance",
        "train/accuracy_instance",
        "eval/alignment",
        "train/gradient_norm",
        "train/feature_std",
    }
    assert result.values["train/loss"] == result.values["train/loss_instance"]
    assert (result.images, result.last_step) == (64, 3)
    assert run_epoch(learner, batches(1), None, config, plan, 1).last_step == 7


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_metrics_with_clusters_and_the_total(weight: float) -> None:
    config, plan, learner = setup(loss__prototype_weight=weight)
    values = run_epoch(learner, batches(), clusters_of(learner, config), config, plan, 0).values
    assert {"train/loss_prototype", "train/accuracy_prototype_0", "train/accuracy_prototype_1"} < set(values)
    assert values["train/loss"] == pytest.approx(
        values["train/loss_instance"] + weight * values["train/loss_prototype"], rel=1e-5
    )
    assert all(0 <= value <= 1 for name, value in values.items() if "accuracy" in name)
    assert 0 <= values["eval/alignment"] <= 4


@pytest.mark.parametrize("size", [None, 5])
def test_a_ramp_weighs_the_prototypes_by_the_step(size: int | None) -> None:
    changed = {"loss__prototype_weight": 0.5, "loss__prototype_ramp_epochs": 1.5, "train__micro_batch": size}
    config, plan, learner = setup(e_step__warmup_epochs=1, train__log_every_steps=1, **changed)
    found = random_clusters()
    seen: list[tuple[int, dict[str, float]]] = []

    def note(step: int, means: dict[str, float]) -> None:
        seen.append((step, means))

    for epoch in range(3):
        run_epoch(learner, batches(epoch), found if epoch else None, config, plan, epoch, EpochCourse(note))
    assert [step for step, _ in seen] == list(range(12))
    for step, means in seen:
        prototype = means.get("train/loss_prototype", 0.0)
        weight = 0.5 * min(max(step + 1 - 4, 0) / 6, 1)  # four steps of warm-up, six of the ramp
        assert means["train/loss"] == pytest.approx(
            means["train/loss_instance"] + weight * prototype, rel=1e-5
        )


def test_the_weight_of_a_step_reaches_the_gradients() -> None:
    learners = {}
    for name, weight, ramp in (("rising", 1.0, 8.0), ("eighth", 0.125, 0.0), ("whole", 1.0, 0.0)):
        config, _, learner = setup(loss__prototype_weight=weight, loss__prototype_ramp_epochs=ramp)
        plan = plans.make(config, 16)  # a step an epoch: the first of eight of the ramp
        run_epoch(learner, [next(batches())], random_clusters(), config, plan, 0)
        learners[name] = learner
    assert_same(learners["rising"], learners["eighth"])
    with pytest.raises(AssertionError):
        assert_same(learners["rising"], learners["whole"])


def test_weight_zero_is_info_nce_alone() -> None:
    config, plan, learner = setup(loss__prototype_weight=0)
    plain = build_learner(config, CPU)
    found = run_epoch(learner, batches(), clusters_of(learner, config), config, plan, 0).values
    assert found == run_epoch(plain, batches(), None, config, plan, 0).values


def one_step(
    mask: bool, negatives: str | int
) -> tuple[dict[str, float], Tensor, Tensor, Tensor, ClusterSet, Batch, RunConfig]:
    """Metrics of one step, and what the step saw: query and key features before it, the queue before it."""
    config, _, learner = setup(loss__negative_prototypes=negatives, loss__mask_duplicates=mask)
    found, batch = clusters_of(learner, config), next(batches())
    learner.pair.train()
    with torch.no_grad():  # a copy: the running statistics of batch norm must not move twice
        twin = build_learner(config, CPU)
        query, key, queue = (
            twin.query(batch.query_views),
            twin.pair.key(batch.key_views),
            learner.queue.keys.clone(),
        )
    values = run_epoch(learner, [batch], found, config, plans.make(config, 16), 0).values
    assert torch.allclose(learner.queue.keys[:16], key, atol=1e-6)
    assert torch.equal(learner.queue.keys[16:], queue[16:])
    return values, query, key, queue, found, batch, config


def test_one_step_is_info_nce_plus_the_mean_over_clusterings() -> None:
    values, query, key, queue, found, batch, config = one_step(True, "all")
    instance = float(info_nce(query, key, queue, config.loss.temperature))
    terms = [
        float(proto_nce(query, c.prototypes, c.concentration, c.assignments[batch.indices]))
        for c in found.clusterings
    ]
    assert values["train/loss_instance"] == pytest.approx(instance, rel=1e-4)
    assert values["train/loss_prototype"] == pytest.approx(sum(terms) / 2, rel=1e-4)
    assert values["train/loss"] == pytest.approx(instance + sum(terms) / 2, rel=1e-4)
    right = [
        (query @ c.prototypes.T / c.concentration).argmax(dim=1) == c.assignments[batch.indices]
        for c in found.clusterings
    ]
    for m, rows in enumerate(right):
        assert values[f"train/accuracy_prototype_{m}"] == pytest.approx(float(rows.float().mean()))
    assert values["eval/alignment"] == pytest.approx(
        float((query - key).square().sum(dim=1).mean()), rel=1e-4
    )


def test_sampled_negatives_of_one_step_that_takes_all_that_are_left() -> None:
    # Asked for more negatives than are left beside the positives, every draw takes all of them: the loss
    # is then known.
    values, query, _, _, found, batch, _ = one_step(True, 3)
    terms = []
    for c in found.clusterings:
        positives = c.assignments[batch.indices]
        left = torch.tensor([j for j in range(c.num_clusters) if j not in positives], dtype=torch.long)
        assert len(left) <= 3
        terms.append(float(proto_nce(query, c.prototypes, c.concentration, positives, left)))
    assert values["train/loss_prototype"] == pytest.approx(sum(terms) / 2, rel=1e-4)


def test_mask_duplicates_reaches_the_loss() -> None:
    assert one_step(True, 2)[0]["train/loss_prototype"] < one_step(False, 2)[0]["train/loss_prototype"]


def test_accuracy_counts_the_prototype_and_not_the_column() -> None:
    # With four prototypes and sixteen images each row finds its own prototype in several columns.
    masked, unmasked = (one_step(mask, 2)[0] for mask in (True, False))
    for m in range(2):
        assert masked[f"train/accuracy_prototype_{m}"] == unmasked[f"train/accuracy_prototype_{m}"] > 0


def test_each_step_takes_the_plans_learning_rate() -> None:
    config, plan, learner = setup(optimizer__schedule="cosine", optimizer__warmup_epochs=1)
    seen: list[float] = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(optimizer.param_groups[0]["lr"])
    )
    for epoch in range(2):
        run_epoch(learner, batches(epoch), None, config, plan, epoch)
    assert seen == [plan.lr_at(step) for step in range(8)]


@pytest.mark.parametrize("end", [None, 0.5])
def test_the_key_encoder_follows_by_the_plans_momentum_of_each_step(end: float | None) -> None:
    config, plan, learner = setup(
        encoder__momentum=0.9, encoder__momentum_end=end, train__epochs=2, loss__queue_size=32
    )
    averages = [parameter.detach().double() for parameter in learner.pair.key.parameters()]
    momenta = iter([0.9] * 8 if end is None else [0.7 + 0.2 * math.cos(math.pi * k / 8) for k in range(8)])

    def follow(optimizer: Any, args: Any, kwargs: Any) -> None:
        momentum = next(momenta)
        for average, parameter in zip(averages, learner.pair.query.parameters(), strict=True):
            average.mul_(momentum).add_((1 - momentum) * parameter.detach().double())

    learner.optimizer.register_step_post_hook(follow)
    for epoch in range(2):
        run_epoch(learner, batches(epoch), None, config, plan, epoch)
    assert next(momenta, None) is None
    for average, parameter in zip(averages, learner.pair.key.parameters(), strict=True):
        assert torch.allclose(parameter.double(), average, rtol=1e-4, atol=1e-6)


def test_key_encoder_follows_and_the_queue_turns() -> None:
    config, plan, learner = setup()
    start = {name: parameter.detach().clone() for name, parameter in learner.pair.key.named_parameters()}
    run_epoch(learner, batches(), None, config, plan, 0)
    assert all(
        not torch.equal(parameter, start[name]) for name, parameter in learner.pair.key.named_parameters()
    )
    assert all(parameter.grad is None for parameter in learner.pair.key.parameters())
    assert learner.queue.pointer == 64 % 32
    assert torch.allclose(learner.queue.keys.norm(dim=1), torch.ones(32), atol=1e-5)


@pytest.mark.parametrize("every", [1, 3, 4, 100])
def test_progress_comes_every_few_steps_and_at_the_end(every: int) -> None:
    config, plan, learner = setup(train__log_every_steps=every)
    seen: list[tuple[int, dict[str, float]]] = []
    course = EpochCourse(on_progress=lambda step, means: seen.append((step, means)))
    result = run_epoch(learner, batches(1), None, config, plan, 1, course)
    steps = {1: [4, 5, 6, 7], 3: [6, 7], 4: [7], 100: [7]}[every]  # the second epoch has steps 4 to 7
    assert [step for step, _ in seen] == steps
    sizes = [b - a for a, b in zip([3, *steps], steps, strict=False)]
    for name, value in result.values.items():  # the epoch's mean weighs each step alike
        assert value == pytest.approx(
            sum(n * means[name] for n, (_, means) in zip(sizes, seen, strict=True)) / 4, rel=1e-5
        )


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_loss_that_is_not_finite_names_epoch_and_step(every: int, bad: int) -> None:
    config, plan, learner = setup(train__log_every_steps=every)

    def broken() -> Iterator[Batch]:
        for position, batch in enumerate(batches(2)):
            if position == bad:
                batch.query_views[1, 0, 0, 0] = float("nan")
            yield batch

    said = (
        rf"loss is nan in epoch 3, step {9 + bad} \(the instance term; learning rate 0\.1.*try a tenth of"
        r" optimizer\.lr"
    )
    with pytest.raises(RunFailed, match=said):
        run_epoch(learner, broken(), None, config, plan, 2)


def test_a_huge_learning_rate_fails_the_run_and_names_it() -> None:
    config, plan, learner = setup(optimizer__lr=100, loss__temperature=0.0001)
    for parameter in learner.pair.query.parameters():
        parameter.data.mul_(1e30)
    with pytest.raises(RunFailed, match=r"in epoch 1, step \d+ .*learning rate 100"):
        run_epoch(learner, batches(), None, config, plan, 0)


def test_a_bad_prototype_term_is_named() -> None:
    config, plan, learner = setup()
    found = clusters_of(learner, config)
    found.clusterings[1].concentration[:] = 0.0
    with pytest.raises(RunFailed, match="epoch 1, step 1 .the prototype term"):
        run_epoch(learner, batches(), found, config, plan, 0)


@pytest.mark.parametrize("negatives", ["all", 2])
def test_same_seed_same_weights_bit_by_bit(negatives: str | int) -> None:
    first, results = trained(2, loss__negative_prototypes=negatives)
    again, repeated = trained(2, loss__negative_prototypes=negatives)
    state = again.pair.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.pair.state_dict().items())
    assert [result.values for result in results] == [result.values for result in repeated]


def test_clusters_are_only_read() -> None:
    config, plan, learner = setup(loss__negative_prototypes=2)
    found = clusters_of(learner, config)
    before = [
        (c.prototypes.clone(), c.assignments.clone(), c.concentration.clone()) for c in found.clusterings
    ]
    run_epoch(learner, batches(), found, config, plan, 0)
    for c, (prototypes, assignments, phi) in zip(found.clusterings, before, strict=True):
        assert torch.equal(c.prototypes, prototypes)
        assert torch.equal(c.assignments, assignments)
        assert torch.equal(c.concentration, phi)


@pytest.fixture
def no_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders normalise by groups within each image: batch norm would see the smaller batches of gradient
    accumulation, and nothing else may depend on them.
    """
    monkeypatch.setattr(nn, "BatchNorm2d", partial(nn.GroupNorm, 2))


def random_clusters(*, holes: bool = False) -> ClusterSet:
    """So few clusters that a batch holds several images of one, and so many that sampling leaves some out.
    holes: unused prototypes, unclustered images.
    """
    draw = torch.Generator().manual_seed(5)

    def one(k: int) -> Clustering:
        phi = 0.1 + 0.2 * torch.rand(k, generator=draw)
        assignments, valid = torch.randint(k, (N,), generator=draw), None
        if holes:
            valid = torch.rand(k, generator=draw) < 0.8
            assignments[torch.rand(N, generator=draw) < 0.2] = -1
            assignments = torch.where(valid[assignments.clamp(min=0)], assignments, -1)
        return Clustering(
            F.normalize(torch.randn(k, 8, generator=draw), dim=1), assignments, phi, valid=valid
        )

    return ClusterSet(0, (one(5), one(40)))


def epoch_with(
    found: ClusterSet | None, before: Callable[[Learner], None] = lambda learner: None, **changed: Any
) -> tuple[Learner, EpochMetrics]:
    """Four steps of a fresh learner, which `before` may watch or change."""
    config, plan, learner = setup(e_step__num_clusters=[5, 40], **changed)
    before(learner)
    return learner, run_epoch(learner, batches(), found, config, plan, 0)


TERMS: dict[str, dict[str, Any]] = {
    "all": {"loss__negative_prototypes": "all"},
    "sampled": {"loss__negative_prototypes": 3},
    "unmasked": {"loss__negative_prototypes": 3, "loss__mask_duplicates": False},
    "more than are left": {"loss__negative_prototypes": 4},
}


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("holes", [False, True], ids=["", "holes"])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("size", [2, 5, 8])  # 16 images: eight times two, four times four, twice eight
def test_accumulated_gradients_are_those_of_one_pass(size: int, terms: str, holes: bool) -> None:
    found = random_clusters(holes=holes)
    whole, expected = epoch_with(found, **TERMS[terms])
    parts, result = epoch_with(found, train__micro_batch=size, **TERMS[terms])
    assert result.values == pytest.approx(expected.values, rel=1e-5, abs=1e-6)
    assert (result.images, result.last_step) == (expected.images, expected.last_step)
    assert_same(whole, parts, tolerance=1e-5)


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("batch_norm", ["shuffle", "plain"])
@pytest.mark.parametrize("parts", [2, 3])
def test_without_batch_norm_its_parts_change_nothing(parts: int, batch_norm: str, size: int | None) -> None:
    knobs = {"loss__negative_prototypes": 3, "train__micro_batch": size}
    whole, expected = epoch_with(random_clusters(), **knobs)
    split, result = epoch_with(
        random_clusters(), encoder__batch_norm_parts=parts, encoder__batch_norm=batch_norm, **knobs
    )
    assert result.values == pytest.approx(expected.values, rel=1e-5, abs=1e-6)
    assert_same(whole, split, tolerance=1e-5)


@pytest.mark.parametrize("size", [None, 8])
def test_statistics_of_parts_and_shuffled_keys_are_three_ways_to_train(size: int | None) -> None:
    settings = [
        {},
        {"encoder__batch_norm_parts": 2},
        {"encoder__batch_norm_parts": 2, "encoder__batch_norm": "plain"},
    ]
    results = [
        epoch_with(random_clusters(), train__micro_batch=size, **changed)[1].values["train/loss"]
        for changed in settings
    ]
    assert len({round(loss, 5) for loss in results}) == 3
    assert results == pytest.approx([results[0]] * 3, rel=0.3)


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize(
    ("size", "sizes"), [(3, [3, 3, 3, 3, 2, 2]), (6, [6, 5, 5]), (7, [6, 5, 5]), (15, [8, 8])]
)
def test_parts_of_unlike_sizes_weigh_by_their_images(size: int, sizes: list[int]) -> None:
    seen: list[int] = []
    whole, expected = epoch_with(random_clusters(), loss__negative_prototypes=3)
    parts, result = epoch_with(
        random_clusters(),
        lambda learner: learner.query.register_forward_pre_hook(
            lambda module, views: seen.append(len(views[0]))
        ),
        loss__negative_prototypes=3,
        train__micro_batch=size,
    )
    assert seen == sizes * 4
    assert result.values == pytest.approx(expected.values, rel=1e-5, abs=1e-6)
    assert_same(whole, parts, tolerance=1e-5)


@pytest.mark.parametrize("size", [16, 1000])
def test_a_micro_batch_of_the_whole_batch_or_more_changes_no_bit(size: int) -> None:
    whole, expected = epoch_with(random_clusters(), loss__negative_prototypes=3)
    parts, result = epoch_with(random_clusters(), loss__negative_prototypes=3, train__micro_batch=size)
    assert result.values == expected.values
    assert_same(whole, parts)


@pytest.mark.usefixtures("no_batch_norm")
def test_without_clusters_accumulation_changes_nothing_either() -> None:
    whole, expected = epoch_with(None)
    parts, result = epoch_with(None, train__micro_batch=5)
    assert result.values == pytest.approx(expected.values, rel=1e-5, abs=1e-6)
    assert_same(whole, parts, tolerance=1e-5)


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("size", [None, 5])
def test_weights_momentum_encoder_queue_and_bank_change_once_a_step(
    size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    enqueued: list[Tensor] = []

    def watched(learner: Learner) -> None:
        learner.bank = FeatureBank(0, torch.zeros(N, 8), momentum=0.0)  # a row is its image's key as it is
        learner.optimizer.register_step_pre_hook(lambda *arguments: events.append("optimizer"))
        enqueue, update, fill = learner.queue.enqueue, learner.pair.update, learner.bank.update
        monkeypatch.setattr(
            learner.queue,
            "enqueue",
            lambda keys, *rest: (events.append("queue"), enqueued.append(keys.clone()), enqueue(keys, *rest)),
        )
        monkeypatch.setattr(learner.pair, "update", lambda: (events.append("pair"), update()))
        monkeypatch.setattr(
            learner.bank, "update", lambda indices, keys: (events.append("bank"), fill(indices, keys))
        )

    learner, _ = epoch_with(random_clusters(), watched, train__micro_batch=size)
    assert events == ["optimizer", "pair", "queue", "bank"] * 4
    assert [len(keys) for keys in enqueued] == [16] * 4
    order = torch.cat([batch.indices for batch in batches()])
    assert learner.bank is not None
    # all keys, each beside its image
    assert torch.allclose(learner.bank.rows[order], torch.cat(enqueued), atol=1e-6)


@pytest.mark.usefixtures("no_batch_norm")
def test_a_bank_filled_by_parts_is_that_of_one_pass() -> None:
    def banked(learner: Learner) -> None:
        learner.bank = FeatureBank(0, F.normalize(torch.ones(N, 8), dim=1), momentum=0.5)

    whole, parts = (
        epoch_with(random_clusters(), banked, train__micro_batch=size)[0].bank for size in (None, 3)
    )
    assert whole is not None
    assert parts is not None
    assert torch.allclose(whole.rows, parts.rows, atol=1e-5)


@pytest.mark.parametrize("size", [2, 5])
def test_with_batch_norm_only_the_statistics_of_the_parts_differ(size: int) -> None:
    _, expected = epoch_with(random_clusters())
    learner, result = epoch_with(random_clusters(), train__micro_batch=size)
    assert list(result.values) == list(expected.values)
    assert result.values["train/loss"] == pytest.approx(expected.values["train/loss"], rel=0.3)
    assert learner.pair.query.backbone.stem[1].num_batches_tracked == 4 * -(-16 // size)


def test_a_bad_part_of_a_batch_stops_the_run_as_a_bad_batch_does() -> None:
    def broken() -> Iterator[Batch]:
        for position, batch in enumerate(batches()):
            if position == 2:
                batch.query_views[13, 0, 0, 0] = float("nan")  # in the last part
            yield batch

    config, plan, learner = setup(train__micro_batch=5)
    with pytest.raises(RunFailed, match=r"loss is nan in epoch 1, step 3 \(the instance term"):
        run_epoch(learner, broken(), None, config, plan, 0)


@pytest.mark.parametrize("size", [None, 5])
def test_figures_do_not_depend_on_how_images_lie_in_memory(size: int | None) -> None:
    last, result = epoch_with(
        random_clusters(), train__memory_format="channels_last", train__micro_batch=size
    )
    plain, expected = epoch_with(
        random_clusters(), train__memory_format="contiguous", train__micro_batch=size
    )
    assert result.values == pytest.approx(expected.values, abs=1e-4)
    assert_same(last, plain, tolerance=1e-4)
    assert list(last.state_dict()["model"]) == list(plain.state_dict()["model"])


@pytest.mark.parametrize(
    ("layout", "format"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_weights_and_views_lie_in_memory_as_asked_for_before_and_after_training(
    layout: str, format: torch.memory_format
) -> None:
    colours = {"data__channels": 3, "augment__mean": [0.5] * 3, "augment__std": [0.5] * 3}
    config, plan, learner = setup(train__memory_format=layout, train__micro_batch=5, **colours)
    seen: list[bool] = []
    for module in (learner.query, learner.key):
        module.register_forward_pre_hook(
            lambda module, views: seen.append(views[0].is_contiguous(memory_format=format))
        )
    colourful = [
        Batch(*(views.repeat(1, 3, 1, 1) for views in (batch.query_views, batch.key_views)), batch.indices)
        for batch in batches()
    ]
    run_epoch(learner, colourful, None, config, plan, 0)
    assert all(seen)
    assert len(seen) == 2 * 4 * 4
    kernels = [parameter for parameter in learner.pair.parameters() if parameter.ndim == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=format) for kernel in kernels)
    momenta = [
        state["momentum_buffer"]
        for state in learner.optimizer.state.values()
        if state["momentum_buffer"].ndim == 4
    ]
    assert all(buffer.is_contiguous(memory_format=format) for buffer in momenta)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_those_of_the_loop_over_weights(name: str) -> None:
    knobs = {"optimizer__name": name, "optimizer__lr": 0.01}
    fused, result = epoch_with(random_clusters(), optimizer__fused=True, **knobs)
    plain, expected = epoch_with(random_clusters(), optimizer__fused=False, **knobs)
    assert (fused.optimizer.param_groups[0]["fused"], plain.optimizer.param_groups[0]["fused"]) == (
        True,
        None,
    )
    assert result.values == pytest.approx(expected.values, rel=1e-4, abs=1e-5)
    assert_same(fused, plain, tolerance=1e-4)


@pytest.mark.parametrize(
    "changed",
    [{}, {"train__micro_batch": 5}, {"train__memory_format": "contiguous"}, {"optimizer__fused": False}],
)
def test_the_figures_are_the_same_ones_however_a_step_is_made(changed: dict[str, Any]) -> None:
    _, result = epoch_with(random_clusters(), **changed)
    first = ["train/loss", "train/loss_instance", "train/accuracy_instance", "eval/alignment"]
    gauged = ["train/gradient_norm", "train/feature_std", "cluster/0/collisions", "cluster/1/collisions"]
    assert list(result.values) == [
        *first,
        "train/loss_prototype",
        "train/accuracy_prototype_0",
        "train/accuracy_prototype_1",
        *gauged,
    ]
    assert 0 < result.step_median <= result.step_p95
    assert 0 <= result.data_seconds <= result.seconds
    assert result.memory_gb > 0


def test_auto_negatives_of_few_prototypes_are_all_others() -> None:
    _, auto = epoch_with(random_clusters(), loss__negative_prototypes="auto")
    _, everything = epoch_with(random_clusters(), loss__negative_prototypes="all")
    assert auto.values == everything.values


def with_small(source: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """The same batches with small views: corners of the query view, unlike each other."""
    for batch in source:
        places = [(number, 3 - number) for number in range(count)]
        small = (batch.query_views[:, :, top : top + 5, left : left + 5] for top, left in places)
        yield replace(batch, small_views=tuple(view.contiguous() for view in small))


@pytest.mark.parametrize("negatives", ["all", 3])
def test_small_views_are_further_queries_of_the_same_keys_and_prototypes(negatives: str | int) -> None:
    """Against the mean of the losses of the query and of each small view, put together by hand."""
    config, _, learner = setup(loss__negative_prototypes=negatives, loss__prototype_weight=0.5)
    twin, queue = build_learner(config, CPU), learner.queue.keys.clone()
    found, batch = clusters_of(learner, config), next(with_small(batches()))
    twin.pair.train()
    key = twin.pair.key(batch.key_views)
    # one pass over all small views: batch norm takes them together, apart from the large ones
    together = twin.query(torch.cat(batch.small_views))
    queries = [twin.query(batch.query_views), *together.split(16)]
    terms = []
    for query in queries:
        prototype_terms = []
        for c in found.clusterings:
            positives = c.assignments[batch.indices]
            left = [j for j in range(c.num_clusters) if j not in positives]
            assert len(left) <= 3  # so that all are drawn
            drawn = None if negatives == "all" else torch.tensor(left, dtype=torch.long)
            prototype_terms.append(proto_nce(query, c.prototypes, c.concentration, positives, drawn))
        instance = info_nce(query, key, queue, config.loss.temperature)
        terms.append(instance + 0.5 * sum(prototype_terms) / 2)
    loss = sum(terms) / 3
    loss.backward()
    gradients: list[Tensor] = []
    learner.optimizer.register_step_pre_hook(
        lambda *arguments: gradients.extend(
            parameter.grad.clone() for parameter in learner.pair.query.parameters()
        )
    )
    values = run_epoch(learner, [batch], found, config, plans.make(config, 16), 0).values
    assert values["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert values["train/loss_instance"] + 0.5 * values["train/loss_prototype"] == pytest.approx(
        terms[0].item(), rel=1e-4
    )
    assert terms[0].item() != pytest.approx(loss.item(), rel=1e-3)
    for gradient, parameter in zip(gradients, twin.pair.query.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
    assert torch.allclose(learner.queue.keys[:16], key, atol=1e-6)  # small views give no keys


@pytest.mark.usefixtures("no_batch_norm")
@pytest.mark.parametrize("size", [3, 8])
def test_gradients_of_small_views_accumulate_as_those_of_one_pass(size: int) -> None:
    found, learners, losses = random_clusters(), [], []
    for micro_batch in (None, size):
        config, plan, learner = setup(
            e_step__num_clusters=[5, 40], loss__negative_prototypes=3, train__micro_batch=micro_batch
        )
        losses.append(run_epoch(learner, with_small(batches(), 3), found, config, plan, 0).values)
        learners.append(learner)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-6)
    assert_same(*learners, tolerance=1e-5)


def test_small_views_leave_the_momentum_encoders_statistics_alone() -> None:
    """What is evaluated and exported has seen views of one size."""
    config, _, learner = setup()
    plain, batch, plan = build_learner(config, CPU), next(batches()), plans.make(config, 16)
    run_epoch(learner, with_small(iter([batch])), None, config, plan, 0)
    run_epoch(plain, [batch], None, config, plan, 0)
    for mine, others in zip(learner.pair.key.buffers(), plain.pair.key.buffers(), strict=True):
        assert torch.equal(mine, others)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB\nand more"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(("micro_batch", "half"), [(None, 8), (8, 4)])
def test_memory_that_is_not_enough_says_what_would_fit(
    error: Exception, micro_batch: int | None, half: int
) -> None:
    config, plan, learner = setup(train__micro_batch=micro_batch)

    def refuse(*arguments: Any) -> None:
        raise error

    hook = learner.query.register_forward_pre_hook(refuse)
    with pytest.raises(
        OutOfMemory, match=rf"epoch 2, step 5, with {2 * half} .*train.micro_batch={half} takes"
    ):
        run_epoch(learner, batches(1), None, config, plan, 1)
    hook.remove()


def test_another_error_stays_what_it_is() -> None:
    config, plan, learner = setup()
    learner.query.register_forward_pre_hook(lambda *arguments: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="^a bug$"):
        run_epoch(learner, batches(), None, config, plan, 0)
