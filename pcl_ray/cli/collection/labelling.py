"""`pcl-ray sample` and `label`: which images to label, and what a few labels say of the others."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcl_ray.cli.collection import label_file
from pcl_ray.cli.collection.results import (
    MOST_GROUPS,
    MOST_PICTURES,
    OpenedCollection,
    add_folder,
    add_kmeans,
    check_count,
    file_name,
    first_of,
)
from pcl_ray.cli.verb import Verb
from pcl_ray.errors import ConfigError
from pcl_ray.support.text import count, percent


def _add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "sample")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="how many images")
    add_kmeans(parser)


def _sample(arguments: argparse.Namespace) -> int:
    check_count(arguments.count)
    opened = OpenedCollection(arguments, "sample")
    if label_file.has_labels(opened.table):
        raise ConfigError(f"{str(opened.table)!r} has labels that would be lost; give another --out")

    from pcl_ray.embedding import labelling
    from pcl_ray.report.collection_page import PictureGroup

    clustering = labelling.suitable(opened.memberships(arguments.kmeans), arguments.count)
    digests = opened.collection.content_numbers()
    images, sizes = (
        labelling.balanced_sample(clustering, arguments.count, digests=digests),
        clustering.sizes(),
    )
    rows = [
        {
            "path": opened.collection.path(image),
            "label": "",
            "prototype": (prototype := int(clustering.prototypes[image])),
            "images_of_prototype": int(sizes[prototype]),
            "distance": round(float(clustering.distances[image]), 6),
        }
        for image in images
    ]
    kinds = len({row["prototype"] for row in rows})
    print(
        f"sample      {count(len(rows), 'image')} of {len(opened.collection):,}, from"
        f" {count(kinds, 'prototype')} of {clustering.num_clusters:,}"
    )
    groups: dict[int, list[tuple[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["prototype"], []).append((row["path"], file_name(row["path"])))
    pages = [
        PictureGroup(f"Prototype {k}", count(int(sizes[k]), "image"), shown[:MOST_PICTURES])
        for k, shown in list(groups.items())[:MOST_GROUPS]
    ]
    lead = (
        f"{count(len(rows), 'image')}, equally many of each of {count(kinds, 'prototype')} where there are so"
        f" many; the most typical first. {first_of(len(pages), len(groups))}"
    )
    opened.write(rows, "Sample", lead, pages)
    print(f"\nNext: fill in the column `label`, then\n  pcl-ray label {arguments.collection} {opened.table}")
    return 0


def _add_label_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser, "labels")
    parser.add_argument(
        "labels",
        type=Path,
        metavar="LABELS.csv",
        help="columns path and label; rows without a label are left out",
    )
    parser.add_argument(
        "--least",
        type=float,
        default=0.0,
        metavar="CONFIDENCE",
        help="leave the label of images empty that are less sure than that, 0 to 1 (0)",
    )
    add_kmeans(parser)


def _label(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.least <= 1:
        raise ConfigError(f"--least {arguments.least:g}: 0 to 1")
    opened = OpenedCollection(arguments, "labels")
    if opened.table.exists() and arguments.labels.exists() and opened.table.samefile(arguments.labels):
        raise ConfigError(f"{str(arguments.labels)!r} would be overwritten by the result; give another --out")
    import numpy as np

    from pcl_ray.embedding import labelling
    from pcl_ray.report.collection_page import PictureGroup

    given = label_file.read(arguments.labels, opened.collection.paths)
    names = sorted(set(given.values()))
    labelled = np.array(sorted(given))
    classes = np.array([names.index(given[image]) for image in labelled.tolist()])
    prototypes = [one.prototypes for one in opened.memberships(arguments.kmeans)]
    result = labelling.spread(prototypes, labelled, classes, len(names))
    accuracy = labelling.left_out_accuracy(prototypes, labelled, classes, len(names))
    sure = (result.classes >= 0) & (result.confidence >= arguments.least)
    is_given = np.zeros(len(sure), bool)
    is_given[labelled] = True
    texts = [names[c] if yes else "" for c, yes in zip(result.classes.tolist(), sure.tolist(), strict=True)]
    for image in labelled.tolist():
        texts[image] = given[image]
    confidence = np.where(is_given, 1, result.confidence)
    columns = {
        "path": opened.collection.paths,
        "label": texts,
        "confidence": np.round(confidence.astype(np.float64), 4),
        "given": is_given,
    }
    spread = int((sure & ~is_given).sum())
    print(f"given       {count(len(labelled), 'label')} of {count(len(names), 'class', 'classes')}")
    print(
        f"spread      to {count(spread, 'image')}; {len(sure) - spread - len(labelled):,} have none: too"
        " unsure, or no labelled image shares a prototype with them"
    )
    if np.bincount(classes).max() < 2 or len(names) < 2:
        print("check       not possible: it takes two classes and one with two labels")
    else:
        print(f"check       {percent(accuracy)} of the given labels come out right when each is left out")
    groups = []
    order = np.argsort(-confidence, kind="stable")
    for number_, name in enumerate(names[:MOST_GROUPS]):
        images = order[(sure & ~is_given & (result.classes == number_))[order]]
        picked, text = images, f"spread to {count(len(images), 'image')}"
        if len(images) > MOST_PICTURES:
            picked = np.concatenate([images[:8], images[-4:]])
            text += "; the 8 surest, the 4 least sure"
        shown = [(opened.collection.path(i), percent(float(confidence[i]))) for i in picked]
        groups.append(PictureGroup(name, text, shown))
    lead = (
        f"{count(len(labelled), 'label')} spread along prototypes to {count(spread, 'image')}. When each"
        f" given label is left out, {percent(accuracy)} of them come out right."
        f" {first_of(len(groups), len(names))}"
    )
    opened.write_columns(columns, "Labels", lead, groups)
    return 0


SAMPLE = Verb("sample", "choose a balanced part of a collection, to label it", _add_sample_arguments, _sample)
LABEL = Verb("label", "spread a few labels over a collection along prototypes", _add_label_arguments, _label)
