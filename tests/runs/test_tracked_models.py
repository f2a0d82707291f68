"""Models in MLflow: a real sqlite store and run; loaded in an interpreter without pcl_ray, served by HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import cli, config
from pcl_ray.config import RunConfig
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.errors import RunFailed
from pcl_ray.tracking import models
from pcl_ray.tracking.models import LoggedModels, ModelRequest, folders

# Without the repository on its path, and without what an editable installation leaves in the interpreter.
ALONE = """
import importlib.util, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [entry for entry in sys.path if entry != sys.argv[1]]
assert importlib.util.find_spec("pcl_ray") is None
import base64, json, pathlib
import mlflow, numpy as np, pandas as pd, torch
from PIL import Image
folder = pathlib.Path(sys.argv[2])
asked = json.loads((folder / "asked.json").read_text())
mlflow.set_tracking_uri(asked["uri"])
model = mlflow.pyfunc.load_model(asked["embedder"])
images = np.load(folder / "images.npy")
files = [str(folder / f"{i}.png") for i in range(len(images))]
contents = [pathlib.Path(file).read_bytes() for file in files]
texts = [base64.b64encode(content).decode() for content in contents]
kinds = {
    "batch": images, "grey batch": images[..., 0], "arrays": list(images), "nested lists": images.tolist(),
    "whole numbers": images.astype(np.int64),
    "paths": files, "path objects": [pathlib.Path(file) for file in files],
    "bytes": contents, "base64": texts,
    "data": ["data:image/png;base64," + text for text in texts],
    "pillow": [Image.open(file) for file in files], "records": [{"image": file} for file in files],
    "dictionary": {"image": images}, "array of paths": np.array(files),
    "series": pd.Series(files), "one by one": None,
    "frame of arrays": pd.DataFrame({"image": list(images)}),
    "frame of paths": pd.DataFrame({"image": files, "other": 1}),
    "frame of bytes": pd.DataFrame({"anything": contents}),
    "frame of lists": pd.DataFrame({"image": images.tolist()}, index=[7, 8, 9, 10]),
    "some of each": [images[0], files[1], contents[2], texts[3]],
}
answers = {}
for kind, given in kinds.items():
    found = pd.concat([model.predict(file) for file in files]) if given is None else model.predict(given)
    answers[kind] = found.to_dict(orient="list")
refused = {}
wrong = {
    "floats": images / 255, "range": images.astype(int) - 300, "missing": [None],
    "columns": pd.DataFrame({"a": [1], "b": [2]}),
}
for kind, given in wrong.items():
    try:
        model.predict(given)
    except Exception as error:
        refused[kind] = str(error)
encoder = mlflow.pyfunc.load_model(asked["encoder"])
views = np.load(folder / "views.npy")
graph = mlflow.pytorch.load_model(asked["encoder"])
with torch.no_grad():
    by_graph = graph(torch.from_numpy(views)).tolist()
in_views = [encoder.predict(views[:n]).tolist() for n in (1, 3, 5)]
print(json.dumps({"answers": answers, "refused": refused, "views": in_views, "graph": by_graph}))
"""


@dataclass
class Trained:
    uri: str
    experiment_id: str
    checkpoint: Path
    config: RunConfig
    folder: Path

    def log(
        self,
        run_id: str,
        step: int,
        metrics: dict[str, float],
        warn: Callable[[str], Any] = pytest.fail,
        **more: Any,
    ) -> LoggedModels:
        request = ModelRequest(
            run_id, self.experiment_id, self.checkpoint, self.config, metrics, step, **more
        )
        return models.log(self.uri, request, warn)

    def new_run(self) -> str:
        return self.client.create_run(self.experiment_id).info.run_id

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCL_RAY_HOME", str(folder / "home"))
        assert (
            cli.main(
                [
                    "train",
                    "digits",
                    "resources.workers=0",
                    *DIGITS_RUN,
                    "train.epochs=3",
                    "--name",
                    "one",
                    "--result",
                    str(folder / "result"),
                ]
            )
            == 0
        )
        uri = f"sqlite:///{folder}/mlflow.db"
        experiment_id = MlflowClient(uri).create_experiment(
            "models", artifact_location=(folder / "artifacts").as_uri()
        )
        result = json.loads((folder / "result").read_text())
        yield Trained(
            uri,
            experiment_id,
            Path(result["checkpoint"]),
            config.load(folder / "home" / "runs" / "one" / "config.yaml"),
            folder,
        )


@pytest.fixture
def exported_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder for the tests that are about everything else: the export takes seconds."""

    def export_apart(served: Embedder, folder: Path) -> None:
        folders.save_embedder(served, folder)

    monkeypatch.setattr(folders, "export_apart", export_apart)


def figures(logged: list[Any]) -> dict[str, float]:
    return {metric.key: metric.value for metric in logged[0].metrics}


@pytest.mark.slow
def test_both_models_are_logged_once_and_load_where_pcl_ray_is_not_installed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torch.export.export",
        lambda *_, **__: pytest.fail("an export in this process would disturb a training"),
    )
    run_id, metrics = trained.new_run(), {"eval/knn_top1": 0.5, "train/loss": 2.0, "diverged": float("nan")}
    trained.client.log_batch(run_id, metrics=[Metric("eval/knn_top1", 0.5, 1234, 11)])
    found: list[LoggedModels] = []
    thread = threading.Thread(target=lambda: found.append(trained.log(run_id, 11, metrics)))
    thread.start()
    thread.join(120)
    assert mlflow.active_run() is None
    logged = found[0]
    assert logged.summary == "models of step 11 logged"

    history = trained.client.get_metric_history(run_id, "eval/knn_top1")
    assert [(point.step, point.value, point.timestamp) for point in history] == [(11, 0.5, 1234)]
    best = trained.client.search_logged_models(
        [trained.experiment_id], order_by=[{"field_name": "metrics.eval/knn_top1", "ascending": False}]
    )
    assert {model.name: f"models:/{model.model_id}" for model in best} == {
        "encoder": logged.encoder,
        "embedder": logged.embedder,
    }
    assert {model.source_run_id for model in best} == {run_id}
    assert figures(best) == {"eval/knn_top1": 0.5, "train/loss": 2.0}
    assert best[0].params == {
        "encoder.backbone": "small_resnet",
        "encoder.dim": "16",
        "loss.temperature": "0.2",
        "e_step.num_clusters": "6,12",
    }
    assert {output.step for output in trained.client.get_run(run_id).outputs.model_outputs} == {11}

    again = trained.log(run_id, 11, metrics)
    assert (again.summary, again.embedder, again.encoder) == (
        "models of step 11 were logged before",
        logged.embedder,
        logged.encoder,
    )
    files = [path for path in (trained.folder / "artifacts").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pth") or "__pycache__" in path.parts]
    assert "torch==" in next(path for path in files if path.name == "requirements.txt").read_text()

    check_in_a_fresh_interpreter(trained, logged, tmp_path)


def check_in_a_fresh_interpreter(trained: Trained, logged: LoggedModels, folder: Path) -> None:
    rng = np.random.default_rng(0)
    images, views = (
        rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8),
        rng.normal(size=(5, 1, 8, 8)).astype(np.float32),
    )
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    np.save(folder / "images.npy", images)
    np.save(folder / "views.npy", views)
    (folder / "asked.json").write_text(
        json.dumps({"uri": trained.uri, "embedder": logged.embedder, "encoder": logged.encoder})
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
    }
    command = [sys.executable, "-c", ALONE, str(Path(folders.__file__).parents[3]), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])

    embedder = Embedder.of_checkpoint(trained.checkpoint, trained.config.augment)
    expected = embedder.embed(images)
    for kind, answer in told["answers"].items():
        assert list(answer) == ["embedding", "prototype_0", "distance_0", "prototype_1", "distance_1"]
        np.testing.assert_allclose(answer["embedding"], expected.embeddings, atol=1e-5, err_msg=kind)
        for m in range(2):
            assert answer[f"prototype_{m}"] == expected.prototypes[m].tolist()
            np.testing.assert_allclose(answer[f"distance_{m}"], expected.distances[m], atol=1e-5)
    said = {
        "floats": "whole numbers from 0 to 255, not float64",
        "range": "they go from -300",
        "missing": "image 0 is None",
        "columns": "column 'image'",
    }
    assert told["refused"].keys() == said.keys()
    assert [kind for kind, part in said.items() if part not in told["refused"][kind]] == []
    import torch

    unit = embedder.encoder(torch.from_numpy(views)).numpy()
    for found in (*told["views"], told["graph"]):
        np.testing.assert_allclose(found, unit[: len(found)], atol=1e-5)


@pytest.mark.usefixtures("exported_quickly")
def test_the_registry_has_the_best_and_the_latest(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(name: str) -> tuple[str, str]:
        return tuple(
            str(trained.client.get_model_version_by_alias(name, alias).version)
            for alias in ("best", "latest")
        )  # type: ignore[return-value]

    empty = tmp_path / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)  # where MLflow makes a database whenever it falls back to its own tracking URI
    first, second, third = (trained.new_run() for _ in range(3))
    logged = trained.log(first, 3, {"eval/knn_top1": 0.7}, register_as="pcl")
    assert (logged.version, held("pcl")) == ("1", ("1", "1"))
    assert "the best so far" in logged.summary
    logged = trained.log(second, 3, {"eval/knn_top1": 0.6}, register_as="pcl")
    assert (logged.version, held("pcl")) == ("2", ("1", "2"))
    assert "no better than the best, version 1 (eval/knn_top1 0.6 against 0.7)" in logged.summary
    assert trained.log(third, 3, {"eval/knn_top1": 0.8}, register_as="pcl").version == "3"
    assert held("pcl") == ("3", "3")
    again = trained.log(second, 3, {"eval/knn_top1": 0.6}, register_as="pcl")  # nothing new
    assert (again.version, held("pcl")) == ("2", ("3", "3"))
    tags = trained.client.get_model_version("pcl", "1").tags
    assert tags["pcl_ray.objective_value"] == "0.7"

    # versions until now are as an earlier version of ours registers them: they are compared by the head
    measured = {"eval/knn_top1": 0.99, "eval/head/knn_top1": 0.75}
    logged = trained.log(trained.new_run(), 3, measured, register_as="pcl")
    assert "no better than the best, version 3 (eval/head/knn_top1 0.75 against 0.8)" in logged.summary
    measured = {"eval/knn_top1": 0.91, "eval/head/knn_top1": 0.85}
    assert trained.log(trained.new_run(), 3, measured, register_as="pcl").version == "5"
    assert held("pcl") == ("5", "5")
    measured = {"eval/knn_top1": 0.9, "eval/head/knn_top1": 0.86}  # and these two by the backbone
    logged = trained.log(trained.new_run(), 3, measured, register_as="pcl")
    assert "no better than the best, version 5 (eval/knn_top1 0.9 against 0.91)" in logged.summary

    unlike = trained.log(
        trained.new_run(), 3, {"eval/rankme": 900.0}, register_as="pcl", objective="eval/rankme"
    )
    assert "cannot be compared" in unlike.summary
    assert held("pcl") == ("5", "7")
    assert list(empty.iterdir()) == []


@pytest.mark.usefixtures("exported_quickly")
def test_an_objective_that_is_missing_yields_to_any(trained: Trained) -> None:
    assert trained.log(trained.new_run(), 3, {}, register_as="other").version == "1"
    assert trained.client.get_model_version_by_alias("other", "best").version in (1, "1")
    assert (
        "the best so far"
        in trained.log(trained.new_run(), 3, {"eval/knn_top1": 0.1}, register_as="other").summary
    )
    assert (
        "cannot be compared"
        in trained.log(trained.new_run(), 3, {"eval/knn_top1": float("nan")}, register_as="other").summary
    )


def test_without_an_export_the_embedder_is_logged_alone(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_apart(served: Embedder, folder: Path) -> None:
        monkeypatch.setattr(
            "subprocess.run",
            lambda *_, **__: subprocess.CompletedProcess(
                [], 1, "", "noise\nNotExported: odd control flow\n  in f\n"
            ),
        )
        real(served, folder)

    real, run_id = folders.export_apart, trained.new_run()
    monkeypatch.setattr(folders, "export_apart", export_apart)
    warnings: list[str] = []
    logged = trained.log(run_id, 5, {}, warn=warnings.append)
    assert warnings == [
        "small_resnet cannot be exported as a graph (odd control flow); the embedder is logged alone"
    ]
    assert logged.encoder is None
    assert [
        model.name
        for model in trained.client.search_logged_models(
            [trained.experiment_id], f"source_run_id = '{run_id}'"
        )
    ] == ["embedder"]
    assert trained.log(run_id, 5, {}).encoder is None  # and is not tried again


def test_the_reason_of_a_failed_export_comes_through(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("odd control flow\nand more")

    Embedder.of_checkpoint(trained.checkpoint, trained.config.augment).save(tmp_path / "served")
    monkeypatch.setattr(folders, "save_encoder", refuse)
    with pytest.raises(SystemExit) as ended:
        folders.main(str(tmp_path / "served"), str(tmp_path / "model"))
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "NotExported: odd control flow"


@pytest.mark.usefixtures("exported_quickly")
def test_an_upload_that_broke_off_is_made_again(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained.new_run()
    with monkeypatch.context() as patch:
        patch.setattr(
            MlflowClient,
            "log_model_artifacts",
            lambda *_: (_ for _ in ()).throw(ConnectionError("the server has gone")),
        )
        with pytest.raises(ConnectionError):
            trained.log(run_id, 5, {})
    assert trained.log(run_id, 5, {}).summary == "models of step 5 logged"
    logged = trained.client.search_logged_models([trained.experiment_id], f"source_run_id = '{run_id}'")
    assert sorted((model.name, str(model.status)) for model in logged) == [
        ("embedder", "READY"),
        ("encoder", "READY"),
    ]


def test_a_broken_checkpoint_is_one_sentence(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"short")
    broken = Trained(
        trained.uri, trained.experiment_id, tmp_path / "broken.pt", trained.config, trained.folder
    )
    with pytest.raises(RunFailed, match=r"broken\.pt"):
        broken.log(trained.new_run(), 1, {})


def ask(port: int, content: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_until_up(server: subprocess.Popen[Any], port: int, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server is not up after two minutes: {log.read_text()}")


@pytest.fixture
def served(trained: Trained, tmp_path: Path, exported_quickly: None) -> Iterator[int]:
    """The port of a real server of the embedder, in a process group of its own."""
    uri = trained.log(trained.new_run(), 7, {}).embedder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder = Path(sys.executable).parent
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PCL_RAY_EMBEDDER_PATHS")
    }
    environment |= {
        "MLFLOW_TRACKING_URI": trained.uri,
        "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    log = tmp_path / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_up(server, port, log)
        yield port
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, number)
                server.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@pytest.mark.slow
def test_a_server_answers_arrays_and_base64_and_reads_no_files(
    served: int, trained: Trained, tmp_path: Path
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image[..., 0]).save(file)
    texts = [base64.b64encode(file.read_bytes()).decode() for file in files]
    expected = Embedder.of_checkpoint(trained.checkpoint, trained.config.augment).embed(images)
    for items in (images.tolist(), texts):
        records = [{"image": item} for item in items]
        split = {"columns": ["image"], "data": [[item] for item in items]}
        for content in (
            {"inputs": items},
            {"instances": items},
            {"instances": records},
            {"dataframe_records": records},
            {"dataframe_split": split},
        ):
            status, answer = ask(served, content)
            assert status == 200, answer
            found = answer["predictions"]
            np.testing.assert_allclose([row["embedding"] for row in found], expected.embeddings, atol=1e-5)
            assert [row["prototype_1"] for row in found] == expected.prototypes[1].tolist()
            np.testing.assert_allclose([row["distance_1"] for row in found], expected.distances[1], atol=1e-5)
    for text in (str(files[0]), "/no/such/file.png", "nonsense"):  # it is not told which files there are
        status, answer = ask(served, {"dataframe_records": [{"image": text}]})
        assert status == 400
        assert "image 0 is no base64" in answer["message"] or "no image that is known" in answer["message"]
        assert "No such file" not in answer["message"]
    status, answer = ask(served, {"inputs": [[[0.5]]]})
    assert status == 400
    assert "whole numbers from 0 to 255" in answer["message"]
