"""The one figure of the configuration that was chosen: on held-out images that no trial was compared by."""

from __future__ import annotations

from pathlib import Path

import torch

from pcl_ray.checkpoints import run_state
from pcl_ray.config import RunConfig
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.data.reading import Readers
from pcl_ray.evaluation import LabelledSample, knn_accuracy
from pcl_ray.model.learner import build_learner
from pcl_ray.plan import loader_workers
from pcl_ray.training.e_step_shards import BANK, QUERIES
from pcl_ray.training.feature_pass import FeaturePass


def test_accuracy(path: Path, config: RunConfig, whole: DataSplits, share: float) -> float:
    """kNN accuracy, 0..1, of a checkpoint's momentum encoder (its backbone's features) on the test split; on
    this machine's GPU where the run had one and there is one here.

    Raises RunFailed where the checkpoint cannot be read.
    """
    device = torch.device("cuda" if config.resources.gpus_per_worker and torch.cuda.is_available() else "cpu")
    learner = build_learner(config, device)
    learner.load_state_dict(run_state.load(path).learner)
    splits = datasets.only_test_labels(whole, share)
    assert splits.holdout is not None
    features = FeaturePass(
        splits,
        config,
        device,
        Readers(config, device, loader_workers(config, len(splits.train) + splits.num_holdout)),
    )
    shards = features.labelled(learner)
    sample = LabelledSample.of(splits.train.labels, splits.holdout.labels, config.evaluation)
    assert splits.train.labels is not None
    assert splits.holdout.labels is not None
    return knn_accuracy(
        torch.from_numpy(shards[BANK].features),
        torch.tensor(splits.train.labels[sample.bank_B]),
        torch.from_numpy(shards[QUERIES].features),
        torch.tensor(splits.holdout.labels[sample.queries_Q]),
        neighbours=config.evaluation.knn_neighbours,
        temperature=config.evaluation.knn_temperature,
    )
