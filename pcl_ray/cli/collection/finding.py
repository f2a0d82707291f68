"""`pcl-ray search`, `duplicates` and `outliers`: what is alike in a collection, what is odd."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pcl_ray.cli.collection.results import (
    MOST_GROUPS,
    MOST_PICTURES,
    OpenedCollection,
    add_folder,
    add_kmeans,
    check_count,
    first_of,
    short_name,
)
from pcl_ray.cli.verb import Verb
from pcl_ray.errors import ConfigError
from pcl_ray.support.paths import path_text
from pcl_ray.support.text import count, number

_MOST_COMPARED = 50_000  # images that are all compared with each other unasked: half a minute on two cores


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "search")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files, or names in the collection, to find the like of",
    )
    parser.add_argument("-k", type=int, default=20, metavar="N", help="how many of each (20)")


def _search(arguments: argparse.Namespace) -> int:
    if arguments.k < 1:
        raise ConfigError(f"-k {arguments.k}: 1 or more")
    opened = OpenedCollection(arguments, "search")
    import numpy as np

    from pcl_ray.embedding.embedder import Embedder
    from pcl_ray.report.collection_page import PictureGroup

    images = [os.path.abspath(os.path.expanduser(image)) for image in arguments.images]
    members = opened.collection.numbers_of(images)
    strangers = [image for image in images if image not in members]
    for image in strangers:
        if not os.path.isfile(image):
            kind = "is a folder; give image files" if os.path.isdir(image) else "is neither a file nor in it"
            raise ConfigError(f"{path_text(image)} {kind}")
    vectors = {image: opened.index.vectors[number] for image, number in members.items()}
    if strangers:
        embedded = Embedder.load(opened.collection.folder / "embedder").embed(strangers)
        features = opened.collection.manifest.features
        made = embedded.embeddings if features == "head" else embedded.backbone
        vectors |= dict(zip(strangers, made, strict=True))
    queries = np.stack([vectors[image] for image in images])
    nearest, cosines = opened.index.search(queries, arguments.k + 1)
    rows: list[dict[str, Any]] = []
    groups = []
    for image, ids, similarities in zip(images, nearest, cosines, strict=True):
        query = opened.collection.path(members[image]) if image in members else path_text(image)
        paths = [opened.collection.path(number) for number in ids]
        # the query itself is no answer
        near = [pair for pair in zip(paths, similarities.tolist(), strict=True) if pair[0] != query]
        near = near[: arguments.k]
        rows += [
            {"query": query, "rank": rank, "path": path, "similarity": round(similarity, 6)}
            for rank, (path, similarity) in enumerate(near, start=1)
        ]
        shown = [(query, "the query")] + [(path, f"{similarity:.3f}") for path, similarity in near[:200]]
        groups.append(PictureGroup(short_name(query), "", shown))
    opened.print_rows(rows, ("similarity", "path"))
    lead = "The images nearest to each query by the cosine of their embeddings, the nearest first."
    opened.write(rows, "Search", lead, groups)
    return 0


def _add_duplicates_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "duplicates")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help=(
            "how alike two embeddings are at least, up to 1; left out: as close as a hundredth of the"
            " distance of two images drawn at random, which finds other sizes and compressions of a picture"
        ),
    )


def _duplicates(arguments: argparse.Namespace) -> int:
    if arguments.threshold is not None and not 0 < arguments.threshold <= 1:
        raise ConfigError(f"--threshold {arguments.threshold:g}: a cosine above 0 and at most 1")
    opened = OpenedCollection(arguments, "duplicates")
    import numpy as np

    from pcl_ray.embedding import duplicates
    from pcl_ray.report.collection_page import PictureGroup

    vectors, collection = opened.index.vectors, opened.collection
    threshold = arguments.threshold
    if threshold is None:
        threshold = duplicates.usual_threshold(vectors)
    largest = np.argsort(-collection.bytes(), kind="stable")  # of several the largest file is kept
    result = duplicates.duplicate_groups(
        vectors, threshold, order_N=largest, device=_device(), progress=opened.progress
    )
    members = result.members()
    identical = collection.content_numbers()
    rows: list[dict[str, Any]] = []
    groups = []
    for group, images in enumerate(members, start=1):
        paths = [collection.path(image) for image in images]
        twins = np.bincount(identical[images])[identical[images]] > 1
        similarities = [round(value, 6) for value in result.similarity[images].tolist()]
        rows += [
            {"group": group, "path": path, "similarity": similarity, "identical": twin, "keep": position == 0}
            for position, (path, similarity, twin) in enumerate(
                zip(paths, similarities, twins.tolist(), strict=True)
            )
        ]
        if group <= MOST_GROUPS:
            text = count(len(images), "image")
            if len(set(identical[images])) == 1:
                text += ", all the same bytes"
            same = identical[images] == identical[images[0]]
            captions = [
                "same bytes" if equal else f"{similarity:.4f}"
                for equal, similarity in zip(same, similarities, strict=True)
            ]
            captions[0] = "keep"
            shown = list(zip(paths, captions, strict=True))[:MOST_PICTURES]
            groups.append(PictureGroup(f"Group {group}", text, shown))
    spare = sum(len(images) - 1 for images in members)
    copies = len(identical) - int(identical.max()) - 1
    print(f"threshold   {threshold:.5f}")
    print(
        f"duplicates  {count(len(members), 'group')} of {count(spare + len(members), 'image')}:"
        f" {spare:,} could go, of which {copies:,} are the same bytes as another"
    )
    lead = (
        f"{count(len(members), 'group')} of images whose embeddings have a cosine of {threshold:.5f} or more"
        f" with the one to keep, which is the largest file. {first_of(len(groups), len(members))}"
    )
    opened.write(rows, "Duplicates", lead, groups, ("group", "path", "similarity", "identical", "keep"))
    return 0


def _add_outliers_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "outliers")
    parser.add_argument(
        "--count", type=int, default=100, metavar="N", help="how many, the strangest first (100)"
    )
    parser.add_argument(
        "--by",
        choices=("neighbours", "prototypes"),
        help=(
            "neighbours: the distance to the tenth nearest image, which compares all with all; prototypes:"
            " the mean distance to the own prototypes, one look at each image, which misses what the encoder"
            f" was trained on. Left out: neighbours up to {_MOST_COMPARED:,} images"
        ),
    )
    add_kmeans(parser)


def _outliers(arguments: argparse.Namespace) -> int:
    check_count(arguments.count)
    opened = OpenedCollection(arguments, "outliers")
    import numpy as np

    from pcl_ray.embedding import outliers
    from pcl_ray.report.collection_page import PictureGroup

    clusterings = opened.memberships(arguments.kmeans)
    few = len(opened.collection) <= _MOST_COMPARED
    if (arguments.by or ("neighbours" if few else "prototypes")) == "neighbours":
        scores = outliers.neighbour_scores(opened.index.vectors, 10, opened.progress)
        meaning = "the distance to the tenth nearest image"
    else:
        scores = outliers.prototype_scores([one.distances for one in clusterings])
        meaning = "the mean distance to the nearest prototype of each clustering"
    order = np.argsort(-scores, kind="stable")[: arguments.count]
    rows: list[dict[str, Any]] = []
    for rank, image in enumerate(order, start=1):
        row = {"rank": rank, "path": opened.collection.path(image), "score": round(float(scores[image]), 6)}
        for one in clusterings:
            k = one.num_clusters
            row |= {
                f"prototype_of_{k}": int(one.prototypes[image]),
                f"distance_of_{k}": round(float(one.distances[image]), 6),
            }
        rows.append(row)
    opened.print_rows(rows, ("score", "path"))
    usual = float(np.median(scores))
    lead = (
        f"The {count(len(rows), 'image')} with the largest score: {meaning}. The median is {number(usual)}."
    )
    shown = [(row["path"], number(row["score"])) for row in rows[:300]]
    opened.write(rows, "Outliers", lead, [PictureGroup("", "", shown)])
    return 0


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


SEARCH = Verb(
    "search", "find the images of a collection that are most like one", _add_search_arguments, _search
)
DUPLICATES = Verb(
    "duplicates", "find near-duplicates in a collection", _add_duplicates_arguments, _duplicates
)
OUTLIERS = Verb("outliers", "find the strangest images of a collection", _add_outliers_arguments, _outliers)
