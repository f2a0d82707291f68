from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import free_port

from pcl_ray import cli
from pcl_ray.cluster import head_checks, local_head, ray_api, submit
from pcl_ray.cluster.ray_api import Cluster
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.on_ray import current_job


def told(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", content if isinstance(content, str) else json.dumps(content)
    )


def test_a_job_knows_its_number_and_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    told(
        monkeypatch,
        {
            "metadata": {
                "job_submission_id": "raysubmit_1",
                "job_name": "raysubmit_1",
                "pcl_ray.run": "mine",
                "sweep": "s",
                "owner": "me",
            }
        },
    )
    assert current_job.current() == current_job.Submission("raysubmit_1", {"sweep": "s", "owner": "me"})
    assert current_job.tags() == {"ray.submission_id": "raysubmit_1", "job.sweep": "s", "job.owner": "me"}


@pytest.mark.parametrize("name", ["api_token", "PASSWORD", "s3-secret", "access_key", "credentials"])
def test_metadata_that_look_like_a_secret_are_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    told(monkeypatch, {"metadata": {"job_submission_id": "x", name: "4711", "monkey": "fine"}})
    assert current_job.tags() == {"ray.submission_id": "x", "job.monkey": "fine"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", {}, {"metadata": None}, {"metadata": {}}, {"metadata": {"job_submission_id": 3}}],
)
def test_elsewhere_there_is_no_job(monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    told(monkeypatch, content)
    assert current_job.current() is None
    assert current_job.tags() == {}


def test_only_a_job_s_driver_hides_the_gpus_from_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    current_job.without_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    told(monkeypatch, {"metadata": {"job_submission_id": "x"}})
    current_job.without_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


# --- the line ---


def test_the_line_names_run_and_job_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    to = Cluster("http://127.0.0.1:8265", "t0ken")
    line = submit.line(
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
        (["sweep"], "which space?"),
        (["sweep", "temperature", "--samples", "abc"], "sweep.samples"),
        (["sweep", "temperature", "data.path=pictures"], "has to be an absolute path"),
        (["digits", "--dry-run"], "--dry-run, --describe and --result are for"),
        (["digits", "--result", "out.json"], "--dry-run, --describe and --result are for"),
        (["digits", "--memory-gb", "1e308"], "0.01 to 100000"),
    ],
)
def test_what_train_or_sweep_would_refuse_is_not_sent(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["submit", *words, "--print"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "http://",
        "http://host",
        "ftp://host:1",
        "http://me:pw@host:8265",
        "http://host:99999999",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a cluster's dashboard"):
        ray_api.checked_address(address)


def test_addresses() -> None:
    assert ray_api.checked_address("127.0.0.1:8265") == "http://127.0.0.1:8265"
    assert ray_api.checked_address("https://ray.example.org:443/") == "https://ray.example.org:443"


# --- tokens, and what may be opened ---


def test_a_token_is_its_owner_s_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "service" / "token"
    file.parent.mkdir()
    file.touch(mode=0o644)
    ray_api.write_token(file, "abc")
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert ray_api.token_here() == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        ray_api.token_here()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert ray_api.token_here() == ""


def test_a_token_that_others_could_read_is_not_used(tmp_path: Any) -> None:
    local_head.folder().mkdir(parents=True)
    local_head.token_file().write_text("abc")
    local_head.token_file().chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        local_head.up(local_head.Wish(), lambda text: None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.200", "not a host"])
def test_no_head_at_an_address_that_is_not_one_of_ours(host: str) -> None:
    with pytest.raises(ConfigError, match="one address of this machine"):
        local_head.up(local_head.Wish(host=host), lambda text: None)


def test_no_head_without_a_token_where_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 is loopback too; so the address is made to look like the network's."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(head_checks.tracking_server, "loopback", lambda host: False)
    with pytest.raises(ConfigError, match="not started there without a token"):
        local_head.up(local_head.Wish(host="127.0.0.2"), lambda text: None)


@pytest.mark.parametrize("which", ["ray", "dashboard", "metrics", "mlflow"])
def test_a_port_that_is_taken_is_named_and_nothing_is_started(which: str) -> None:
    import socket

    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = local_head.Ports(
            **({name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")} | {which: port})
        )
        with pytest.raises(ConfigError, match=f"port {port} cannot be had"):
            local_head.up(local_head.Wish(ports=ports), said.append)
    assert local_head.recorded() is None
    assert said == []


def test_what_was_started_ends_where_the_rest_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MLflow server, and a Ray that does not come up."""
    import psutil

    monkeypatch.setattr(
        local_head, "_environment", lambda now: {"PATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    )
    ports = local_head.Ports(**{name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")})
    with pytest.raises(RunFailed, match="Ray ended at once"):
        local_head.up(local_head.Wish(ports=ports), lambda text: None)
    assert local_head.recorded() is None
    assert [
        one
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == ports.mlflow
    ] == []


def test_a_remote_store_s_password_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-1@mlflow.example:5000")
    seen: list[local_head.Up] = []

    def ray(now: local_head.Up, wish: local_head.Wish, say: object) -> local_head.Up:
        seen.append(now)
        return local_head._record(now)

    monkeypatch.setattr(local_head, "_ray", ray)
    ports = local_head.Ports(**{name: free_port() for name in ("ray", "dashboard", "metrics", "mlflow")})
    local_head.up(local_head.Wish(ports=ports), lambda text: None)
    assert seen[0].mlflow_uri == "http://mlflow.example:5000"
    assert "planted" not in (local_head.folder() / "up.json").read_text()
    assert (
        local_head._environment(seen[0])["MLFLOW_TRACKING_URI"] == "http://me:planted-1@mlflow.example:5000"
    )


def test_a_token_goes_neither_through_a_proxy_nor_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, here)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(RunFailed):
            Cluster(f"http://127.0.0.1:{free_port()}", "t0ken").jobs()
        assert seen == []
        with pytest.raises(RunFailed, match="302"):
            Cluster(here, "t0ken").jobs()
        assert seen == ["/api/jobs/"]
        server.shutdown()


@pytest.mark.parametrize("named", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_the_user_names_goes_before_that_of_our_head(
    named: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    import psutil

    local_head.folder().mkdir(parents=True)
    ray_api.write_token(local_head.token_file(), "ours")
    me = local_head.Known(os.getpid(), psutil.Process().create_time())
    local_head._record(local_head.Up("127.0.0.1", local_head.Ports(), "http://127.0.0.1:5000", ray=me))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert submit.cluster(None) == Cluster("http://127.0.0.1:8265", "ours")
    assert submit.environment(submit.cluster(None)) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(local_head.token_file()),
    }
    (tmp_path / "theirs").write_text("theirs\n")
    monkeypatch.setenv(named, "theirs" if named == "RAY_AUTH_TOKEN" else str(tmp_path / "theirs"))
    assert submit.cluster("127.0.0.1:8265") == Cluster("http://127.0.0.1:8265", "theirs")
    monkeypatch.delenv(named)
    # it has ended
    local_head._record(
        local_head.Up(
            "127.0.0.1",
            local_head.Ports(),
            "http://127.0.0.1:5000",
            ray=local_head.Known(os.getpid(), me.created - 100),
        )
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert submit.cluster("127.0.0.1:8265") == Cluster("http://127.0.0.1:8265", "")


@pytest.mark.parametrize("content", ["[]", '"x"', '{"status": "ok"}', '{"data": []}', "no json", ""])
def test_something_else_at_the_dashboard_s_address_is_said(content: str) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = Cluster(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RunFailed, match="no dashboard of Ray"):
            other.nodes()
        if content != "[]":
            with pytest.raises(RunFailed, match="no dashboard of Ray"):
                other.jobs()
        server.shutdown()


def test_what_speaks_no_http_is_said_and_no_token_is_repeated() -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"SSH-2.0-other\r\n")

        threading.Thread(target=answer, daemon=True).start()
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert not Cluster(place).alive()
        for token in ("t0ken", "t0ken\r\n x"):
            with pytest.raises(RunFailed) as caught:
                Cluster(place, token).jobs()
            assert "t0ken" not in str(caught.value)


def test_nothing_is_known_of_a_head_whose_record_is_damaged() -> None:
    local_head.folder().mkdir(parents=True)
    odd = [
        f'{{"host": "h", "ports": {{}}, "mlflow_uri": "", "ray": {{"pid": {pid}, "created": 1.5}}}}'
        for pid in ('"abc"', "-5", "1e30", "1", "null")
    ]
    for text in (
        *odd,
        "",
        "{",
        "[]",
        '{"host": 3}',
        '{"host": "h", "ports": {}, "mlflow_uri": "", "ray": {"pid": 1}}',
    ):
        (local_head.folder() / "up.json").write_text(text)
        assert local_head.recorded() is None
    assert local_head.down(lambda text: None) is False
