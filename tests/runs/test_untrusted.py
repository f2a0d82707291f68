"""Nothing that is read runs foreign code, and names from users stay inside the folders they belong in."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small import DIGITS_RUN

import pcl_ray
from pcl_ray import cli, config, snapshot, tracking
from pcl_ray.checkpoints import run_state
from pcl_ray.config import DataConfig, TrackingConfig
from pcl_ray.data import datasets, folders
from pcl_ray.data.inspection import looks_cache
from pcl_ray.data.pictures import decoding
from pcl_ray.embedding.embedder import SETTINGS_FILE, WEIGHTS_FILE, Embedder
from pcl_ray.errors import ConfigError, DataError, RunFailed
from pcl_ray.model.weights import load_encoder
from pcl_ray.runs import record_reader
from pcl_ray.runs.folder import RunFolder, SweepFolder, read_state_at
from pcl_ray.support.paths import home, path_text
from pcl_ray.sweep import pickle_safety
from pcl_ray.tracking import client, pending

SOURCES = Path(pcl_ray.__file__).parent
QUICK = (*DIGITS_RUN, "resources.workers=0", "train.epochs=2")


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that is there once foreign code has run."""
    return tmp_path / "foreign-code-ran"


class Evil:
    """Writes the file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def command(file: Path) -> str:
    return f"!!python/object/apply:os.system ['touch {file}']"


def as_pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps({"format": "pcl_ray", "version": 1, "state_dict": evil}))


def as_zip(path: Path, evil: Evil) -> None:
    torch.save({"format": "pcl_ray", "version": 1, "state_dict": evil}, path)


def as_older_file(path: Path, evil: Evil) -> None:
    torch.save(
        {"format": "pcl_ray", "version": 1, "state_dict": evil}, path, _use_new_zipfile_serialization=False
    )


def test_the_trap_is_one(ran: Path) -> None:
    pickle.loads(pickle.dumps(Evil(ran)))
    assert ran.exists()
    ran.unlink()
    yaml.unsafe_load(f"a: {command(ran)}")
    assert ran.exists()


@pytest.mark.parametrize("write", [as_pickle, as_zip, as_older_file])
def test_checkpoints_and_foreign_weights(
    write: Callable[[Path, Evil], None], tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # not even then
    path = tmp_path / "published.pth.tar"
    write(path, Evil(ran))
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        load_encoder(path)
    with pytest.raises(RunFailed, match="cannot be read"):
        run_state.load(path)
    with pytest.raises(RunFailed, match="cannot be read"):
        run_state.take_over(path, tmp_path / "checkpoints")
    with pytest.raises(RunFailed, match="cannot be read"):
        Embedder.of_checkpoint(path, config.RunConfig().augment)
    assert not ran.exists()


def test_a_run_that_goes_on(ran: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunFolder.create("theirs", config.load("digits", QUICK)) as folder:
        (folder.path / "checkpoints").mkdir()
        as_zip(folder.path / "checkpoints" / "epoch_00001.pt", Evil(ran))
        as_pickle(folder.path / "exhibit.npz", Evil(ran))
    assert cli.main(["train", "--resume", "theirs"]) == 1
    assert "cannot be read" in capfd.readouterr().err
    for words in (["report", "theirs"], ["doctor", "theirs"]):
        assert cli.main(words) == 0
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["images.npy", "images.npz", "pickled.npy", "pickled.npz", "good_labels.npy"]
)
def test_arrays(name: str, tmp_path: Path, ran: Path) -> None:
    path = tmp_path / name
    pixels = np.zeros((4, 8, 8), np.uint8)
    if name.startswith("pickled"):
        as_pickle(path, Evil(ran))
    elif path.suffix == ".npz":
        np.savez(path, images=pixels, labels=np.array([Evil(ran)] * 4, dtype=object))
    else:
        np.save(path, np.array([Evil(ran)] * 4, dtype=object), allow_pickle=True)
    if name == "good_labels.npy":
        path = tmp_path / "good.npy"
        np.save(path, pixels)
    with pytest.raises(DataError, match="cannot be read"):
        datasets.load(DataConfig(source="arrays", path=str(path)), cache_dir=tmp_path / "cache")
    assert cli.main(["train", "digits", "data.source=arrays", f"data.path={path}"]) == 2
    assert not ran.exists()


def test_snapshots(tmp_path: Path, ran: Path) -> None:
    path = tmp_path / "exhibit.npz"
    told = json.dumps({"epoch": 1, "step": 1, "num_images": 1, "map_name": "", "note": "", "clusterings": 0})
    np.savez(
        path,
        told=np.array(told),
        **{
            name: np.array([Evil(ran)], dtype=object)
            for name in ("sample", "features", "labels", "assignments", "places")
        },
    )
    assert snapshot.load_snapshot(path) is None
    np.savez(path, told=np.array([Evil(ran)], dtype=object))
    assert snapshot.load_snapshot(path) is None
    assert not ran.exists()


def test_cifar_s_own_pickles_are_read_only_where_they_are_the_published_ones(
    tmp_path: Path, ran: Path
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        as_pickle(folder / name, Evil(ran))
    with pytest.raises(DataError, match="does not hold cifar10"):
        datasets.load(DataConfig(source="cifar10", path=str(tmp_path)), cache_dir=tmp_path / "cache")
    assert not ran.exists()


def test_pictures_that_are_programs(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture: Pillow would have Ghostscript run it."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    picture = tmp_path / "data" / "a.jpg"
    picture.parent.mkdir()
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(OSError):
        decoding.decode(picture, 3)
    [bad] = looks_cache.inspect(folders.find_images(picture.parent, 3), tmp_path / "cache").bad
    assert bad.file == str(picture)
    assert not ran.exists()
    with Image.open(picture) as opened, pytest.raises(OSError):
        opened.load()
    assert ran.exists()  # the trap is one


@pytest.mark.parametrize("word", ["train.epochs={}", "e_step.num_clusters={}", "tracking.uri={}", "seed={}"])
def test_words(word: str, ran: Path) -> None:
    assert cli.main(["train", "digits", word.format(command(ran)), "--dry-run"]) == 2
    assert not ran.exists()


def test_recipes_and_spaces(tmp_path: Path, ran: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "theirs.yaml"
    for text in (
        f"train: {{epochs: {command(ran)}}}",
        command(ran),
        f"base: digits\nspace: {{loss.temperature: {command(ran)}}}",
    ):
        path.write_text(text)
        assert cli.main(["train", str(path)]) == 2
        assert cli.main(["sweep", str(path)]) == 2
    with RunFolder.create("theirs", config.RunConfig()) as folder:
        (folder.path / "config.yaml").write_text(f"train: {{epochs: {command(ran)}}}")
    for words in (
        ["train", "--resume", "theirs"],
        ["report", "theirs"],
        ["compare", "theirs", "theirs/"],
        ["doctor", "theirs"],
    ):
        assert cli.main(words) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not ran.exists()


def test_notes_of_checked_images(tmp_path: Path, ran: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    found = folders.find_images(tmp_path / "data", 3)
    looks_cache.inspect(found, tmp_path / "cache")
    [note] = (tmp_path / "cache").iterdir()
    as_pickle(note, Evil(ran))
    assert looks_cache.inspect(found, tmp_path / "cache").bad == []
    assert not ran.exists()


@pytest.mark.parametrize(
    "settings",
    ["[1]", "{}", '{"version": 1, "encoder": {"backbone": "timm:hf-hub:them/theirs"}}', "[" * 100_000],
)
def test_embedders(settings: str, tmp_path: Path, ran: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(settings)
    as_pickle(tmp_path / WEIGHTS_FILE, Evil(ran))
    with pytest.raises(DataError, match="no embedder can be read"):
        Embedder.load(tmp_path)
    assert not ran.exists()


def test_what_waits_for_a_server(tmp_path: Path, ran: Path) -> None:
    """A file from elsewhere can neither have files of ours sent nor removed, nor write outside its run."""
    folder = tmp_path / "runs" / "theirs"
    folder.mkdir(parents=True)
    private = tmp_path / "private.png"
    Image.new("RGB", (4, 4)).save(private)
    mine = folder / "pictures" / "a.png"
    lines: list[Any] = [
        {"artifact": "a.txt", "path": str(private)},
        {"artifact": "../../a.txt", "path": str(mine)},
        {"artifact": "a.txt", "path": f"{folder}/../../private.png"},
        {"file": "/etc/passwd", "text": "x"},
        {"file": "a/../../b", "text": "x"},
        {"task": "map@1", "content": {"do": "image", "path": str(private), "key": "map", "step": 1}},
        {"task": "model", "content": {"do": "model", "checkpoint": str(private), "config": command(ran)}},
        {"task": "odd", "content": [1]},
        *([], 1, "tag", None, {"tag": []}, {"path": 7, "artifact": "b"}),
    ]
    good = [
        {"artifact": "report.html", "path": str(folder / "report.html")},
        {"task": "map@2", "content": {"do": "image", "path": str(mine), "key": "map"}},
    ]
    path = folder / tracking.PENDING_FILE
    path.write_text(
        "\n".join(
            [*map(json.dumps, [*lines, *good]), "[" * 100_000, pickle.dumps(Evil(ran)).decode("latin-1")]
        )
    )
    unsent = pending.read(path)
    assert unsent.points == []
    assert list(unsent.entries) == [("artifact", "report.html"), ("task", "map@2")]
    assert unsent.entries["artifact", "report.html"] == str(folder / "report.html")
    assert not ran.exists()


# --- what Ray Tune keeps


def kept_sweep(ran: Path, **changes: Any) -> Path:
    """A sweep that was begun, with a pickle that runs where Tune would restore it."""
    with SweepFolder.create("theirs", config.load("digits", QUICK)) as folder:
        space = {"base": "digits", "space": {"loss.temperature": {"type": "choice", "values": [0.1, 0.2]}}}
        (folder.path / "space.yaml").write_text(yaml.safe_dump(space))
        (folder.path / "recipe.yaml").write_text(config.load("digits", QUICK).to_yaml())
        kept = {
            "name": "mine",
            "space": "space.yaml",
            "recipe": "digits",
            "words": [],
            "settings": {},
        } | changes
        (folder.path / "sweep.yaml").write_text(yaml.safe_dump(kept))
        pickle_safety.keep_from_others(folder.path)
        experiment = pickle_safety.make_private(folder.path) / "experiment"
        experiment.mkdir()
        as_pickle(experiment / "tuner.pkl", Evil(ran))
        (experiment / "experiment_state-1.json").write_text("{}")
        return folder.path


def refused(said: str, capfd: pytest.CaptureFixture[str]) -> None:
    for more in (["--dry-run"], []):
        assert cli.main(["sweep", "--resume", "theirs", *more]) == 2
        error = capfd.readouterr().err
        assert re.search(said, error), error
        assert len(error.strip().splitlines()) == 1


TUNE_S = ["tune/experiment/tuner.pkl", "tune/experiment/experiment_state-1.json", "tune/experiment", "tune"]


@pytest.mark.parametrize("place", [*TUNE_S, "space.yaml", "sweep.yaml", "."])
@pytest.mark.parametrize("bit", [stat.S_IWOTH, stat.S_IWGRP])
def test_a_sweep_that_others_could_have_written_is_not_gone_on_with(
    place: str, bit: int, ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = kept_sweep(ran)
    (folder / "tune").chmod(0o755)
    path = folder / place
    path.chmod(path.stat().st_mode | bit)
    refused(
        "can be written by others, and going on with the sweep would run what is in it: .*chmod -R go-w",
        capfd,
    )
    assert not ran.exists()


@pytest.mark.parametrize("place", ["tune/experiment/tuner.pkl", "tune/experiment", "tune", "space.yaml", "."])
def test_a_sweep_of_another_user_is_not_gone_on_with(
    place: str, ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(kept_sweep(ran) / place, 12345, 12345)
    refused(
        r"belongs to another user \(number 12345\), and going on with the sweep would run what is in it:"
        r" .*--name",
        capfd,
    )
    assert not ran.exists()


def test_a_link_out_of_the_folder_is_not_followed(
    ran: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = kept_sweep(ran) / "tune/experiment/tuner.pkl"
    state.rename(tmp_path / "tuner.pkl")
    state.symlink_to(tmp_path / "tuner.pkl")
    refused("is a link", capfd)


def test_a_sweep_of_ours_is_gone_on_with(ran: Path) -> None:
    folder = kept_sweep(ran)
    for path in (folder / "tune").rglob("*"):
        path.chmod(0o777)  # as under umask 0: nobody gets in
    pickle_safety.check(folder)
    (folder / "tune").chmod(0o755)
    for path in (folder / "tune").rglob("*"):
        path.chmod(0o644 if path.is_file() else 0o755)  # as earlier versions left it
    pickle_safety.check(folder)
    moved = folder.rename(home() / "elsewhere")
    folder.symlink_to(moved)  # on a larger disk
    pickle_safety.check(folder)


def test_what_tune_keeps_is_for_us_alone_whatever_the_umask(ran: Path) -> None:
    before = os.umask(0)
    try:
        folder = kept_sweep(ran)
        assert stat.S_IMODE((folder / "tune").stat().st_mode) == 0o700
        assert not any(
            path.stat().st_mode & 0o022
            for path in (folder, folder / "space.yaml", folder / "sweep.yaml", folder / "recipe.yaml")
        )
        assert folder.stat().st_mode & 0o044  # what came out can be read
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "changes",
    [
        {"space": "../../evil.py"},
        {"space": "/tmp/evil.py"},
        {"space": 7},
        {"words": "a=b"},
        {"settings": None},
        {"recipe": ["digits"]},
    ],
)
def test_sweep_files_that_we_did_not_write(
    changes: dict[str, Any], ran: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept_sweep(ran, **changes)
    (home() / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(ran)!r}).touch()\nBASE, SPACE = 'digits', {{}}\n"
    )
    refused("is not as pcl-ray wrote it", capfd)
    assert not ran.exists()


def test_a_sweep_file_that_would_run_something(ran: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (kept_sweep(ran) / "sweep.yaml").write_text(f"name: {command(ran)}")
    refused("was killed before it had begun", capfd)
    assert not ran.exists()


# --- names


NAMES = st.text(max_size=40) | st.lists(
    st.sampled_from(["..", ".", "/", "a", "\\", "~", "\0", "*", "runs", "%2e%2e", " ", "\n"]), max_size=6
).map("".join)


@given(NAMES)
def test_names_of_runs_and_sweeps_stay_below_their_folders(name: str) -> None:
    for kind in (RunFolder, SweepFolder):
        try:
            path = kind.path_of(name)
        except ConfigError:
            continue
        assert path.parent == home() / kind.ROOT
        assert Path(os.path.normpath(path)) == path


@given(NAMES.filter(lambda name: "\0" not in name))
def test_a_run_argument_is_a_run_or_refused(name: str) -> None:
    if "/" in name and Path(os.path.abspath(name), "config.yaml").is_file():
        return
    with pytest.raises(ConfigError):
        record_reader.folder_of(name)


def test_a_report_goes_into_the_folder_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create("one", config.RunConfig()) as folder:
        (folder.path / "below").mkdir()
    elsewhere = folder.path.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for given_as in (f"{elsewhere}/below/..", "elsewhere/", "./elsewhere"):
        assert cli.main(["report", given_as]) == 0
        report = elsewhere / "report.html"
        assert "<h1>elsewhere" in report.read_text()
        report.unlink()
    assert not list(home().rglob("report.html"))


@pytest.mark.parametrize("name", ["..", ". .", "-/..", "a/b", "a:b", ""])
def test_names_for_a_registry(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "digits", f"tracking.register_as={name!r}", "--dry-run"]) == 2
    assert "tracking.register_as" in capfd.readouterr().err


@pytest.mark.parametrize("name", [" ", "a\nb", "a\x1b[2Jb"])
def test_names_of_experiments(name: str) -> None:
    [problem] = tracking.check_uri(TrackingConfig(experiment=name), home())
    assert problem.name == "tracking.experiment"


def test_an_experiment_whose_name_is_a_path_is_a_name_alone(tmp_path: Path) -> None:
    words = [
        "tracking.enabled=true",
        "tracking.model=false",
        "tracking.pictures=0",
        "tracking.experiment=../../up/../x",
    ]
    before = set(tmp_path.iterdir())
    assert cli.main(["train", "digits", *QUICK, *words, "--name", "named"]) == 0
    assert set(tmp_path.iterdir()) - before <= {home()}
    assert {path.name for path in home().iterdir()} == {"runs", "mlflow"}
    assert {path.name for path in (home() / "mlflow").iterdir()} <= {
        "mlflow.db",
        "mlflow.db.lock",
        "mlflow.db-wal",
        "mlflow.db-shm",
        "artifacts",
    }
    assert list((home() / "mlflow/artifacts").rglob("report.html"))


@given(st.text(max_size=60))
def test_names_of_figures_and_artifacts_hold_no_way_up(name: str) -> None:
    cleaned = client.clean_name(name)
    assert cleaned
    assert not cleaned.startswith("/")
    assert ".." not in cleaned.split("/")


NO_TEXT = b"caf\xe9".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "names",
    [
        ("a..b", " b"),
        ("$x^", "$1$"),
        ("<b>", "\"'&"),
        ("a\nb", "c\td"),
        (NO_TEXT, "c"),
        ("a\\..", "%2e%2e"),
        ("x" * 200, "y"),
    ],
)
def test_folders_of_classes_with_odd_names(
    names: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, pixels = tmp_path / "data", np.random.default_rng(0)
    for name in names:
        (data / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(pixels.integers(0, 256, (8, 8, 3), np.uint8)).save(data / name / f"{i}.png")
    os.symlink(data, data / names[0] / "back")  # a loop
    os.symlink(data / "nowhere", data / "dead")
    found = folders.find_images(data, 3)
    assert (len(found), found.class_names) == (40, tuple(sorted(map(path_text, names))))
    assert all(found.path(i).parent.parent == data for i in range(40))
    before = set(tmp_path.iterdir())
    words = [
        *QUICK,
        "data.source=folder",
        f"data.path={data}",
        "data.limit=null",
        "train.batch_size=16",
        "loss.queue_size=16",
        "e_step.num_clusters=3",
    ]
    words += ["e_step.collapse_rank=0", "e_step.collapse_cone=1"]
    assert cli.main(["train", "digits", *words, "--name", "odd"]) == 0, capfd.readouterr().err
    errors = capfd.readouterr().err
    assert not any(f"could not be {thing}" in errors for thing in ("drawn", "shown", "written")), errors
    assert record_reader.read("odd").snapshot is not None  # with its pictures
    assert set(tmp_path.iterdir()) - before <= {home()}
    assert read_state_at(home() / "runs/odd")["class_names"] == sorted(map(path_text, names))
    assert cli.main(["report", "odd"]) == 0
    assert "<b></" not in (home() / "runs/odd/report.html").read_text(encoding="utf-8")


# --- the audit: what loads, and how


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def constant(call: ast.Call, name: str) -> Any:
    return next(
        (
            word.value.value
            for word in call.keywords
            if word.arg == name and isinstance(word.value, ast.Constant)
        ),
        None,
    )


# Where code is run on purpose or a pickle read: spaces in Python, Ray's own script in a process that Ray has
# asked for over a socket that we alone can open; Ray Tune's searcher in a checked folder, what one worker
# tells the others of its run over Ray.
ALLOWED = {
    "runpy.run_path": {"sweep/space/files.py", "on_ray/starting/warm_parent.py"},
    "pickle.loads": {"sweep/space/search.py", "on_ray/worker.py"},
}
NEVER = re.compile(
    r"(eval|exec|compile|__import__|(\w+\.)*(unsafe_load|full_load|joblib\.load|(cloud)?pickle\.loads?|run_path|extractall|unpack_archive))"
)


def test_every_call_that_loads_is_a_safe_one() -> None:
    seen = set()
    for path in [*SOURCES.rglob("*.py"), *(SOURCES.parent / "jobs").glob("*.py")]:
        where = path.relative_to(SOURCES).as_posix() if path.is_relative_to(SOURCES) else path.name
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if name == "torch.load":
                assert constant(call, "weights_only") is True, where
            elif name in ("np.load", "numpy.load"):
                assert constant(call, "allow_pickle") is False, where
            elif name == "Image.open" and where != "report/pictures.py":  # which has drawn it itself
                assert any(word.arg == "formats" for word in call.keywords), where
            elif NEVER.fullmatch(name):
                assert where in ALLOWED.get(name, ()), f"{name} in {where}"
            assert name != "yaml.load", where
            seen.add(name)
    assert seen >= {"torch.load", "np.load", "yaml.safe_load", *ALLOWED}
