from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import SmallTraining


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_of_all_images_by_their_index(dtype: str) -> None:
    small = SmallTraining.of(f"e_step.feature_dtype={dtype}")
    features, learner = small.features(), small.learner()
    train, holdout = features.train(learner), features.holdout(learner)
    assert holdout is not None
    assert (features.num_images, features.num_holdout) == (len(small.splits.train), small.splits.num_holdout)
    for shard, count in ((train, features.num_images), (holdout, features.num_holdout)):
        assert sorted(shard.indices.tolist()) == list(range(count))
        assert shard.features.shape == (count, 16)
        assert shard.features.dtype == dtype
        assert np.allclose(np.linalg.norm(shard.features.astype(np.float32), axis=1), 1, atol=2e-3)


def test_they_are_the_momentum_encoders_in_evaluation_mode() -> None:
    small = SmallTraining.of()
    features, learner = small.features(), small.learner()
    learner.pair.train()
    before = features.train(learner).features
    assert learner.pair.key.training
    for parameter in learner.pair.query.parameters():
        parameter.data.zero_()
    assert np.array_equal(features.train(learner).features, before)
    for parameter in learner.pair.key.parameters():
        parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    assert not np.allclose(features.train(learner).features, before, atol=1e-3)


def test_a_few_images_have_the_features_of_the_whole_pass() -> None:
    small = SmallTraining.of()
    features, learner = small.features(), small.learner()
    shard = features.train(learner)
    whole = shard.features[np.argsort(shard.indices)]
    for rows in (np.array([7]), np.array([250, 3, 77]), np.arange(0, 200, 2)):
        some = features.some(learner, rows)
        assert some.dtype == np.float32
        assert np.allclose(some, whole[rows], atol=1e-5)


def test_figures_from_random_views_come_where_they_are_asked_for() -> None:
    plain = SmallTraining.of("evaluation.lidar_views=0")
    assert plain.features().lidar(plain.learner()) == {}
    asked = SmallTraining.of("evaluation.lidar_views=3")
    figures = asked.features().lidar(asked.learner())
    assert figures
    assert all(np.isfinite(value) for value in figures.values())
