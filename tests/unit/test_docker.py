"""`docker/`: every file by its schema or linter, and what services must share. No container engine needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kuberay
import pytest
import ray
import yaml
from composed import DOCKER, ROOT, compose
from pydantic import ValidationError

import pcl_ray
from pcl_ray.on_ray.metrics import DROPPED, GAUGES

PROGRAMS = Path(sys.executable).parent
LOCK = dict(
    re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
)
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "mlflow.Dockerfile"]
SERVICES: dict[str, dict[str, Any]] = compose()["services"]
RAY_SERVICES = [name for name in SERVICES if name.startswith("ray-")]
YAML_FILES = sorted(path for pattern in ("*.yaml", "*.yml") for path in DOCKER.rglob(pattern))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)


def assert_passes(*command: object) -> None:
    done = run(PROGRAMS / str(command[0]), *command[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "kuberay" / f"{name}.yaml").read_text()))


def test_linters_and_schemas(tmp_path: Path) -> None:
    assert_passes("hadolint", *DOCKERFILES)
    assert_passes(
        "yamllint",
        "--strict",
        "-d",
        "{extends: default, rules: {line-length: {max: 160}, document-start: disable}}",
        *YAML_FILES,
    )
    assert_passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")
    assert_passes(
        "check-jsonschema",
        "--schemafile",
        Path(ray.__file__).parent / "autoscaler" / "ray-schema.json",
        DOCKER / "cluster.yaml",
    )
    broken = tmp_path / "compose.yaml"
    broken.write_text((DOCKER / "compose.yaml").read_text().replace("shm_size:", "shmsize:"))
    assert (
        run(PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", broken).returncode != 0
    )


def test_every_published_port_is_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert {"ray-head", "mlflow", "garage", "prometheus", "grafana"} == set(published)
    for name, ports in published.items():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port}"
            assert not port.endswith(":8080"), f"{name}: the metrics answer without the token"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_kept_running_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+\.\d+", service["image"]), "not pinned"
    assert "container_name" not in service


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_ray_services(name: str) -> None:
    service = SERVICES[name]
    said, command = service["environment"], service["command"]
    assert said["RAY_AUTH_MODE"] == "token"
    assert said["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "ray_token" in service["secrets"]
    assert said["PCL_RAY_HOME"] == "/var/lib/pcl_ray"
    assert "pcl_ray:/var/lib/pcl_ray" in service["volumes"]
    assert (said["MLFLOW_TRACKING_URI"], said["RAY_JOB_STOP_WAIT_TIME_S"]) == ("http://mlflow:5000", "60")
    assert (said["RAY_USAGE_STATS_ENABLED"], said["MLFLOW_DISABLE_TELEMETRY"]) == ("0", "true")
    assert {"--block", "--metrics-export-port=8080", "--dashboard-agent-listen-port=52365"} <= set(command)
    assert service["shm_size"]
    assert service["ulimits"]["nofile"]["soft"] >= 65536
    assert service["image"].startswith(f"pcl-ray:{pcl_ray.__version__}-")
    assert ("--head" in command) == (name == "ray-head")
    assert ("--num-cpus=0" in command) == (name == "ray-head")
    assert "http://127.0.0.1:52365/api/local_raylet_healthz" in service["healthcheck"]["test"]


def test_scaled_workers_have_nothing_that_only_one_can_have() -> None:
    assert "ports" not in SERVICES["ray-worker"]
    gpu = SERVICES["ray-worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["image"].endswith("-gpu")
    assert gpu["build"]["target"] == "gpu"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "http://127.0.0.1:8265/api/gcs_healthz" in SERVICES["ray-head"]["healthcheck"]["test"]


def test_mlflow_answers_under_the_names_that_it_is_asked_by() -> None:
    mlflow = compose(PCL_RAY_MLFLOW_PORT="5055")["services"]["mlflow"]
    (hosts,) = [
        word.partition("=")[2].split(",") for word in mlflow["command"] if word.startswith("--allowed-hosts=")
    ]
    assert set(hosts) == {"mlflow:5000", "localhost:5055", "127.0.0.1:5055"}
    (origins,) = [
        word.partition("=")[2].split(",")
        for word in mlflow["command"]
        if word.startswith("--cors-allowed-origins=")
    ]
    assert set(origins) == {"http://localhost:5055", "http://127.0.0.1:5055"}
    assert mlflow["ports"] == ["127.0.0.1:5055:5000"]
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert compose()["networks"]["database"]["internal"] is True


def test_no_secret_is_written_down() -> None:
    secrets = compose()["secrets"]
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == secrets.keys()
    assert all(re.fullmatch(r"\./secrets/\w+\.txt", secret["file"]) for secret in secrets.values())
    telling = re.compile(r"pass(word)?|secret|token|credentials|_key", re.IGNORECASE)
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if telling.search(variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
    for path in [*YAML_FILES, *DOCKERFILES, DOCKER / ".env.example", DOCKER / "garage.toml"]:
        assert not re.search(r"\b[0-9a-f]{32,}\b|\bGK[0-9a-f]{8,}|AKIA[A-Z0-9]{8,}", path.read_text()), path


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    folder = Path(
        shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns("secrets", "data", ".env"))
    )
    assert run(folder / "make_secrets.sh").returncode == 0
    made = {path.name: path for path in (folder / "secrets").iterdir()}
    assert made.keys() >= {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    assert {oct(path.stat().st_mode & 0o777) for path in made.values()} == {"0o600"}
    owner = os.getuid() or 1000
    assert {path.stat().st_uid for path in made.values()} == {owner}
    assert f"PCL_RAY_UID={owner}\n" in (folder / ".env").read_text()
    assert made["mlflow_admin_password.txt"].read_text() == ""
    first = {name: path.read_text() for name, path in made.items()}
    assert run(folder / "make_secrets.sh", "--mlflow-login").returncode == 0
    assert len(made["mlflow_admin_password.txt"].read_text()) >= 12
    assert all(path.read_text() == first[name] for name, path in made.items() if first[name])
    assert run(folder / "make_secrets.sh", "--no-such").returncode == 2


def test_one_version_of_ray_and_of_mlflow_everywhere() -> None:
    assert LOCK["ray"] == ray.__version__
    assert documents("raycluster")[0]["spec"]["rayVersion"] == LOCK["ray"]
    assert documents("rayjob")[0]["spec"]["rayClusterSpec"]["rayVersion"] == LOCK["ray"]
    beyond = dict(
        re.findall(
            r"^([\w.-]+)==([^\s;]+)", (DOCKER / "requirements-mlflow.txt").read_text(), flags=re.MULTILINE
        )
    )
    assert beyond["mlflow"] == LOCK["mlflow"]
    assert {name: version for name, version in beyond.items() if name in LOCK} == {
        name: LOCK[name] for name in beyond if name in LOCK
    }
    for path in [*YAML_FILES, *DOCKERFILES, DOCKER / "README.md"]:
        assert not re.findall(
            rf"\b(?:ray|mlflow)(?:==|:v?)(?!{re.escape(LOCK['ray'])}|{re.escape(LOCK['mlflow'])}|{re.escape(pcl_ray.__version__)})\d+\.\d+",
            path.read_text(),
        ), path
    images = {
        word
        for path in YAML_FILES
        for word in re.findall(r"pcl-ray(?:-mlflow)?:([\d.]+\d)", path.read_text())
    }
    assert images == {pcl_ray.__version__}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles(path: Path) -> None:
    text = path.read_text()
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", text, flags=re.MULTILINE)
        for word in line.split()[:-1]
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert Path(name).parts[0] in allowed, f"{name}: kept out by .dockerignore"
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) <= {"${PYTHON_IMAGE}", "build", "base"}
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-bookworm$", text, flags=re.MULTILINE)
    final = re.split(r"^FROM ", text, flags=re.MULTILINE)
    for stage in [
        stage
        for stage in final
        if " AS cpu" in stage or " AS gpu" in stage or "ENTRYPOINT" in stage and "mlflow" in stage
    ]:
        assert re.findall(r"^USER (.+)$", stage, flags=re.MULTILINE) == ["${APP_UID}:${APP_GID}"]
    assert "HEALTHCHECK" in text
    assert "--editable" not in text
    assert {"docker/secrets", "docker/.env"} <= set((ROOT / ".dockerignore").read_text().splitlines())


def test_images_hold_what_the_lock_says() -> None:
    def wanted(target: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, DOCKER / "dependencies.py", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]

    gpu, cpu = wanted("gpu"), wanted("cpu")
    assert f"ray[default,train,tune]=={LOCK['ray']}" in gpu
    assert {line.split(";")[0] for line in gpu} - {line.split(";")[0] for line in cpu} == {
        f"faiss-gpu=={LOCK['faiss-gpu']}"
    }
    assert f"faiss-cpu=={LOCK['faiss-cpu']}" in cpu  # without a condition
    assert all(re.search(r"==\d", line) for line in [*gpu, *cpu])
    assert "usage" in wanted("tpu")[0]


def test_entrypoint_of_mlflow_hides_the_password(tmp_path: Path) -> None:
    sys.path.insert(0, str(DOCKER))
    try:
        import mlflow_entrypoint as entrypoint
    finally:
        sys.path.remove(str(DOCKER))
    (tmp_path / "password").write_text("p@ss/wörd%\n")
    said = {"PGPASSWORD_FILE": str(tmp_path / "password"), "PGHOST": "postgres", "PGUSER": "mlflow"}
    uri = entrypoint.store_uri(said)
    assert uri == "postgresql+psycopg2://mlflow:p%40ss%2Fw%C3%B6rd%25@postgres:5432/mlflow"
    with pytest.raises(SystemExit, match="make_secrets"):
        entrypoint.store_uri({})
    with pytest.raises(SystemExit, match="12 or more"):
        entrypoint.with_login({}, uri, "short")
    with pytest.raises(SystemExit, match="MLFLOW_FLASK_KEY_FILE"):
        entrypoint.with_login({}, uri, "long enough for it")
    (tmp_path / "key").write_text("k")
    environment = {"MLFLOW_FLASK_KEY_FILE": str(tmp_path / "key")}
    entrypoint.with_login(environment, uri, "long enough for it")
    settings = Path(environment["MLFLOW_AUTH_CONFIG_PATH"])
    try:
        import configparser

        read = configparser.ConfigParser()
        read.read(settings)
        assert read["mlflow"]["database_uri"] == uri
        assert settings.stat().st_mode & 0o077 == 0
    finally:
        settings.unlink()


def test_healthcheck_says_what_does_not_answer() -> None:
    done = run(sys.executable, DOCKER / "health.py", "http://127.0.0.1:1/health")
    assert (done.returncode, "127.0.0.1:1" in done.stderr) == (1, True)
    assert run(sys.executable, DOCKER / "health.py").returncode == 1


def test_kuberay() -> None:
    cluster, job = (
        kuberay.RayCluster.model_validate(documents("raycluster")[0]),
        kuberay.RayJob.model_validate(documents("rayjob")[0]),
    )
    assert cluster.spec.gcsFaultToleranceOptions is not None
    assert job.spec.rayClusterSpec.model_dump() == {
        **cluster.spec.model_dump(),
        "gcsFaultToleranceOptions": None,
    }
    # a driver that waits for its turn keeps no CPU from the run whose turn it is
    assert job.spec.entrypointNumCpus == 0.01
    (name,) = re.findall(r" --name (\S+)", job.spec.entrypoint)
    assert (
        f"#   python /opt/pcl_ray/jobs/train.py --resume {name}\n"
        in (DOCKER / "kuberay" / "rayjob.yaml").read_text()
    )
    assert cluster.spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
    pods = [group.template.spec for group in (cluster.spec.headGroupSpec, *cluster.spec.workerGroupSpecs)]
    for pod in pods:
        container, volumes = pod.containers[0], {volume.name: volume for volume in pod.volumes}
        assert {mount.name for mount in container.volumeMounts} == volumes.keys()
        assert volumes["shm"].emptyDir == kuberay.EmptyDir(medium="Memory", sizeLimit="8Gi")
        assert {mount.mountPath for mount in container.volumeMounts} >= {"/var/lib/pcl_ray", "/dev/shm"}
        assert {variable.name: variable.value for variable in container.env}[
            "PCL_RAY_HOME"
        ] == "/var/lib/pcl_ray"
        assert container.image.endswith(f"/pcl-ray:{pcl_ray.__version__}-gpu")
        assert container.livenessProbe.httpGet == kuberay.HttpGet(path="/api/healthz", port=52365)
    assert any("nvidia.com/gpu" in pod.containers[0].resources.limits for pod in pods)
    broken = documents("raycluster")[0]
    broken["spec"]["autoscalerOptions"]["idleTimeoutSecond"] = broken["spec"]["autoscalerOptions"].pop(
        "idleTimeoutSeconds"
    )
    with pytest.raises(ValidationError, match="idleTimeoutSecond"):
        kuberay.RayCluster.model_validate(broken)


def test_what_kuberay_stands_on() -> None:
    found = {
        (document["kind"], document["metadata"]["name"]): kuberay.Core.model_validate(document)
        for name in ("storage", "network")
        for document in documents(name)
    }
    home = found["PersistentVolumeClaim", "pcl-ray-home"]
    assert home.spec["accessModes"] == ["ReadWriteMany"]
    redis = kuberay.PodTemplate.model_validate(found["StatefulSet", "redis"].spec["template"])
    cluster = kuberay.RayCluster.model_validate(documents("raycluster")[0]).spec
    assert cluster.gcsFaultToleranceOptions is not None
    assert cluster.gcsFaultToleranceOptions.redisAddress == "redis:6379"
    assert (
        redis.spec.containers[0].env[0].valueFrom == cluster.gcsFaultToleranceOptions.redisPassword.valueFrom
    )
    assert {
        volume.persistentVolumeClaim.claimName
        for volume in cluster.headGroupSpec.template.spec.volumes
        if volume.persistentVolumeClaim
    } == {"pcl-ray-home"}
    assert found["NetworkPolicy", "pcl-ray-nodes"].spec["policyTypes"] == ["Ingress"]


def test_cluster_launcher() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
    validate_config(prepare_config(said))
    assert said["file_mounts"]["~/.ray/auth_token"] == "docker/secrets/ray_token.txt"
    assert "RAY_AUTH_MODE=token" in " ".join(said["setup_commands"])
    starts = [
        command
        for kind in ("head", "worker")
        for command in said[f"{kind}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all(
        "pcl_ray_environment" in command and "--metrics-export-port=8080" in command for command in starts
    )
    assert "--dashboard-host=127.0.0.1" in starts[0]
    (uri,) = re.findall(r"MLFLOW_TRACKING_URI=http://(\S+)", " ".join(said["setup_commands"]))
    (server,) = [command for command in said["head_start_ray_commands"] if "mlflow server" in command]
    host, port = uri.split(":")
    assert host == said["provider"]["head_ip"]
    assert {f"--host={host}", f"--port={port}", f"--allowed-hosts={uri}"} <= set(server.split())


def test_the_servers_of_the_cluster_launcher_outlive_the_connection(tmp_path: Path) -> None:
    """What a command leaves behind holds nothing that ssh would wait for."""
    said = yaml.safe_load((DOCKER / "cluster.yaml").read_text())
    (server,) = [command for command in said["head_start_ray_commands"] if "mlflow server" in command]
    (tmp_path / "pcl_ray_environment").write_text('export PATH="$HOME:$PATH"\n')
    stand_in = tmp_path / "mlflow"
    stand_in.write_text('#!/bin/sh\necho "$$ $*"\nexec sleep 120\n')
    stand_in.chmod(0o755)
    log = tmp_path / "pcl_ray_mlflow" / "mlflow.log"
    shell = ["bash", "--login", "-c", f"true && ({server})"]  # as the launcher has it
    # waits for all that write there
    done = subprocess.run(
        shell, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    try:
        deadline = time.monotonic() + 60
        while not (log.is_file() and log.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        number, *words = log.read_text().split()
        assert words[0] == "server"
        assert os.getsid(int(number)) != os.getsid(0)
    finally:
        os.kill(int(number), signal.SIGKILL)


def test_the_dashboard_shows_our_metrics_and_no_others() -> None:
    board = json.loads((DOCKER / "grafana/dashboards/pcl_ray.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]] + [
        entry["definition"] for entry in board["templating"]["list"]
    ]
    shown = {name for expression in asked for name in re.findall(r"\bray_\w+", expression)}
    assert shown == {f"ray_{name}" for name in (*GAUGES, DROPPED)}
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert {target["datasource"]["uid"] for panel in board["panels"] for target in panel["targets"]} == {
        source["uid"]
    }
    (provider,) = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/pcl_ray.yaml").read_text())[
        "providers"
    ]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    assert all(panel["description"] for panel in board["panels"])


def test_prometheus_finds_every_ray_service() -> None:
    ray_job, _ = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = ray_job["dns_sd_configs"]
    assert sorted(found["names"]) == sorted(RAY_SERVICES)
    assert f"--metrics-export-port={found['port']}" in SERVICES["ray-head"]["command"]
    assert SERVICES["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def test_the_readme_names_what_there_is() -> None:
    text = (DOCKER / "README.md").read_text()
    for name in re.findall(r"`docker/([\w./-]+)`", text):
        assert (DOCKER / name).exists() or name.startswith(("secrets/", ".env", "data")), name
    for port in {entry.split(":")[1] for service in SERVICES.values() for entry in service.get("ports", [])}:
        assert f"127.0.0.1:{port}" in text, port
    variables = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text())) | {"PCL_RAY_STORAGE"}
    assert variables == set(
        re.findall(r"^#?([A-Z]\w+)=", (DOCKER / ".env.example").read_text(), flags=re.MULTILINE)
    )
