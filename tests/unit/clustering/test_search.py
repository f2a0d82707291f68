"""The search for a usable clustering: where it starts, what it gives up, what it tries again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_features import mixture, with_twins
from torch import Tensor

from pcl_ray.clustering import Clustering, ClusterSet, health
from pcl_ray.clustering.assign.nearest import Nearest
from pcl_ray.clustering.points import Points
from pcl_ray.clustering.search import (
    Collapsed,
    EStepRefused,
    Rejected,
    Search,
    When,
    labels_before,
    starts_warm,
)
from pcl_ray.config import EStepConfig


def settings(**knobs: Any) -> EStepConfig:
    defaults = {"num_clusters": (40,), "restarts": 1, "threads": 1, "cold_iterations": 8, "iterations": 5}
    return EStepConfig(**{**defaults, "shortlist_from": 0, "warmup_epochs": 1, **knobs})


def search(rows: Tensor, *, epoch: int = 4, **knobs: Any) -> Search:
    points = Points.of(rows)
    return Search(points, health.gauges(points), settings(**knobs), When(epoch), Nearest("faiss", 1))


def clusters_of(rows: Tensor, *counts: int, **knobs: Any) -> ClusterSet:
    """The result of a cold search, as an E-step leaves it."""
    runs = search(rows, **knobs).all_of(counts, [1] * len(counts), None)
    return ClusterSet(
        4,
        tuple(
            Clustering(
                F.normalize(run.centroids, dim=1),
                run.labels,
                torch.ones(len(run.centroids)),
                run.objective,
                None,
                run.centroids.norm(dim=1),
            )
            for run in runs
        ),
    )


def test_one_run_for_each_k_in_their_order() -> None:
    for nested in (False, True):
        runs = search(mixture(1500), nested=nested).all_of((7, 40, 20), [1, 2, 3], None)
        assert [len(run.centroids) for run in runs] == [7, 40, 20]
        assert all(run.cold and run.first_change >= 0 for run in runs)


def test_without_earlier_clusters_a_run_is_cold_and_counts_every_label_as_changed() -> None:
    (run,) = search(mixture(1500)).all_of((40,), [1], None)
    assert (run.cold, run.first_change, run.shortlist, run.warnings) == (True, 1.0, None, [])


@pytest.mark.parametrize("warm_start", ["labels", "centroids"])
def test_a_warm_run_begins_where_the_last_e_step_ended(warm_start: str) -> None:
    rows = mixture(1500)
    before = clusters_of(rows, 40)
    (run,) = search(rows, warm_start=warm_start).all_of((40,), [1], before)
    assert not run.cold
    # the last centroids come without labels: every label is new
    assert run.first_change == 1.0 if warm_start == "centroids" else run.first_change < 0.1
    assert run.objective <= before.clusterings[0].objective * 1.0001


def test_a_start_that_is_much_worse_is_given_up() -> None:
    rows, other = mixture(1500), mixture(1500, seed=5)
    (run,) = search(other).all_of((40,), [1], clusters_of(rows, 40))
    assert run.cold


def test_a_shortlist_is_kept_from_the_k_on_that_the_settings_name() -> None:
    rows = mixture(1500)
    before = clusters_of(rows, 40)
    for shortlist_from, expected in ((40, True), (41, False), (0, False)):
        (run,) = search(rows, shortlist_from=shortlist_from).all_of((40,), [1], before)
        assert (run.shortlist is not None) == expected


def test_a_nested_clustering_is_made_of_the_finer_one() -> None:
    rows = mixture(1500)
    coarse, fine = search(rows, nested=True, nested_passes=0).all_of((10, 40), [1, 2], None)
    owners = {(int(a), int(b)) for a, b in zip(fine.labels, coarse.labels, strict=True)}
    assert len(owners) == 40  # every fine cluster lies in one coarse one
    assert (coarse.first_change, coarse.shortlist) == (0.0, None)


def test_more_clusters_than_different_points_are_refused() -> None:
    with pytest.raises(EStepRefused, match="70 clusters were asked for, but only 50 of the 1500 features"):
        search(mixture(50)[torch.arange(1500) % 50]).all_of((70,), [1], None)


def test_what_cannot_be_used_twice_is_rejected_with_the_figures_of_the_features() -> None:
    with pytest.raises(
        Rejected, match="before epoch 5: no usable clustering with K = 200: .* are empty"
    ) as no:
        search(with_twins(mixture(150), 100, 3000)).all_of((200,), [1], None)
    assert "cluster/rank" in no.value.figures


def test_a_second_try_from_other_points_is_told() -> None:
    rows = mixture(1500)
    before = clusters_of(rows, 40).clusterings[0]
    lengths = torch.full((40,), 100.0)  # all centroids but one are far from every point
    lengths[0] = 1.0
    bad = Clustering(before.prototypes, before.assignments, before.concentration, math.inf, None, lengths)
    # one pass moves nothing
    (run,) = search(rows, warm_start="centroids", iterations=1).all_of((40,), [1], ClusterSet(3, (bad,)))
    assert run.cold
    assert run.warnings == [
        "the first try could not be used (39 of 40 clusters are empty; one of 40 clusters holds 100% of the"
        " images); clustered anew from other points"
    ]
    assert health.faults(run.moments, 1500) == []


def test_errors_of_an_e_step_are_value_errors_with_figures() -> None:
    for kind in (EStepRefused, Collapsed, Rejected):
        assert issubclass(kind, ValueError)
        assert kind("why").figures == {}
        assert kind("why", {"a": 1.0}).figures == {"a": 1.0}


def test_when_names_the_epoch_and_the_step_of_the_encoder() -> None:
    assert str(When(4)) == "before epoch 5"
    assert str(When(4, 77)) == "before epoch 5 (encoder of step 77)"


def test_labels_before_are_those_of_the_same_k_and_images() -> None:
    rows = mixture(1500)
    before = clusters_of(rows, 40)
    ids = torch.tensor([5, 3, 1499])
    labels = before.clusterings[0].assignments
    assert torch.equal(labels_before(before, 0, 40, ids, 1500), labels[ids])
    for previous, m, k, total in ((None, 0, 40, 1500), (before, 1, 40, 1500), (before, 0, 41, 1500)):
        assert labels_before(previous, m, k, ids, total) is None
    assert labels_before(before, 0, 40, ids, 1501) is None


@pytest.mark.parametrize(
    ("knobs", "warm"),
    [
        ({"warm_start": "none"}, [False] * 6),
        ({"restart_every": 0}, [True] * 6),
        ({"restart_every": 3}, [False, True, True, False, True, True]),
        ({"restart_every": 2, "every_epochs": 2}, [False, False, True, True, False, False]),
        (  # E-steps before 1, 4, 5, 6
            {"restart_every": 2, "early_epochs": 3, "early_every_epochs": 3},
            [False, False, False, True, False, True],
        ),
    ],
)
def test_which_e_steps_may_start_warm(knobs: dict[str, Any], warm: list[bool]) -> None:
    assert [starts_warm(settings(**knobs), epoch) for epoch in range(1, 7)] == warm
