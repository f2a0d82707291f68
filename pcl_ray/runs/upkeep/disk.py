"""Files and folders of runs as they lie on the disk: their sizes, what removing them frees, and removing."""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pcl_ray.errors import ConfigError
from pcl_ray.runs.folder import RunFolder, SweepFolder, parse_entries, read_state_at
from pcl_ray.support.paths import CONFIG_FILE, home
from pcl_ray.support.text import suggestion

# Below PCL_RAY_HOME. What is removed is moved there first, in one step: no half of a run is ever seen.
LEAVING = ".leaving"


def files_below(path: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def freed(paths: Iterable[Path]) -> int:
    """The bytes that removing these files and folders together frees: a file with a further link elsewhere,
    as shared warm-ups have them, stays on the disk.
    """
    links: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in {file for path in paths for file in files_below(path)}:
        with suppress(OSError):
            status = file.lstat()
            identity = (status.st_dev, status.st_ino)
            links[identity] += 1
            sizes[identity] = (status.st_size, status.st_nlink)
    return sum(size for identity, (size, total) in sizes.items() if links[identity] >= total)


def remove(path: Path) -> None:
    """Removes a file or a folder, the folder as one. Raises ConfigError where that is not allowed."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        leaving = home() / LEAVING
        leaving.mkdir(exist_ok=True)
        moved = leaving / f"{path.name}-{uuid.uuid4().hex[:8]}"
        path.rename(moved)
        shutil.rmtree(moved)
        with suppress(OSError):  # another process removes something, too
            leaving.rmdir()
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be removed ({error.strerror})") from None


def kind_of(name: str, *, sweep: bool = False) -> Literal["run", "sweep"]:
    """Whether this is the name of a run or of a sweep; sweep: of a sweep, even where a run has it, too.
    Raises ConfigError where there is neither.
    """
    if not sweep and (RunFolder.path_of(name) / CONFIG_FILE).is_file():
        return "run"
    if (SweepFolder.path_of(name) / CONFIG_FILE).is_file():
        return "sweep"
    kinds = (SweepFolder,) if sweep else (RunFolder, SweepFolder)
    names = sorted(path.parent.name for kind in kinds for path in kind.root().glob(f"*/{CONFIG_FILE}"))
    what = "no sweep" if sweep else "neither a run nor a sweep"
    raise ConfigError(f"there is {what} {name!r} under {home()}{suggestion(name, names, start='; ')}")


def trials_of(sweep: str) -> list[Path]:
    """The folders of a sweep's trials."""
    folders = sorted(RunFolder.root().glob(f"{sweep}.*"))
    return [folder for folder in folders if read_state_at(folder).get("sweep") == sweep]


def best_trials(sweep: Path) -> set[str]:
    """The runs of a sweep's best configuration; none where it has no winner."""
    if not (sweep / "best.yaml").is_file():
        return set()
    with suppress(OSError, LookupError, TypeError):
        rows = parse_entries((sweep / "leaderboard.json").read_bytes())["rows"]
        return {trial["run"] for trial in rows[0]["trials"]}
    return set()
