"""`pcl-ray archive` and `unarchive`: a run or a sweep as one file that another machine opens."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcl_ray.cli.verb import Verb
from pcl_ray.support.text import binary_size


def _add_archive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run, or of a sweep")
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="left out: RUN.pclrun.tar in this folder"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="the sweep, where a run and a sweep have the name"
    )


def _archive(arguments: argparse.Namespace) -> int:
    from pcl_ray.runs import storage_mirror
    from pcl_ray.runs.upkeep import archive, disk

    if not arguments.sweep:
        storage_mirror.fetch_source(arguments.run)
    kind = disk.kind_of(arguments.run, sweep=arguments.sweep)
    file = archive.write(arguments.run, arguments.file, sweep=arguments.sweep)
    print(f"archive     {file} ({binary_size(file.stat().st_size)})")
    held = "its last checkpoint" if kind == "run" else "its trials, with the last checkpoints of the best"
    print(f"holds       configuration, figures, report, {held}; neither images nor passwords")
    print(f"elsewhere   pcl-ray unarchive {file.name}")
    return 0


def _add_unarchive_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="as `pcl-ray archive` wrote it")
    parser.add_argument("--name", help="name of the run here; left out: its own")


def _unarchive(arguments: argparse.Namespace) -> int:
    from pcl_ray.runs.folder import RunFolder
    from pcl_ray.runs.upkeep import archive

    folder = archive.open_archive(arguments.file, name=arguments.name)
    is_run = folder.parent.name == RunFolder.ROOT
    print(f"{'run' if is_run else 'sweep':<11} {folder.name} in {folder}")
    print(f"then        pcl-ray report {folder.name}")
    return 0


ARCHIVE = Verb("archive", "write a run, or a sweep, into one file", _add_archive_arguments, _archive)
UNARCHIVE = Verb("unarchive", "open such a file on this machine", _add_unarchive_arguments, _unarchive)
