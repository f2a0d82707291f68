from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pcl_ray import cli
from pcl_ray.cluster import ray_api, submit
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.errors import ConfigError
from pcl_ray.on_ray import local_head_record
from pcl_ray.on_ray.local_head_record import LocalHead, Ports
from pcl_ray.support.processes import StartedProcess


def test_the_line_names_run_and_job_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    to = Cluster("http://127.0.0.1:8265", "t0ken")
    line = submit.experiment(
        to, "train", ["digits", "--name", "mine"], "mine", memory_gb=1, wait=False, folder=None
    )
    words = list(line.command)
    assert words[:3] == ["ray", "job", "submit"]
    assert words[words.index("--entrypoint-memory") + 1] == "1000000000"
    assert json.loads(words[words.index("--metadata-json") + 1]) == {"pcl_ray.run": "mine"}
    assert "mine" in words[words.index("--submission-id") + 1]
    assert "--no-wait" in words
    assert "--entrypoint-num-gpus" not in words
    assert words[words.index("--") :] == [
        "--",
        "python",
        "-m",
        "pcl_ray.cli",
        "train",
        "digits",
        "--name",
        "mine",
    ]
    assert "t0ken" not in str(line)
    assert str(line).startswith("RAY_AUTH_MODE=")


def test_a_checkout_is_uploaded_and_elsewhere_the_recipe_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "huge.bin").write_bytes(b"0")
    folder, words = submit.uploaded(["temperature", "--recipe", "mine.yaml", "data.path=/data"])
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]
    assert words == ["temperature", "--recipe", "mine.yaml", "data.path=/data"]
    assert submit.uploaded(["digits"]) == (None, ["digits"])
    (tmp_path / "checkout" / "jobs").mkdir(parents=True)
    (tmp_path / "checkout" / "pcl_ray").mkdir()
    for file in ("jobs/train.py", "pcl_ray/__init__.py"):
        (tmp_path / "checkout" / file).touch()
    monkeypatch.chdir(tmp_path / "checkout")
    assert submit.uploaded(["digits"])[0] == Path(".")
    with pytest.raises(ConfigError, match="outside this checkout"):
        submit.uploaded([str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["digits", "--name", "a1"], ["train", "digits", "--name", "a1"]),
        (
            ["--no-wait", "train", "data.limit=300", "digits", "--name=a2", "--memory-gb", "2"],
            ["train", "data.limit=300", "digits", "--name=a2"],
        ),
        (
            ["sweep", "--samples", "2", "temperature", "--name", "s1"],
            ["sweep", "--samples", "2", "temperature", "--name", "s1"],
        ),
        (["--resume", "old"], ["train", "--resume", "old"]),
    ],
)
def test_words_keep_their_order(
    words: list[str],
    ends: list[str],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["submit", *words, "--print"]) == 0
    assert capsys.readouterr().out.strip().endswith(" ".join(["-- python -m pcl_ray.cli", *ends]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "--name", "a/b"], "run name 'a/b' is not allowed"),
        (["--resume", "日本"], "is not allowed"),
        (["digits", "--resume", "x"], "leave out recipe 'digits'"),
        (["digits", "loss.temprature=1"], "did you mean 'loss.temperature'?"),
        (["folder", "data.path=pictures"], "has to be an absolute path"),
        (["digits", "encoder.init_from=weights.pth"], "is a file of this folder; give its absolute path"),
        (["sweep"], "which space?"),
        (["sweep", "temperature", "--samples", "abc"], "sweep.samples"),
        (["sweep", "temperature", "data.path=pictures"], "has to be an absolute path"),
        (["digits", "--dry-run"], "--dry-run, --describe and --result are for"),
        (["digits", "--result", "out.json"], "--dry-run, --describe and --result are for"),
        (["digits", "--memory-gb", "1e308"], "0.01 to 100000"),
    ],
)
def test_what_train_or_sweep_would_refuse_is_not_sent(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").touch()
    assert cli.main(["submit", *words, "--print"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("named", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_the_user_names_goes_before_that_of_our_head(
    named: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    import psutil

    local_head_record.folder().mkdir(parents=True)
    ray_api.write_token(local_head_record.token_file(), "ours")
    me = StartedProcess(os.getpid(), psutil.Process().create_time())
    local_head_record.write(LocalHead("127.0.0.1", Ports(), "http://127.0.0.1:5000", ray=me))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert submit.cluster(None) == Cluster("http://127.0.0.1:8265", "ours")
    assert submit.environment(submit.cluster(None)) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(local_head_record.token_file()),
    }
    (tmp_path / "theirs").write_text("theirs\n")
    monkeypatch.setenv(named, "theirs" if named == "RAY_AUTH_TOKEN" else str(tmp_path / "theirs"))
    assert submit.cluster("127.0.0.1:8265") == Cluster("http://127.0.0.1:8265", "theirs")
    monkeypatch.delenv(named)
    # it has ended
    local_head_record.write(
        LocalHead(
            "127.0.0.1", Ports(), "http://127.0.0.1:5000", ray=StartedProcess(os.getpid(), me.created - 100)
        )
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert submit.cluster("127.0.0.1:8265") == Cluster("http://127.0.0.1:8265", "")
