"""Jobs on a real cluster: Ray head with token, MLflow server by `pcl-ray up`, `ray job submit` as typed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import free_port
from small import DIGITS_RUN

from pcl_ray.cluster.ray_api import Cluster

LIMIT_S = 420  # guards against hanging
ROOT = Path(__file__).parents[2]
SMALL = tuple(word for word in DIGITS_RUN if not word.startswith("tracking."))
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-4711",
    "MLFLOW_TRACKING_PASSWORD": "planted-0815",
    "MLFLOW_TRACKING_USERNAME": "somebody",
}
QUIET = (
    "tracking.pictures=0",
    "tracking.report=false",
    "tracking.model=false",
    "tracking.system_metrics_s=0",
)
LONG = ("train.epochs=3000", "train.keep_checkpoints=2")


@dataclass
class Service:
    """A head of our own, and what is typed at it."""

    home: Path
    ports: list[int]
    environment: dict[str, str]
    out: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.address, (self.home / "service" / "ray_token").read_text())

    def pcl_ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.typed("-m", "pcl_ray.cli", *words, **environment)

    def ray_job(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job WORDS`, with the environment that `pcl-ray up` says."""
        verb, *rest = words
        return self.typed(
            "-m",
            "ray.scripts.scripts",
            "job",
            verb,
            "--address",
            self.address,
            *rest,
            **(self.token | environment),
        )

    @property
    def token(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.home / "service" / "ray_token")}

    def typed(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=ROOT,
            env=self.environment | environment,
        )

    def state(self, run: str) -> dict[str, Any]:
        try:
            return json.loads((self.home / "runs" / run / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def mlflow_run(self, run: str) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(f"http://127.0.0.1:{self.ports[3]}")
        experiment = client.get_experiment_by_name("pcl_ray")
        found = client.search_runs([experiment.experiment_id], f"tags.`pcl_ray.run_name` = '{run}'")
        assert len(found) == 1
        return found[0]

    def wait_until(self, what: Callable[[], Any], said: str) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if found := what():
                return found
            time.sleep(0.3)
        pytest.fail(f"{said}: not within {LIMIT_S} s")

    def wait_for_job(self, number: str) -> dict[str, Any]:
        return self.wait_until(
            lambda: (job := self.cluster.job(number))["status"] in ("SUCCEEDED", "FAILED", "STOPPED") and job,
            f"job {number} to end",
        )

    def free_cpus(self) -> bool:
        """Everything that was taken is given back."""
        used, _ = self.cluster.usage().get("CPU", (1.0, 0.0))
        return used == 0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("service")
    ports = [free_port() for _ in range(4)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = (
        kept
        | {"PCL_RAY_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        | PLANTED
    )
    it = Service(home, ports, environment, "")
    started = it.pcl_ray("up", *up_words(ports), "--num-cpus", "4")
    assert started.returncode == 0, started.stderr
    it.out = started.stdout
    try:
        yield it
    finally:
        # jobs' drivers, workers and actors too: all of them came from these two
        known = json.loads((home / "service" / "up.json").read_text())
        family = [one for name in ("ray", "mlflow") for one in family_of(known[name]["pid"])]
        open_ports = {
            one.laddr.port
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.pid in {one.pid for one in family}
        }
        ended = it.pcl_ray("down")
    assert ended.returncode == 0, ended.stderr
    assert len(family) > 8
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert open_ports > set(ports)
    assert [port for port in open_ports if not is_free(port)] == []
    assert it.pcl_ray("down").stdout == "nothing of `pcl-ray up` runs here\n"


def family_of(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def up_words(ports: list[int]) -> list[str]:
    options = ("--port", "--dashboard-port", "--metrics-port", "--mlflow-port")
    return [word for option, port in zip(options, ports, strict=True) for word in (option, str(port))]


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_small_job_from_up_to_down(service: Service) -> None:
    """The line of the README, on a head that was started by `up` and is up twice."""
    assert service.address in service.out
    assert f"http://127.0.0.1:{service.ports[3]}/" in service.out
    assert "ray job submit --address" in service.out
    before = (service.home / "service" / "up.json").read_text()
    again = service.pcl_ray("up", *up_words(service.ports))
    assert again.returncode == 0
    assert (service.home / "service" / "up.json").read_text() == before
    assert (service.home / "service" / "ray_token").stat().st_mode & 0o777 == 0o600

    script = (
        "--submission-id",
        "by-hand",
        "--metadata-json",
        '{"sweep": "s1", "api_token": "no"}',
        "--working-dir",
        ".",
    )
    done = service.ray_job(
        "submit", *script, "--", "python", "jobs/train.py", "digits", *SMALL, *QUIET, "--name", "first"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 4/4 done" in done.stdout
    assert service.state("first")["state"] == "finished"
    assert service.state("first")["submission_id"] == "by-hand"
    recorded = service.mlflow_run("first")
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["ray.submission_id"] == "by-hand"
    assert recorded.data.tags["job.sweep"] == "s1"
    assert "job.api_token" not in recorded.data.tags
    listed = service.pcl_ray("runs")
    assert "first" in listed.stdout
    assert "by-hand" in listed.stdout
    said = service.pcl_ray("status").stdout
    assert "1 node, 0 of 4 CPUs in use, no GPUs" in said
    assert "none under way" in said


@pytest.mark.slow
def test_everything_listens_at_this_machine_alone(service: Service) -> None:
    known = json.loads((service.home / "service" / "up.json").read_text())
    pids = {one.pid for name in ("ray", "mlflow") for one in family_of(known[name]["pid"])}
    places = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid in pids
    }
    assert places <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert places


@pytest.mark.slow
def test_a_stopped_job_ends_in_good_order_and_goes_on(service: Service) -> None:
    sent = service.pcl_ray("submit", "digits", *SMALL, *QUIET, *LONG, "--name", "halted", "--no-wait")
    assert sent.returncode == 0, sent.stderr
    number = next(
        job["submission_id"]
        for job in service.cluster.jobs()
        if job["metadata"].get("pcl_ray.run") == "halted"
    )
    service.wait_until(
        lambda: (service.state("halted").get("progress") or {}).get("epoch", 0) >= 3, "three epochs"
    )
    said = service.pcl_ray("status").stdout
    assert "halted" in said
    assert "/3000" in said
    assert number in said
    stopped = service.ray_job("stop", number)
    assert stopped.returncode == 0, stopped.stderr
    assert service.wait_for_job(number)["status"] == "STOPPED"
    assert service.state("halted")["state"] == "stopped"
    assert service.mlflow_run("halted").info.status == "KILLED"
    assert list((service.home / "runs" / "halted" / "checkpoints").glob("epoch_*.pt"))
    service.wait_until(service.free_cpus, "the workers to be gone")
    done = service.state("halted")["progress"]["epoch"]

    again = service.pcl_ray("submit", "--resume", "halted", f"train.epochs={done + 3}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert service.state("halted")["state"] == "finished"
    recorded = service.mlflow_run("halted")
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["ray.submission_id"] != number
    assert "going on with epoch" in again.stdout


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_a_run_that_goes_on(service: Service) -> None:
    """Ray kills it if it does not end in time, and `pcl-ray runs` says so instead of running for ever."""
    service.pcl_ray("submit", "digits", *SMALL, *QUIET, *LONG, "--name", "shot", "--no-wait")
    service.wait_until(
        lambda: (service.state("shot").get("progress") or {}).get("epoch", 0) >= 2, "two epochs"
    )
    service.wait_until(lambda: service.state("shot").get("mlflow_run_id"), "its MLflow run")
    drivers = [
        one
        for one in psutil.process_iter()
        if one.name().startswith("python") and "shot" in one.cmdline() and "jobs/train.py" in one.cmdline()
    ]
    assert len(drivers) == 1
    drivers[0].send_signal(signal.SIGKILL)
    service.wait_until(service.free_cpus, "the workers to be gone")
    assert service.mlflow_run("shot").info.status == "RUNNING"
    assert "shot" in service.pcl_ray("runs", "--state", "stopped").stdout
    assert service.mlflow_run("shot").info.status == "KILLED"
    assert service.state("shot")["error"] == "its process was killed"


@pytest.mark.slow
def test_the_second_of_two_waits_and_says_for_what(service: Service) -> None:
    """Each takes two workers and an actor: three of the four CPUs. They are sent at once, and so is a third;
    only one of them trains at a time.
    """
    names = ("early", "late", "last")
    for name in names:
        service.pcl_ray(
            "submit",
            "digits",
            *SMALL,
            *QUIET,
            *(LONG if name == "early" else ()),
            "--name",
            name,
            "--no-wait",
        )
        if name == "early":
            service.wait_until(
                lambda: (service.state("early").get("progress") or {}).get("epoch", 0) >= 1,
                "the first to train",
            )
    service.wait_until(
        lambda: all(service.state(name).get("waits_for") for name in names[1:]), "the others to wait"
    )
    waits = [service.state(name)["waits_for"] for name in names[1:]]
    assert sum("waiting for 3 CPUs: the cluster has 1 of 4 CPUs free" in text for text in waits) == 1
    assert sum("waiting for the turn to start: before us is run" in text for text in waits) == 1
    said = service.pcl_ray("status").stdout
    assert said.count("waiting for") == 2
    assert "3 CPUs" in said
    numbers = {job["metadata"].get("pcl_ray.run"): job["submission_id"] for job in service.cluster.jobs()}
    service.ray_job("stop", numbers["early"])
    for name in names[1:]:
        assert service.wait_for_job(numbers[name])["status"] == "SUCCEEDED"
        logs = service.ray_job("logs", numbers[name]).stdout
        assert "waiting for" in logs
        assert "there is room now" in logs
    assert service.state("late")["waits_for"] == ""


@pytest.mark.slow
def test_two_run_side_by_side_where_there_is_room(service: Service) -> None:
    one = ("resources.workers=1", "resources.e_step_cpus=0")
    for name in ("left", "right"):
        service.pcl_ray("submit", "digits", *SMALL, *QUIET, *LONG, *one, "--name", name, "--no-wait")
    epochs = lambda name: (service.state(name).get("progress") or {}).get("epoch", 0)  # noqa: E731
    service.wait_until(lambda: epochs("left") and epochs("right"), "both to train")
    at = epochs("left"), epochs("right")
    service.wait_until(lambda: epochs("left") > at[0] and epochs("right") > at[1], "both to go on")
    for number in service.cluster.under_way():
        service.ray_job("stop", number)
    service.wait_until(service.free_cpus, "the workers to be gone")
    assert {service.mlflow_run(name).info.status for name in ("left", "right")} == {"KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "said"), [("", "asks for a token"), ("wrong" * 8, "does not take this token")]
)
def test_without_the_right_token_nothing_is_accepted(
    service: Service, tmp_path: Path, token: str, said: str
) -> None:
    file = tmp_path / "token"
    file.write_text(token or "\n")
    stranger = {"PCL_RAY_HOME": str(tmp_path / "other"), "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"} | (
        {"RAY_AUTH_TOKEN": token} if token else {}
    )
    before = len(service.cluster.jobs())
    refused = service.pcl_ray("submit", "digits", "--address", service.address, **stranger)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert said in service.pcl_ray("status", "--address", service.address, **stranger).stdout
    by_hand = service.ray_job("submit", "--", "true", **(stranger | {"RAY_AUTH_TOKEN_PATH": str(file)}))
    assert by_hand.returncode != 0
    assert len(service.cluster.jobs()) == before


@pytest.mark.slow
def test_exit_codes_reach_ray(service: Service) -> None:
    script = ("--working-dir", ".", "--submission-id")
    wrong = service.ray_job(
        "submit", *script, "code-2", "--", "python", "jobs/train.py", "digits", "loss.temprature=0.1"
    )
    assert wrong.returncode == 1  # Ray's own, for a job that failed
    assert service.cluster.job("code-2")["driver_exit_code"] == 2
    assert "exit code 2" in service.ray_job("status", "code-2").stdout
    failed = service.pcl_ray(
        "submit",
        "digits",
        *SMALL,
        *QUIET,
        "optimizer.lr=100",
        "loss.temperature=0.0001",
        "--name",
        "diverges",
    )
    assert failed.returncode == 1, failed.stdout
    assert service.state("diverges")["state"] == "failed"
    assert service.mlflow_run("diverges").info.status == "FAILED"
    # before anything is sent
    assert service.pcl_ray("submit", "digits", "loss.temprature=0.1").returncode == 2
    service.wait_until(service.free_cpus, "the workers to be gone")


@pytest.mark.slow
def test_mlflow_down_at_submit_costs_a_warning(service: Service) -> None:
    words = ("digits", *SMALL, *QUIET, f"tracking.uri=http://127.0.0.1:{free_port()}", "--name", "unseen")
    done = service.pcl_ray("submit", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be reached" in done.stdout
    assert (service.home / "runs" / "unseen" / "mlflow_pending.jsonl").exists()
    again = service.pcl_ray(
        "submit", "--resume", "unseen", f"tracking.uri=http://127.0.0.1:{service.ports[3]}"
    )
    assert again.returncode == 0, again.stdout
    assert service.mlflow_run("unseen").info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_without_the_server_is_recorded_whole_in_its_store(service: Service) -> None:
    """The experiment was made through the server; a plain run writes to the same database and folder."""
    done = service.pcl_ray(
        "submit", "digits", *SMALL, "tracking.pictures=0", "tracking.model=false", "--name", "served"
    )
    assert done.returncode == 0, done.stdout
    plain = service.pcl_ray(
        "train",
        "digits",
        *SMALL,
        "resources.workers=0",
        "tracking.pictures=0",
        "tracking.model=false",
        "--name",
        "plain",
    )
    assert (plain.returncode, plain.stderr) == (0, "")
    assert not (service.home / "runs" / "plain" / "mlflow_pending.jsonl").exists()
    for name in ("served", "plain"):
        recorded = service.mlflow_run(name)
        assert recorded.info.status == "FINISHED"
        assert list((service.home / "mlflow" / "artifacts").rglob(f"{recorded.info.run_id}/**/report.html"))


@pytest.mark.slow
def test_what_was_killed_is_started_again_by_up(service: Service) -> None:
    known = json.loads((service.home / "service" / "up.json").read_text())
    os.kill(known["mlflow"]["pid"], signal.SIGKILL)
    again = service.pcl_ray("up", *up_words(service.ports), "--num-cpus", "4")
    assert again.returncode == 0, again.stderr
    now = json.loads((service.home / "service" / "up.json").read_text())
    assert now["ray"] == known["ray"]
    assert now["mlflow"]["pid"] != known["mlflow"]["pid"]
    assert service.pcl_ray("runs", "--json").returncode == 0


@pytest.mark.slow
def test_a_sweep_is_a_job_too(service: Service) -> None:
    """Of α, whose trials share a warm-up: the second waits for the first, and Optuna hears of it."""
    done = service.pcl_ray("submit", "sweep", "alpha", "--samples", "3", *SMALL, "--name", "of_alpha")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "python jobs/sweep.py alpha" in done.stdout
    recorded = service.mlflow_run("of_alpha")
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["ray.submission_id"].startswith("pcl-of_alpha-")
    assert (service.home / "sweeps" / "of_alpha" / "best.yaml").exists()
    listed = service.pcl_ray("runs", "--trials").stdout
    assert listed.count("of_alpha.") >= 2  # a point may be suggested twice
    service.wait_until(service.free_cpus, "the trials to be gone")


@pytest.mark.slow
def test_no_secret_is_in_what_the_cluster_tells_of_jobs(service: Service) -> None:
    """The planted one is in the environment of head, server and everybody who submits."""
    again = service.pcl_ray("submit", "digits", *SMALL, *QUIET, "--name", "discreet")
    assert again.returncode == 0, again.stdout
    numbers = [job["submission_id"] for job in service.cluster.jobs()]
    told = (
        json.dumps(service.cluster.jobs())
        + again.stdout
        + "".join(service.ray_job("logs", number).stdout for number in numbers)
    )
    assert "discreet" in told
    own = service.home / "service" / "ray_token"
    for file in service.home.rglob("*"):
        if file.is_file() and file != own:
            told += file.read_bytes().decode(errors="replace")
    assert "pcl_ray.run_name" in told  # the database of MLflow is among them
    assert [
        secret
        for secret in (
            service.cluster.token,
            *(value for name, value in PLANTED.items() if name != "MLFLOW_TRACKING_USERNAME"),
        )
        if secret in told
    ] == []


@pytest.mark.slow
def test_metrics_of_a_run_reach_prometheus(service: Service) -> None:
    import urllib.request

    service.pcl_ray("submit", "digits", *SMALL, *QUIET, *LONG, "--name", "measured", "--no-wait")

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.ports[2]}/metrics", timeout=10) as answer:
            return answer.read().decode()

    wanted = (
        "pcl_epoch",
        "pcl_epochs",
        "pcl_loss",
        "pcl_images_per_second",
        "pcl_step_seconds_median",
        "pcl_data_wait_share",
        "pcl_e_step_seconds",
    )
    service.wait_until(
        lambda: all(f"ray_{name}{{" in scraped() for name in (*wanted, "pcl_prototype_age_steps")),
        "the metrics",
    )
    line = next(line for line in scraped().splitlines() if line.startswith("ray_pcl_epochs{"))
    assert 'run="measured"' in line
    assert line.endswith(" 3000.0")
    for number in service.cluster.under_way():
        service.ray_job("stop", number)
    service.wait_until(service.free_cpus, "the workers to be gone")
