"""No password, token or key is written anywhere: real runs with planted ones, then a search of all files."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from processes import free_port
from small import DIGITS_RUN

from pcl_ray import cli, config, tracking
from pcl_ray.errors import RunFailed
from pcl_ray.runs.folder import RunFolder
from pcl_ray.support import redaction
from pcl_ray.support.paths import home
from pcl_ray.support.redaction import holds_secret, public_uri, scrubbed
from pcl_ray.tracking import server
from pcl_ray.training import loop

ROOT = Path(cli.__file__).parents[2]
IN_URI, PASSWORD, TOKEN = "planted-in-uri-7Qx/2", "planted-password-9Zk", "planted-token-4Wv"
RAY, AWS = "planted-ray-1d2c3b4a5f", "planted-aws-8Hn+3/kk="
PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "jo",
    "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    "RAY_AUTH_TOKEN": RAY,
    "AWS_SECRET_ACCESS_KEY": AWS,
}
SECRETS = (IN_URI, PASSWORD, TOKEN, RAY, AWS)
SMALL = (
    *(word for word in DIGITS_RUN if word != "tracking.enabled=false"),
    "train.epochs=2",
    "resources.workers=0",
)
QUICK = (
    *SMALL,
    "tracking.model=false",
    "tracking.pictures=1",
    "tracking.system_metrics_s=0",
    "tracking.flush_s=0.2",
)


# --- addresses


WITH_SECRETS = [
    ("http://me:s3cret@h:5000/p@v", "http://h:5000/p@v"),
    ("http://me:s3@cret@h/x@y", "http://h/x@y"),
    ("http://me:s3/cret@h:5000", "http://h:5000"),  # not to be read by anybody, and still not to be shown
    ("http://s3cret@h", "http://h"),
    ("http://me:s3cret@[::1]:5000", "http://[::1]:5000"),
    ("https://h/#token=s3cret", "https://h/#token=***"),
    ("postgresql://me:s3/c?ret@h/db", "postgresql://h/db"),
    ("postgresql://me:12345@h:5432/db", "postgresql://h:5432/db"),
    ("postgresql://me:a@s3/cret@h/db", "postgresql://h/db"),
    ("postgresql://h/db?pass%77ord=s3cret&x=1", "postgresql://h/db?pass%77ord=***&x=1"),
    ("mysql://h/db?ssl=1&password=s3c#ret", "mysql://h/db?ssl=1&password=***"),
    (
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dsa%3BPWD%3Ds3cret",
        "mssql+pyodbc:///?odbc_connect=***",
    ),
    ("s3://AKIA:s3cret@bucket/place", "s3://bucket/place"),
    ("me:s3cret@h", "h"),
    ("http:/me:s3cret@h", "h"),
]
WITHOUT = [
    "http://h:5000/a@b",
    "http://[::1]:5000/a@b",
    "sqlite:////home/me@work/m.db",
    "postgresql://h/db?passfile=/home/me/.pgpass",
    "databricks://profile",
    "http://h:5000?token=***",
    "relative/path",
]


@pytest.mark.parametrize(("uri", "public"), WITH_SECRETS)
def test_an_address_is_shown_without_its_secret(uri: str, public: str) -> None:
    assert holds_secret(uri)
    assert public_uri(uri) == public
    assert not holds_secret(public)


@pytest.mark.parametrize("uri", WITHOUT)
def test_an_address_without_a_secret_stays_as_it_is(uri: str) -> None:
    assert not holds_secret(uri)
    assert public_uri(uri) == uri


def test_a_user_alone_is_no_secret_of_a_database() -> None:
    assert not holds_secret("postgresql://me@h/db")
    assert not holds_secret("postgresql://me:@h/db")


@given(
    st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=5, max_size=40),
    st.sampled_from(["http", "postgresql", "mysql+pymysql"]),
)
def test_any_password_that_an_address_can_hold_is_found_and_hidden(password: str, scheme: str) -> None:
    written = quote(password, safe="")
    for uri in (
        f"{scheme}://me:{written}@host.example:5000/place?x=1",
        f"{scheme}://host.example/place?x=1&password={written}",
    ):
        assert holds_secret(uri)
        assert f"{written}@" not in public_uri(uri)
        assert f"={written}" not in public_uri(uri)
        assert f"me:{written}@" not in scrubbed(f"cannot open {uri}: refused")
        assert f"password={written}" not in scrubbed(f"cannot open {uri}: refused")


@pytest.mark.parametrize(
    "uri",
    [
        uri
        for uri, _ in WITH_SECRETS
        if "://me:s3cret" in uri or "password=" in uri or "PWD" in uri or "token" in uri
    ],
)
def test_texts_of_others_lose_passwords(uri: str) -> None:
    for text in (f"cannot open {uri}", f"OperationalError('{uri}')", json.dumps({"uri": uri})):
        assert "s3c" not in scrubbed(text)


def test_what_the_environment_holds_is_known_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{quote(IN_URI, safe='')}@h")
    monkeypatch.setenv("https_proxy", "http://me:pr0xy-word@h:3128")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    text = (
        f"{IN_URI} {quote(IN_URI, safe='')} {PASSWORD} {RAY} {AWS} pr0xy-word /home/me/token false Bearer"
        " abcdefgh12345"
    )
    assert scrubbed(text) == "*** *** *** *** *** *** /home/me/token false Bearer ***"
    assert (
        scrubbed("epoch 3: http://h:5000/#/experiments/1 at me@work.example")
        == "epoch 3: http://h:5000/#/experiments/1 at me@work.example"
    )
    monkeypatch.setenv("PWD", "/home/me/work")  # where we are, and no password
    assert scrubbed("/home/me/work") == "/home/me/work"


# --- knobs


SECRET_KNOBS = [
    "tracking.uri=http://me:s3cret@h:5000",
    "tracking.uri=postgresql://h/db?password=s3cret",
    "resources.storage=s3://AKIA:s3cret@bucket/place",
]


def refused(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.main(words) == 2
    printed = capfd.readouterr()
    assert "s3c" not in printed.out + printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not list(home().glob("*s/*"))
    return printed.err


@pytest.mark.parametrize("word", SECRET_KNOBS)
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["tracking.enabled=false"]])
def test_a_password_in_a_knob_is_refused_with_the_way_out(
    word: str, more: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused(["train", "digits", word, *more], capfd)
    assert word.partition("=")[0] in said
    assert ("MLFLOW_TRACKING_PASSWORD" if word.startswith("tracking") else "AWS_SECRET_ACCESS_KEY") in said
    assert ".pgpass" in said or not word.startswith("tracking")


def test_recipes_and_spaces_are_asked_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, space = tmp_path / "mine.yaml", tmp_path / "space.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {**yaml.safe_load(config.load("digits").to_yaml()), "tracking": {"uri": "http://me:s3cret@h"}}
        )
    )
    space.write_text(
        yaml.safe_dump(
            {
                "base": "digits",
                "space": {
                    "loss.temperature": {"type": "choice", "values": [0.1, 0.2]},
                    "tracking.uri": "http://me:s3cret@h",
                },
            }
        )
    )
    for words in (
        ["train", str(recipe)],
        ["sweep", str(space)],
        ["sweep", "temperature", SECRET_KNOBS[0]],
        ["sweep", "temperature", "--recipe", str(recipe)],
    ):
        assert "MLFLOW_TRACKING_URI" in refused(words, capfd)
    for words in (
        ["submit", "train", "digits", SECRET_KNOBS[0], "--print"],
        ["submit", "sweep", "temperature", SECRET_KNOBS[1], "--print"],
    ):
        assert "MLFLOW_TRACKING_URI" in refused(words, capfd)
    assert "MLFLOW_TRACKING_URI" in refused(["submit", "train", str(recipe), "--print"], capfd)


@pytest.mark.parametrize(
    "word",
    [
        "tracking.url=http://me:s3cret@h",
        "tracking.uri=[http://me:s3cret@h]",
        "tracking.uri=me:s3cret@h",
        "http://me:s3cret@h",
    ],
)
def test_mistakes_are_told_without_the_password(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["train", "digits", word], capfd)


def test_options_that_there_are_not_are_told_without_the_password(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "digits", "--uri=http://me:s3cret@h"])
    assert "s3c" not in capfd.readouterr().err


def test_a_run_that_has_a_password_already_goes_on_with_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = config.load("digits", [*QUICK, "tracking.uri=http://me:s3cret@127.0.0.1:9"])
    with RunFolder.create("old", before) as folder:
        folder.write_state(command="")
        state = folder.read_state() | {
            "command": "pcl-ray train digits tracking.uri=http://me:s3cret@127.0.0.1:9"
        }
        (folder.path / "state.json").write_text(json.dumps(state))
    assert cli.main(["train", "--resume", "old", "tracking.enabled=false"]) == 0
    printed = capfd.readouterr()
    assert "holds a password" in " ".join(printed.err.split())
    assert "s3c" not in printed.out + printed.err
    for name in ("state.json", "report.html", "figures.csv"):  # its config.yaml is its own
        assert "s3c" not in (home() / "runs/old" / name).read_text()
    # a new one is refused
    assert cli.main(["train", "--resume", "old", "train.epochs=3", "tracking.uri=http://me:s3cret2@h"]) == 2
    for words in (["report", "old"], ["doctor", "old"]):
        assert cli.main(words) == 0
    printed = capfd.readouterr()
    assert "s3c" not in printed.out + printed.err + (home() / "runs/old/report.html").read_text()


# --- everything that is left


@dataclass
class Left:
    """What was run, and everything that it left."""

    places: list[Path]
    printed: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def run(self, name: str, *words: str) -> None:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            try:
                self.codes[name] = cli.main(list(words))
            except Exception as error:
                self.codes[name] = -1
                sys.excepthook(type(error), error, error.__traceback__)
        self.printed[name] = out.getvalue()

    def files(self) -> Iterator[Path]:
        for place in self.places:
            yield from (path for path in place.rglob("*") if path.is_file())


def forms(secret: str) -> set[bytes]:
    """As it may stand in a file: as it is, in an address, in a header."""
    headers = {base64.b64encode(f"{user}:{secret}".encode()) for user in ("jo", "me")}
    return {secret.encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), *headers}


def holding(files: Iterator[Path], secrets: tuple[str, ...] = SECRETS) -> list[tuple[str, str]]:
    found = []
    for path in files:
        with suppress(FileNotFoundError):
            content = path.read_bytes()
            found += [
                (str(path), secret) for secret in secrets if any(form in content for form in forms(secret))
            ]
    return found


@contextmanager
def served(place: Path, empty_store: Path) -> Iterator[int]:
    """The port of a real MLflow server."""
    place.mkdir()
    shutil.copy(empty_store, place / "mlflow.db")
    port = free_port()
    with server.serving(f"sqlite:///{place}/mlflow.db", place / "artifacts", host="127.0.0.1", port=port):
        yield port


def with_secret(port: int) -> str:
    return f"http://me:{quote(IN_URI, safe='')}@127.0.0.1:{port}"


def raising(kind: type[Exception]) -> Callable[..., Any]:
    """A training that fails, for a reason that repeats every secret, as errors of databases do."""

    def train(*_: Any, **__: Any) -> Any:
        try:
            raise ConnectionError(
                f"no connection to {os.environ['MLFLOW_TRACKING_URI']} as jo:{PASSWORD}, nor with {RAY}"
            )
        except ConnectionError as cause:
            raise kind(f"lost {os.environ['MLFLOW_TRACKING_URI']} ({AWS}, {IN_URI})") from cause

    return train


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Left:
    place = tmp_path_factory.mktemp("planted")
    left = Left([place])
    with pytest.MonkeyPatch.context() as patched, served(place / "server", empty_store) as port:
        patched.setenv("PCL_RAY_HOME", str(place / "home"))
        patched.setenv("HOME", str(place / "user"))
        patched.setenv("MLFLOW_TRACKING_URI", with_secret(port))
        patched.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for name, value in PLANTED.items():
            patched.setenv(name, value)
        left.run("told", "train", "digits", *QUICK, "--name", "told")
        for kind in (RuntimeError, RunFailed):
            with patched.context() as failing:
                failing.setattr(loop, "train", raising(kind))
                left.run(kind.__name__, "train", "digits", *QUICK, "--name", kind.__name__)
        with patched.context() as down:
            down.setenv("MLFLOW_TRACKING_URI", with_secret(free_port()))
            left.run("unheard", "train", "digits", *QUICK, "--name", "unheard")
            left.run("ui down", "ui")
        with patched.context() as other:
            other.delenv("MLFLOW_TRACKING_USERNAME")
            other.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
            left.run("resume", "train", "--resume", "told", "train.epochs=3")
        for words in (
            ["report", "told"],
            ["report", "RuntimeError"],
            ["doctor", "told"],
            ["doctor"],
            ["compare", "told", "unheard"],
            ["ui"],
        ):
            left.run(" ".join(words), *words)
        with patched.context() as database:
            database.setenv(
                "MLFLOW_TRACKING_URI", f"postgresql://me:{IN_URI}@127.0.0.1:9/db?sslpassword={TOKEN}"
            )
            left.run("ui database", "ui")
    return left


def test_no_file_holds_a_secret(left: Left) -> None:
    assert holding(left.files()) == []


def test_nothing_that_was_printed_holds_a_secret(left: Left) -> None:
    assert [
        (name, secret)
        for name, text in left.printed.items()
        for secret in SECRETS
        if any(form in text.encode() for form in forms(secret))
    ] == []


def test_the_search_was_for_real(left: Left, tmp_path: Path) -> None:
    """Every command did its work, the server was reached with its password, and a planted secret is found."""
    expected = {
        "told": 0,
        "RuntimeError": -1,
        "RunFailed": 1,
        "unheard": 0,
        "resume": 0,
        "ui": 0,
        "ui down": 0,
        "ui database": 2,
        "compare told unheard": 0,
    }
    assert {name: left.codes[name] for name in expected} == expected, left.printed
    [place] = left.places
    names = {
        path.relative_to(place / "home").as_posix() for path in (place / "home").rglob("*") if path.is_file()
    }
    assert names >= {
        "runs/told/report.html",
        "runs/RuntimeError/error.txt",
        "runs/RunFailed/error.txt",
        "runs/unheard/mlflow_pending.jsonl",
        "compare.html",
    }
    state = json.loads((place / "home/runs/told/state.json").read_text())
    assert state["mlflow_run_id"]
    assert state["link"].startswith("http://127.0.0.1:")
    assert (place / "server/artifacts").rglob("report.html")
    for kind in ("RuntimeError", "RunFailed"):
        assert "***" in json.loads((place / f"home/runs/{kind}/state.json").read_text())["error"]
        assert "ConnectionError" in (place / f"home/runs/{kind}/error.txt").read_text()
        assert "***" in left.printed[kind]
    assert "Traceback" in left.printed["RuntimeError"]
    for secret in SECRETS:
        (tmp_path / "leak").write_text(f'{{"a": "http://me:{quote(secret, safe="")}@h"}}')
        assert holding(iter([tmp_path / "leak"])) == [(str(tmp_path / "leak"), secret)]


def test_what_was_typed_is_kept_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY)
    with RunFolder.create("typed", config.RunConfig()) as folder:
        folder.write_state(
            command=f"pcl-ray train digits tracking.uri=http://me:s3cret@h --name {RAY}", error=f"no {RAY}"
        )
        state = folder.read_state()
        assert state["command"] == "pcl-ray train digits tracking.uri=http://***@h --name ***"
        assert state["error"] == "no ***"


def test_servers_that_we_start_get_no_keys_that_they_do_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    left = redaction.without_credentials(dict(os.environ))
    assert not {"RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"} & left.keys()
    assert left["AWS_SECRET_ACCESS_KEY"] == AWS  # where artifacts may lie


# --- nothing is told to the makers of Ray and MLflow


_WATCHED = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("ray", "mlflow"):
            switches = ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
            told = [name, *(os.environ.get(switch, "unset") for switch in switches)]
            os.write(2, (" ".join(told) + "\\n").encode())
            os._exit(0)

sys.meta_path.insert(0, Watch())
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENTRIES = [
    ("pcl_ray/cli/__main__.py", "sweep", "temperature", "--dry-run"),
    ("pcl_ray/cli/__main__.py", "ui"),
    ("jobs/train.py", "digits", *SMALL),
    ("jobs/sweep.py", "temperature", "--dry-run"),
]


def test_reports_are_off_before_the_libraries_are_imported_unless_asked_for(tmp_path: Path) -> None:
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    }
    environment = bare | {"PYTHONPATH": str(ROOT), "PCL_RAY_HOME": str(tmp_path / "home")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    asked = environment | {
        "RAY_USAGE_STATS_ENABLED": "1",
        "MLFLOW_DISABLE_TELEMETRY": "false",
        "DO_NOT_TRACK": "false",
    }
    begun = [_begin(entry, environment) for entry in ENTRIES] + [_begin(ENTRIES[1], asked)]
    answers = [process.communicate(timeout=120)[1].strip().splitlines()[-1].split() for process in begun]
    assert {name for name, *_ in answers} == {"ray", "mlflow"}
    assert [values for _, *values in answers[:-1]] == [["0", "true", "true"]] * len(ENTRIES)
    assert answers[-1][1:] == ["1", "false", "false"]


def _begin(entry: tuple[str, ...], environment: dict[str, str]) -> subprocess.Popen[str]:
    program, *words = entry
    return subprocess.Popen(
        [sys.executable, "-c", _WATCHED, str(ROOT / program), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


# --- sweeps


@pytest.mark.slow
def test_a_sweep_and_its_models_leave_no_secret_behind(tmp_path: Path, empty_store: Path) -> None:
    """A real Ray with a token: trials record by their own processes; also what Tune keeps and Ray logs."""
    space = tmp_path / "mine.yaml"
    space.write_text("base: digits\nspace:\n  loss.temperature: {type: choice, values: [0.1, 0.2]}\n")
    ray_place = Path(f"/tmp/r{os.getpid()}")
    try:
        with served(tmp_path / "server", empty_store) as port:
            environment = (
                os.environ
                | PLANTED
                | {"MLFLOW_TRACKING_URI": with_secret(port), "MLFLOW_TRACKING_TOKEN": TOKEN}
            )
            environment |= {
                "RAY_AUTH_MODE": "token",
                "RAY_TMPDIR": str(ray_place),
                "HOME": str(tmp_path / "user"),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
            swept = _typed(environment, "sweep", str(space), *SMALL, "--name", "swept")
            assert swept.returncode == 0, swept.stderr
            again = _typed(environment, "sweep", "--resume", "swept")
            assert again.returncode == 0, again.stderr
            whole = _typed(
                environment,
                "train",
                "digits",
                *SMALL,
                "resources.workers=1",
                "tracking.register_as=planted",
                "--name",
                "whole",
            )
            assert whole.returncode == 0, whole.stderr
            assert len(_recorded(port)) == 4  # the sweep, its two trials, the run
        printed = tmp_path / "printed"
        printed.write_text("".join(part.stdout + part.stderr for part in (swept, again, whole)))
        files = [
            path
            for place in (tmp_path, home(), ray_place)
            for path in place.rglob("*")
            if path.is_file() and not path.is_socket()
        ]
        assert any(path.name == "tuner.pkl" for path in files)
        assert any(path.name == "MLmodel" for path in files)
        assert any("logs" in path.parts for path in files)
        assert holding(iter(files)) == []
        assert (home() / "sweeps/swept/tune").stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(ray_place, ignore_errors=True)


def _typed(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pcl_ray.cli", *words],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )


def _recorded(port: int) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name("pcl_ray")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_the_environment_of_trials_is_the_driver_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@h")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    carried = redaction.tracking_environment()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    redaction.take_tracking_environment(carried)
    assert tracking.tracking_uri(config.RunConfig().tracking, home()) == "http://me:s3cret@h"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PASSWORD
    redaction.take_tracking_environment({})
    assert tracking.tracking_uri(config.RunConfig().tracking, home()).startswith("sqlite:")
