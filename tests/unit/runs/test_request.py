"""What is refused before anything starts: by the command line, and in which order and priority."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.runs import request


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcl_ray.runs.request.gpus_here", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def train(*words: str) -> int:
    return cli.main(["train", "digits", "resources.workers=0", *DIGITS_RUN, *words])


def home() -> Path:
    return Path(os.environ["PCL_RAY_HOME"])


def problem_names(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        request.check("digits", words)
    return [problem.name for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digitz"], "Did you mean 'digits'?"),
        (["digits", "loss.temprature=0.1"], "did you mean 'loss.temperature'?"),
        (["digits", "train.epochs=many"], "train.epochs = 'many': allowed: whole number"),
        (["digits", "e_step.num_clusters=5000"], "more than the 1438 training images"),
        (["digits", "e_step.num_clusters=0.0001"], "fewer than 2 clusters"),
        (["digits", "train.batch_size=4000"], "only 1438 images"),
        (["digits", "loss.negative_prototypes=500"], "at most 9 negatives"),
        (["digits", "loss.queue_size=999999"], "fills only"),
        (["digits", "resources.gpus_per_worker=1"], "no GPU"),
        (["digits", "data.source=folder"], "needs data.path"),
        (["digits", "data.source=folder", "data.path=/nowhere/at/all"], "does not exist"),
        (["digits", "tracking.uri=file:///tmp/mlruns"], "tracking.uri"),
        (["digits", "--name", "a/b"], "run name 'a/b' is not allowed"),
        (["--resume", "nobody"], "there is no run 'nobody'"),
        (["digits", "--resume", "nobody"], "leave out recipe 'digits'"),
        ([], "which recipe?"),
        (["digits", "--result", "/nowhere/at/all/r.json"], "cannot be written: No such file"),
        (["digits", "--result", "/"], "cannot be written: Is a directory"),
        (["digits", "data.on_bad_image=skip", "data.check_images=false"], "needs data.check_images"),
        (["digits", "encoder.backbone=timm:convnext_nona"], "timm has no such model; near: convnext_nano"),
        (["digits", "encoder.backbone=timm:vit_tiny_patch16_224,pretrained=1"], "one of class_token, depth"),
        (
            [
                "digits",
                "data.source=folder",
                "data.path=/nowhere/at/all",
                "train.batch_size=63",
                "resources.gpus_per_worker=1",
            ],
            "3 mistakes",
        ),
        (["digits", "resources.workers=2", "resources.gpus_per_worker=0.5"], "one worker a GPU"),
    ],
)
def test_a_wrong_request_is_one_message_and_exit_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcl_ray.runs.request.gpus_here", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["train", *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert not list((home() / "runs").glob("*/config.yaml"))


def test_a_cluster_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert cli.main(["train", "digits"]) == 2
    assert "RAY_ADDRESS = '127.0.0.1:1': no Ray cluster answers there" in capsys.readouterr().err


def test_mistakes_of_recipe_and_cross_checks_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            [
                "train",
                "digits",
                "e_step.num_clusters=5000",
                "los.alpha=1",
                "optimizer.lr=-1",
                "train.batch_size=4000",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    for name in ("4 mistakes", "e_step.num_clusters", "los.alpha", "optimizer.lr", "train.batch_size"):
        assert name in said


def test_labels_of_another_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((300, 8, 8), np.uint8), labels=np.zeros(299))
    assert train("data.source=arrays", f"data.path={tmp_path / 'a.npz'}") == 2
    assert "299" in (said := capsys.readouterr().err)
    assert "300" in said


def test_a_folder_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "readme.txt").write_text("no picture")
    assert train("data.source=folder", f"data.path={tmp_path}") == 2
    assert "no images" in capsys.readouterr().err


def test_a_request_without_mistakes_has_a_plan_and_notes() -> None:
    checked = request.check("digits", ["e_step.warmup_epochs=900"])
    assert checked.plan.num_images == 1438
    assert checked.config.e_step.warmup_epochs == 900
    assert any("this run is InfoNCE only" in note for note in checked.notes)


def test_the_configuration_comes_first_then_addresses_the_plan_and_the_data() -> None:
    assert problem_names(
        "data.source=folder",
        "data.path=/nowhere",
        "train.batch_size=63",
        "resources.workers=2",
        "resources.storage=relative/path",
        "tracking.uri=file:///tmp/mlruns",
        "optimizer.lr=-1",
    ) == ["optimizer.lr", "tracking.uri", "resources.storage", "train.batch_size", "data.path"]


def test_a_knob_that_is_wrong_already_gets_no_second_message(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "resources.storage=s3://key:secret@bucket/path"
    assert problem_names(secret) == ["resources.storage"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert problem_names(secret, "resources.workers=1") == ["resources.storage", "RAY_ADDRESS"]


def test_missing_data_alone_are_no_mistake_in_a_knob() -> None:
    with pytest.raises(DataError, match="does not exist"):
        request.check("digits", ["data.source=folder", "data.path=/nowhere"])


def test_a_run_that_goes_on_may_hold_what_is_refused_today() -> None:
    config = configs.load("digits", ["tracking.uri=http://user:word@server/"])
    assert request.check_config(config, stored=True).config == config
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        request.check_config(config)


def test_going_on_changes_where_a_run_is_computed_and_not_what() -> None:
    config = configs.load("digits")
    assert request.changed(config, ["train.epochs=77"], "mine").train.epochs == 77
    with pytest.raises(ConfigError) as caught:
        request.changed(config, ["loss.temperature=0.3", "encoder.width=8", "train.epochs=77"], "mine")
    assert [str(problem) for problem in caught.value.problems] == [
        "encoder.width = 8: cannot change when a run goes on; it is 32 there. Start a new run",
        "loss.temperature = 0.3: cannot change when a run goes on; it is 0.2 there. Start a new run, or go on"
        " from its weights: pcl-ray fork mine loss.temperature=0.3",
    ]


def test_what_a_recipe_chose_is_adjusted_and_what_the_user_did_is_refused() -> None:
    few = ["data.limit=40", "resources.workers=0", "e_step.num_clusters=4", "train.epochs=12"]
    checked = request.check("digits", few)
    assert checked.config.train.batch_size == 32
    assert checked.config.loss.queue_size == 256
    assert sum("the recipe's" in note for note in checked.notes) == 2
    assert problem_names(*few, "train.batch_size=64") == ["train.batch_size"]
    assert problem_names(*few, "loss.queue_size=512") == ["loss.queue_size"]


def test_a_recipe_file_of_the_user_is_what_the_user_chose(tmp_path: Path) -> None:
    config = request.check("digits", ["data.limit=400"]).config
    (tmp_path / "mine.yaml").write_text(config.to_yaml())
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        request.check(str(tmp_path / "mine.yaml"), ["data.limit=40", "e_step.num_clusters=4"])


def test_the_folder_recipe_says_what_it_has_chosen(tmp_path: Path) -> None:
    for number in range(60):
        Image.new("RGB", (50, 40), (4 * number, 0, 0)).save(tmp_path / f"{number}.png")
    checked = request.check("folder", [f"data.path={tmp_path}", "train.epochs=9"])
    assert checked.notes[0].startswith("chosen for 48 pictures of about 40 px, ")
    assert (checked.config.train.epochs, checked.config.e_step.warmup_epochs) == (9, 2)
    assert (checked.config.resources.workers, checked.config.train.batch_size) == (0, 8)
