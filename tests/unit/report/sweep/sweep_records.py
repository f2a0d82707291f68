"""Sweeps as records, for tests of what is said and shown of them."""

from __future__ import annotations

from typing import Any

from pcl_ray import config as configs
from pcl_ray.report.sweep.leaderboard import TrialRecord
from pcl_ray.report.sweep.sweep_record import SweepRecord

TAU, ALPHA = "loss.temperature", "e_step.alpha"
RECIPE = {TAU: 0.2, ALPHA: 10}


def at(tau: float, objective: float | None, seed: int = 0, **others: Any) -> TrialRecord:
    return TrialRecord(
        f"tau{tau:g}-s{seed}",
        f"sweep.{tau:g}.{seed}",
        others.pop("state", "finished"),
        {TAU: tau, ALPHA: 10},
        seed,
        objective,
        epochs=others.pop("epochs", 50),
        **others,
    )


def record(*trials: TrialRecord, **fields: Any) -> SweepRecord:
    return SweepRecord(
        **{
            "name": "mine",
            "config": configs.load("digits"),
            "objective": "eval/knn_top1",
            "direction": "max",
            "trials": trials,
            "knobs": {TAU: "log-uniform 0.05 … 0.5", ALPHA: "one of 1, 10"},
            "settings": {"seeds": 1, "test_share": 0.5},
            "recipe_point": RECIPE,
            "num_holdout": 2000,
            **fields,
        }
    )
