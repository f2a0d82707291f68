from __future__ import annotations

import json
from typing import Any

import pytest

from pcl_ray.errors import ConfigError
from pcl_ray.service import dashboard, head, submission, submit
from pcl_ray.service.dashboard import Cluster


def told(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", content if isinstance(content, str) else json.dumps(content))


def test_a_job_knows_its_number_and_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, {"metadata": {"job_submission_id": "raysubmit_1", "job_name": "raysubmit_1", "pcl_ray.run": "mine", "sweep": "s", "owner": "me"}})
    assert submission.current() == submission.Submission("raysubmit_1", {"sweep": "s", "owner": "me"})
    assert submission.tags() == {"ray.submission_id": "raysubmit_1", "job.sweep": "s", "job.owner": "me"}


@pytest.mark.parametrize("name", ["api_token", "PASSWORD", "s3-secret", "access_key", "credentials"])
def test_metadata_that_look_like_a_secret_are_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    told(monkeypatch, {"metadata": {"job_submission_id": "x", name: "4711", "monkey": "fine"}})
    assert submission.tags() == {"ray.submission_id": "x", "job.monkey": "fine"}


@pytest.mark.parametrize("content", ["", "{", "[]", {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"job_submission_id": 3}}])
def test_elsewhere_there_is_no_job(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    told(monkeypatch, content)
    assert submission.current() is None
    assert submission.tags() == {}


def test_only_a_job_s_driver_hides_the_gpus_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    submission.without_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    told(monkeypatch, {"metadata": {"job_submission_id": "x"}})
    submission.without_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


# --- the line ---


def test_the_line_names_run_and_job_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    to = Cluster("http://127.0.0.1:8265", "t0ken")
    line = submit.line(to, "train", ["digits", "--name", "mine"], "mine", cpus=1, wait=False, folder=None)
    words = list(line.command)
    assert words[:3] == ["ray", "job", "submit"]
    assert words[words.index("--entrypoint-num-cpus") + 1] == "1"
    assert json.loads(words[words.index("--metadata-json") + 1]) == {"pcl_ray.run": "mine"}
    assert "mine" in words[words.index("--submission-id") + 1]
    assert "--no-wait" in words
    assert "--entrypoint-num-gpus" not in words
    assert words[words.index("--") :] == ["--", "python", "-m", "pcl_ray.cli", "train", "digits", "--name", "mine"]
    assert "t0ken" not in str(line)
    assert str(line).startswith("RAY_AUTH_MODE=")


def test_a_checkout_is_uploaded_and_elsewhere_the_recipe_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "huge.bin").write_bytes(b"0")
    with submit.uploaded(["mine.yaml", "data.path=/data"]) as (folder, words):
        assert folder is not None
        assert [path.name for path in folder.iterdir()] == ["mine.yaml"]
        assert words == ["mine.yaml", "data.path=/data"]
    with submit.uploaded(["digits"]) as (folder, words):
        assert (folder, words) == (None, ["digits"])
    (tmp_path / "checkout" / "jobs").mkdir(parents=True)
    (tmp_path / "checkout" / "pcl_ray").mkdir()
    for file in ("jobs/train.py", "pcl_ray/__init__.py"):
        (tmp_path / "checkout" / file).touch()
    monkeypatch.chdir(tmp_path / "checkout")
    with submit.uploaded(["digits"]) as (folder, _):
        assert str(folder) == "."
    with pytest.raises(ConfigError, match="outside this checkout"), submit.uploaded([str(tmp_path / "mine.yaml")]):
        pass


@pytest.mark.parametrize("address", ["", "nonsense", "http://", "http://host", "ftp://host:1", "http://me:pw@host:8265", "http://host:99999999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a cluster's dashboard"):
        dashboard.checked_address(address)


def test_addresses() -> None:
    assert dashboard.checked_address("127.0.0.1:8265") == "http://127.0.0.1:8265"
    assert dashboard.checked_address("https://ray.example.org:443/") == "https://ray.example.org:443"


# --- tokens, and what may be opened ---


def test_a_token_is_its_owner_s_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "service" / "token"
    file.parent.mkdir()
    file.touch(mode=0o644)
    dashboard.write_token(file, "abc")
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert dashboard.token_here() == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        dashboard.token_here()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert dashboard.token_here() == ""


def test_a_token_that_others_could_read_is_not_used(tmp_path: Any) -> None:
    head.folder().mkdir(parents=True)
    head.token_file().write_text("abc")
    head.token_file().chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        head.up(head.Wish(), lambda text: None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.200", "not a host"])
def test_no_head_at_an_address_that_is_not_one_of_ours(host: str) -> None:
    with pytest.raises(ConfigError, match="one address of this machine"):
        head.up(head.Wish(host=host), lambda text: None)


def test_no_head_without_a_token_where_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 is loopback too; so the address is made to look like the network's."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(head.tracking_server, "loopback", lambda host: False)
    with pytest.raises(ConfigError, match="not started there without a token"):
        head.up(head.Wish(host="127.0.0.2"), lambda text: None)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be had .* --mlflow-port"):
            head.up(head.Wish(ports=head.Ports(mlflow=port)), lambda text: None)
    assert head.recorded() is None


def test_nothing_is_known_of_a_head_whose_record_is_damaged() -> None:
    head.folder().mkdir(parents=True)
    for text in ("", "{", "[]", '{"host": 3}', '{"host": "h", "ports": {}, "mlflow_uri": "", "ray": {"pid": 1}}'):
        (head.folder() / "up.json").write_text(text)
        assert head.recorded() is None
    assert head.down(lambda text: None) is False
