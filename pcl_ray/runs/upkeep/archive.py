"""A run, or a sweep to be looked at, as one file that another machine opens.

archive.json                    format, kind, name, and every file with its size and its digest
runs/NAME/config.yaml …         the run; of a sweep its trials, with the best's checkpoints
sweeps/NAME/leaderboard.json …  of a sweep, without what going on with it would execute
evaluations/….json              of the run
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pcl_ray import __version__
from pcl_ray import config as configs
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import public_config
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.report import page
from pcl_ray.runs import final_artifacts, record_reader
from pcl_ray.runs.evaluation import stored
from pcl_ray.runs.folder import (
    FIGURES_FILE,
    REPORT_FILE,
    SNAPSHOT_FILE,
    STATE_FILE,
    RunFolder,
    SweepFolder,
    parse_entries,
    read_history_at,
    read_state_at,
)
from pcl_ray.runs.upkeep import disk
from pcl_ray.support.files import atomic_file
from pcl_ray.support.paths import CONFIG_FILE, home
from pcl_ray.support.redaction import scrubbed
from pcl_ray.support.text import binary_size

FORMAT = 1
_MANIFEST = "archive.json"
_MOST_MANIFEST_BYTES = 16 << 20
_PIECE = 1 << 20
# The files of a run or a sweep that are archived as they are. What another machine would execute is not among
# them: a sweep's space is code, and Ray Tune's files are pickles.
_RUN_FILES = (FIGURES_FILE, REPORT_FILE, SNAPSHOT_FILE, "prototypes.csv", "error.txt")
_SWEEP_FILES = (
    *("leaderboard.json", "leaderboard.csv", "leaderboard.md", "importances.json", "exploits.json"),
    *("recipe.yaml", "best.yaml", REPORT_FILE),
)
# What says where and how a process ran means nothing elsewhere.
_OF_THE_MACHINE = ("machine", "submission_id", "mlflow_run_id", "link", "waits_for", "waits_since", "phase")
_NAME = re.compile(
    r"(runs/[A-Za-z0-9][\w.-]*/(checkpoints/epoch_\d{5,}\.pt|[\w.-]+)"
    r"|sweeps/[A-Za-z0-9][\w.-]*/(figures/[\w.-]+\.png|[\w.-]+)"
    r"|evaluations/[\w.-]+\.json)",
    re.ASCII,
)


def write(name: str, target: Path | None = None, *, sweep: bool = False) -> Path:
    """Writes the archive of a run or a sweep, and gives back where: `target`, or NAME.pclrun.tar here. Takes
    no lock: of a run under way it has the newest checkpoint. Raises ConfigError where there is nothing of
    that name, or the file cannot be written.
    """
    kind = disk.kind_of(name, sweep=sweep)
    target = Path(os.path.abspath((target or Path(f"{name}.pclrun.tar")).expanduser()))
    contents = dict(_run_contents(name) if kind == "run" else _sweep_contents(name))
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "pcl_ray": __version__,
        "written_at": time.time(),
        "files": {path: _entry(content) for path, content in contents.items()},
    }
    try:
        with atomic_file(target) as partial, tarfile.open(partial, "w") as archive:
            _add(archive, _MANIFEST, json.dumps(manifest, indent=1).encode())
            for path, content in contents.items():
                _add(archive, path, content)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); give another FILE") from None
    return target


def open_archive(file: Path, *, name: str | None = None) -> Path:
    """Puts what an archive has under PCL_RAY_HOME, whole or not at all, and gives back its folder.

    name: instead of the run's own. Raises DataError for a file that is no archive, or a damaged one,
    ConfigError where the name is taken or there is not enough room.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            manifest = _manifest(archive)
            own = str(manifest["name"])
            if name and manifest["kind"] == "sweep":
                raise ConfigError(
                    f"sweep {own!r} keeps its name, which its trials have in theirs; leave --name out"
                )
            names = {own: name or own}
            _check_free(manifest, names)
            return _extract(archive, manifest, names)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{file} is no archive of pcl-ray, or a damaged one ({error})") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or file}: {error.strerror or error}") from None


def _run_contents(name: str, *, trial: bool = False) -> Iterator[tuple[str, bytes | Path]]:
    """The files of a run as they are archived: path in the archive, content or the file that holds it. Its
    table of figures and its report are made where it has none; trial: the report is left out then.
    """
    folder = RunFolder.path_of(name)
    newest = epoch_files.latest(epoch_files.folder_of(folder))
    yield from _folder_contents(folder, _RUN_FILES)
    if newest is not None and not (folder / FIGURES_FILE).is_file():
        yield f"runs/{name}/{FIGURES_FILE}", _made(FIGURES_FILE, folder)
    if newest is not None and not trial and not (folder / REPORT_FILE).is_file():
        yield f"runs/{name}/{REPORT_FILE}", _made(REPORT_FILE, folder)
    if newest is not None:
        yield f"runs/{name}/{epoch_files.FOLDER}/{newest.name}", newest
    for file, content in stored.contents_of(folder).items():
        yield f"{stored.FOLDER}/{file}", json.dumps(content, ensure_ascii=False).encode()


def _sweep_contents(name: str) -> Iterator[tuple[str, bytes | Path]]:
    """The same of a sweep, with all its trials, and the checkpoints of the best ones."""
    folder = SweepFolder.path_of(name)
    yield from _folder_contents(folder, _SWEEP_FILES)
    for path in sorted((folder / "figures").glob("*.png")):
        yield f"sweeps/{name}/figures/{path.name}", path
    best = disk.best_trials(folder)
    for trial in disk.trials_of(name):
        for path, content in _run_contents(trial.name, trial=True):
            if trial.name in best or f"/{epoch_files.FOLDER}/" not in path:
                yield path, content


def _made(name: str, folder: Path) -> bytes:
    """The table of figures or the report of a run that was recorded without."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, name)
        if name == FIGURES_FILE:
            final_artifacts.write_figures(read_history_at(folder), file)
        else:
            page.write(record_reader.read(str(folder)), file)
        return file.read_bytes()


def _folder_contents(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes | Path]]:
    """Configuration and state without secrets and without what belongs to this machine, and these files."""
    root = f"{folder.parent.name}/{folder.name}"
    config = public_config(configs.load_stored(folder / CONFIG_FILE))
    config = configs.with_overrides(config, {"resources.storage": None, "tracking.uri": None})
    state = {entry: value for entry, value in read_state_at(folder).items() if entry not in _OF_THE_MACHINE}
    if state.get("state") == "running":
        state |= {"state": "stopped", "error": "it was under way when it was archived"}
    yield f"{root}/{CONFIG_FILE}", config.to_yaml().encode()
    yield f"{root}/{STATE_FILE}", scrubbed(json.dumps(state, indent=2)).encode()
    for name in names:
        if (folder / name).is_file():
            yield f"{root}/{name}", folder / name


def _entry(content: bytes | Path) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with content.open("rb") as file:
        return {"bytes": content.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _add(archive: tarfile.TarFile, path: str, content: bytes | Path) -> None:
    """Adds a file with neither owner, rights nor links of this machine."""
    info = tarfile.TarInfo(path)
    info.mtime = int(time.time())
    if isinstance(content, bytes):
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
        return
    with content.open("rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        archive.addfile(info, file)


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    """What the archive says of itself. Raises DataError where it is none that this version reads."""
    first = archive.next()
    if first is None or first.name != _MANIFEST or first.size > _MOST_MANIFEST_BYTES:
        raise DataError(f"{archive.name!s} is no archive of pcl-ray: it does not begin with {_MANIFEST}")
    file = archive.extractfile(first)
    manifest = parse_entries(file.read()) if file else {}
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{archive.name!s} has format {manifest.get('format')!r} of archives, this version reads"
            f" {FORMAT}: upgrade pcl_ray"
        )
    files, name, kind = manifest.get("files"), manifest.get("name"), str(manifest.get("kind"))
    sound = isinstance(files, dict) and isinstance(name, str) and kind in ("run", "sweep")
    if not sound or f"{kind}s/{name}/{CONFIG_FILE}" not in files:
        raise DataError(f"{archive.name!s} is no archive of a run or a sweep")
    (RunFolder if kind == "run" else SweepFolder).path_of(name)  # raises where it is not allowed
    for path, entry in files.items():
        if (
            not _belongs(path, kind, name)
            or not isinstance(entry, dict)
            or not isinstance(entry.get("bytes"), int)
        ):
            raise DataError(f"{archive.name!s} holds {path!r}, which no archive of {kind} {name!r} has")
    return manifest


def _belongs(path: str, kind: str, name: str) -> bool:
    """Whether an archive may put a file there."""
    if not _NAME.fullmatch(path) or ".." in path:
        return False
    room, owner = PurePosixPath(path).parts[:2]
    if room == "evaluations":
        return True
    if room == "runs":
        return owner == name if kind == "run" else owner.startswith(f"{name}.")
    return kind == "sweep" and owner == name


def _check_free(manifest: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raises ConfigError where something of this name is there already, or the disk has not enough room."""
    for path in manifest["files"]:
        room, owner = PurePosixPath(path).parts[:2]
        if room in ("runs", "sweeps"):
            folder = RunFolder if room == "runs" else SweepFolder
            if folder.path_of(names.get(owner, owner)).exists():
                raise ConfigError(
                    f"{folder.KIND} {names.get(owner, owner)!r} exists already under {folder.root()}; choose"
                    " another --name, or delete it first"
                )
    needed = sum(entry["bytes"] for entry in manifest["files"].values())
    home().mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(home()).free) < needed:
        raise ConfigError(
            f"it takes {binary_size(needed)}, and the disk of {home()} has {binary_size(free)} left"
        )


def _extract(archive: tarfile.TarFile, manifest: dict[str, Any], names: Mapping[str, str]) -> Path:
    scratch = home() / f".opening-{uuid.uuid4().hex[:8]}"
    left = dict(manifest["files"])
    try:
        while (member := archive.next()) is not None:
            expected, file = (
                left.pop(member.name, None),
                archive.extractfile(member) if member.isreg() else None,
            )
            if expected is None or file is None or member.size != expected["bytes"]:
                raise DataError(f"{archive.name!s} is damaged: {member.name!r} is not as its list says")
            target = scratch / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with target.open("wb") as written:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    written.write(piece)
            if digest.hexdigest() != expected.get("sha256"):
                raise DataError(
                    f"{archive.name!s} is damaged: {member.name!r} has other content than its list says"
                )
        if left:
            raise DataError(f"{archive.name!s} is cut: {next(iter(left))!r} is missing")
        return _put(scratch, manifest, names)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(scratch: Path, manifest: Mapping[str, Any], names: Mapping[str, str]) -> Path:
    """Moves what was extracted to its places: a sweep after its trials, so that it is there whole or not."""
    for room in ("runs", "sweeps"):
        for folder in sorted((scratch / room).glob("*")):
            target = home() / room / names.get(folder.name, folder.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    for file in sorted((scratch / stored.FOLDER).glob("*.json")):
        content = parse_entries(file.read_bytes())
        run = str(content.get("weights", "")).partition("/")[0]
        if (folder := RunFolder.root() / names.get(run, run)).is_dir():
            stored.adopt(file.name, content, folder)
    kind = RunFolder if manifest["kind"] == "run" else SweepFolder
    return kind.path_of(names[str(manifest["name"])])
