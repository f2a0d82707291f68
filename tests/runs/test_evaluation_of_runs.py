"""`pcl-ray evaluate`: of a run, whose entry in MLflow it goes to, and of weights of others."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from mlflow import MlflowClient
from PIL import Image
from small import DIGITS_RUN

from pcl_ray import cli
from pcl_ray.report import page
from pcl_ray.runs import record_reader

FAST = ("--neighbours", "5,10", "--runs", "2", "--clusters", "20")


def home() -> Path:
    return Path(os.environ["PCL_RAY_HOME"])


def evaluated(*words: str) -> dict[str, Any]:
    """What `evaluate` writes as JSON."""
    file = home() / "evaluated.json"
    home().mkdir(parents=True, exist_ok=True)
    assert cli.main(["evaluate", *words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def figures(result: dict[str, Any], protocol: str, features: str) -> dict[str, Any]:
    entries = [
        entry
        for entry in result["protocols"]
        if (entry["protocol"], entry["features"]) == (protocol, features)
    ]
    assert len(entries) == 1
    return entries[0]["figures"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The home of a run that has trained for an epoch, with MLflow; its figures."""
    folder = tmp_path_factory.mktemp("evaluated")
    before = os.environ.get("PCL_RAY_HOME")
    os.environ["PCL_RAY_HOME"] = str(folder)
    words = [word for word in DIGITS_RUN if not word.startswith(("tracking", "train.epochs"))]
    result = folder / "result.json"
    options = ["resources.workers=0", "train.epochs=2", "tracking.report=false", "tracking.model=false"]
    arguments = ["train", "digits", *words, *options, "--name", "one", "--result", str(result)]
    assert cli.main(arguments) == 0
    yield folder, json.loads(result.read_text())
    if before is None:
        del os.environ["PCL_RAY_HOME"]
    else:
        os.environ["PCL_RAY_HOME"] = before


@pytest.fixture
def at_home(trained: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PCL_RAY_HOME", str(trained[0]))
    return trained[1]


def test_a_run_is_measured_as_it_was_in_training(at_home: dict[str, Any]) -> None:
    """The momentum encoder's backbone on the run's images: kNN is the run's own figure."""
    metrics = at_home["metrics"]
    result = evaluated("one", "--protocols", "knn", "--features", "head,backbone", "--no-tracking")
    assert result["encoder"] == "momentum"
    assert result["epochs"] == 2
    assert result["data"] | {"fingerprint": ""} == {
        "name": "digits",
        "source": "digits",
        "path": None,
        "fingerprint": "",
        "bank": 300,
        "queries": 359,
        "classes": 10,
    }
    for features, name in (("backbone", "eval/knn_top1"), ("head", "eval/head/knn_top1")):
        measured = figures(result, "knn", features)["k10/top1"]
        assert measured["mean"] == pytest.approx(metrics[name], abs=0.004)  # features travel as float16
    assert figures(result, "knn", "pixels")["k10/top1"]["mean"] == metrics["eval/pixels/knn_top1"]
    assert figures(result, "knn", "untrained")["k10/top1"]["mean"] == pytest.approx(
        metrics["eval/untrained/knn_top1"], abs=0.004
    )


@pytest.mark.slow
def test_all_of_it_stands_in_the_table_the_file_and_mlflow(
    at_home: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluated("one", *FAST)
    shown = capsys.readouterr().out
    assert "knn k5, top-1" in shown
    assert "clusters k20, AMI" in shown
    assert "±" in shown
    clusters = figures(result, "clusters", "backbone")["k20/ami"]
    assert clusters["runs"] == len(clusters["values"]) == 2
    assert clusters["sd"] == pytest.approx(np.std(clusters["values"], ddof=1))
    sources = {entry["protocol"]: entry["source"] for entry in result["protocols"]}
    assert "Garrido" in sources["unlabelled"]
    assert not any(
        entry["features"] == "pixels" for entry in result["protocols"] if entry["protocol"] == "low-shot"
    )
    uri = f"sqlite:///{home()}/mlflow/mlflow.db"
    client = MlflowClient(uri)
    run = client.get_run(at_home["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/clusters/backbone/k20/ami"] == clusters["mean"]
    assert "evaluate/clusters/backbone/k20/nmi" not in run.data.metrics  # no chart for each of them
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # load_table asks the store that it names
    table = client.load_table(run.info.experiment_id, "evaluation_table.json", [run.info.run_id])
    row = table[(table["measure"] == "k20/nmi") & (table["features"] == "backbone")].iloc[-1]
    expected = figures(result, "clusters", "backbone")["k20/nmi"]["mean"]
    assert row["mean"] == pytest.approx(expected)  # MLflow rounds tables
    assert (row["name"], row["data"]) == ("one", "digits")
    files = sorted((home() / "evaluations").glob("one-*.json"))
    assert json.loads(files[-1].read_text()) == result
    assert files[-1].name in [
        Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "evaluations")
    ]


def test_the_report_has_the_newest_of_each_measurement(at_home: dict[str, Any]) -> None:
    first = evaluated("one", "--protocols", "knn,clusters", "--neighbours", "5", "--no-tracking")
    second = evaluated("one", "--protocols", "knn", "--neighbours", "5", "--queries", "40", "--no-tracking")
    damaged = home() / "evaluations/one-damaged.json"
    damaged.write_text("{")
    other = json.loads(json.dumps(second)) | {"weights": "/elsewhere/epoch_00002.pt"}
    (home() / "evaluations/two.json").write_text(json.dumps(other | {"data": {"name": "elsewhere"}}))
    (home() / "evaluations/three.json").write_text(json.dumps(second | {"data": {"name": "cut"}}))
    [stored] = record_reader.read("one").evaluations
    assert (stored.data, stored.queries, stored.epochs) == ("digits", 40, 2)
    newest = figures(second, "knn", "backbone")["k5/top1"]["mean"]
    assert stored.figures["knn", "backbone", "k5/top1"] == (newest, None)
    kept = figures(first, "clusters", "backbone")["classes/ami"]
    assert stored.figures["clusters", "backbone", "classes/ami"] == (kept["mean"], kept["sd"])
    html = page.html_of(record_reader.read("one"))
    assert "knn k5, top-1" in html
    assert f"{newest:.4f}" in html
    assert f"{kept['mean']:.4f} ± {kept['sd']:.4f}" in html


def test_a_store_that_does_not_answer_costs_nothing_but_a_warning(
    at_home: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    evaluated("one", "--protocols", "knn", "--no-references")
    assert "warning: the evaluation is not recorded: MLflow at" in capsys.readouterr().err


def published(path: Path, *, seed: int = 0) -> Path:
    """Weights as the authors' code writes them."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=16)
    state = {
        f"module.encoder_{which}.{name}": value
        for which in ("q", "k")
        for name, value in model.state_dict().items()
    }
    torch.save({"arch": "resnet18", "state_dict": state, "epoch": 3}, path)
    return path


def folder_of(root: Path, classes: tuple[str, ...], count: int = 12) -> Path:
    draw = np.random.default_rng(0)
    for number, name in enumerate(classes):
        for part, images in (("train", count), ("val", 4)):
            (root / part / name).mkdir(parents=True)
            for image in range(images):
                pixels = draw.integers(0, 60, (36, 36, 3)) + 60 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{image}.png")
    return root


@pytest.mark.slow
def test_weights_of_others_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = published(tmp_path / "PCL.pth.tar")
    images = folder_of(tmp_path / "shades", ("dark", "grey", "light"))
    words = ("augment.image_size=32", "--protocols", "knn,unlabelled", "--experiment", "others", *FAST)
    result = evaluated(str(weights), str(images), *words)
    assert result["encoder"] == "query"
    assert result["data"]["name"] == "shades"
    assert result["data"]["classes"] == 3
    assert figures(result, "knn", "backbone")["k5/top1"]["mean"] > 0.8
    assert result["view"]["image_size"] == 32
    client = MlflowClient(f"sqlite:///{home()}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("others")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "evaluate PCL.pth.tar"
    assert run.info.status == "FINISHED"
    assert "evaluate/knn/backbone/k5/top1" in run.data.metrics
    assert cli.main(["evaluate", str(weights), "--protocols", "knn"]) == 2
    assert "on which images? " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "test_labels", "protocols", "message"),
    [
        (None, None, "knn", "knn needs labels, and the images of some.npz have none"),
        (
            [1] * 40,
            [1] * 10,
            "linear",
            "linear needs two classes or more; all labelled images of some.npz are of one",
        ),
        ([0, 1] * 20, None, "low-shot", "low-shot needs held-out images with labels, and some.npz has none"),
    ],
)
def test_labels_that_do_not_suffice_are_refused_in_one_sentence(
    labels: list[int] | None,
    test_labels: list[int] | None,
    protocols: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3)).astype(np.uint8)
    arrays = {"images": pixels[:40], "test_images": pixels[40:]}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    if test_labels is not None:
        arrays["test_labels"] = np.array(test_labels)
    np.savez(tmp_path / "some.npz", **arrays)
    weights, size = published(tmp_path / "w.pth.tar"), "augment.image_size=32"
    words = [str(weights), str(tmp_path / "some.npz"), size, "--protocols", protocols, "--no-tracking"]
    assert cli.main(["evaluate", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    with_criteria = [*words[:3], "--protocols", f"{protocols},unlabelled", "--no-references", *words[5:]]
    result = evaluated(*with_criteria)  # what needs no labels is measured
    assert {entry["protocol"] for entry in result["protocols"]} == {"unlabelled"}
    assert result["refused"][0]["protocol"] == protocols


def test_texts_as_labels_and_classes_that_are_not_equal(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    of = np.array(["rare"] * 3 + ["common"] * 37)
    pixels = draw.integers(0, 99, (40, 32, 32, 3)) + 150 * (of == "rare")[:, None, None, None]
    np.savez(tmp_path / "some.npz", images=pixels.astype(np.uint8), labels=of)
    weights = published(tmp_path / "w.pth.tar")
    words = ("augment.image_size=32", "--protocols", "knn", "--leave-one-out", "--neighbours", "1,5000")
    result = evaluated(str(weights), str(tmp_path / "some.npz"), "data.holdout=0", *words, "--no-tracking")
    measured = figures(result, "knn", "backbone")
    assert measured["k1/top1"]["mean"] == measured["k1/balanced"]["mean"] == 1.0
    assert measured["k5000/balanced"]["mean"] == 0.5  # all votes: everything is common
    assert measured["k5000/top1"]["mean"] == pytest.approx(37 / 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "--protocols", "kn"], "--protocols 'kn': there is no such protocol. Did you mean 'knn'?"),
        (["one", "--features", "body"], "--features 'body': backbone or head"),
        (["one", "--neighbours", "many"], "--neighbours 'many': numbers, several by comma"),
        (["one", "--neighbours", "0"], "--neighbours: 0 is too few"),
        (["one", "--runs", "0"], "--runs: 0 is too few"),
        (["one", "a", "b"], "'b' is a third word"),
        (["one", "--clusters", "5000"], "--clusters 5000: more than the "),
        (["one", "nowhere"], "'nowhere' is no data set"),
        (["one", "optimizer.lr=3"], "optimizer.lr means nothing to an evaluation"),
        (["once"], "did you mean 'one'?"),
        (["one", "--json", "/nowhere/file.json"], "--json '/nowhere/file.json' cannot be written"),
    ],
)
def test_wrong_requests_are_answered_in_one_sentence(
    at_home: dict[str, Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_svms_of_very_many_classes_are_made_only_when_asked_for(
    at_home: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pcl_ray.cli.evaluate._MANY_CLASSES", 9)
    result = evaluated("one", "--no-references", "--no-tracking")
    assert {each["protocol"] for each in result["protocols"]} == {"knn", "linear", "clusters", "unlabelled"}
    assert "low-shot: SVMs for each of 10 classes take hours" in capsys.readouterr().out
    result = evaluated("one", "--no-references", "--no-tracking", "--protocols", "low-shot", "--runs", "1")
    assert {each["protocol"] for each in result["protocols"]} == {"low-shot"}


def test_a_job_takes_the_same_words(
    at_home: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # which a process of its own would have replaced
    job = Path(__file__).parents[2] / "jobs" / "evaluate.py"
    words = ["evaluate.py", "one", "--protocols", "knn", "--no-references", "--no-tracking"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(job), run_name="__main__")
    assert end.value.code == 0
    assert "knn k10, top-1" in capfd.readouterr().out


def voc_folder(root: Path, images: int = 90) -> Path:
    """Images with a bright half for one class, a bright lower half for another, or both; some difficult."""
    folder, draw = root / "VOC2007", np.random.default_rng(0)
    for name in ("JPEGImages", "ImageSets/Main", "Annotations"):
        (folder / name).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(images)]
    for name in names:
        pixels, objects = draw.integers(0, 60, (40, 40, 3)), []
        for label, part in (("cat", np.s_[:20]), ("dog", np.s_[20:])):
            if draw.random() < 0.5:
                pixels[part] += 150
                objects.append((label, draw.random() < 0.1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        entries = "".join(
            f"<object><name>{label}</name><difficult>{int(hard)}</difficult></object>"
            for label, hard in objects
        )
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{entries}</annotation>")
    third = images // 3
    lists = {"trainval": names[: 2 * third], "train": names[:third], "val": names[third : 2 * third]}
    lists["test"] = names[2 * third :]
    for part, of_part in lists.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(of_part))
    return root


def test_voc_has_its_own_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, folder = published(tmp_path / "w.pth.tar"), voc_folder(tmp_path / "voc")
    words = (str(weights), str(folder), "augment.image_size=32", "--protocols", "low-shot,knn", "--runs", "2")
    result = evaluated(*words, "--no-tracking")
    assert result["data"] | {"fingerprint": "", "path": ""} == {
        "name": "VOC2007",
        "source": "folder",
        "path": "",
        "fingerprint": "",
        "bank": 60,
        "queries": 30,
        "classes": 20,
    }
    measured = figures(result, "low-shot", "backbone")
    assert {name.partition("/")[0] for name in measured} == {"k1", "k2", "k4", "k8", "k16", "full"}
    assert measured["full/map"]["mean"] > 0.9
    assert measured["k16/map"]["runs"] == 2
    assert "knn needs one label an image; the images of VOC2007 have several" in capsys.readouterr().err


def reproduced(*words: str) -> dict[str, Any]:
    file = home() / "card.json"
    home().mkdir(parents=True, exist_ok=True)
    assert cli.main(["reproduce", *words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_the_report_card_says_what_was_not_run_and_why(
    at_home: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    card = reproduced("one")
    assert card["version"] == "v1"  # a linear head
    assert card["encoder"] == "query"
    published = {row["title"]: (row["published_v1"], row["published_v2"]) for row in card["figures"]}
    assert published == {
        "ImageNet, linear": (61.5, 67.6),
        "VOC07, SVM, k = 1": (46.9, 47.9),
        "VOC07, SVM, k = 2": (56.4, 59.6),
        "VOC07, SVM, k = 4": (62.8, 66.2),
        "VOC07, SVM, k = 8": (70.2, 74.5),
        "VOC07, SVM, k = 16": (74.3, 78.3),
        "VOC07, SVM, full": (82.3, 85.4),
    }
    assert {row["not_run"] for row in card["figures"]} == {
        "no folder of ImageNet was given",
        "no folder of VOC2007 was given",
    }
    assert "the encoder is a small_resnet, the published ones are ResNet-50" in card["remarks"]
    shown = capsys.readouterr().out
    assert "github.com/salesforce/PCL" in shown
    assert "not run: VOC07, SVM (6 figures): no folder of VOC2007 was given" in shown


def test_the_report_card_of_a_published_file_on_voc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = published(tmp_path / "w.pth.tar")
    shades = folder_of(tmp_path / "shades", ("dark", "grey", "light"), 3)
    voc = voc_folder(tmp_path / "voc", images=20)
    card = reproduced(str(weights), str(shades), str(voc), "--runs", "2")
    rows = {row["title"]: row for row in card["figures"]}
    assert rows["ImageNet, linear"]["not_run"] == "shades is not ImageNet: it has 3 classes instead of 1,000"
    full = rows["VOC07, SVM, full"]
    assert 0 < full["measured"] <= 100
    assert full["difference"] == pytest.approx(full["measured"] - 82.3)
    assert rows["VOC07, SVM, k = 1"]["runs"] == 2
    assert "±" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is not a folder"),
        (["."], "is neither ImageNet (folders train and val) nor VOC2007"),
        (["--runs", "0"], "--runs: 0 is too few"),
    ],
)
def test_a_card_of_wrong_folders_is_one_sentence(
    at_home: dict[str, Any],
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "one", *words]) == 2
    assert message in capsys.readouterr().err
