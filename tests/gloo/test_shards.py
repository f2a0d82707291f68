"""One E-step over three processes against one process: the same numbers, bit by bit, and the same refusals on
all of them.

The processes start once and write what they found to files. Each of them makes all features and takes its own
part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import gloo_member, saved_by_workers
from random_features import mixture, with_twins
from torch import Tensor

from pcl_ray.clustering import ClusterSet, kmeans
from pcl_ray.clustering.group import Group, TorchGroup
from pcl_ray.clustering.health import gauges
from pcl_ray.clustering.points import Points
from pcl_ray.config import EStepConfig
from pcl_ray.e_step import EStepRefused, ShardInput, When, cluster, cluster_shard

WORLD = 3
Parts = Callable[[int], list[Tensor]]  # of N ids, those of each process


def uneven(n: int) -> list[Tensor]:
    return list(torch.arange(n).tensor_split([11, n // 3]))


def one_has_none(n: int) -> list[Tensor]:
    return list(torch.arange(n).tensor_split([n // 3, n // 3]))


def interleaved(n: int) -> list[Tensor]:
    return [torch.arange(number, n, WORLD).flip(0) for number in range(WORLD)]


def drifted(data: Tensor) -> Tensor:
    return F.normalize(
        data + 0.05 * torch.randn(data.shape, generator=torch.Generator().manual_seed(9)), dim=1
    )


def with_nan(data: Tensor, *ids: int) -> Tensor:
    data[list(ids), 1] = math.nan
    return data


def settings(*num_clusters: int, **knobs: Any) -> EStepConfig:
    return EStepConfig(
        num_clusters=num_clusters,
        **{"restarts": 2, "threads": 1, "cold_iterations": 6, "shortlist_from": 0, **knobs},
    )


def last(data: Tensor, config: EStepConfig) -> ClusterSet:
    return cluster(data, config, epoch=3, temperature=0.2, seed=0)


# name: the features, the settings, and whether clusters exist already (of the features before they drifted)
CASES: dict[str, tuple[Callable[[], Tensor], EStepConfig, bool]] = {
    "cold": (mixture, settings(40, 7), False),
    "torch backend": (mixture, settings(40, 7, backend="torch"), False),
    "spherical": (mixture, settings(40, spherical=True), False),
    "warm by labels": (mixture, settings(40, 7), True),
    "warm by centroids": (mixture, settings(40, 7, warm_start="centroids"), True),
    "shortlist": (lambda: mixture(6000, dim=8), settings(200, shortlist_from=2, restarts=1), False),
    "shortlist warm": (lambda: mixture(6000, dim=8), settings(200, shortlist_from=2, restarts=1), True),
    "balanced": (mixture, settings(40, 7, balance=1.2, restarts=1), False),
    "balanced warm shortlist": (mixture, settings(100, balance=1.1, restarts=1, shortlist_from=2), True),
    "nested": (mixture, settings(60, 20, 5, nested=True), False),
    "nested warm": (mixture, settings(60, 20, 5, nested=True), True),
    "strict": (mixture, settings(60, 20, 5, nested=True, nested_passes=0), True),
    "half": (lambda: mixture().half(), settings(40, 7), True),
    # float32 cannot tell which centroids are nearer; faiss computes 1,000 rows of 128 otherwise than 3,000
    "a narrow cone": (
        lambda: F.normalize(mixture(dim=128) + 60 * torch.eye(128)[0], dim=1),
        settings(200, collapse_cone=0.9999),
        False,
    ),
    "on a grid": (
        lambda: F.normalize(
            torch.cat([(3 * mixture(2994)).round(), torch.eye(12)[:6]]) + 2 * torch.eye(12)[0], dim=1
        ),
        settings(40),
        False,
    ),
    "a few rows that are not finite": (
        lambda: with_nan(mixture(30000, dim=6), 5, 29000),
        settings(20, restarts=1, cold_iterations=3),
        False,
    ),
    "a few rows that are not finite, warm": (
        lambda: with_nan(mixture(30000, dim=6), 5, 29000),
        settings(20, restarts=1, cold_iterations=3),
        True,
    ),
    "copies": (
        lambda: torch.cat([mixture(1500), mixture(1).expand(1500, -1)]),
        settings(300, restarts=1),
        False,
    ),
    "an empty cluster": (lambda: with_twins(mixture(200), 1, 4000), settings(201), False),
    "labels that say nothing": (lambda: mixture(seed=4), settings(40), True),
}
LAYOUTS: dict[str, Parts] = {"uneven": uneven, "one has none": one_has_none, "interleaved": interleaved}
IN_ALL_LAYOUTS = (
    "cold",
    "warm by labels",
    "shortlist warm",
    "balanced",
    "a few rows that are not finite, warm",
)
RUNS = [(case, "uneven") for case in CASES] + [
    (case, layout) for case in IN_ALL_LAYOUTS for layout in ("one has none", "interleaved")
]

REFUSALS: dict[str, tuple[Callable[[], Tensor], EStepConfig]] = {
    "not finite on one process": (
        lambda: with_nan(mixture(), 2500, 2000, 2999, 2001, 2002, 2003, 2004),
        settings(10),
    ),
    "not finite on all": (lambda: with_nan(mixture(), 2900, 3, 1001, 400), settings(10)),
    "zero vectors": (lambda: mixture().index_fill(0, torch.tensor([2, 700, 2800]), 0.0), settings(10)),
    "a cone": (lambda: F.normalize(mixture() + 80 * torch.eye(12)[0], dim=1), settings(10)),
    "too few distinct": (lambda: mixture(50)[torch.arange(3000) % 50], settings(70)),
    "too many clusters": (mixture, settings(3001)),
    "empty clusters": (lambda: with_twins(mixture(150), 100, 3000), settings(200)),
}


def found(
    rows: Tensor, ids: Tensor, total: int, config: EStepConfig, group: Group, previous: ClusterSet | None
) -> dict[str, Any]:
    shard = ShardInput(rows, total, ids, group)
    result = cluster_shard(shard, config, When(4, 77), temperature=0.2, seed=0, previous=previous)
    return {
        "ids": result.ids,
        "labels": [labels.long() for labels in result.labels],
        "common": [
            {
                name: getattr(c, name)
                for name in ("centroids", "concentration", "valid", "objective", "figures")
            }
            for c in result.clusterings
        ],
        "figures": result.figures,
        "warnings": list(result.warnings),
    }


def refusal(rows: Tensor, ids: Tensor, total: int, config: EStepConfig, group: Group) -> list[str]:
    try:
        cluster_shard(ShardInput(rows, total, ids, group), config, When(4, 77), temperature=0.2, seed=0)
    except EStepRefused as error:
        return [type(error).__name__, str(error)]
    return ["clustered", ""]


def one_case(case: str, ids: Callable[[int], Tensor], group: Group) -> dict[str, Any]:
    make, config, warm = CASES[case]
    data = make()
    before = None
    if warm:
        before = last(mixture() if case == "labels that say nothing" else data.nan_to_num(0.1), config)
        data = drifted(data.float()).to(data.dtype)
    mine = ids(len(data))
    return found(data[mine], mine, len(data), config, group, before)


def one_refusal(case: str, ids: Callable[[int], Tensor], group: Group) -> list[str]:
    make, config = REFUSALS[case]
    data = make()
    mine = ids(len(data))
    return refusal(data[mine], mine, len(data), config, group)


KMEANS: dict[str, dict[str, Any]] = {
    "restarts": {"restarts": 3},
    "spherical": {"spherical": True, "backend": "torch"},
    "start": {"start_KC": mixture(25, seed=8)},
}


def one_kmeans(case: str, ids: Callable[[int], Tensor], group: Group) -> dict[str, Any]:
    data = mixture() * 7
    mine = ids(len(data))
    result = kmeans(
        data[mine],
        25,
        seed=3,
        iterations=5,
        threads=1,
        group=group,
        ids=mine,
        total=len(data),
        **KMEANS[case],
    )
    names = ("centroids", "assignments", "distances", "objective")
    return {"ids": mine} | {name: getattr(result, name) for name in names}


def exchange(group: Group) -> dict[str, Any]:
    number = group.rank
    counts, sums = (
        torch.tensor([1, 2**40 + number]),
        torch.tensor([0.5, 2.0**-40 * (number + 1)], dtype=torch.float64),
    )
    group.sum(counts, sums)
    return {
        "rank": (group.rank, group.size),
        "counts": counts,
        "sums": sums,
        "max": group.max([2.5, -1.0, 7.25][number]),
        "gathered": group.gather(torch.arange(2 * number).view(number, 2) + 10 * number),
        "gathered nothing": group.gather(torch.zeros(0, 3)),
        "gathered from one": group.gather(torch.full((2 if number == 1 else 0,), 5.5, dtype=torch.float64)),
    }


def missing(group: Group) -> list[str]:
    """One image is held by no process."""
    data = mixture()
    mine = uneven(3000)[group.rank][1 if group.rank == 2 else 0 :]
    return refusal(data[mine], mine, 3000, settings(10), group)


def shrunk(group: Group) -> dict[str, Any]:
    """The last clusters are of fewer images: only some processes hold images unknown to them."""
    data = mixture()
    before = last(data[:1500], settings(40))
    mine = uneven(3000)[group.rank]
    return found(data[mine], mine, 3000, settings(40), group, before)


def everything(group: Group) -> dict[str, Any]:
    def mine(layout: str) -> Callable[[int], Tensor]:
        return lambda n: LAYOUTS[layout](n)[group.rank]

    data = mixture(40000, dim=6)
    part = uneven(40000)[group.rank]
    return {
        "cases": {f"{case}, {layout}": one_case(case, mine(layout), group) for case, layout in RUNS},
        "refusals": {case: one_refusal(case, mine("uneven"), group) for case in REFUSALS},
        "kmeans": {case: one_kmeans(case, mine("uneven"), group) for case in KMEANS},
        "exchange": exchange(group),
        "missing": missing(group),
        "shrunk": shrunk(group),
        "gauges": gauges(Points.of(data[part], part, total=40000, group=group)).figures(),
    }


def worker(number: int, folder: str) -> None:
    with gloo_member(number, WORLD, folder, timeout_s=200):
        torch.save(everything(TorchGroup()), f"{folder}/worker_{number}.pt")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return saved_by_workers(worker, WORLD, tmp_path_factory.mktemp("shards"), seconds=300)


@pytest.fixture(scope="module")
def one() -> Callable[[str], dict[str, Any]]:
    """The same in this process, without a group; each case once."""
    return cache(lambda case: one_case(case, torch.arange, Group()))


def by_id(parts: list[dict[str, Any]], values: Callable[[dict[str, Any]], Tensor]) -> Tensor:
    ids = torch.cat([part["ids"] for part in parts])
    assert torch.equal(ids.sort().values, torch.arange(len(ids)))
    return torch.cat([values(part) for part in parts])[ids.argsort()]


def assert_equal(parts: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert len(parts) == WORLD
    for m, whole in enumerate(expected["common"]):
        assert torch.equal(by_id(parts, lambda part, m=m: part["labels"][m]), expected["labels"][m])
        for part in parts:
            for name in ("centroids", "concentration", "valid"):
                assert torch.equal(part["common"][m][name], whole[name]), name
            assert part["common"][m]["objective"] == whole["objective"]
            assert part["common"][m]["figures"] == whole["figures"]
    for part in parts:
        assert part["warnings"] == expected["warnings"]
        assert part["figures"] == parts[0]["figures"]
        assert part["figures"] == pytest.approx(expected["figures"], rel=1e-6)


@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_three_processes_find_what_one_finds(
    three: list[dict[str, Any]], one: Callable[[str], dict[str, Any]], case: str, layout: str
) -> None:
    assert_equal([results["cases"][f"{case}, {layout}"] for results in three], one(case))


def test_the_cases_are_what_they_are_called(one: Callable[[str], dict[str, Any]]) -> None:
    # Else a case that falls back to something simple would prove nothing.
    def figures(case: str) -> dict[str, float]:
        return one(case)["common"][0]["figures"]

    assert all(figures(case)["cold"] == 0 for case in CASES if "warm" in case or case in ("strict", "half"))
    assert all(
        figures(case)["cold"] == 1 for case in ("cold", "shortlist", "copies", "labels that say nothing")
    )
    for case in ("shortlist", "shortlist warm", "balanced warm shortlist"):
        assert figures(case)["shortlist_fallbacks"] < figures(case)["passes"] - 1
    balanced = one("balanced")
    assert (
        torch.bincount(balanced["labels"][0]).max()
        <= math.ceil(1.2 * 3000 / 40)
        < torch.bincount(one("cold")["labels"][0]).max()
    )
    assert len(one("copies")["warnings"]) == 1
    assert one("a few rows that are not finite")["labels"][0][[5, 29000]].tolist() == [-1, -1]
    assert (one("a few rows that are not finite, warm")["labels"][0] >= 0).all()
    assert "[5, 29000]" in one("a few rows that are not finite")["warnings"][0]
    assert int((~one("an empty cluster")["common"][0]["valid"]).sum()) == 1
    assert not torch.equal(one("cold")["labels"][0], one("warm by labels")["labels"][0])
    assert not torch.equal(
        one("warm by centroids")["common"][0]["centroids"], one("warm by labels")["common"][0]["centroids"]
    )


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_the_same_on_all_processes(three: list[dict[str, Any]], case: str) -> None:
    expected = one_refusal(case, torch.arange, Group())
    assert expected[0] == {"a cone": "Collapsed", "empty clusters": "Rejected"}.get(case, "EStepRefused")
    assert expected[1].startswith("before epoch 5 (encoder of step 77): ")
    assert [results["refusals"][case] for results in three] == [expected] * WORLD


def test_refusals_name_the_first_rows_of_all_processes(three: list[dict[str, Any]]) -> None:
    assert "[3, 400, 1001, 2900]" in three[0]["refusals"]["not finite on all"][1]
    assert (
        "7 of 3000 images are not finite, the first at index [2000, 2001, 2002, 2003, 2004]"
        in three[0]["refusals"]["not finite on one process"][1]
    )


def test_an_image_that_no_process_holds_is_noticed(three: list[dict[str, Any]]) -> None:
    for results in three:
        assert results["missing"][0] == "EStepRefused"
        assert "features of 2999 images arrived, there are 3000" in results["missing"][1]


def test_clusters_of_fewer_images_are_given_up_by_all_processes(three: list[dict[str, Any]]) -> None:
    data = mixture()
    expected = found(data, torch.arange(3000), 3000, settings(40), Group(), last(data[:1500], settings(40)))
    assert expected["common"][0]["figures"]["cold"] == 1
    assert_equal([results["shrunk"] for results in three], expected)


@pytest.mark.parametrize("case", KMEANS)
def test_kmeans_over_three_processes_is_kmeans_over_one(three: list[dict[str, Any]], case: str) -> None:
    expected = one_kmeans(case, torch.arange, Group())
    parts = [results["kmeans"][case] for results in three]
    for name in ("assignments", "distances"):
        assert torch.equal(by_id(parts, lambda part, name=name: part[name]), expected[name])
    for part in parts:
        assert torch.equal(part["centroids"], expected["centroids"])
        assert part["objective"] == expected["objective"]


def test_gauges_of_very_many_images_come_from_the_same_of_them(three: list[dict[str, Any]]) -> None:
    expected = gauges(Points.of(mixture(40000, dim=6))).figures()
    for results in three:
        assert results["gauges"] == three[0]["gauges"]
        assert results["gauges"] == pytest.approx(expected, rel=1e-9)


def test_what_processes_exchange(three: list[dict[str, Any]]) -> None:
    for number, results in enumerate(three):
        found = results["exchange"]
        assert tuple(found["rank"]) == (number, WORLD)
        assert found["counts"].tolist() == [3, 3 * 2**40 + 3]
        assert found["sums"].tolist() == [1.5, 6 * 2.0**-40]
        assert found["max"] == 7.25
        assert found["gathered"].tolist() == [[10, 11], [20, 21], [22, 23]]
        assert found["gathered nothing"].shape == (0, 3)
        assert found["gathered from one"].tolist() == [5.5, 5.5]


def test_one_process_alone_exchanges_nothing() -> None:
    rows = torch.arange(6).view(3, 2)
    group = Group()
    group.sum(rows)
    assert torch.equal(group.gather(rows), torch.arange(6).view(3, 2))
    assert group.max(-3.0) == -3.0
