"""Whole runs in one process (`resources.workers=0`) by the command: what they write, resume and refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.errors import Stopped
from pcl_ray.model.weights import load_encoder
from pcl_ray.runs import driver
from pcl_ray.runs.console import Display
from pcl_ray.training.events import Event

TINY = ("resources.workers=0", *DIGITS_RUN, "train.log_every_steps=2", "train.keep_checkpoints=10")


def train(*words: str) -> int:
    return cli.main(["train", "digits", *TINY, *words])


def home() -> Path:
    return Path(os.environ["PCL_RAY_HOME"])


def weights(name: str, epoch: int) -> dict[str, Any]:
    state = run_state.load(home() / "runs" / name / "checkpoints" / f"epoch_{epoch:05d}.pt")
    flat = {**state.learner["model"], "queue": state.learner["queue"]["keys"]}
    assert state.clusters is not None
    for m, clustering in enumerate(state.clusters.clusterings):
        flat |= {
            f"{m}.prototypes": clustering.prototypes,
            f"{m}.assignments": clustering.assignments,
            f"{m}.phi": clustering.concentration,
        }
    return {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_a_run_writes_result_checkpoint_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    assert train("--name", "one", "--result", str(result)) == 0
    written = json.loads(result.read_text())
    assert written["run_name"] == "one"
    assert written["state"] == "finished"
    assert written["run_dir"] == str(home() / "runs" / "one")
    for name in (
        "train/loss",
        "train/loss_prototype",
        "eval/knn_top1",
        "eval/head/knn_top1",
        "eval/pixels/knn_top1",
        "eval/untrained/knn_top1",
        "eval/rankme",
        "eval/uniformity",
        "eval/alignment",
        "cluster/1/ami",
    ):
        assert name in written["metrics"]
    encoder = load_encoder(written["checkpoint"], encoder="momentum")
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, 16)
    out = capsys.readouterr().out
    for shown in ("kNN accuracy", "AMI", "images/s", "E-step", "one (finished)", "data.path="):
        assert shown in out


@pytest.mark.slow
def test_nothing_is_written_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert train("train.epochs=2", "tracking.enabled=true") == 0
    assert list(empty.iterdir()) == []


@pytest.mark.slow
def test_a_tracking_server_that_is_down_costs_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train(
            "train.epochs=2",
            "tracking.enabled=true",
            "tracking.uri=http://127.0.0.1:9",
            "--name",
            "untracked",
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "warning: " in captured.err
    assert "http://127.0.0.1:9" in captured.err
    assert "untracked (finished)" in captured.out
    pending = home() / "runs/untracked/mlflow_pending.jsonl"
    assert pending.stat().st_size > 0
    store = f"sqlite:///{home()}/mlflow/mlflow.db"
    assert (
        cli.main(
            ["train", "--resume", "untracked", f"tracking.uri={store}", "--result", str(home() / "r.json")]
        )
        == 0
    )
    assert not pending.exists()
    run_id = json.loads((home() / "r.json").read_text())["mlflow_run_id"]
    assert len(MlflowClient(store).get_metric_history(run_id, "train/loss")) == 4


OTHER_ENCODER = (
    "encoder.stem_stride=2",
    "encoder.head=mlp",
    "encoder.head_width=24",
    "encoder.head_batch_norm=true",
    "encoder.batch_norm_parts=4",
    "encoder.momentum_end=1",
    "optimizer.decay_biases=false",
)


@pytest.mark.parametrize(
    "words", [(), pytest.param(OTHER_ENCODER, marks=pytest.mark.slow)], ids=["", "another encoder"]
)
def test_a_resumed_run_is_bit_identical_to_one_never_stopped(words: tuple[str, ...]) -> None:
    class StopsAfterTwo(Display):
        def handle(self, event: Event) -> None:
            if event.kind == "step" and event.epoch == 2:
                raise Stopped("cut", signal.SIGTERM)

    from pcl_ray.runs import request

    assert train("--name", "whole", *words) == 0
    with pytest.raises(Stopped):
        driver.start(request.check("digits", [*TINY, *words]), name="cut", display=StopsAfterTwo())
    assert json.loads((home() / "runs/cut/state.json").read_text())["state"] == "stopped"
    assert (
        epoch_files.latest(home() / "runs/cut/checkpoints") == home() / "runs/cut/checkpoints/epoch_00002.pt"
    )
    assert cli.main(["train", "--resume", "cut"]) == 0
    for epoch in (2, 3, 4):
        assert_same(weights("whole", epoch), weights("cut", epoch))


def test_a_finished_run_says_so_and_more_epochs_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--name", "short", "train.epochs=2") == 0
    before = weights("short", 2)
    assert cli.main(["train", "--resume", "short"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert_same(before, weights("short", 2))
    assert cli.main(["train", "--resume", "short", "train.epochs=3"]) == 0
    assert "going on with epoch 3/3" in capsys.readouterr().out


def test_resume_refuses_knobs_that_change_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--name", "fixed", "train.epochs=2") == 0
    assert cli.main(["train", "--resume", "fixed", "loss.temperature=0.5", "train.epochs=3"]) == 2
    error = capsys.readouterr().err
    assert "loss.temperature" in error
    assert "0.2" in error
    assert "Traceback" not in error


def test_a_taken_name_keeps_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--name", "mine", "train.epochs=2") == 0
    before = weights("mine", 2)
    assert train("--name", "mine") == 2
    assert "--resume mine" in capsys.readouterr().err
    assert_same(before, weights("mine", 2))


def test_warm_up_over_the_whole_run_is_infonce_only_and_said_aloud(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train("e_step.warmup_epochs=2", "train.epochs=2", "--result", str(tmp_path / "r.json")) == 0
    assert "InfoNCE only" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert "train/loss_prototype" not in metrics
    assert not any(name.startswith("cluster/") for name in metrics)


def test_without_warm_up_the_first_epoch_has_clusters(tmp_path: Path) -> None:
    assert (
        train(
            "e_step.warmup_epochs=0",
            "train.epochs=1",
            "optimizer.warmup_epochs=0",
            "--result",
            str(tmp_path / "r.json"),
        )
        == 0
    )
    assert "train/loss_prototype" in json.loads((tmp_path / "r.json").read_text())["metrics"]


def test_a_loss_that_is_not_finite_stops_with_epoch_step_cause_and_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # At this rate weights overflow after some steps. Evaluation off: the last epochs' checkpoint stands.
    words = (
        "--name",
        "hot",
        "optimizer.lr=100",
        "optimizer.momentum=0.99",
        "optimizer.weight_decay=1",
        "train.epochs=40",
    )
    assert train(*words, "--result", str(home().parent / "hot.json")) == 1
    assert json.loads((home().parent / "hot.json").read_text())["state"] == "failed"
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "optimizer.lr" in error
    assert "epoch" in error
    assert json.loads((home() / "runs/hot/state.json").read_text())["state"] == "failed"


def test_labels_are_optional(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "pictures.npy", rng.integers(0, 255, (200, 8, 8), dtype=np.uint8))
    words = [
        "data.source=arrays",
        f"data.path={tmp_path / 'pictures.npy'}",
        "train.epochs=2",
        "--result",
        str(tmp_path / "r.json"),
    ]
    assert train(*words) == 0
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert {
        "eval/rankme",
        "eval/uniformity",
        "eval/alignment",
        "cluster/0/nmi_previous",
    } <= metrics.keys() | {"cluster/0/nmi_previous"}
    assert not {"eval/knn_top1", "eval/pixels/knn_top1", "cluster/0/ami"} & metrics.keys()


def test_a_folder_with_bad_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(150):
        Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    folder = ["data.source=folder", f"data.path={tmp_path}", "train.epochs=2", "train.batch_size=32"]
    assert train(*folder) == 2
    error = capsys.readouterr().err
    assert "2 of 152" in error
    assert "empty.jpg: empty file" in error
    assert "cut.png: " in error
    assert not (home() / "runs").exists() or not any((home() / "runs").iterdir())
    assert train(*folder, "data.on_bad_image=skip") == 0
    assert "empty.jpg: empty file" in capsys.readouterr().err


def test_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "a_file"))
    assert train() == 2
    assert "PCL_RAY_HOME" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--dry-run", "loss.negative_prototypes=5", "e_step.num_clusters=0.02,12") == 0
    out = capsys.readouterr().out
    for shown in (
        "6, 12",
        "5, 5 negative prototypes",
        "4 an epoch, 16 in 4 epochs",
        "64 a worker",
        "epochs 2-4",
        "100 keys",
        "features",
        "assignments",
    ):
        assert shown in out
    assert not home().exists()


def test_describe_lists_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--describe"]) == 0
    out = capsys.readouterr().out
    for name in ("loss.temperature = 0.2", "e_step.alpha", "e_step.num_clusters", "number > 0"):
        assert name in out


# In a process of its own: the limit is for good.
_ON_A_FULL_DISK = """
import resource, signal, sys
from pcl_ray import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(cli.main(["train", "--resume", "full"]))
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(run_python: Any) -> None:
    from pcl_ray.runs import request

    class StopsAfterOne(Display):
        def handle(self, event: Event) -> None:
            if event.kind == "epoch":
                raise Stopped("full", signal.SIGTERM)

    with pytest.raises(Stopped):
        driver.start(request.check("digits", TINY), name="full", display=StopsAfterOne())
    checkpoints = home() / "runs/full/checkpoints"
    size = (checkpoints / "epoch_00001.pt").stat().st_size
    ended = run_python(_ON_A_FULL_DISK, str(size // 2))
    assert ended.returncode == 1, ended.stderr
    assert "could not be written" in ended.stderr
    assert "epoch_00001.pt" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in checkpoints.iterdir()] == ["epoch_00001.pt"]
    assert cli.main(["train", "--resume", "full"]) == 0


def test_sigterm_stops_a_run_that_resumes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pcl_ray.cli",
        "train",
        "digits",
        *TINY,
        "train.epochs=500",
        "--name",
        "long",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while (
                epoch_files.latest(home() / "runs/long/checkpoints") is None and time.monotonic() < deadline
            ):
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume long" in error
    assert "Traceback" not in error
    done = epoch_files.epochs_done(
        epoch_files.latest(home() / "runs/long/checkpoints") or Path("epoch_00000.pt")
    )
    assert cli.main(["train", "--resume", "long", f"train.epochs={done + 1}"]) == 0


def test_a_run_that_ended_in_its_warm_up_and_is_made_longer_clusters_at_once() -> None:
    """The straight run clusters before epoch 3; so must the stopped one, whose checkpoint has no clusters."""
    assert (
        train("--name", "warm", "e_step.warmup_epochs=2", "train.epochs=2", "optimizer.schedule=constant")
        == 0
    )
    assert cli.main(["train", "--resume", "warm", "train.epochs=4"]) == 0
    assert (
        train("--name", "straight", "e_step.warmup_epochs=2", "train.epochs=4", "optimizer.schedule=constant")
        == 0
    )
    assert_same(weights("warm", 4), weights("straight", 4))


@pytest.mark.slow
def test_mlflow_has_the_means_of_the_epochs(tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    assert train("tracking.enabled=true", "--result", str(result)) == 0
    written = json.loads(result.read_text())
    points = MlflowClient(f"sqlite:///{home()}/mlflow/mlflow.db").get_metric_history(
        written["mlflow_run_id"], "train/loss"
    )
    # every second of four steps, the last being the epoch's mean
    assert [point.step for point in points] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert points[-1].value == written["metrics"]["train/loss"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("pcl_ray.training.feature_pass.FeaturePass.train", broken)
    with pytest.raises(AssertionError):
        train("--name", "bug")
    assert "AssertionError" in (home() / "runs/bug/error.txt").read_text()
    state = json.loads((home() / "runs/bug/state.json").read_text())
    assert (state["state"], state["error"]) == ("failed", "AssertionError()")


def pictures(folder: Path, count: int = 120) -> list[str]:
    """Small pictures of several sizes, and the words that train on them."""
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (10 + i % 3, 12, 3), dtype=np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    return [
        "data.source=folder",
        f"data.path={folder}",
        "train.epochs=2",
        "train.batch_size=32",
        "loss.queue_size=64",
        "optimizer.warmup_epochs=0",
    ]


def perf_of(result: Path) -> dict[str, float]:
    """The figures of how fast the run was, of which those that make sense are checked."""
    metrics = json.loads(result.read_text())["metrics"]
    figures = {
        name.removeprefix("perf/"): value for name, value in metrics.items() if name.startswith("perf/")
    }
    assert figures["images_per_second"] > 0
    assert 0 <= figures["data_share"] <= 1
    assert figures["data_share"] == pytest.approx(figures["data_seconds"] / figures["m_step_seconds"])
    assert 0 < figures["step_seconds_median"] <= figures["step_seconds_p95"] <= figures["m_step_seconds"]
    assert figures["m_step_seconds"] <= figures["epoch_seconds"]
    assert 0 <= figures["e_step_share"] <= 1
    assert figures["memory_gb"] > 0
    return figures


def test_a_run_tells_how_fast_it_was(tmp_path: Path) -> None:
    assert train("train.epochs=2", "--result", str(tmp_path / "r.json")) == 0
    figures = perf_of(tmp_path / "r.json")
    assert figures["e_step_share"] == pytest.approx(figures["e_step_seconds"] / figures["epoch_seconds"])
    assert figures["e_step_share"] > 0
    assert (
        train(
            "train.epochs=2",
            "e_step.warmup_epochs=9",
            "train.micro_batch=20",
            "--result",
            str(tmp_path / "r.json"),
        )
        == 0
    )
    assert perf_of(tmp_path / "r.json")["e_step_share"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["data.in_memory=true"],
        ["data.in_memory=false"],
        ["data.in_memory=false", "augment.engine=torchvision"],
    ],
    ids=" ".join,
)
def test_pictures_in_files_decoded_once_or_each_time(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "pictures").mkdir()
    assert (
        train(
            *pictures(tmp_path / "pictures"),
            *words,
            "data.loader_workers=0",
            "--result",
            str(tmp_path / "r.json"),
        )
        == 0
    )
    metrics = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert {"train/loss_prototype", "eval/rankme"} <= metrics.keys()
    perf_of(tmp_path / "r.json")


@pytest.mark.slow
def test_a_process_that_decodes_changes_no_bit(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    words = [
        *pictures(tmp_path / "pictures"),
        "data.in_memory=false",
        "data.holdout=0",
        "--result",
        str(tmp_path / "r.json"),
    ]
    for count in (0, 1):
        assert train(*words, f"data.loader_workers={count}", "--name", f"loaders{count}") == 0
        perf_of(tmp_path / "r.json")
    assert_same(weights("loaders0", 2), weights("loaders1", 2))


@pytest.mark.slow
def test_a_resumed_run_may_read_ahead_otherwise_but_not_compute_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    constant = ("optimizer.schedule=constant", "optimizer.warmup_epochs=0")
    assert train("--name", "first", "train.epochs=2", *constant) == 0
    for word in (
        "train.micro_batch=16",
        "augment.engine=torchvision",
        "train.memory_format=contiguous",
        "train.compile=true",
        "optimizer.fused=false",
    ):
        capsys.readouterr()
        assert cli.main(["train", "--resume", "first", "train.epochs=3", word]) == 2
        assert f"{word.partition('=')[0]} = " in (error := capsys.readouterr().err)
        assert "cannot change when a run goes on" in error
    # read by a thread
    assert cli.main(["train", "--resume", "first", "train.epochs=3", "data.prefetch=1"]) == 0
    assert train("--name", "straight", "train.epochs=3", *constant) == 0
    assert_same(weights("first", 3), weights("straight", 3))
