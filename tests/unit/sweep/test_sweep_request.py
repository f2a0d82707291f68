"""What `pcl-ray sweep` says to a request before anything starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from pcl_ray.cli import main
from pcl_ray.support.paths import home

FULL_OF_MISTAKES = """
base: digits
objective: train/loss
space:
  loss.temprature: {type: uniform, low: 0.1, high: 0.2}
  e_step.alpha: {type: uniform, low: -5, high: 5}
  e_step.num_clusters: {type: choice, values: [100, 5000]}
  seed: {type: choice, values: [1, 2]}
  resources.workers: {type: choice, values: [1, 2]}
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_space_full_of_mistakes_is_told_all_of_them_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["sweep", written(tmp_path, FULL_OF_MISTAKES), "optimizer.lr=fast", "sweep.sedes=2", "--samples", "0"]
    )
    said = capsys.readouterr().err
    assert code == 2
    for part in (
        "loss.temprature",
        "did you mean 'loss.temperature'",
        "e_step.alpha = -5",
        "5000 is more than the 1438 training images",
        "--seeds repeats each configuration",
        "resources.workers",
        "optimizer.lr = 'fast'",
        "did you mean 'sweep.seeds'",
        "sweep.samples = '0'",
        "the loss grows and shrinks with τ and K",
    ):
        assert part in said, part
    assert "Traceback" not in said
    assert not (home() / "sweeps").exists()  # nothing has begun


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which space? One of all_three, alpha, num_clusters, paper_grid, temperature"),
        (("temprature",), "Did you mean 'temperature'"),
        (("temperature", "alpha"), "'alpha' is neither KEY=VALUE nor the only space"),
        (("temperature", "--budget", "soon"), "a time is written"),
        (("temperature", "--search", "grid"), "takes lists of values only; loss.temperature"),
        (("paper_grid", "--search", "grid", "--samples", "3"), "a grid tries all its 12 combinations"),
        (
            ("temperature", "--scheduler", "asha", "evaluation.every_epochs=0"),
            "compares trials while they train",
        ),
        (("temperature", "--scheduler", "pbt", "--seeds", "2"), "there is no configuration to repeat"),
        (
            ("temperature", "--scheduler", "pbt", "e_step.warmup_epochs=99"),
            "nothing is left to compare members after",
        ),
        (("alpha", "sweep.temperature_levels=4"), "does not sweep loss.temperature"),
        (("temperature", "loss.temperature=0.3"), "is swept by space 'temperature'"),
        (("temperature", "--recipe", "digit"), "Did you mean 'digits'"),
        (
            ("temperature", "sweep.objective=cluster/0/objective"),
            "inertia of k-means falls with every further cluster",
        ),
        (("temperature", "sweep.mode=min"), "more is better; leave the mode out"),
        (("temperature", "data.source=folder", "data.path=/nowhere"), "/nowhere"),
        (("--resume", "nothing"), "there is no sweep 'nothing'"),
        (("--resume", "nothing", "temperature"), "has its own space, recipe and name; leave out temperature"),
        (("temperature", "--name", "a/b"), "sweep name 'a/b' is not allowed"),
        (("temperature", "--name", "x" * 70), "at most 60 characters"),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_exit_code_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_dry_run_says_space_size_trials_at_a_time_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "paper_grid", "--dry-run", "--seeds", "2", "sweep.with_recipe=false"]) == 0
    said = capsys.readouterr().out
    assert "24: 12 configurations, 2 seeds each" in said
    assert f"{os.cpu_count()} on this machine" in said
    assert "12 of 50 epochs, trained 6 times for 24 trials" in said  # 3 temperatures, 2 seeds
    assert "device hours" in said
    assert not (home() / "sweeps").exists()


@pytest.mark.parametrize(("clustering", "code"), [(1, 0), (2, 2)])
def test_an_objective_may_be_of_any_clustering_that_auto_makes(
    clustering: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = written(
        tmp_path,
        f"base: digits\nobjective: cluster/{clustering}/ami\n"
        "space:\n  loss.temperature: {type: choice, values: [0.1, 0.2]}\n",
    )
    # of 1,438 images: 38 and 76 clusters
    assert main(["sweep", space, "e_step.num_clusters=auto", "--dry-run"]) == code
    told = capsys.readouterr()
    assert ("some trials have 2 clusterings" in told.err) == (code == 2)


def test_a_recipe_whose_own_k_does_not_fit_can_be_swept_over_k(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2000, 8, 8), dtype=np.uint8))
    words = (
        "data.source=arrays",
        f"data.path={tmp_path / 'images.npy'}",
        "train.batch_size=64",
        "loss.queue_size=64",
    )
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "data: {source: digits, channels: 1}\naugment: {mean: [0.5], std: [0.5], image_size: 8}\nencoder:"
        " {backbone: small_resnet, width: 4}\n"
    )
    assert main(["sweep", "num_clusters", "--recipe", str(recipe), *words, "--dry-run"]) == 0, (
        capsys.readouterr().err
    )
    # K = 25,000 of the defaults
    assert main(["sweep", "alpha", "--recipe", str(recipe), *words, "--dry-run"]) == 2
    assert "25000 is more than the 1600 training images" in capsys.readouterr().err


def test_the_recipe_s_own_values_are_tried_too_unless_they_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = written(
        tmp_path, "base: digits\nspace:\n  loss.temperature: {type: choice, values: [0.1, 0.3]}\n"
    )
    assert main(["sweep", space, "--dry-run", "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "6: 3 configurations, 2 seeds each, the recipe's own values among them" in said
    assert main(["sweep", space, "--dry-run", "--scheduler", "pbt", "--samples", "4"]) == 0
    assert re.search(r"^trials +2$", capsys.readouterr().out, re.MULTILINE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {source: digits, channels: 1}\naugment: {mean: [0.5], std: [0.5], image_size: 8}\n"
        "encoder: {backbone: small_resnet, width: 4}\n"
    )
    of_k = written(
        tmp_path, "base: digits\nspace:\n  e_step.num_clusters: {type: choice, values: [10, 20]}\n"
    )
    words = ("loss.queue_size=256", "train.batch_size=64", "train.epochs=30", "e_step.warmup_epochs=10")
    assert main(["sweep", of_k, "--recipe", str(recipe), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    # K = 25,000 of the defaults
    assert "the recipe's own values are not tried: e_step.num_clusters" in said
    assert re.search(r"^trials +2$", said, re.MULTILINE)


def test_every_knob_of_sweeps_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--describe"]) == 0
    said = capsys.readouterr().out
    assert "sweep.shared_warmup = True" in said
    assert "sweep.temperature_levels = None" in said
