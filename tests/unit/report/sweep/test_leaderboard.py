from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import TrialRecord

TAU, ALPHA, K = "loss.temperature", "e_step.alpha", "e_step.num_clusters"
KNOBS = [TAU, ALPHA, K]
LR = "optimizer.lr"


def trial(
    objective: float | None,
    tau: float = 0.1,
    *,
    seed: int = 0,
    state: leaderboard.State = "finished",
    **others: Any,
) -> TrialRecord:
    point = {TAU: tau, ALPHA: 10, K: "0.02,0.04"} | others.pop("point", {})
    return TrialRecord(
        f"tau{tau:g}-s{seed}", f"sweep.{tau:g}.{seed}", state, point, seed, objective, **others
    )


def taus(records: list[TrialRecord], direction: leaderboard.Direction = "max") -> list[float]:
    return [row.point[TAU] for row in leaderboard.ranked(records, direction)]


def test_seeds_of_one_point_are_one_configuration_with_mean_and_sample_deviation() -> None:
    records = [
        trial(0.5, 0.1, seed=0, device_seconds=30.0),
        trial(0.55, 0.2),
        trial(0.7, 0.1, seed=1, device_seconds=60.0),
    ]
    first, second = leaderboard.ranked(records, "max")
    assert (first.point[TAU], [t.seed for t in first.trials], first.values) == (0.1, [0, 1], (0.5, 0.7))
    assert first.mean == pytest.approx(0.6)
    assert first.spread == pytest.approx(math.sqrt(0.02))  # (0.1² + 0.1²) / (2 − 1)
    assert (first.device_seconds, first.state, first.note) == (90.0, "finished", "")
    assert (second.mean, second.spread) == (0.55, None)


def test_points_are_equal_by_value_whatever_their_type_and_lists_can_be_points() -> None:
    same = [
        trial(0.1, point={K: 10}),
        trial(0.2, point={K: 10.0}),
        trial(0.3, point={K: [0.02, 0.04]}),
        trial(0.4, point={K: "0.02,0.04"}),
    ]
    assert [len(row.trials) for row in leaderboard.ranked(same, "max")] == [2, 2]
    near = [trial(0.1, 0.1), trial(0.1, 0.1 + 1e-9)]
    assert len(leaderboard.ranked(near, "max")) == 2


@pytest.mark.parametrize(
    ("direction", "order"), [("max", [3, 2, 1]), ("min", [1, 2, 3]), ("nearest_one", [2, 1, 3])]
)
def test_better_goes_by_the_direction(direction: leaderboard.Direction, order: list[float]) -> None:
    assert taus([trial(0.2, 1), trial(1.1, 2), trial(2.4, 3)], direction) == order


def test_finished_before_partial_before_refused_before_nothing() -> None:
    records = [
        trial(None, 1, state="failed", error="out of memory"),
        trial(0.99, 2, refused="effective rank 1.2"),
        trial(0.8, 3, state="stopped early", epochs=4),
        trial(0.1, 4),
        trial(0.9, 5, seed=0),
        trial(None, 5, seed=1, state="failed", error="not\nfinite"),
        trial(0.95, 6, state="unfinished"),
        trial(math.nan, 7),
        trial(0.2, 8),
        trial(0.97, 9, seed=0),
        trial(0.97, 9, seed=1, refused="effective rank 1.2"),
    ]
    rows = leaderboard.ranked(records, "max")
    assert [row.point[TAU] for row in rows] == [8, 4, 6, 5, 3, 2, 9, 1, 7]
    by_tau = {row.point[TAU]: row for row in rows}
    assert {tau: row.state for tau, row in by_tau.items() if tau in (3, 5, 6, 9)} == {
        3: "stopped early",
        5: "failed",
        6: "unfinished",
        9: "finished",
    }
    assert {tau: row.note for tau, row in by_tau.items()} == {
        8: "",
        4: "",
        6: "",
        5: "1 of 2 failed: not finite",
        3: "stopped early after 4 epochs",
        2: "refused: effective rank 1.2",
        9: "refused: effective rank 1.2",
        1: "failed: out of memory",
        7: "1 of 1 without a value",
    }
    assert leaderboard.best(rows) is rows[0]


def test_what_a_failed_trial_last_measured_is_not_compared() -> None:
    (row,) = leaderboard.ranked([trial(0.9, state="failed"), trial(0.5, seed=1)], "max")
    assert (row.values, row.mean) == ((0.5,), 0.5)


def test_a_seed_without_a_value_keeps_its_configuration_from_the_first_places() -> None:
    rows = leaderboard.ranked([trial(0.9, 1), trial(math.inf, 1, seed=1), trial(0.2, 2)], "max")
    assert [row.point[TAU] for row in rows] == [2, 1]


def test_of_equals_the_cheaper_is_first_whatever_their_order() -> None:
    records = [
        trial(0.5, 1, device_seconds=9),
        trial(0.5, 2, device_seconds=3),
        trial(0.5, 3, device_seconds=6),
    ]
    assert taus(records) == taus(records[::-1]) == [2, 3, 1]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [trial(None, state="failed")],
        [trial(0.5, refused="collapsed")],
        [trial(0.5, state="stopped early")],
        [trial(math.nan)],
    ],
)
def test_there_is_no_best_without_a_configuration_that_finished_and_passed(
    records: list[TrialRecord],
) -> None:
    assert leaderboard.best(leaderboard.ranked(records, "max")) is None


def made_up(count: int, matters: str) -> list[TrialRecord]:
    draw = random.Random(0)
    records = []
    for number in range(count):
        point = {
            TAU: draw.uniform(0.05, 0.5),
            ALPHA: draw.randint(1, 100),
            K: draw.choice(["0.01", "0.02,0.04", "0.1"]),
            LR: draw.uniform(0.01, 0.03),
            "fixed.knob": 3,
        }
        value = {
            TAU: math.log(point[TAU] / 0.2) ** 2,
            ALPHA: point[ALPHA] / 50,
            K: float(point[K] == "0.1"),
            LR: 50 * point[LR],
        }[matters]
        records.append(trial(0.8 - 0.1 * value + draw.gauss(0, 0.002), seed=number, point=point))
    return records


@pytest.mark.parametrize("knob", [*KNOBS, LR])
def test_importance_finds_the_knob_that_matters(knob: str) -> None:
    shares = leaderboard.importances(made_up(40, knob), "max")
    assert set(shares) == {*KNOBS, LR}  # not the constant one
    assert next(iter(shares)) == knob
    assert shares[knob] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == leaderboard.importances(made_up(40, knob), "max")


def test_importance_for_nearest_one_is_that_of_the_distance() -> None:
    records = [
        trial(
            1 + (0.5 if alpha == 1 else 0.1) * (1 if tau == 0.1 else -1),
            point={TAU: tau, ALPHA: alpha},
            seed=seed,
        )
        for tau in (0.1, 0.2)
        for alpha in (1, 2)
        for seed in range(3)
    ]
    assert next(iter(leaderboard.importances(records, "max"))) == TAU  # above or below 1
    assert next(iter(leaderboard.importances(records, "nearest_one"))) == ALPHA  # how far from it


def test_importance_leaves_out_failed_and_refused_trials() -> None:
    good = made_up(20, TAU)
    bad = [
        trial(-50.0, 0.1, state="failed", point={ALPHA: 99}),
        trial(90.0, 0.1, refused="collapsed"),
        trial(math.nan),
        trial(None),
    ]
    assert leaderboard.importances(good + bad, "max") == leaderboard.importances(good, "max")


@pytest.mark.parametrize(
    "records",
    [
        [],
        made_up(9, TAU),
        [trial(0.5, 0.1 * number) for number in range(1, 13)],
        [trial(0.1 * number, seed=number) for number in range(12)],
        [trial(0.1 * number, number, state="failed") for number in range(12)],
        [trial(0.1 * number, seed=number, point={"only.some": 1} if number else {}) for number in range(12)],
    ],
    ids=["none", "nine", "all equal", "no knob varies", "all failed", "a knob that some lack"],
)
def test_importance_is_empty_where_it_cannot_be_known(records: list[TrialRecord]) -> None:
    assert leaderboard.importances(records, "max") == {}


def test_importance_is_silent_and_leaves_optuna_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    leaderboard.importances(made_up(12, TAU), "max")
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def rows_to_show() -> list[leaderboard.Configuration]:
    records = [
        trial(0.8122, 0.123456789, seed=0, device_seconds=90),
        trial(0.8126, 0.123456789, seed=1, device_seconds=30),
        trial(None, 0.5, state="failed", error='a | b,\n"c"'),
    ]
    return leaderboard.ranked(records, "max")


def test_csv_reads_back_with_full_numbers() -> None:
    heading, first, last = list(csv.reader(io.StringIO(leaderboard.as_csv(rows_to_show(), KNOBS))))
    assert heading == ["rank", "mean", "spread", "seeds", *KNOBS, "device_minutes", "state", "note"]
    assert float(first[1]) == pytest.approx(0.8124)
    assert first[3:] == ["2", "0.123456789", "10", "0.02,0.04", "2.0", "finished", ""]
    assert last == ["2", "", "", "1", "0.5", "10", "0.02,0.04", "0.0", "failed", 'failed: a | b, "c"']


def test_markdown_is_a_table_whatever_is_in_the_note() -> None:
    lines = leaderboard.as_markdown(rows_to_show(), KNOBS, "eval/knn_top1").splitlines()
    assert lines[0] == "| rank | eval/knn_top1 | τ | α | K | seeds | device min | state | note |"
    assert lines[2] == "| 1 | 0.8124 ± 0.0003 | 0.123457 | 10 | 0.02,0.04 | 2 | 2.0 | finished |  |"
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {10}


def test_json_reads_back_and_has_no_nan() -> None:
    rows = [*rows_to_show(), *leaderboard.ranked([trial(math.nan, 0.3)], "max")]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(leaderboard.as_json(rows, KNOBS, "eval/knn_top1"), parse_constant=refuse)
    assert (read["objective"], read["knobs"], len(read["rows"])) == ("eval/knn_top1", KNOBS, 3)
    assert read["rows"][0]["point"] == {TAU: 0.123456789, ALPHA: 10, K: "0.02,0.04"}
    assert [(t["run"], t["seed"], t["objective"]) for t in read["rows"][0]["trials"]] == [
        ("sweep.0.123457.0", 0, 0.8122),
        ("sweep.0.123457.1", 1, 0.8126),
    ]
    assert (read["rows"][1]["mean"], read["rows"][2]["trials"][0]["objective"]) == (None, None)


def test_a_table_has_its_heading_first_and_no_more_lines_than_asked_for() -> None:
    rows = leaderboard.ranked([trial(0.1 * number, number) for number in range(1, 6)], "max")
    heading, *lines = leaderboard.table(rows, [*KNOBS, "optimizer.lr"], "eval/knn_top1", 3)
    assert heading == ["rank", "eval/knn_top1", "τ", "α", "K", "lr", "seeds", "device min", "state", "note"]
    assert [line[:3] for line in lines] == [["1", "0.5000", "5"], ["2", "0.4000", "4"], ["3", "0.3000", "3"]]
    assert lines[0][5] == "–"  # a knob that the trial does not have


def test_names_are_short_unless_two_would_be_the_same() -> None:
    assert [leaderboard.short(name) for name in [*KNOBS, "optimizer.lr", "seed"]] == [
        "τ",
        "α",
        "K",
        "lr",
        "seed",
    ]
    assert leaderboard.table([], ["a.lr", "b.lr", TAU], "x", 1)[0][2:5] == ["a.lr", "b.lr", "τ"]


def measured(**columns: list[float]) -> list[TrialRecord]:
    names = {"knn": "eval/knn_top1", "rankme": "eval/rankme", "lidar": "eval/lidar", "areq": "eval/areq"}
    return [
        trial(0.5, metrics={names[key]: value for key, value in zip(columns, row, strict=True)})
        for row in zip(*columns.values(), strict=True)
    ]


def test_agreement_is_spearmans() -> None:
    # ranks of lidar 1 2 4 3: 1 − 6·(1 + 1) / (4·15) = 0.8. areq is nearest 1 where the accuracy is highest
    records = measured(
        knn=[0.1, 0.2, 0.3, 0.4],
        rankme=[9.0, 8.0, 7.0, 1.0],
        lidar=[1.0, 2.0, 9.0, 8.0],
        areq=[0.2, 1.7, 0.6, 1.1],
    )
    assert leaderboard.agreement_with_labels(records) == pytest.approx(
        {"eval/rankme": -1.0, "eval/lidar": 0.8, "eval/areq": 1.0}
    )


def test_agreement_leaves_out_what_cannot_be_known() -> None:
    assert leaderboard.agreement_with_labels([]) == {}
    assert leaderboard.agreement_with_labels(measured(knn=[0.1, 0.2, 0.3], rankme=[1.0, 2.0, 3.0])) == {}
    nan = math.nan
    records = measured(
        knn=[0.1, 0.2, 0.3, 0.4], rankme=[5.0] * 4, lidar=[1.0, 2.0, 3.0, nan], areq=[0.1, 0.2, 0.3, 0.4]
    )
    assert set(leaderboard.agreement_with_labels(records)) == {"eval/areq"}
    assert leaderboard.agreement_with_labels(measured(knn=[0.4] * 4, rankme=[1.0, 2.0, 3.0, 4.0])) == {}


def test_the_leaderboard_is_imported_without_what_is_slow(loaded_by: Callable[..., list[str]]) -> None:
    slow = ("matplotlib", "optuna", "torch", "ray", "mlflow", "scipy")
    assert loaded_by("pcl_ray.report.sweep.leaderboard", *slow) == []


def test_selection_and_test_are_told_apart_from_noise() -> None:
    share = leaderboard.MeasuredShare
    assert share(0.5, 100).error == pytest.approx(0.05)
    selected, test, meaning = leaderboard.selection_and_test(share(0.39, 120), share(0.36, 120), 12)
    assert (
        selected == "selected    kNN accuracy of the best 0.390 ± 0.045 on 120 images that it was chosen by"
    )
    assert test == "test split  0.360 ± 0.044 on 120 images that chose no trial"
    assert meaning.strip() == "0.030 apart, within the noise of so few images (± 0.062)"
    lower = leaderboard.selection_and_test(share(0.39, 1200), share(0.27, 1200), 12)[2]
    assert lower.strip() == "0.120 lower, more than noise: the best of 12 trials was also the luckiest"
    assert "easier" in leaderboard.selection_and_test(share(0.27, 1200), share(0.39, 1200), 12)[2]
