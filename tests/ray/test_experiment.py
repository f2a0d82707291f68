"""The main job: Ray Train workers, the E-step actor, MLflow on sqlite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import DIGITS_RUN

from pcl_ray.checkpoints import epoch_files, run_state

FASHION_MNIST = Path(os.environ.get("PCL_RAY_TEST_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
SMALL = ("resources.workers=2", *DIGITS_RUN)
FEW_STEPS = (
    "train.epochs=4",
    "train.batch_size=64",
    "loss.queue_size=512",
    "e_step.warmup_epochs=1",
    "e_step.num_clusters=30,60",
)


def runs() -> Path:
    return Path(os.environ["PCL_RAY_HOME"], "runs")


@pytest.mark.slow
def test_the_digits_recipe_learns_the_digits(pcl_ray: Callable[..., Any], tmp_path: Path) -> None:
    ended = pcl_ray("digits", "train.epochs=40", "--name", "digits")
    assert ended.code == 0, ended.err
    metrics = ended.result["metrics"]
    assert metrics["eval/knn_top1"] >= 0.95
    assert metrics["cluster/0/ami"] > 0.6
    assert metrics["train/accuracy_prototype_0"] > 0.5
    assert ended.err == ""
    assert "Next:" in ended.out
    assert [path.name for path in tmp_path.iterdir() if path.name != "pcl_ray_home"] == ["result.json"]
    assert_recorded(ended.result)


def assert_recorded(result: dict[str, Any]) -> None:
    """MLflow has the run, once, with its parameters and every epoch's figures."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{os.environ['PCL_RAY_HOME']}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("pcl_ray")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert [entry.info.run_id for entry in found] == [result["mlflow_run_id"]]
    assert found[0].info.status == "FINISHED"
    assert found[0].data.params["resources.workers"] == "2"
    epochs = [point.step for point in client.get_metric_history(result["mlflow_run_id"], "train/loss")]
    assert len(epochs) == int(found[0].data.params["train.epochs"])
    assert len(set(epochs)) == len(epochs)
    assert [entry.path for entry in client.list_artifacts(result["mlflow_run_id"])] == [
        "config.yaml",
        "figures.csv",
        "images",
        "prototypes.csv",
        "report.html",
    ]


@pytest.mark.slow
def test_fashion_mnist(pcl_ray: Callable[..., Any]) -> None:
    if not FASHION_MNIST.is_dir() and "CI" not in os.environ:
        pytest.skip(
            f"no Fashion-MNIST in {FASHION_MNIST}; Debian's package dataset-fashion-mnist installs it"
        )
    ended = pcl_ray("fashion_mnist", f"data.path={FASHION_MNIST}", "data.limit=3000", *FEW_STEPS)
    assert ended.code == 0, ended.err
    # An untrained encoder has a kNN accuracy of 0.57 and an AMI of 0.26 on these images.
    assert ended.result["metrics"]["eval/knn_top1"] > 0.58
    assert ended.result["metrics"]["cluster/0/ami"] > 0.35
    assert "3000 images to train on, 10000 held out" in ended.out


def start_long_run(name: str, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-m",
        "pcl_ray.cli",
        "train",
        "digits",
        *SMALL,
        "train.epochs=60",
        "train.keep_checkpoints=100",
        *more,
        "--name",
        name,
    ]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )


def wait_for_epochs(process: subprocess.Popen[str], name: str, count: int) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        newest = epoch_files.latest(runs() / name / "checkpoints")
        if newest and epoch_files.epochs_done(newest) >= count:
            return
        time.sleep(0.1)
    pytest.fail(
        f"{count} epochs were not reached:"
        f" {process.stderr.read() if process.poll() is not None and process.stderr else 'still running'}"
    )


def children_of(process: subprocess.Popen[str], title: str) -> list[int]:
    """Process ids below ours (session id) whose Ray title contains `title`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title in command and os.environ["PCL_RAY_HOME"] in environment:
            found.append(int(entry.name))
    return found


def said_after_losing(title: str, tmp_path: Path, *more: str) -> str:
    """Kills one such process during the run `disturbed`, which must end well; returns the run's stderr."""
    with start_long_run("disturbed", tmp_path, *more) as process:
        try:
            wait_for_epochs(process, "disturbed", 5)
            victims = children_of(process, title)
            assert victims
            os.kill(victims[0], signal.SIGKILL)
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("role", ["RayTrainWorker", "EStepActor"])
def test_a_killed_process_is_replaced_and_the_outcome_is_the_same(
    role: str, pcl_ray: Callable[..., Any], tmp_path: Path
) -> None:
    undisturbed = pcl_ray(
        "digits", *SMALL, "train.epochs=60", "train.keep_checkpoints=100", "--name", "undisturbed"
    )
    assert undisturbed.code == 0, undisturbed.err
    said = said_after_losing(role, tmp_path)
    assert "replaced" in said if role == "RayTrainWorker" else "actor was restarted" in said
    first, second = (
        run_state.load(runs() / name / "checkpoints/epoch_00060.pt").learner["model"]
        for name in ("undisturbed", "disturbed")
    )
    assert all(torch.equal(first[key], second[key]) for key in first if isinstance(first[key], torch.Tensor))


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_behind_and_its_run_goes_on(
    pcl_ray: Callable[..., Any], tmp_path: Path
) -> None:
    with start_long_run("killed", tmp_path) as process:
        try:
            wait_for_epochs(process, "killed", 3)
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while children_of(process, "RayTrainWorker") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not children_of(process, "RayTrainWorker")
    ended = pcl_ray("--resume", "killed", "train.epochs=20")
    assert ended.code == 0, ended.err
    assert ended.result["state"] == "finished"


def test_a_loss_that_is_not_finite_is_one_message_and_not_tried_again(pcl_ray: Callable[..., Any]) -> None:
    ended = pcl_ray(
        "digits",
        *SMALL,
        "optimizer.lr=100",
        "optimizer.momentum=0.99",
        "optimizer.weight_decay=1",
        "train.epochs=40",
    )
    assert ended.code == 1
    assert "optimizer.lr" in ended.err
    assert "Traceback" not in ended.err
    assert "replaced" not in ended.err


@pytest.mark.slow
def test_where_the_clustering_runs_makes_no_difference(pcl_ray: Callable[..., Any]) -> None:
    """In the actor, the workers or three actors: the same weights, prototypes and assignments, bit by bit."""
    found = {}
    for mode, words in {"single": (), "distributed": (), "sharded": ("e_step.shards=3",)}.items():
        ended = pcl_ray("digits", *SMALL, f"e_step.mode={mode}", *words, "--name", mode)
        assert ended.code == 0, ended.err
        assert ended.err == ""
        found[mode] = run_state.load(runs() / mode / "checkpoints/epoch_00004.pt")
        assert found[mode].clusters.epoch == 4
    for mode in ("distributed", "sharded"):
        assert_equal_states(found["single"], found[mode])
        names = {
            name: value
            for name, value in found["single"].history[-1]["metrics"].items()
            if name.startswith(("cluster/", "eval/"))
        }
        assert {name: found[mode].history[-1]["metrics"][name] for name in names} == pytest.approx(names)


def assert_equal_states(first: Any, second: Any) -> None:
    weights, others = first.learner["model"], second.learner["model"]
    assert all(
        torch.equal(weights[key], others[key]) for key in weights if isinstance(weights[key], torch.Tensor)
    )
    for one, other in zip(first.clusters.clusterings, second.clusters.clusterings, strict=True):
        assert one.objective == other.objective
        for name in ("prototypes", "assignments", "concentration", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.slow
def test_overlap_with_workers_changes_over_at_the_same_step_on_all(pcl_ray: Callable[..., Any]) -> None:
    """The same as in one process would be asking too much (batch norm sees half the images): twice the same
    is asked, which a step too early on one worker would break, as it would the weights that the workers
    share.
    """
    words = ("e_step.overlap=true", "e_step.switch_step=2", "e_step.features=bank", "train.epochs=5")
    states = []
    for name in ("once", "twice"):
        ended = pcl_ray("digits", *SMALL, *words, "--name", name)
        assert ended.code == 0, ended.err
        states.append(run_state.load(runs() / name / "checkpoints/epoch_00005.pt"))
    assert_equal_states(*states)
    assert states[0].e_step.bank.shape == (300, 16)


@pytest.mark.slow
def test_a_killed_shard_is_replaced_and_the_outcome_is_the_same(
    pcl_ray: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("train.epochs=60", "train.keep_checkpoints=100", "e_step.mode=sharded", "e_step.shards=2")
    undisturbed = pcl_ray("digits", *SMALL, *words, "--name", "undisturbed")
    assert undisturbed.code == 0, undisturbed.err
    said = said_after_losing("EStepShard", tmp_path, *words)
    assert "sending the features again" in said
    assert_equal_states(
        *(
            run_state.load(runs() / name / "checkpoints/epoch_00060.pt")
            for name in ("undisturbed", "disturbed")
        )
    )
