"""An MLflow server with runs to look at: three single runs, and a sweep with six trials."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image, ImageDraw

from pcl_ray import tracking_server, tracking_views
from pcl_ray.tracking_views import Sweep

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before any test imports mlflow

EPOCHS = 8
STEPS = 40  # an epoch
KEYS = ("prototypes/0", "prototypes/1", "clusters/phi", "clusters/sizes", "map", "views")
SWEEP = Sweep("tau_and_alpha", "eval/knn_top1", "max", {"loss.temperature": True, "e_step.alpha": True, "e_step.num_clusters": False}, EPOCHS * STEPS)


@dataclass(frozen=True)
class Dashboard:
    """A server, the experiment on it, its single runs (the best one first) and its sweep."""

    uri: str
    experiment_id: str
    run_ids: list[str]
    sweep: Sweep


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Chromium is. Without one these tests are skipped, but not where nobody would see that."""
    found = os.environ.get("PCL_RAY_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        message = "no Chromium: install one, or set PCL_RAY_TEST_CHROMIUM"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Dashboard]:
    from mlflow import MlflowClient
    from mlflow.version import VERSION

    folder = tmp_path_factory.mktemp("dashboard")
    store = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(store)
    experiment = client.create_experiment("pcl_ray", artifact_location=(folder / "artifacts").as_uri())
    singles = [record(client, experiment, f"digits-{n}", tau=0.2, alpha=10, k=(30, 60), seed=n, every=2, tags={}) for n in range(3)]
    parent = client.create_run(experiment, run_name=SWEEP.name, tags={"objective.name": SWEEP.objective}).info.run_id
    tags = {"pcl_ray.sweep": SWEEP.name, "mlflow.parentRunId": parent, "trial.status": "finished"}
    for n, (tau, alpha) in enumerate((tau, alpha) for tau in (0.1, 0.2, 0.4) for alpha in (1, 10)):
        k = (30, 60) if n % 2 else (20, 40)
        record(client, experiment, f"tau{tau}-a{alpha}-K{k[0]}+{k[1]}-s0", tau=tau, alpha=alpha, k=k, seed=0, every=None, tags=tags)
    client.set_terminated(parent, "FINISHED")
    tracking_views.ensure(client, experiment, VERSION, clusterings=2, sweep=SWEEP)
    with tracking_server.serving(store, folder / "artifacts", host="127.0.0.1", port=free_port()) as (uri, _):
        yield Dashboard(uri, experiment, singles, SWEEP)


def record(client: Any, experiment: str, name: str, *, tau: float, alpha: int, k: tuple[int, int], seed: int, every: int | None, tags: dict[str, str]) -> str:
    """Writes a run as training does. every: epochs between pictures, the first before training; None: pictures once, at the end."""
    from mlflow.entities import Metric, Param

    run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    params = {"loss.temperature": tau, "e_step.alpha": alpha, "e_step.num_clusters": f"{k[0]},{k[1]}", "seed": seed, "optimizer.lr": 0.03}
    params |= {"plan.num_clusters_0": k[0], "plan.num_clusters_1": k[1], "plan.num_clusters_total": sum(k)}
    points = []
    for epoch in range(EPOCHS):
        step = (epoch + 1) * STEPS
        points += [Metric(key, value, 1_700_000_000_000 + 1000 * epoch, step) for key, value in figures(epoch, tau, alpha, k, seed).items()]
    client.log_batch(run_id, metrics=points, params=[Param(key, str(value)) for key, value in params.items()])
    for epoch in range(0, EPOCHS + 1, every) if every else [EPOCHS]:
        for key in KEYS:
            client.log_image(run_id, sheet(key, epoch, seed + alpha + int(100 * tau)), key=key, step=epoch * STEPS)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def figures(epoch: int, tau: float, alpha: int, k: tuple[int, int], seed: int) -> dict[str, float]:
    done = 1 - math.exp(-(epoch + 1) / 3) + 0.01 * math.sin(epoch + seed)
    best = 0.9 - abs(math.log(tau / 0.2)) / 10 - abs(math.log10(alpha) - 1) / 20 - seed / 100
    found = {"train/loss": 6 - 3 * done, "train/loss_instance": 4 - 2 * done, "train/loss_prototype": 2 - done, "train/accuracy_instance": 0.8 * done}
    found |= {"eval/knn_top1": best * done, "eval/rankme": 40 * done + 5 * tau, "eval/alignment": 0.5 - 0.2 * done, "eval/uniformity": -2 - done}
    found |= {"train/gradient_norm": 1 + done, "train/feature_std": 0.08 * done, "train/lr": 0.03 * (1 - epoch / EPOCHS), "cluster/rank": 30 * done}
    found |= {"perf/images_per_second": 2000 + 10 * epoch, "perf/m_step_seconds": 3.0 + 0.1 * epoch, "perf/e_step_seconds": 0.5 + 0.02 * epoch}
    found |= {"perf/data_share": 0.05 + 0.01 * math.sin(epoch), "perf/memory_gb": 1.5, "perf/device_minutes": (epoch + 1) * 0.4 + 0.05 * sum(k) / 30}
    for m in range(2):
        phi = 0.2 - 0.1 * done + 0.02 * m
        found[f"train/accuracy_prototype_{m}"] = 0.9 * done - 0.1 * m
        here = {"ami": best * done - 0.1 * m, "largest_share": 0.3 - 0.2 * done, "empty": max(0, 4 - epoch), "nmi_previous": done, "drift": 0.5 - 0.4 * done}
        here |= {"phi_p10": phi / 2, "phi_p50": phi, "phi_p90": 1.6 * phi, "collisions": 0.1 - 0.05 * done, "k": k[m], "objective": 1 - done / 2}
        found |= {f"cluster/{m}/{name}": value for name, value in here.items()}
    return found


def sheet(key: str, epoch: int, shade: int) -> Image.Image:
    """A picture that is another one at every step."""
    image = Image.new("RGB", (480, 360), (shade * 37 % 256, 30 * epoch % 256, 120))
    draw = ImageDraw.Draw(image)
    for row in range(6):
        for column in range(8):
            left, top = 8 + 58 * column, 30 + 54 * row
            draw.rectangle((left, top, left + 50, top + 46), fill=((row * 40 + 20 * epoch) % 256, column * 30, shade * 11 % 256))
    draw.text((8, 8), f"{key}, epoch {epoch}", fill="white")
    return image


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
