"""pcl_ray from Python: runs that are trained, opened, looked into and used, as docs/api.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small import DIGITS_RUN

import pcl_ray
from pcl_ray import config as configs
from pcl_ray.data import datasets
from pcl_ray.data.colour import to_floats
from pcl_ray.data.evaluation_view import evaluation_view
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.paths import home

SMALL = {**configs.parse(DIGITS_RUN)[0], "resources.workers": 0, "train.epochs": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pcl_ray.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCL_RAY_HOME", str(tmp_path_factory.mktemp("home")))
        return pcl_ray.train("digits", SMALL, name="mine", progress=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of two classes: dark and light noise."""
    draw = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 120)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(low, low + 120, (10, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i:02}.png")
    return tmp_path / "pictures"


def test_a_run_tells_of_itself(run: pcl_ray.Run) -> None:
    assert (run.name, run.state, run.epochs) == ("mine", "finished", 2)
    assert repr(run) == "Run('mine', finished, 2 epochs)"
    assert run.config.loss.queue_size == 100
    assert run.checkpoint is not None
    assert run.checkpoint.name == "epoch_00002.pt"
    assert run.result.run_name == "mine"
    assert run.result.checkpoint == str(run.checkpoint)


def test_figures_are_a_table(run: pcl_ray.Run) -> None:
    table = run.figures
    assert isinstance(table, pd.DataFrame)
    assert table.index.name == "epoch"
    assert table.index.tolist() == [1, 2]
    assert table["train/loss"].notna().all()
    assert run.metrics["eval/knn_top1"] == table["eval/knn_top1"].dropna().iloc[-1]
    assert set(table.columns) <= set(run.metrics)


def test_clusters_say_which_images_are_theirs(run: pcl_ray.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run.clusters()
    assert [len(c.prototypes) for c in (first, second)] == [6, 12]
    assert first.assignments.shape == (300,)
    positions = [first.positions(k) for k in range(6)]
    assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(300))
    with pytest.raises(DataError, match="in no files"):
        first.files(0)
    with pytest.raises(IndexError, match="0 … 5, not 6"):
        first.positions(6)
    summary, images = first.summary(), first.images()
    assert summary["size"].tolist() == [len(own) for own in positions]
    assert list(images.columns) == ["prototype", "class"]
    for k, own in enumerate(positions):
        counts = images["class"].iloc[own].value_counts()
        assert summary["purity"][k] == pytest.approx(counts.max() / len(own))
        assert counts[summary["class"][k]] == counts.max()
    assert "K = 6, 300 images" in repr(first)


def test_the_encoder_and_what_embed_makes_of_the_same_pictures(run: pcl_ray.Run) -> None:
    images = datasets.load(run.config.data, cache_dir=run.path).train
    pixels = np.stack([images.read(i) for i in range(20)])
    found = run.embed(pixels)
    augment = run.config.augment
    views = to_floats(evaluation_view(augment)(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)), augment)
    with torch.no_grad():
        expected = run.encoder()(views).numpy()
        backbone = run.encoder().backbone(views).numpy()
        other = run.encoder("query")(views).numpy()
    assert np.allclose(found.embeddings, expected, atol=1e-5)
    assert np.allclose(found.backbone, backbone, atol=1e-4)
    assert not np.allclose(found.embeddings, other, atol=1e-3)
    assert found.names == ()
    # the last clustering is of the last weights: images lie with the prototype that the run put them to
    for ids, clustering in zip(found.prototypes, run.clusters(), strict=True):
        assert (ids == clustering.assignments[:20]).mean() > 0.9


def test_pictures_of_all_kinds_are_the_same_pictures(run: pcl_ray.Run, pictures: Path) -> None:
    files = sorted(pictures.rglob("*.png"))
    expected = run.embed(files)
    arrays = [np.asarray(Image.open(file)) for file in files]
    tensors = torch.stack([torch.from_numpy(array.copy()).movedim(-1, 0) for array in arrays])
    listed = pictures.parent / "list.txt"
    listed.write_text("".join(f"{file}\n" for file in files))
    table = pictures.parent / "table.parquet"
    pd.DataFrame({"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}).to_parquet(table)
    for given in (
        [str(file) for file in files],
        [Image.open(file) for file in files],
        [file.read_bytes() for file in files],
        np.stack(arrays),
        np.stack(arrays).astype(np.float64) / 255,
        tensors,
        tensors / 255,
        list(tensors),
        pictures,
        str(listed),
        table,
    ):
        found = run.embed(given)
        assert np.allclose(found.embeddings, expected.embeddings, atol=1e-5)
        assert np.allclose(found.backbone, expected.backbone, atol=1e-4)
    assert run.embed(pictures).names == tuple(map(str, files))
    assert run.embed(files[1]).names == run.embed(str(files[1])).names == (str(files[1]),)
    assert run.embed(table).names[3] == f"{table}#3"
    assert np.allclose(run.embed(files[0]).embeddings, expected.embeddings[:1], atol=1e-5)


def test_pictures_that_cannot_be_read_are_left_out_on_request(run: pcl_ray.Run, tmp_path: Path) -> None:
    good = [np.full((8, 8), value, np.uint8) for value in (10, 90, 200)]
    for number, image in enumerate(good):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "0b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0b\.png"):
        run.embed(tmp_path)
    found = run.embed(tmp_path, on_bad_image="skip")
    assert [Path(name).name for name in found.names] == ["0.png", "1.png", "2.png"]
    assert found.broken == (1,)
    assert np.allclose(found.embeddings, run.embed(good).embeddings, atol=1e-5)
    (tmp_path / "list.txt").write_text("1.png\ngone.png\n")
    assert run.embed(tmp_path / "list.txt", on_bad_image="skip").broken == (1,)
    assert run.embed([good[0], b"junk"], on_bad_image="skip").broken == (1,)
    with pytest.raises(ConfigError, match="fail or skip"):
        run.embed(good, on_bad_image="skp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 7, 8, 8), "[n, channels, H, W]"),
        (torch.full((3, 8, 8), 2.0), "must be in 0 … 1, not 2"),
        ([torch.zeros(1, 8, 8), torch.full((1, 8, 8), -1.0)], "floats of image 1"),
        (np.zeros((2, 8, 8, 3), np.int64), "must be uint8"),
    ],
)
def test_what_is_no_picture(given: object, message: str, run: pcl_ray.Run) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run.embed(given)  # type: ignore[arg-type]


def test_what_is_not_there(run: pcl_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(run.path.parents[1]))
    with pytest.raises(ConfigError, match="there is no run 'mini'.*mine"):
        pcl_ray.open_run("mini")
    with pytest.raises(ConfigError, match=r"did you mean 'loss.temperature'"):
        pcl_ray.train("digits", {"loss.temprature": 0.1})
    with pytest.raises(ConfigError, match="exists already"):
        pcl_ray.train("digits", SMALL, name="mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        run.embed(tmp_path / "empty")
    with pytest.raises(ConfigError, match="name of the images is empty"):
        run.embed("")
    (tmp_path / "list.txt").write_text("/nowhere/gone.png\n")
    with pytest.raises(DataError, match="gone.png cannot be read"):
        run.embed(tmp_path / "list.txt")
    with pytest.raises(DataError, match="none.png"):
        run.embed(tmp_path / "none.png")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        pcl_ray.trian  # noqa: B018


def test_resumed_and_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    words = ["train.epochs=1", "resources.workers=0", "e_step.warmup_epochs=0", "optimizer.warmup_epochs=0"]
    first = pcl_ray.train("digits", [*DIGITS_RUN, *words], name="one", progress=False)
    assert first.epochs == 1
    longer = pcl_ray.resume("one", {"train.epochs": 2}, progress=False)
    assert (longer.path, longer.epochs) == (first.path, 2)
    other = pcl_ray.fork("one", {"e_step.num_clusters": [5], "train.epochs": 3}, name="two", progress=False)
    assert (other.epochs, len(other.clusters())) == (3, 1)
    assert pcl_ray.open_run(other.path).name == pcl_ray.open_run("two").name == "two"


def test_files_of_clusters_and_the_report(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "home"))
    knobs = SMALL | {
        "data.source": "folder",
        "data.path": str(pictures),
        "data.limit": None,
        "data.holdout": 0.2,
        "train.batch_size": 8,
        "loss.queue_size": 8,
        "e_step.num_clusters": [2],
        "e_step.collapse_rank": 0,
        "e_step.collapse_cone": 1,
    }
    run = pcl_ray.train("digits", knobs, progress=False)
    assert capfd.readouterr().out == ""
    (clustering,) = run.clusters()
    files = [file for k in range(2) for file in clustering.files(k)]
    assert len(files) == len(set(files)) == 19
    assert all(Path(file).is_file() for file in files)
    assert (
        clustering.images()["file"]
        .map(lambda file: Path(file).parent.name)
        .equals(clustering.images()["class"].astype(str))
    )
    page = run.report(tmp_path / "page.html")
    assert "<html" in page.read_text(encoding="utf-8")
    assert run.report() == home() / "runs" / run.name / "report.html"
    next(pictures.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="have changed"):
        run.clusters()


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, pcl_ray; pcl_ray.open_run; pcl_ray.Run;"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_sweep_is_checked_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    space = {"loss.temperature": {"type": "choice", "values": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match="recipe"):
        pcl_ray.sweep(space)
    with pytest.raises(ConfigError, match="sweep.sampels"):
        pcl_ray.sweep(space, recipe="digits", sampels=2)
    with pytest.raises(ConfigError, match="has its own space"):
        pcl_ray.sweep(space, recipe="digits", resume="earlier")
