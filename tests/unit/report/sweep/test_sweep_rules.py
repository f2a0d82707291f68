"""What is said of a sweep: each rule where it applies, and silence where it does not."""

from __future__ import annotations

import pytest
from sweep_records import ALPHA, TAU, at, record

from pcl_ray import config as configs
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.sweep import sweep_rules
from pcl_ray.report.sweep.leaderboard import TrialRecord
from pcl_ray.report.sweep.sweep_record import SweepRecord, against_recipe


def rules_of(sweep: SweepRecord) -> dict[str, str]:
    """Rule → severity."""
    return {finding.rule: finding.severity for finding in sweep_rules.findings(sweep)}


def meaning(sweep: SweepRecord, rule: str) -> str:
    return next(finding.meaning for finding in sweep_rules.findings(sweep) if finding.rule == rule)


def test_a_clear_gain_over_the_recipe_is_good() -> None:
    sweep = record(at(0.2, 0.80), at(0.1, 0.90))
    assert rules_of(sweep) == {"recipe": "good"}
    # two standard errors of the difference of shares of 1,000 images
    assert against_recipe(sweep) == "0.8000; the best is 0.1000 better, more than noise (± 0.0316)"


def test_a_gain_within_the_noise_is_no_gain() -> None:
    sweep = record(at(0.2, 0.895), at(0.1, 0.90))
    assert rules_of(sweep) == {"recipe": "warning", "alike": "note"}
    assert "within the noise" in meaning(sweep, "recipe")
    assert "τ 0.1 or 0.2" in meaning(sweep, "alike")


def test_the_recipe_may_be_the_best() -> None:
    sweep = record(at(0.2, 0.90), at(0.1, 0.80))
    assert rules_of(sweep) == {"recipe": "note"}
    assert against_recipe(sweep) == "0.9000: the recipe's own values are the best that was found"


def test_with_seeds_noise_is_the_pooled_spread_over_them() -> None:
    trials = [
        at(tau, value + seed * 0.02, seed) for tau, value in ((0.2, 0.8), (0.1, 0.86)) for seed in (0, 1)
    ]
    sweep = record(*trials)
    # s = 0.02 / √2 of both; two standard errors of a difference of means of two
    assert sweep.noise(*sweep.rows) == pytest.approx(2 * (0.02 / 2**0.5) * (1 / 2 + 1 / 2) ** 0.5)


def test_of_other_objectives_noise_is_not_known_without_seeds() -> None:
    sweep = record(at(0.2, 20.0), at(0.1, 21.0), objective="eval/rankme")
    assert sweep.noise(*sweep.rows) is None
    assert against_recipe(sweep) == "20.0000; the best is 1.0000 better"
    assert sweep.as_good() == []


def test_without_the_recipe_s_trial_nothing_is_said_of_it() -> None:
    assert against_recipe(record(at(0.1, 0.9))) == ""
    assert against_recipe(record(at(0.1, 0.9), at(0.2, None, state="failed"))) == ""


def test_failed_trials_and_what_they_have_in_common() -> None:
    lost = [at(tau, None, state="failed", error="the loss is nan\nmore") for tau in (0.4, 0.45)]
    sweep = record(
        at(0.1, 0.9), at(0.2, 0.8), at(0.05, 0.7), at(0.3, 0.7), at(0.35, 0.7), at(0.34, 0.7), *lost
    )
    assert rules_of(sweep)["failed"] == "note"
    text = meaning(sweep, "failed")
    assert "2 of 8 trials that ended failed. 2 of them: the loss is nan." in text
    assert "All of them, and none of the others, have τ ≥ 0.4." in text
    assert rules_of(record(at(0.1, 0.9), lost[0]))["failed"] == "warning"
    assert rules_of(record(*lost)) == {"failed": "problem"}


def test_lost_texts_are_listed_and_shared_ones_are_not() -> None:
    assert sweep_rules._apart(["a", "b", "a"], ["c"]) == "= a or b"
    assert sweep_rules._apart(["a", "c"], ["c"]) == ""
    assert sweep_rules._apart([1, 3], [2]) == "= 1 or 3"
    assert sweep_rules._apart([1], [2, 3]) == "≤ 1"


def test_collapsed_trials_are_counted() -> None:
    sweep = record(
        at(0.1, 30.0),
        at(0.2, 3.0, refused="effective rank 3.0, below sweep.min_rank = 5"),
        objective="eval/rankme",
    )
    assert rules_of(sweep)["refused"] == "note"
    assert "effective rank 3.0." in meaning(sweep, "refused")


def test_there_may_be_no_winner() -> None:
    early = at(0.1, 0.9, state="stopped early")
    assert rules_of(record(early))["no_winner"] == "warning"
    assert "no_winner" not in rules_of(record(early, state="running"))


@pytest.mark.parametrize(("tested", "severity"), [(0.85, "warning"), (0.89, "good")])
def test_the_test_split_tells_luck(tested: float, severity: str) -> None:
    sweep = record(at(0.1, 0.9), at(0.3, 0.5), test={"eval/test_knn_top1": tested})
    assert rules_of(sweep)["luck"] == severity


def test_the_best_at_the_edge_asks_for_a_wider_range() -> None:
    sweep = record(at(0.1, 0.9), at(0.2, 0.5), at(0.3, 0.4))
    assert rules_of(sweep)["at_the_edge"] == "note"
    assert "τ = 0.1, the lowest of 3 values" in meaning(sweep, "at_the_edge")
    assert "at_the_edge" not in rules_of(record(at(0.1, 0.5), at(0.2, 0.9), at(0.3, 0.4)))
    assert "at_the_edge" not in rules_of(record(at(0.1, 0.9), at(0.2, 0.5)))  # two values have only edges
    # one inside is as good
    assert "at_the_edge" not in rules_of(record(at(0.1, 0.9), at(0.2, 0.899), at(0.3, 0.4)))


def test_clusters_that_never_were_explain_nothing() -> None:
    sweep = record(at(0.1, 0.9, epochs=5), at(0.2, 0.8, epochs=12))
    assert rules_of(sweep)["before_clusters"] == "warning"
    assert "before_clusters" not in rules_of(record(at(0.1, 0.9, epochs=13), at(0.2, 0.8)))


def test_knobs_that_hardly_matter() -> None:
    trials = [
        TrialRecord(
            "t", f"sweep.{tau}.{alpha}", "finished", {TAU: tau, ALPHA: alpha}, 0, 0.5 + tau, epochs=50
        )
        for tau in (0.1, 0.15, 0.2, 0.25)
        for alpha in (1, 10, 30)
    ]
    sweep = record(*trials)
    assert rules_of(sweep)["without_effect"] == "note"
    assert "α 0%" in meaning(sweep, "without_effect")


def test_a_stopped_sweep_says_how_to_go_on() -> None:
    sweep = record(at(0.1, 0.9), state="stopped", planned=8)
    assert rules_of(sweep) == {"unfinished": "note"}
    text = sweep_rules.as_text(sweep, sweep_rules.findings(sweep))
    assert text.startswith("mine (sweep, stopped): 1 of 8 trials ended\n")
    assert "pcl-ray sweep --resume mine" in text
    assert text.endswith("Its best trial by itself: pcl-ray doctor sweep.0.1.0")


def test_what_the_doctor_finds_in_the_best_trial_is_said() -> None:
    metrics = {"eval/knn_top1": 0.5, "eval/pixels/knn_top1": 0.9}
    history = [{"epoch": 0, "step": 9, "metrics": metrics}]
    run = RunRecord("sweep.0.1.0", configs.load("digits"), history, num_images=1438, num_holdout=359)
    sweep = record(at(0.1, 0.9), at(0.3, 0.5), runs={run.name: run})
    assert rules_of(sweep)["no_better_than_pixels"] == "warning"
    assert any(
        finding.title == "Best trial: the trained encoder is no better than raw pixels"
        for finding in sweep_rules.findings(sweep)
    )


def test_a_sweep_that_has_just_begun() -> None:
    sweep = record(state="running", planned=4)
    assert sweep_rules.findings(sweep) == []
    assert sweep_rules.as_text(sweep, []).endswith("nothing to say: no trial has ended")
