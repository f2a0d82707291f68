"""What was found of the pictures of a run, in numbers and in sentences; as JSON beside the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pcl_ray.data.images import NO_LABEL, EncodedImages, FileImages
from pcl_ray.data.inspection.looks_cache import Looks
from pcl_ray.support.files import write_text
from pcl_ray.support.paths import path_text
from pcl_ray.support.text import count, cut

BLANK = 0.1  # share of a picture's area below which its content is tiny
_INVISIBLE = 16  # contrast below which nothing is seen, of 255
_EXAMPLES = 5
_CLASSES = 6  # that are named


@dataclass(frozen=True)
class DataSummary:
    """The pictures of both parts together, unless it says otherwise."""

    pictures: int
    classes: Mapping[str, int] = field(default_factory=dict)  # training pictures of each; {} without labels
    unlabelled: int = 0  # training pictures without a label, of those that have classes
    inner_folders: Sequence[str] = ()  # some folders below those that are classes
    smallest: Sequence[int] = ()  # width and height; () where files were not looked at
    median: Sequence[int] = ()
    largest: Sequence[int] = ()
    identical: int = 0  # pictures that another file has byte for byte, without the first of each
    alike: int = 0  # further copies: saved anew, scaled, on another margin
    compared: bool = True  # whether the latter were looked for
    copies: Sequence[Sequence[str]] = ()  # some pairs
    separated: int = 0  # held-out pictures with a copy in the training part
    reunited: int = 0  # held-out pictures that would have one if each had been chosen for itself
    blank: int = 0  # pictures with tiny contents
    blank_examples: Sequence[str] = ()
    invisible: int = 0  # pictures of one brightness on their background
    invisible_examples: Sequence[str] = ()
    trimmed: bool = False  # whether margins are cut: tiny contents fill the picture then

    @property
    def twins(self) -> int:
        return self.identical + self.alike


def summary_of(
    train: EncodedImages,
    holdout: EncodedImages | None,
    looks: tuple[Looks, Looks | None] | None,
    group: np.ndarray | None,
    reunited: int,
) -> DataSummary:
    """looks: of both parts; None where files were not looked at. group: see `twins.groups`, of the training
    part and then the held-out one. reunited: as in the summary.
    """
    parts = (train, holdout) if holdout is not None else (train,)
    summary: dict[str, Any] = {
        "pictures": sum(map(len, parts)),
        "inner_folders": _inner_folders(train),
        "trimmed": train.options.trim,
        "reunited": reunited,
    }
    if train.labels is not None:
        sizes = np.bincount(train.labels[train.labels != NO_LABEL], minlength=len(train.class_names))
        summary["classes"] = dict(zip(train.class_names, sizes.tolist(), strict=True))
        summary["unlabelled"] = int((train.labels == NO_LABEL).sum())
    if looks is None or group is None:
        return DataSummary(**summary)
    every = looks[0] if looks[1] is None else looks[0].with_those_of(looks[1])
    return DataSummary(**summary, **_sizes(every), **_copies(every, group, parts), **_visible(every, parts))


def _sizes(looks: Looks) -> dict[str, Any]:
    order = np.argsort(looks.sizes.prod(axis=1), kind="stable")
    picks = {"smallest": 0, "median": len(order) // 2, "largest": -1}
    return {name: looks.sizes[order[at]][::-1].tolist() for name, at in picks.items()} if len(order) else {}


def _copies(looks: Looks, group: np.ndarray, parts: Sequence[EncodedImages]) -> dict[str, Any]:
    held = np.arange(len(group)) >= len(parts[0])
    identical = len(group) - len(np.unique(looks.content_hashes))
    every = len(group) - len(np.unique(group))
    # those across both parts first
    in_training, among_held = np.bincount(group, ~held) > 0, np.bincount(group, held) > 0
    several = np.flatnonzero(np.bincount(group) > 1)
    several = several[np.argsort(~(in_training & among_held)[several], kind="stable")][:_EXAMPLES]
    pairs = [np.flatnonzero(group == number)[[0, -1]].tolist() for number in several]
    in_both = in_training[group] & held
    return {
        "identical": identical,
        "alike": max(every - identical, 0),
        "compared": looks.has_miniatures,
        "copies": [[_name(parts, image) for image in pair] for pair in pairs],
        "separated": int(in_both.sum()),
    }


def _visible(looks: Looks, parts: Sequence[EncodedImages]) -> dict[str, Any]:
    tiny, flat = looks.contents < BLANK, looks.contrasts < _INVISIBLE
    blank = np.flatnonzero(tiny & ~(flat & (looks.contents > 0)))
    invisible = np.flatnonzero(flat & (looks.contents > 0))
    return {
        "blank": len(blank),
        "blank_examples": [_name(parts, image) for image in blank[:_EXAMPLES].tolist()],
        "invisible": len(invisible),
        "invisible_examples": [_name(parts, image) for image in invisible[:_EXAMPLES].tolist()],
    }


def _inner_folders(images: EncodedImages) -> list[str]:
    """Some folders below those of the first level, where the latter are the classes."""
    if not isinstance(images, FileImages) or images.labels is None:
        return []
    inner: dict[str, None] = {}
    for index in range(len(images)):
        first, *further = os.fsdecode(images.files[index]).split("/")
        if len(further) > 1 and path_text(first) in images.class_names:
            inner[path_text(f"{first}/{further[0]}")] = None
        if len(inner) == _EXAMPLES:
            break
    return list(inner)


def _name(parts: Sequence[EncodedImages], index: int) -> str:
    part = parts[0] if index < len(parts[0]) else parts[1]
    index -= 0 if part is parts[0] else len(parts[0])
    return path_text(os.fsdecode(part.files[index])) if isinstance(part, FileImages) else part.name(index)


def lines(summary: DataSummary) -> list[str]:
    """What there is to know of sound pictures, a line each."""
    texts = []
    if summary.classes:
        ranked = sorted(summary.classes.items(), key=lambda entry: -entry[1])
        named = ", ".join(f"{cut(name, 30)} {size:,}" for name, size in ranked[:_CLASSES])
        if len(ranked) > _CLASSES:
            named += f", … {cut(ranked[-1][0], 30)} {ranked[-1][1]:,}"
        texts.append(f"training pictures of each class: {named}")
    if summary.inner_folders:
        texts.append(
            "folders of the first level are the classes; those below them are not, e.g."
            f" {', '.join(summary.inner_folders[:3])}"
        )
    if summary.median:
        small, middle, large = (
            f"{width:,} × {height:,}" for width, height in (summary.smallest, summary.median, summary.largest)
        )
        texts.append(f"{middle} pixels in the median" + (f", {small} to {large}" if small != large else ""))
    return texts


def cautions(summary: DataSummary) -> list[str]:
    """What may be wrong with them, a sentence each."""
    return [
        sentence
        for sentence in (copies_sentence(summary), blank_sentence(summary), invisible_sentence(summary))
        if sentence
    ]


def copies_sentence(summary: DataSummary) -> str:
    """How many are copies, and what the split did with them; "" where none are."""
    if not summary.twins:
        return ""
    parts = [f"{summary.identical:,} byte for byte"] if summary.identical else []
    parts += [f"{summary.alike:,} in other files of the same picture"] if summary.alike else []
    are = "is a copy" if summary.twins == 1 else "are copies"
    text = f"{summary.twins:,} of {count(summary.pictures, 'picture')} {are} ({', '.join(parts)})"
    if summary.reunited:
        have = "one has" if summary.reunited == 1 else f"{summary.reunited:,} have"
        text += f"; copies stay on one side of the split, else {have} one in the training part"
    if summary.separated:
        have = "picture has" if summary.separated == 1 else "pictures have"
        text += f"; {summary.separated:,} held-out {have} a copy in the training part"
    return f"{text}, e.g. {' and '.join(summary.copies[0])}"


def too_few_different(summary: DataSummary, num_clusters: Sequence[int]) -> str:
    """Why these pictures cannot be clustered into so many; "" where they can, as far as is known."""
    different = summary.pictures - summary.identical
    if not summary.identical or different >= max(num_clusters, default=0):
        return ""
    if different == 1:
        return (
            f"all {summary.pictures:,} pictures are the same one, byte for byte"
            f" ({' and '.join(summary.copies[0])}, for two): there is nothing to tell apart"
        )
    return (
        f"{summary.identical:,} of {summary.pictures:,} pictures are copies of others, byte for byte; the"
        f" {different:,} different ones make no {max(num_clusters):,} clusters: use fewer"
        " (e_step.num_clusters), or other pictures"
    )


def blank_sentence(summary: DataSummary) -> str:
    """How many show next to nothing; "" where none do."""
    if not summary.blank or summary.trimmed:
        return ""
    are = "is" if summary.blank == 1 else "are"
    return (
        f"{count(summary.blank, 'picture')} {are} almost blank: what they show takes less than {BLANK:.0%} of"
        f" their area, e.g. {', '.join(summary.blank_examples[:2])}; data.trim=true cuts margins"
    )


def invisible_sentence(summary: DataSummary) -> str:
    """How many are not seen on their background; "" where all are."""
    if not summary.invisible:
        return ""
    are = "is" if summary.invisible == 1 else "are"
    return (
        f"{count(summary.invisible, 'picture')} {are} of one brightness on the background, e.g."
        f" {', '.join(summary.invisible_examples[:2])}; data.background=black or grey may show them"
    )


def write(summary: DataSummary, path: Path) -> None:
    """Writes it as JSON. Raises OSError."""
    write_text(path, json.dumps(asdict(summary), indent=2) + "\n")


def read(path: Path) -> DataSummary | None:
    """What `write` wrote; None where there is none, or a damaged one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = {part.name for part in fields(DataSummary)}
        return DataSummary(**{name: value for name, value in entries.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
