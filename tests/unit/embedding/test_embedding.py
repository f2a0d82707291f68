"""Embedding many images: what parts hold, what a second call does, what was killed, broken, refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from collections_made import SIZES, checkpoint, embedded, pictures
from PIL import Image

from pcl_ray import cli
from pcl_ray.embedding import job as jobs
from pcl_ray.embedding.collection import Collection, Manifest
from pcl_ray.embedding.embedder import Embedder
from pcl_ray.embedding.inputs import ImageReader, names_of
from pcl_ray.errors import ConfigError, DataError, RunFailed
from pcl_ray.model import encoder as encoders


def rows_of(collection: Collection) -> dict[str, np.ndarray]:
    blocks = [block for _, block in collection.embeddings()]
    return dict(zip(collection.paths.to_pylist(), np.concatenate(blocks), strict=True))


@pytest.mark.parametrize("features", ["backbone", "head"])
def test_parts_hold_what_the_embedder_says(features: str, tmp_path: Path) -> None:
    run, files = checkpoint(tmp_path / "run"), pictures(tmp_path / "pictures", 150)
    out = embedded(tmp_path, str(run), str(tmp_path / "pictures"), "--features", features)
    collection, expected = Collection(out), Embedder.open(run).embed(files)
    assert len(collection.parts) == 3  # of at least 64 images
    assert collection.paths.to_pylist() == [str(file) for file in files]
    wanted = expected.embeddings if features == "head" else expected.backbone
    found = rows_of(collection)
    np.testing.assert_allclose(np.stack([found[str(file)] for file in files]), wanted, atol=1e-5)
    assert collection.manifest.num_clusters == SIZES
    assert collection.manifest.dim == wanted.shape[1]
    for m in range(2):
        assert (collection.prototypes(m) == expected.prototypes[m]).all()
        np.testing.assert_allclose(collection.distances(m), expected.distances[m], atol=1e-5)
    kinds = pq.read_schema(collection.parts[0].path)
    assert kinds.field("embedding").type == pa.list_(pa.float32(), wanted.shape[1])
    # the embedder beside them is the run's
    again = Embedder.load(out / "embedder").embed(files[:3])
    assert (again.embeddings == Embedder.open(run).embed(files[:3]).embeddings).all()


def test_both_features_come_from_one_pass(tmp_path: Path) -> None:
    embedder, images = Embedder.open(checkpoint(tmp_path)), np.zeros((5, 8, 8, 3), np.uint8)
    calls = []
    embedder.encoder.get_submodule("backbone").register_forward_hook(lambda *_: calls.append(1))
    found = embedder.embed(images)
    assert len(calls) == 1
    backbone = embedder.encoder.get_submodule("backbone")(embedder_input(embedder, images))
    np.testing.assert_allclose(found.backbone, backbone.numpy(), atol=1e-6)
    head = torch.nn.functional.normalize(embedder.encoder.get_submodule("head")(backbone), dim=1)
    np.testing.assert_allclose(found.embeddings, head.numpy(), atol=1e-6)


def embedder_input(embedder: Embedder, images: np.ndarray) -> torch.Tensor:
    mean, std = (
        torch.tensor(part).view(1, -1, 1, 1) for part in (embedder.augment.mean, embedder.augment.std)
    )
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


def test_a_run_is_opened_by_name_folder_and_file_with_its_own_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    path = checkpoint(tmp_path / "runs" / "mine", **{"data.reduced_decoding": False})
    for source in ("mine", str(tmp_path / "runs" / "mine"), path):
        embedder = Embedder.open(source)
        assert embedder.augment.mean == (0.4, 0.4, 0.4)
        assert embedder.settings["reduced_decoding"] is False
        assert [len(clustering.prototypes) for clustering in embedder.clusterings] == list(SIZES)


def test_weights_without_head_or_clusters_have_no_prototypes(tmp_path: Path) -> None:
    files = pictures(tmp_path / "pictures", 3)
    assert Embedder.open(checkpoint(tmp_path / "warm", clusters=False)).embed(files).prototypes == ()
    embedder = Embedder.open(checkpoint(tmp_path / "run", clusters=False))
    headless = encoders.build(embedder_config(embedder), 3)
    headless.load_state_dict(embedder.encoder.state_dict())
    headless.head = torch.nn.Identity()
    bare = Embedder(headless, embedder.settings | {"has_head": False, "version": 2}, [], torch.device("cpu"))
    bare.save(tmp_path / "bare")
    found = Embedder.open(tmp_path / "bare").embed(files)
    norms = np.linalg.norm(found.backbone, axis=1, keepdims=True)
    np.testing.assert_allclose(found.embeddings, found.backbone / norms, atol=1e-6)
    (tmp_path / "out").mkdir()
    command = ["embed", str(tmp_path / "bare"), str(tmp_path / "pictures"), "--workers", "0", "--out"]
    assert cli.main([*command, str(tmp_path / "a"), "--features", "head"]) == 2
    assert cli.main([*command, str(tmp_path / "b")]) == 0
    assert Collection(tmp_path / "b").num_clusterings == 0


def embedder_config(embedder: Embedder) -> encoders.EncoderConfig:
    return encoders.EncoderConfig(**embedder.settings["encoder"])


def test_a_second_call_makes_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(checkpoint(tmp_path / "run"))
    pictures(tmp_path / "pictures", 20)
    out = embedded(tmp_path, run, str(tmp_path / "pictures"), "--limit", "7")
    assert len(Collection(out)) == 7
    before = {part.path: part.state for part in Collection(out).parts}
    embedded(tmp_path, run, str(tmp_path / "pictures"))
    assert "20, of which 7 are embedded already; 13 to do" in capsys.readouterr().out
    after = {part.path: part.state for part in Collection(out).parts}
    assert before.items() <= after.items()
    assert len(set(Collection(out).paths.to_pylist())) == len(Collection(out)) == 20
    embedded(tmp_path, run, str(tmp_path / "pictures"))
    assert {part.path: part.state for part in Collection(out).parts} == after


def test_broken_images_are_listed_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, files = str(checkpoint(tmp_path / "run")), pictures(tmp_path / "pictures", 9)
    sound = files[4].read_bytes()
    files[2].write_bytes(b"")
    files[4].write_bytes(sound[:60])
    files[6].write_bytes(b"no picture at all")
    for strange, content in ((b"/\xff.png", sound), (b"/\xfe\n.png", b"no picture either")):
        Path(os.fsdecode(os.fsencode(tmp_path / "pictures") + strange)).write_bytes(content)
    out = embedded(tmp_path, run, str(tmp_path / "pictures"))
    assert "4 images, listed in" in capsys.readouterr().out
    with (out / "broken.csv").open(newline="", encoding="utf-8") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons[str(files[2])] == "empty file"
    assert "truncated" in reasons[str(files[4])]
    assert reasons[str(files[6])] == "no image that is known"
    odd = f"{tmp_path}/pictures/\\xfe\\n.png"
    assert reasons[odd] == "no image that is known"
    assert f"{tmp_path}/pictures/\\xff.png" in Collection(out).paths.to_pylist()
    assert len(Collection(out)) == 7
    files[4].write_bytes(sound)
    embedded(tmp_path, run, str(tmp_path / "pictures"))
    assert set(Collection(out).broken()) == {str(files[2]), str(files[6]), odd}
    assert str(files[4]) in Collection(out).paths.to_pylist()


def test_a_job_that_was_killed_goes_on(tmp_path: Path) -> None:
    """kill −9 in the middle: whole parts stay, no part is half-written, the rest is made."""
    run = checkpoint(tmp_path / "run")
    pictures(tmp_path / "pictures", 300)
    out = tmp_path / "out"
    command = ["embed", str(run), str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]
    script = (
        "import time, sys\nfrom pcl_ray.embedding.embedder import Embedder\nreal = Embedder.features\n"
        "def slow(self, views):\n    time.sleep(0.3)\n    return real(self, views)\n"
        "Embedder.features = slow\nfrom pcl_ray import cli\nsys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while len(list(out.glob("parts/part-*.parquet"))) < 2:
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    done = len(Collection(out))
    assert 0 < done < 300
    (out / "parts" / "part-000002.parquet.1-2.partial").write_bytes(b"PAR1 half a part")
    assert cli.main(command) == 0
    assert not list(out.rglob("*.partial"))
    paths = Collection(out).paths.to_pylist()
    assert len(paths) == len(set(paths)) == 300


def test_other_weights_and_features_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(checkpoint(tmp_path / "run"))
    pictures(tmp_path / "pictures", 3)
    out = embedded(tmp_path, run, str(tmp_path / "pictures"))
    command = ["embed", run, str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]
    assert cli.main([*command, "--features", "head"]) == 2
    assert "features of the backbone" in capsys.readouterr().err
    assert cli.main([*command, "--column", "picture"]) == 2
    assert "leave out --column" in capsys.readouterr().err
    other = str(checkpoint(tmp_path / "other", **{"augment.image_size": 16}))
    assert cli.main([command[0], other, *command[2:]]) == 2
    assert "other weights" in capsys.readouterr().err
    with jobs.locked(out):
        assert cli.main(command) == 2
    assert "another process" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert cli.main([*command[:3], "--out", str(tmp_path / "full"), "--workers", "0"]) == 2
    assert cli.main([*command[:3], "--out", str(tmp_path / "full" / "thesis.txt")]) == 2
    for words in (["--limit", "0"], ["--workers", "-1"]):
        assert cli.main([*command, *words]) == 2
    assert cli.main(["embed", "nobody", str(tmp_path / "pictures"), "--out", str(tmp_path / "x")]) == 2
    assert "neither a run" in capsys.readouterr().err


def test_a_damaged_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(checkpoint(tmp_path / "run"))
    pictures(tmp_path / "pictures", 3)
    out = embedded(tmp_path, run, str(tmp_path / "pictures"))
    part = Collection(out).parts[0].path
    part.write_bytes(part.read_bytes()[:200])
    assert cli.main(["embed", run, str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]) == 2
    assert f"{part} is damaged" in capsys.readouterr().err
    part.unlink()
    embedded(tmp_path, run, str(tmp_path / "pictures"))
    assert len(Collection(out)) == 3


def test_images_that_have_all_gone_are_no_broken_ones(tmp_path: Path) -> None:
    embedder = Embedder.open(checkpoint(tmp_path / "run"))
    listed = tmp_path / "list.txt"
    listed.write_text("gone.png\nlost.png\n")
    command = ["embed", str(tmp_path / "run"), str(listed), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert embedder.channels == 3
    assert cli.main(command) == 1


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_tables_with_images_are_embedded_by_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (10, 9, 9, 3), dtype=np.uint8)
    beside = tmp_path / "beside.png"
    beside.write_bytes(jpeg(images[9]))
    records = [{"bytes": jpeg(image), "path": f"{i}.png"} for i, image in enumerate(images)]
    records[9] = {"bytes": None, "path": "beside.png"}
    records.insert(4, {"bytes": b"broken", "path": None})
    table = pa.table({"label": list(range(11)), "image": records})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=4)
    run = checkpoint(tmp_path / "run")
    out = embedded(tmp_path, str(run), str(tmp_path / "train.parquet"))
    rows = [row for row in range(11) if row != 4]
    collection = Collection(out)
    assert collection.paths.to_pylist() == [f"{tmp_path}/train.parquet#{row}" for row in rows]
    assert list(collection.broken()) == [f"{tmp_path}/train.parquet#4"]
    found = np.concatenate([block for _, block in collection.embeddings()])
    np.testing.assert_allclose(found, Embedder.open(run).embed(images).backbone, atol=1e-5)


def test_what_images_may_be_named_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(file) for file in pictures(tmp_path / "pictures", 3)]
    monkeypatch.chdir(tmp_path)
    assert names_of(["pictures"]) == files
    assert names_of([files[1], "pictures", files[1]]) == [files[1], files[0], files[2]]
    (tmp_path / "list.txt").write_text(f"# mine\npictures/000.png\n\n{files[2]}\n")
    assert names_of(["list.txt"]) == [files[0], files[2]]
    (tmp_path / "list.csv").write_text("label,path\ncat,pictures/001.png\ndog,pictures/000.png\n")
    assert names_of(["list.csv"]) == [files[1], files[0]]
    pq.write_table(pa.table({"path": ["pictures/002.png"], "title": ["x"]}), tmp_path / "t.parquet")
    assert names_of(["t.parquet"]) == [files[2]]
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "tables" / "0.parquet")
    assert names_of(["tables"]) == [f"{tmp_path}/tables/0.parquet#{row}" for row in (0, 1)]
    assert ImageReader().read(f"{tmp_path}/tables/0.parquet#1") == b"y"
    with pytest.raises(DataError, match="2 rows"):
        ImageReader().read(f"{tmp_path}/tables/0.parquet#2")


@pytest.mark.parametrize(
    ("word", "content", "said"),
    [
        ("nowhere", None, "there is no 'nowhere'"),
        ("notes.pdf", b"x", "neither a folder, an image"),
        ("empty.txt", b"\n", "has no paths"),
        ("cut.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_image_is_refused(
    word: str, content: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / word).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=said):
        names_of([word])


def test_a_column_is_asked_for_where_it_cannot_be_told(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), file)
    with pytest.raises(ConfigError, match="--column"):
        names_of([str(file)])
    assert names_of([str(file)], "right") == [f"{file}#0"]
    assert ImageReader("right").read(f"{file}#0") == b"y"
    with pytest.raises(ConfigError, match="left, right"):
        names_of([str(file)], "middle")


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pcl_ray.embedding import parts

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    embedder = Embedder.open(checkpoint(tmp_path / "run"))
    collection = manifest_of(embedder)
    work = jobs.EmbeddingJob(
        tmp_path, collection, [(number, ["x"] * 100) for number in range(10)], total=1500, done=500
    )
    progress = jobs.EmbeddingProgress(work, lines.append)
    for number in range(10):
        now[0] += 10
        progress.add(parts.PartResult(number, 99, 1))
    assert lines[0] == "600 of 1,500 images, 1 broken"
    assert lines[1] == "700 of 1,500 images, 2 broken, 10 images/s, 80 s left"
    assert len(lines) == 9


def manifest_of(embedder: Embedder) -> Manifest:
    return Manifest(
        "run", embedder.note, embedder.digest(), "backbone", 8, SIZES, 3, embedder.settings["view"]
    )


def test_a_part_that_cannot_be_written_is_a_failed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = checkpoint(tmp_path / "run")
    pictures(tmp_path / "pictures", 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "lock").touch()
    assert cli.main(["embed", str(run), str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]) == 0
    shutil.rmtree(out / "parts")
    (out / "parts").write_text("in the way")
    assert cli.main(["embed", str(run), str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["features"] == "backbone"


def test_errors_of_reading_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pcl_ray.embedding import parts

    monkeypatch.setattr(parts, "READ_TIMEOUT_S", 0.2)
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes: a read hangs
    embedder = Embedder.open(checkpoint(tmp_path / "run"))
    maker = parts.PartMaker(tmp_path, manifest_of(embedder), embedder, 1)
    with pytest.raises(RunFailed, match="the storage hangs"):
        maker.make(0, [str(tmp_path / "pipe.png")])
    with (tmp_path / "pipe.png").open("wb"):  # lets the thread go
        pass


@pytest.mark.slow
def test_weights_of_others_are_embedded_by(tmp_path: Path) -> None:
    """A torchvision state dict, and a transformer of timm's: saved, loaded, and the features of their own
    models.
    """
    import timm
    import torchvision

    torch.manual_seed(0)
    files = pictures(tmp_path / "pictures", 4)
    resnet = torchvision.models.resnet18(weights=None)
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(vit.state_dict(), tmp_path / "vit_tiny_patch16_224.pth")
    for name, dim in (("resnet18", 512), ("vit_tiny_patch16_224", 192)):
        source = str(tmp_path / f"{name}.pth")
        out = tmp_path / name
        command = ["embed", source, str(tmp_path / "pictures"), "--out", str(out), "--workers", "0"]
        assert cli.main(command) == 0
        collection = Collection(out)
        assert (collection.manifest.dim, collection.num_clusterings) == (dim, 0)
        first, again = Embedder.open(source), Embedder.load(out / "embedder")
        assert not first.has_head
        assert first.augment.image_size == 224
        np.testing.assert_allclose(again.embed(files).backbone, first.embed(files).backbone, atol=1e-5)
        ((_, rows),) = collection.embeddings()
        np.testing.assert_allclose(rows, first.embed(files).backbone, atol=1e-4)
        model = resnet if name == "resnet18" else vit
        if name == "resnet18":
            model.fc = torch.nn.Identity()
        views = torch.stack([first.view(str(file)) for file in files])
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (first.augment.mean, first.augment.std))
        with torch.no_grad():
            floats = (views / 255 - mean) / std
            given = (
                model.eval()(floats)
                if name == "resnet18"
                else vit.eval().forward_head(vit.forward_features(floats), pre_logits=True)
            )
        np.testing.assert_allclose(first.embed(files).backbone, given.numpy(), atol=1e-3)


def test_a_file_that_has_gone_is_broken_once_the_collection_has_others(tmp_path: Path) -> None:
    run, (file, *_) = checkpoint(tmp_path / "run"), pictures(tmp_path / "pictures", 2)
    (tmp_path / "list.txt").write_text(f"{file}\n/nowhere/gone.png\n")
    out = embedded(tmp_path, str(run), str(tmp_path / "list.txt"))
    again = embedded(tmp_path, str(run), str(tmp_path / "list.txt"))
    assert out == again
    assert list(Collection(out).broken()) == ["/nowhere/gone.png"]
    assert len(Collection(out)) == 1


def test_what_was_killed_while_the_encoder_was_written_goes_on(tmp_path: Path) -> None:
    run = checkpoint(tmp_path / "run")
    pictures(tmp_path / "pictures", 2)
    (tmp_path / "out" / "embedder").mkdir(parents=True)
    assert (
        cli.main(
            ["embed", str(run), str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--workers", "0"]
        )
        == 0
    )
    assert len(Collection(tmp_path / "out")) == 2


def test_rows_of_tables_in_capital_letters(tmp_path: Path) -> None:
    run, (file, *_) = checkpoint(tmp_path / "run"), pictures(tmp_path / "pictures", 1)
    table = tmp_path / "IMAGES.PARQUET"
    pq.write_table(pa.table({"image": [file.read_bytes()]}), table)
    assert len(Collection(embedded(tmp_path, str(run), str(table)))) == 1
