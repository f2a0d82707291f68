"""A fork: another run's weights, other knobs."""

from __future__ import annotations

import pytest
import torch
from small import DIGITS_RUN

from pcl_ray import checkpoint, checkpoint_files, cli
from pcl_ray.service.folder import RunFolder, read_state_at

SMALL = ("resources.workers=0", *DIGITS_RUN, "train.keep_checkpoints=10")


@pytest.fixture(autouse=True)
def _origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", *SMALL, "--name", "origin"]) == 0
    capsys.readouterr()


def test_a_fork_goes_on_from_a_checkpoint_with_its_own_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in (RunFolder.path_of("origin") / "checkpoints").iterdir()}
    assert cli.main(["fork", "origin", "loss.temperature=0.5", "e_step.num_clusters=5", "train.epochs=4", "--epoch", "2", "--name", "forked"]) == 0
    assert "fork       origin@2" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (RunFolder.path_of("origin") / "checkpoints").iterdir()} == before
    folder = RunFolder.path_of("forked")
    assert [checkpoint_files.epochs_done(path) for path in checkpoint_files.complete(folder / "checkpoints")] == [2, 3, 4]
    assert read_state_at(folder)["forked_from"] == "origin@2"
    origin = [checkpoint.load(path) for path in checkpoint_files.complete(RunFolder.path_of("origin") / "checkpoints")]
    forked = [checkpoint.load(path) for path in checkpoint_files.complete(folder / "checkpoints")]
    assert forked[-1].history[:2] == origin[1].history  # what they share
    assert forked[-1].clusters is not None
    assert [clustering.prototypes.shape[0] for clustering in forked[-1].clusters.clusterings] == [5]

    def weights(state: checkpoint.RunState) -> torch.Tensor:
        return torch.cat([value.flatten().float() for value in state.learner["model"].values()])

    assert torch.equal(weights(forked[0]), weights(origin[1]))
    assert not torch.equal(weights(forked[-1]), weights(origin[-1]))


def test_a_fork_with_the_same_knobs_trains_on_where_the_origin_would(capsys: pytest.CaptureFixture[str]) -> None:
    """Its E-step is made anew from the same features: a cold start in the origin, so that both are the same."""
    assert cli.main(["fork", "origin", "train.epochs=6"]) == 0
    name = next(path.name for path in RunFolder.path_of("x").parent.iterdir() if path.name.startswith("origin-"))
    newest = checkpoint_files.latest(RunFolder.path_of(name) / "checkpoints")
    assert newest is not None
    assert checkpoint_files.epochs_done(newest) == 6
    assert f"{name} (finished)" in capsys.readouterr().out


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
