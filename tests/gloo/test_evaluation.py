"""The evaluation by two processes against one: the same figures of backbone, head, pixels and untrained
encoder, whoever has which images.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import gloo_member, saved_by_workers
from small_training import CPU, SmallTraining

from pcl_ray.data.images import NO_LABEL
from pcl_ray.features import FeatureShard
from pcl_ray.m_step import build_learner
from pcl_ray.model.distributed import world_size
from pcl_ray.training.e_step_actor import EStepActor
from pcl_ray.training.e_step_shards import EStepRequest
from pcl_ray.training.feature_pass import FeaturePass

WORLD = 2
# A part of the images; all of them, where the first worker has most of the labelled ones.
CASES = {"sample": (0, 101, 23), "few labels": (150, 1000, 1000)}


def everyones(shards: dict[str, FeatureShard]) -> list[dict[str, FeatureShard]]:
    everyone: list[dict[str, FeatureShard]] = [shards] * world_size()
    if world_size() > 1:
        dist.all_gather_object(everyone, shards)
    return everyone


def figures(unlabelled: int, bank: int, queries: int) -> dict[str, float]:
    small = SmallTraining.of(f"evaluation.bank_images={bank}", f"evaluation.query_images={queries}")
    train, holdout = small.splits.train, small.splits.holdout
    assert train.labels is not None
    assert holdout is not None
    labels = np.where(np.arange(len(train)) < len(train) - unlabelled, train.labels, NO_LABEL)
    small.splits = type(small.splits)(train.with_labels(labels), holdout)
    features: FeaturePass = small.features()
    learner = build_learner(small.config, CPU)  # one seed: the same weights everywhere
    actor = EStepActor(small.config)
    measured: dict[str, float] = {}
    sizes, fewer = features.sample_sizes, features.reference_sizes
    passes = {
        "lines": EStepRequest(0, False, False, world_size(), len(train), *fewer, references=True),
        "pass": EStepRequest(1, False, True, world_size(), len(train), *sizes),
    }
    for key, request in passes.items():
        own = features.references(learner) if request.references else features.train(learner, labelled=True)
        for shards in everyones(own):
            for part, shard in shards.items():
                actor.push(key, part, shard.indices, shard.features, request.total(part))
        answer = actor.run(key, request, None, labels, holdout.labels)
        assert answer.missing == ""
        measured |= answer.metrics
    alone = everyones(features.labelled(learner))
    for part in ("bank", "queries"):
        count = sum(len(shards[part].indices) for shards in alone)
        assert count == passes["pass"].total(part)
    return {name: value for name, value in measured.items() if name.endswith("knn_top1")}


@cache
def alone() -> dict[str, dict[str, float]]:
    return {name: figures(*case) for name, case in CASES.items()}


def worker(number: int, folder: str) -> None:
    with gloo_member(number, WORLD, folder, timeout_s=60):
        measured = {name: figures(*case) for name, case in CASES.items()}
        torch.save(measured, f"{folder}/worker_{number}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    return saved_by_workers(worker, WORLD, tmp_path_factory.mktemp("gloo"), seconds=180)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_measure_what_one_does(case: str, two: list[dict[str, dict[str, float]]]) -> None:
    expected = alone()[case]
    assert set(expected) == {
        "eval/knn_top1",
        "eval/head/knn_top1",
        "eval/pixels/knn_top1",
        "eval/untrained/knn_top1",
    }
    assert expected["eval/knn_top1"] == expected["eval/untrained/knn_top1"]  # nothing was trained
    assert expected["eval/pixels/knn_top1"] != expected["eval/untrained/knn_top1"]
    for results in two:
        assert results[case] == pytest.approx(expected, abs=1e-9)
