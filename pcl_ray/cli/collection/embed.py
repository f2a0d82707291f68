"""`pcl-ray embed`: the embeddings of many images, as a collection on the disk."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pcl_ray.cli.verb import Verb
from pcl_ray.errors import ConfigError
from pcl_ray.support import signals
from pcl_ray.support.text import count, measured_duration

_HOW_TO_GO_ON = "what is embedded is kept; the same command goes on with the rest"

if TYPE_CHECKING:
    from pcl_ray.embedding.collection import Manifest
    from pcl_ray.embedding.embedder import Embedder
    from pcl_ray.embedding.job import EmbeddingJob
    from pcl_ray.embedding.parts import PartResult


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="RUN", help="name or folder of a run, a checkpoint, or any weights file"
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="folders, image files, lists of paths (.txt, .csv), Parquet files with images or paths",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the collection's folder; what it holds already is not embedded again",
    )
    parser.add_argument(
        "--features",
        choices=("backbone", "head"),
        help=(
            "backbone: what one transfers and compares by (where it is left out); head: unit vectors in the"
            " prototypes' space. Prototypes and distances come with either"
        ),
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="on Ray; left out: one a GPU, or else one a core; 0: this process alone, without Ray",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images alone")
    parser.add_argument("--column", metavar="NAME", help="of Parquet files: the one with the images or paths")


def _embed(arguments: argparse.Namespace) -> int:
    for name, least in (("workers", 0), ("limit", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigError(f"--{name} {value}: {least} or more")
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before anything imports Ray
    from pcl_ray.embedding import inputs, job
    from pcl_ray.embedding.collection import BROKEN_FILE, Collection
    from pcl_ray.embedding.embedder import Embedder
    from pcl_ray.runs import storage_mirror

    names = inputs.names_of(arguments.images, arguments.column)[: arguments.limit]
    storage_mirror.fetch_source(arguments.source)
    embedder = Embedder.open(arguments.source)
    folder = Path(os.path.abspath(arguments.out.expanduser()))
    manifest = _manifest(arguments, embedder)
    print(f"weights     {embedder.note}", flush=True)
    with signals.stopped_by_signals(_HOW_TO_GO_ON, then_deaf=True), job.locked(folder):
        work = job.prepare(embedder, manifest, names, folder)
        print(f"images      {_to_do(work)}", flush=True)
        began = time.monotonic()
        progress = job.EmbeddingProgress(work, _say)
        with closing(_made(work, embedder, arguments.workers)) as results:
            for result in results:
                progress.add(result)
        broken = Collection(folder).write_broken()
    if work.left:
        took = measured_duration(time.monotonic() - began)
        print(f"embedded    {count(progress.images, 'image')} in {took}")
    if broken:
        print(f"broken      {count(broken, 'image')}, listed in {folder / BROKEN_FILE}")
    size = len(Collection(folder))
    print(f"collection  {folder}, {count(size, 'image')}")
    if not size:
        raise ConfigError("no image could be read; see the list of broken ones")
    print(f"\nNext:\n  pcl-ray search {arguments.out} IMAGE\n  pcl-ray duplicates {arguments.out}")
    return 0


def _manifest(arguments: argparse.Namespace, embedder: Embedder) -> Manifest:
    """What the embeddings will be of. Raises ConfigError where the head is asked for and there is none."""
    from pcl_ray.embedding.collection import Manifest

    if arguments.features == "head" and not embedder.has_head:
        raise ConfigError(f"--features head: {arguments.source} has no head; leave --features out")
    features, sample = arguments.features or "backbone", embedder.embed([])
    return Manifest(
        source=arguments.source,
        note=embedder.note,
        weights=embedder.digest(),
        features=features,
        dim=(sample.embeddings if features == "head" else sample.backbone).shape[1],
        num_clusters=tuple(len(clustering.prototypes) for clustering in embedder.clusterings),
        channels=embedder.channels,
        view=embedder.settings["view"],
        column=arguments.column,
    )


def _to_do(work: EmbeddingJob) -> str:
    if not work.done:
        return f"{work.left:,}"
    return f"{work.total:,}, of which {work.done:,} are embedded already; {work.left:,} to do"


def _made(work: EmbeddingJob, embedder: Embedder, workers: int | None) -> Generator[PartResult, None, None]:
    if not work.parts:
        return
    if workers == 0:
        import torch

        from pcl_ray.embedding import job

        embedder.to("cuda" if torch.cuda.is_available() else "cpu")
        yield from job.made_here(work, embedder, os.cpu_count() or 1)
        return
    from pcl_ray.on_ray import embedding

    yield from embedding.made_on_ray(work, workers, _say)


def _say(line: str) -> None:
    print(f"            {line}", flush=True)


EMBED = Verb(
    "embed", "write the embeddings of many images, as a collection on the disk", _add_arguments, _embed
)
