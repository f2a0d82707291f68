from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_training import SmallTraining

from pcl_ray.data.images import Images
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.evaluation import LabelledSample
from pcl_ray.features import FeatureShard


def whole(shard: FeatureShard) -> np.ndarray:
    """The features by rising index."""
    return shard.features[np.argsort(shard.indices)]


def evaluation_views(small: SmallTraining, images: Images) -> torch.Tensor:
    return torch.cat([views for views, _ in EvaluationLoader(images, small.config)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_of_all_images_by_their_index(dtype: str) -> None:
    small = SmallTraining.of(f"e_step.feature_dtype={dtype}")
    features, learner = small.features(), small.learner()
    train = features.train(learner)["train"]
    assert features.num_images == len(small.splits.train)
    assert train.indices.tolist() == list(range(features.num_images))
    assert train.features.shape == (features.num_images, 16)
    assert train.features.dtype == dtype
    assert np.allclose(np.linalg.norm(train.features.astype(np.float32), axis=1), 1, atol=2e-3)


def test_one_pass_gives_the_heads_and_the_backbones_features() -> None:
    small = SmallTraining.of()
    features, learner = small.features(), small.learner()
    calls = []
    learner.pair.key.register_forward_hook(lambda *_: calls.append("whole"))
    backbone: Any = learner.pair.key.backbone
    backbone.register_forward_hook(lambda _, views, result: calls.append(len(result)))
    shards = features.train(learner, labelled=True)
    n, q = len(small.splits.train), small.splits.num_holdout
    assert sum(calls) == n + q  # each image once, and never the whole encoder beside it
    assert {part: shard.features.shape for part, shard in shards.items()} == {
        "train": (n, 16),
        "bank": (n, 16),
        "bank/head": (n, 16),
        "queries": (q, 16),
        "queries/head": (q, 16),
    }
    assert np.array_equal(shards["train"].features, features.train(learner)["train"].features)
    assert np.array_equal(shards["train"].features, shards["bank/head"].features)
    key = learner.pair.key.eval()
    holdout = small.splits.holdout
    assert holdout is not None
    for images, of_backbone, of_head in (
        (small.splits.train, "bank", "bank/head"),
        (holdout, "queries", "queries/head"),
    ):
        views = evaluation_views(small, images)
        with torch.no_grad():
            expected = backbone(views)
        assert shards[of_backbone].features.dtype == np.float16
        assert np.allclose(whole(shards[of_backbone]), expected.numpy(), rtol=2e-3, atol=1e-4)
        assert np.allclose(whole(shards[of_head]), key(views).detach().numpy(), atol=1e-5)


def test_of_many_images_a_fixed_labelled_sample_is_held() -> None:
    """What is held of the backbone does not grow with the number of images."""
    small = SmallTraining.of("evaluation.bank_images=40", "evaluation.query_images=7")
    features, learner = small.features(), small.learner()
    assert features.sample_sizes == (40, 7)
    shards = features.train(learner, labelled=True)
    assert [len(shards[part].indices) for part in ("train", "bank", "queries")] == [300, 40, 7]
    holdout = small.splits.holdout
    assert holdout is not None
    sample = LabelledSample.of(small.splits.train.labels, holdout.labels, small.config.evaluation)
    everything = SmallTraining.of().features().train(learner, labelled=True)
    for part, rows in (("bank", sample.bank_B), ("queries", sample.queries_Q)):
        assert shards[part].indices.tolist() == list(range(len(rows)))
        for name in (part, f"{part}/head"):
            assert np.allclose(shards[name].features, everything[name].features[rows], rtol=2e-3, atol=1e-4)
    alone = features.labelled(learner)
    assert alone.keys() == shards.keys() - {"train"}
    for name, shard in alone.items():
        assert np.array_equal(shard.indices, shards[name].indices)
        assert np.allclose(shard.features, shards[name].features, rtol=2e-3, atol=1e-4)


def test_without_labels_there_is_nothing_labelled() -> None:
    small = SmallTraining.of()
    unlabelled = small.splits.train.with_labels(np.full(300, -1))
    features = replace(small, splits=replace(small.splits, train=unlabelled)).features()
    learner = small.learner()
    assert features.sample_sizes == features.reference_sizes == (0, 0)
    assert features.train(learner, labelled=True).keys() == {"train"}
    assert features.labelled(learner) == features.references(learner) == {}


def test_reference_lines_are_measured_on_the_pixels_and_the_backbone_of_the_same_images() -> None:
    small = SmallTraining.of("evaluation.bank_images=40")
    features, learner = small.features(), small.learner()
    shards, measured = features.references(learner), features.labelled(learner)
    assert features.reference_sizes == (40, small.splits.num_holdout)
    for part in ("bank", "queries"):
        assert np.array_equal(shards[part].features, measured[part].features)
    holdout = small.splits.holdout
    assert holdout is not None
    views = evaluation_views(small, holdout)
    augment = small.config.augment  # grey: one mean and one deviation
    expected = ((views * augment.std[0] + augment.mean[0]) * 255).round().flatten(1)
    assert shards["queries/pixels"].features.dtype == np.uint8
    assert np.array_equal(shards["queries/pixels"].features, expected.numpy())


def test_large_views_are_averaged_before_their_pixels_are_compared() -> None:
    small = SmallTraining.of("augment.image_size=48", "evaluation.bank_images=10")
    shards = small.features().references(small.learner())
    assert shards["bank/pixels"].features.shape == (10, 32 * 32)
    sharp = SmallTraining.of("augment.image_size=32", "evaluation.bank_images=10")
    small_views = sharp.features().references(sharp.learner())
    difference = shards["bank/pixels"].features.astype(int) - small_views["bank/pixels"].features
    assert abs(difference).mean() < 5  # the same pictures, resampled in another way


def test_they_are_the_momentum_encoders_in_evaluation_mode() -> None:
    small = SmallTraining.of()
    features, learner = small.features(), small.learner()
    learner.pair.train()
    before = features.train(learner, labelled=True)
    assert learner.pair.key.training
    for parameter in learner.pair.query.parameters():
        parameter.data.zero_()
    after = features.train(learner, labelled=True)
    assert all(np.array_equal(after[part].features, shard.features) for part, shard in before.items())
    for parameter in learner.pair.key.parameters():
        parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    changed = features.train(learner, labelled=True)
    assert not any(
        np.allclose(changed[part].features, shard.features, atol=1e-3) for part, shard in before.items()
    )


def test_a_few_images_have_the_features_of_the_whole_pass() -> None:
    small = SmallTraining.of()
    features, learner = small.features(), small.learner()
    all_of_them = whole(features.train(learner)["train"])
    for rows in (np.array([7]), np.array([250, 3, 77]), np.arange(0, 200, 2)):
        some = features.some(learner, rows)
        assert some.dtype == np.float32
        assert np.allclose(some, all_of_them[rows], atol=1e-5)


def test_figures_from_random_views_come_where_they_are_asked_for() -> None:
    plain = SmallTraining.of("evaluation.lidar_views=0")
    assert plain.features().lidar(plain.learner()) == {}
    asked = SmallTraining.of("evaluation.lidar_views=3")
    figures = asked.features().lidar(asked.learner())
    assert figures
    assert all(np.isfinite(value) for value in figures.values())
