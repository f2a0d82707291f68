from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.checkpoints.run_state import DamagedCheckpoint, RunState
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import EncoderConfig, OptimizerConfig
from pcl_ray.errors import RunFailed
from pcl_ray.m_step import Learner
from pcl_ray.model import KeyQueue, MomentumPair, encoder, optimizers

ENCODER = EncoderConfig(backbone="small_resnet", width=4, blocks=(1,), dim=4)


def learner(name: str = "sgd", steps: int = 2, seed: int = 0) -> Learner:
    """A small learner that has taken some steps, so that optimizer, queue and averages hold something."""
    torch.manual_seed(seed)
    pair, queue = MomentumPair.of(encoder.build(ENCODER, 1), 0.9), KeyQueue(5, 4)
    optimizer = optimizers.build(OptimizerConfig(name=name), pair.query)
    made = Learner(pair, queue, optimizer, pair.query, pair.key, torch.device("cpu"))
    for _ in range(steps):
        step(made)
    return made


def step(made: Learner) -> Tensor:
    features = made.query(torch.randn(4, 1, 8, 8))
    made.optimizer.zero_grad()
    (features @ made.queue.keys.T).square().sum().backward()
    made.optimizer.step()
    made.pair.update()
    made.queue.enqueue(features.detach()[:3])
    return features.detach()


def clusters() -> ClusterSet:
    return ClusterSet(2, (Clustering(torch.randn(3, 4), torch.tensor([0, 2, 2, 1]), torch.rand(3), 1.5),))


def state(epoch: int = 2, made: Learner | None = None, with_clusters: bool = True) -> RunState:
    history = [{"epoch": 0, "step": 9, "metrics": {"train/loss": 1.25, "train/lr": 0.1}}]
    current = (made or learner()).state_dict()
    return RunState(
        epoch, current, clusters() if with_clusters else None, [torch.get_rng_state()], history, ENCODER, 1
    )


def equal(a: Any, b: Any) -> bool:
    """Bit by bit, through dicts and lists, types included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("with_clusters", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_roundtrip_is_exact(tmp_path: Path, name: str, with_clusters: bool) -> None:
    before = state(2, learner(name), with_clusters)
    path = run_state.save(before, tmp_path, keep=2)
    assert path == tmp_path / "epoch_00002.pt"
    after = run_state.load(path)
    assert equal(after.learner, before.learner)
    assert equal(after.random_states, before.random_states)
    assert equal(after.history, before.history)
    assert (after.epoch, after.encoder, after.channels) == (2, ENCODER, 1)
    assert (after.clusters is None) is not with_clusters
    if with_clusters:
        assert after.clusters.epoch == before.clusters.epoch
        assert equal(after.clusters.state_dict(), before.clusters.state_dict())


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_learner_goes_on_exactly_where_it_stopped(tmp_path: Path, name: str) -> None:
    first = learner(name)
    path = run_state.save(state(2, first), tmp_path, keep=1)
    expected = [step(first) for _ in range(3)]

    loaded = run_state.load(path)
    second = learner(name, steps=0, seed=9)
    second.load_state_dict(loaded.learner)
    torch.set_rng_state(loaded.random_states[0])
    assert equal([step(second) for _ in range(3)], expected)
    assert equal(second.state_dict(), first.state_dict())


def test_a_copy_stays_as_it_is_while_the_training_goes_on(tmp_path: Path) -> None:
    made = learner()
    before = state(2, made)
    before.history.append({"epoch": 1, "step": 19, "metrics": {"train/loss": 1.0}})
    as_it_was = run_state.load(run_state.save(before, tmp_path, keep=1))
    copy = run_state.copied(before)

    step(made)
    before.history[-1]["metrics"]["eval/knn_top1"] = 0.5  # the newest epoch gets more figures
    before.history.append({"epoch": 2, "step": 29, "metrics": {}})
    before.random_states[0].zero_()

    for part in ("learner", "random_states", "history"):
        assert equal(getattr(copy, part), getattr(as_it_was, part))
    assert not equal(before.learner, copy.learner)
    assert copy.history[0] is before.history[0]  # a thousand epochs are not copied after each


def test_keeps_the_newest_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "epoch_notes.pt").touch()
    (tmp_path / "result.json").touch()
    small = state(0)
    for epoch in (9, 10, 11, 99999, 100000):  # in order of the number, not of the text
        small.epoch = epoch
        run_state.save(small, tmp_path, keep=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"epoch_00011.pt", "epoch_99999.pt", "epoch_100000.pt", "epoch_notes.pt", "result.json"}
    assert epoch_files.latest(tmp_path) == tmp_path / "epoch_100000.pt"
    assert epoch_files.epochs_done(tmp_path / "epoch_100000.pt") == 100000


def test_saving_an_epoch_again_replaces_it(tmp_path: Path) -> None:
    run_state.save(state(1, learner(seed=0)), tmp_path, keep=2)
    again = state(1, learner(seed=1))
    path = run_state.save(again, tmp_path, keep=2)
    assert equal(run_state.load(path).learner, again.learner)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_00001.pt"]


def test_there_is_no_latest_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert epoch_files.latest(tmp_path) is None
    assert epoch_files.latest(tmp_path / "missing") is None
    (tmp_path / "epoch_00003.partial").touch()
    assert epoch_files.latest(tmp_path) is None  # cut off while it was written


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, share: float) -> None:
    path = run_state.save(state(4), tmp_path, keep=1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedCheckpoint, match=r"epoch_00004\.pt cannot be read"):
        run_state.load(path)


def test_a_file_of_zeros_of_the_right_length_is_refused(tmp_path: Path) -> None:
    # what a file system may leave behind after a power cut
    path = run_state.save(state(4), tmp_path, keep=1)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(RunFailed, match="cannot be read"):
        run_state.load(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"format": "pcl_ray", "version": 1}])
def test_a_foreign_file_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "epoch_00001.pt")
    with pytest.raises(RunFailed, match="cannot be read"):
        run_state.load(tmp_path / "epoch_00001.pt")


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = run_state.save(state(1), tmp_path, keep=1)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": 99}, path)
    with pytest.raises(RunFailed, match="format 99, this version reads up to 5: upgrade"):
        run_state.load(path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from pcl_ray.checkpoints import run_state as checkpoint
from pcl_ray.config import EncoderConfig
from pcl_ray.errors import RunFailed

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
limit, folder, epochs = int(sys.argv[1]), Path(sys.argv[2]), [int(epoch) for epoch in sys.argv[3:]]
for epoch in epochs:
    if epoch == epochs[-1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    learner = {"model": {"w": torch.full((300_000,), float(epoch))}, "queue": {}, "optimizer": {}}
    try:
        checkpoint.save(checkpoint.RunState(epoch, learner, None, [], [], EncoderConfig(), 3), folder, keep=1)
    except RunFailed as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [4096, 1_150_000])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]], limit: int
) -> None:
    folder = tmp_path / "checkpoints"
    done = run_python(FULL_DISK, str(limit), str(folder), "6", "7")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint after epoch 7 could not be written to" in done.stdout
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "The last good one is epoch_00006.pt: free some space and resume" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["epoch_00006.pt"]  # nothing half written either
    assert run_state.load(folder / "epoch_00006.pt").learner["model"]["w"].tolist() == [6.0] * 300_000


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_late_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(RunFailed, match="No space left on device.*There is none from before"):
        run_state.save(state(1), tmp_path, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(RunFailed, match="could not be written to"):
        run_state.save(state(1), tmp_path / "runs" / "checkpoints", keep=1)
