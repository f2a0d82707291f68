"""What `pcl-ray prune` finds, what it frees, and what it leaves alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from stored_runs import made

from pcl_ray import cli
from pcl_ray.checkpoints import run_state
from pcl_ray.checkpoints.run_state import RunState
from pcl_ray.config import EncoderConfig
from pcl_ray.runs.folder import RunFolder, SweepFolder
from pcl_ray.support.paths import home


def checkpoints(name: str) -> list[str]:
    return sorted(path.name for path in (RunFolder.path_of(name) / "checkpoints").glob("*.pt"))


def write(path: Path, size: int = 1024, *, age_s: float = 7200.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def sweep() -> None:
    """A sweep that has finished, with a best trial, another one, and a warm-up that both began with."""
    folder = made("many", SweepFolder)
    shared = write(folder / "warmups" / "k" / "epoch_00002.pt", 4096)
    for name in ("many.best", "many.other"):
        trial = made(name, sweep="many")
        os.link(shared, trial / "checkpoints" / "epoch_00002.pt")
        write(trial / "checkpoints" / "epoch_00004.pt", 3000)
    rows = [{"trials": [{"run": "many.best"}]}, {"trials": [{"run": "many.other"}]}]
    (folder / "leaderboard.json").write_text(json.dumps({"rows": rows}))
    (folder / "best.yaml").write_text("{}")


def test_it_lists_and_removes_nothing_until_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    path = made("mine")
    write(path / "checkpoints" / "epoch_00002.pt", 10_000)
    write(path / "checkpoints" / "epoch_00003.pt", 10_000)
    running = made("running", state="stopped")
    write(running / "checkpoints" / "epoch_00002.pt", 10_000)
    assert cli.main(["prune"]) == 0
    out = capsys.readouterr().out
    assert "would free  11.8 KiB; nothing is removed yet: `pcl-ray prune --yes` does it" in out
    assert len(checkpoints("mine")) == 3
    assert cli.main(["prune", "--yes"]) == 0
    assert "freed       11.8 KiB" in capsys.readouterr().out
    assert checkpoints("mine") == ["epoch_00003.pt"]
    assert len(checkpoints("running")) == 2  # it may go on, or be forked earlier
    assert cli.main(["prune"]) == 0
    assert "there is nothing to remove" in capsys.readouterr().out


def test_trials_but_the_best_lose_their_checkpoints(sweep: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune", "trials"]) == 0
    # the shared warm-up stays on the disk: others have it as well
    assert "would free  4.9 KiB" in capsys.readouterr().out
    assert cli.main(["prune", "warm-ups", "trials", "checkpoints"]) == 0
    assert f"would free  {(4096 + 3000 + 2048 + 2048) / 1024:.1f} KiB" in capsys.readouterr().out
    assert cli.main(["prune", "trials", "--yes"]) == 0
    assert checkpoints("many.other") == []
    assert len(checkpoints("many.best")) == 3
    SweepFolder.path_of("many").joinpath("best.yaml").unlink()  # without a winner all stay
    assert cli.main(["prune", "trials", "--yes"]) == 0
    assert len(checkpoints("many.best")) == 3


def test_what_is_under_way_is_left_alone(sweep: None, capsys: pytest.CaptureFixture[str]) -> None:
    write(home() / "cache" / "abc.bin", 5000)
    with RunFolder.open("many.other"), SweepFolder.open("many"):
        assert cli.main(["prune"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for word in ("trials", "warm-ups", "shards"):
            assert any(line.startswith(f"{word} ") and " 0 B " in line for line in lines), lines
    assert cli.main(["prune", "shards", "--yes"]) == 0
    assert not (home() / "cache" / "abc.bin").exists()


def test_files_of_killed_processes_go_when_nobody_can_be_writing_them() -> None:
    path = made("mine")
    old = write(path / "checkpoints" / "epoch_00009.pt.partial")
    young = write(path / "report.html.1-2.partial", age_s=10)
    left = write(home() / ".leaving" / "gone-1" / "config.yaml")
    assert cli.main(["prune", "partial", "--yes"]) == 0
    assert (old.exists(), young.exists(), left.exists()) == (False, True, False)


def test_damaged_checkpoints_and_decoded_pictures_can_go() -> None:
    path = made("mine")
    damaged = write(path / "checkpoints" / "epoch_00009.pt.damaged")
    decoded = write(home() / "decoded" / "abc.npy")
    assert cli.main(["prune", "partial", "--yes"]) == 0
    assert not damaged.exists()
    assert checkpoints("mine")
    assert cli.main(["prune", "decoded", "--yes"]) == 0
    assert not decoded.exists()


def test_the_best_checkpoint_stays_where_it_is_to_be_kept() -> None:
    for name, words in (("keeps", ("train.keep_best=1",)), ("plain", ())):
        folder = made(name, overrides=words) / "checkpoints"
        for epoch in (1, 2, 3):
            history = [
                {"epoch": e, "step": e, "metrics": {"eval/knn_top1": 0.9 - e / 10}} for e in range(epoch)
            ]
            state = RunState(
                epoch, {"model": {}, "queue": {}, "optimizer": {}}, None, [], history, EncoderConfig(), 1
            )
            run_state.save(state, folder, keep=9)
    assert cli.main(["prune", "checkpoints", "--yes"]) == 0
    assert checkpoints("keeps") == ["epoch_00001.pt", "epoch_00003.pt"]
    assert checkpoints("plain") == ["epoch_00003.pt"]


def test_a_copy_in_a_storage_is_cleared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = tmp_path / "shared"
    path = made("mine", overrides=(f"resources.storage={uri}",))
    for epoch in (1, 2):
        write(uri / "runs" / "mine" / "checkpoints" / f"epoch_0000{epoch}.pt", 2000)
    assert cli.main(["prune", "checkpoints", "--yes"]) == 0
    assert "and 2.0 KiB in storages" in capsys.readouterr().out
    assert [file.name for file in (uri / "runs" / "mine" / "checkpoints").iterdir()] == ["epoch_00002.pt"]
    assert len(checkpoints(path.name)) == 1


def test_a_word_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune", "everything"]) == 2
    assert (
        "'everything' is nothing that can be cleared; one of partial, checkpoints" in capsys.readouterr().err
    )
