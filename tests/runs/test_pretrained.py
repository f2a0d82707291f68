"""Runs that begin with trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.model.weights import load_encoder, read_weights
from pcl_ray.runs.folder import RunFolder, read_state_at

SMALL = ("resources.workers=0", *DIGITS_RUN, "train.keep_checkpoints=10")


def states(name: str) -> list[run_state.RunState]:
    return [run_state.load(path) for path in epoch_files.complete(RunFolder.path_of(name) / "checkpoints")]


def same(one: run_state.RunState, two: run_state.RunState) -> bool:
    ours, theirs = one.learner["model"], two.learner["model"]
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture
def origin(capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["train", "digits", *SMALL, "--name", "origin"]) == 0
    capsys.readouterr()
    return "origin"


def test_a_run_from_a_run(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, f"encoder.init_from={origin}", "encoder.freeze_stages=2", "seed=4", "optimizer.lr=0.001"]
    assert cli.main(["train", "digits", *words, "--name", "second"]) == 0
    shown = capsys.readouterr().out
    assert "weights    query encoder of a pcl_ray checkpoint after" in shown
    assert "queue taken over" in shown
    source, mine = states(origin)[-1], states("second")
    assert mine[0].epoch == 0
    assert same(mine[0], source)
    assert [entry["epoch"] for entry in mine[-1].history] == list(range(mine[-1].epoch))
    assert not same(mine[-1], source)
    frozen = "query.backbone.stem.0.weight"
    assert torch.equal(mine[-1].learner["model"][frozen], source.learner["model"][frozen])
    assert "after" in read_state_at(RunFolder.path_of("second"))["weights"]
    # the file is not needed any more
    for path in (RunFolder.path_of(origin) / "checkpoints").iterdir():
        path.unlink()
    done = mine[-1].epoch
    assert cli.main(["train", "--resume", "second", f"train.epochs={done + 1}"]) == 0
    assert cli.main(["fork", "second", f"train.epochs={done + 2}", "--name", "third"]) == 0
    assert read_state_at(RunFolder.path_of("third"))["forked_from"] == f"second@{done + 1}"


def test_backbone_and_head_of_the_weights(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encoder.backbone=init_from", "encoder.width=32", "encoder.dim=16", "encoder.head=linear"]
    words += [f"encoder.init_from={origin}", "train.epochs=1", "optimizer.warmup_epochs=0"]
    assert cli.main(["train", "digits", *SMALL, *words, "--name", "second"]) == 0
    source, mine = (RunFolder.open(name) for name in (origin, "second"))
    with source, mine:
        ours, theirs = mine.read_config().encoder, source.read_config().encoder
    assert ours.model_copy(update={"init_from": None}) == theirs
    assert same(states("second")[0], states(origin)[-1])
    # a file without a head leaves that of the recipe
    assert cli.main(["export", origin, "--to", "safetensors"]) == 0
    folder = RunFolder.path_of("x").parents[1] / "exports" / f"{origin}-safetensors"
    words = [*words[:4], f"encoder.init_from={folder}", "encoder.head_batch_norm=false", "--dry-run"]
    words += ["encoder.head_width=null"]
    assert cli.main(["train", "digits", *SMALL, *words]) == 0
    capsys.readouterr()
    assert cli.main(["train", "folder_pretrained", f"data.path={folder}", "--dry-run"]) == 2
    assert "encoder.init_from = None: which weights?" in capsys.readouterr().err


def test_what_cannot_be_taken_is_said_before_anything_starts(
    origin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    for words, said in (
        (["encoder.init_from=orign"], "encoder.init_from = 'orign': 'orign' is neither a run under"),
        ([f"encoder.init_from={tmp_path}/text.pt"], "cannot be read as a checkpoint"),
        ([f"encoder.init_from={origin}", "encoder.width=32"], "it takes encoder.width="),
        (["encoder.freeze_stages=40"], "encoder.freeze_stages = 40: small_resnet has"),
    ):
        assert cli.main(["train", "digits", *SMALL, *words, "--name", "new"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
        assert not RunFolder.path_of("new").exists()


def test_advice_for_trained_weights(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer.lr=0.5", "optimizer.warmup_epochs=0"]
    assert cli.main(["train", "digits", *SMALL, *words, "--dry-run"]) == 0
    assert "smaller steps" not in capsys.readouterr().out
    assert cli.main(["train", "digits", *SMALL, *words, f"encoder.init_from={origin}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "trained weights want smaller steps" in shown
    assert "optimizer.warmup_epochs = 0" in shown


def test_a_vit_from_timm_trains_and_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3}
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", **options).state_dict(), tmp_path / "vit.pth")
    backbone = "timm:vit_tiny_patch16_224," + ",".join(f"{name}={value}" for name, value in options.items())
    words = [*SMALL, f"encoder.backbone={backbone}", "encoder.stem_stride=1", "encoder.batch_norm_parts=1"]
    words += ["optimizer.name=adamw", "optimizer.lr=0.001", "train.epochs=2", "e_step.warmup_epochs=1"]
    assert cli.main(["train", "digits", *words, "--name", "vit"]) == 0, capsys.readouterr().err
    weights = read_weights("vit", encoder="momentum")
    assert weights.config.backbone == backbone
    assert weights.encoder(torch.randn(2, 1, 12, 12)).shape == (2, weights.config.dim)
    assert cli.main(["train", "digits", *words, "encoder.init_from=vit", "--name", "again"]) == 0
    assert load_encoder("again").backbone.pos_embed.shape[2] == 48
    assert cli.main(["train", "digits", *words, "augment.image_size=13", "--name", "odd"]) == 2
    assert "augment.image_size = 13" in capsys.readouterr().err
