"""A fork: another run's weights, other knobs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files, remote, run_state
from pcl_ray.errors import RunFailed
from pcl_ray.runs.folder import RunFolder, read_state_at
from pcl_ray.support import storage

SMALL = ("resources.workers=0", *DIGITS_RUN, "train.keep_checkpoints=10")


@pytest.fixture(autouse=True)
def _origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", *SMALL, "--name", "origin"]) == 0
    capsys.readouterr()


def states(name: str) -> list[run_state.RunState]:
    """Of all checkpoints in the run's folder, oldest first."""
    return [run_state.load(path) for path in epoch_files.complete(RunFolder.path_of(name) / "checkpoints")]


def weights(state: run_state.RunState) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in state.learner["model"].values()])


def assert_begins_where_the_origin_ended(name: str) -> None:
    """Its first epoch, the fifth, begins with the weights after the origin's fourth, and with its history."""
    origin, forked = states("origin")[-1], states(name)
    assert [state.epoch for state in forked] == [4, 5, 6]
    assert torch.equal(weights(forked[0]), weights(origin))
    assert [entry["epoch"] for entry in forked[-1].history] == [0, 1, 2, 3, 4, 5]
    assert forked[-1].history[:4] == origin.history


def test_a_fork_goes_on_from_a_checkpoint_with_its_own_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        path.name: path.read_bytes() for path in (RunFolder.path_of("origin") / "checkpoints").iterdir()
    }
    assert (
        cli.main(
            [
                "fork",
                "origin",
                "loss.temperature=0.5",
                "e_step.num_clusters=5",
                "train.epochs=4",
                "--epoch",
                "2",
                "--name",
                "forked",
            ]
        )
        == 0
    )
    assert "fork       origin@2" in capsys.readouterr().out
    assert {
        path.name: path.read_bytes() for path in (RunFolder.path_of("origin") / "checkpoints").iterdir()
    } == before
    folder = RunFolder.path_of("forked")
    assert [epoch_files.epochs_done(path) for path in epoch_files.complete(folder / "checkpoints")] == [
        2,
        3,
        4,
    ]
    assert read_state_at(folder)["forked_from"] == "origin@2"
    origin, forked = states("origin"), states("forked")
    assert forked[-1].history[:2] == origin[1].history  # what they share
    assert forked[-1].clusters is not None
    assert [clustering.prototypes.shape[0] for clustering in forked[-1].clusters.clusterings] == [5]
    assert torch.equal(weights(forked[0]), weights(origin[1]))
    assert not torch.equal(weights(forked[-1]), weights(origin[-1]))


def test_a_fork_with_the_same_knobs_begins_where_the_origin_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fork", "origin", "train.epochs=6"]) == 0
    name = next(
        path.name for path in RunFolder.path_of("x").parent.iterdir() if path.name.startswith("origin-")
    )
    assert f"{name} (finished)" in capsys.readouterr().out
    assert_begins_where_the_origin_ended(name)


def test_a_fork_whose_checkpoints_are_on_a_storage_is_the_same(tmp_path: Path) -> None:
    """Its workers look there alone for what they begin with."""
    shared = tmp_path / "shared"
    assert cli.main(["fork", "origin", "train.epochs=6", "--name", "here"]) == 0
    assert (
        cli.main(["fork", "origin", "train.epochs=6", f"resources.storage={shared}", "--name", "there"]) == 0
    )
    assert_begins_where_the_origin_ended("there")
    assert torch.equal(weights(states("there")[-1]), weights(states("here")[-1]))
    assert remote.names(storage.of_run(str(shared), "there")) == [
        "epoch_00004.pt",
        "epoch_00005.pt",
        "epoch_00006.pt",
    ]


def test_a_storage_that_does_not_take_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has failed, and goes on from what it was to begin with."""

    def put(*_: object) -> storage.ObjectVersion:
        raise RunFailed("the network is away")

    with monkeypatch.context() as away:
        away.setattr(storage.Storage, "upload", put)
        assert (
            cli.main(
                [
                    "fork",
                    "origin",
                    "train.epochs=6",
                    f"resources.storage={tmp_path}/shared",
                    "--name",
                    "there",
                ]
            )
            == 1
        )
    assert "the network is away" in capsys.readouterr().err
    assert read_state_at(RunFolder.path_of("there"))["state"] == "failed"
    assert cli.main(["resume", "there"]) == 0
    assert_begins_where_the_origin_ended("there")


@pytest.mark.parametrize("by_environment", [True, False])
def test_the_origin_is_found_on_the_storage(
    by_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint got there once the run had ended, so its configuration names none; no folder is left."""
    shared, kept = str(tmp_path / "shared"), states("origin")[-1]
    with monkeypatch.context() as named:
        named.setenv(storage.VARIABLE, shared)
        assert cli.main(["resume", "origin"]) == 0
    shutil.rmtree(RunFolder.path_of("origin"))
    words = [] if by_environment else [f"resources.storage={shared}"]
    if by_environment:
        monkeypatch.setenv(storage.VARIABLE, shared)
    assert cli.main(["fork", "origin", "train.epochs=6", *words, "--name", "forked"]) == 0
    assert torch.equal(weights(states("forked")[0]), weights(kept))
    assert configs.load(RunFolder.path_of("forked") / "config.yaml").resources.storage == shared


def test_another_run_of_that_name_on_the_storage_is_not_the_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = storage.of_run(str(tmp_path / "shared"), "origin")
    other.write("state.json", b'{"began_at": 12.5}')
    other.write("checkpoints/epoch_00009.pt", b"of somebody else")
    monkeypatch.setenv(storage.VARIABLE, other.uri)
    assert cli.main(["fork", "origin", "train.epochs=6", "--name", "forked"]) == 0
    assert_begins_where_the_origin_ended("forked")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["orign", "train.epochs=9"], "did you mean 'origin'?"),
        (["origin"], "has trained 4 epochs already"),
        (["origin", "train.epochs=9", "--epoch", "7"], "keeps the checkpoints after 1, 2, 3, 4 epochs"),
        (["origin", "train.epochs=9", "encoder.dim=32", "loss.queue_size=50"], "cannot change in a fork"),
        (["origin", "train.epochs=9", "loss.temprature=1"], "did you mean 'loss.temperature'?"),
        (["origin", "train.epochs=9", "--name", "origin"], "exists already"),
    ],
)
def test_what_a_fork_refuses(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fork", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in RunFolder.path_of("x").parent.iterdir()] == ["origin"]


def test_resume_finds_out_whether_it_is_a_run_or_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", "origin"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert cli.main(["resume", "nobody"]) == 2
    assert "there is no run 'nobody'" in capsys.readouterr().err
