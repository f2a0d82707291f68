"""The prototype explorer: cards of the coarsest clustering, and data for the script that opens finer ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcl_ray.report.drawing.html import Html, data_script, tag
from pcl_ray.report.drawing.sprites import Sheet
from pcl_ray.snapshot import ClusteringSnapshot, Snapshot
from pcl_ray.support.text import count, cut, number, percent

STRIP = 6  # pictures of a card
_FIRST, _MOST = 24, 36  # cards before "show all", and how many are shown without that
_MOST_LISTED = 20_000  # images up to which a prototype lists all of its own
_PHONE = 12  # the same on a narrow screen, as in report.css


def explorer(snapshot: Snapshot, sheet: Sheet | None, class_names: Sequence[str]) -> Html:
    """Cards, the panel that a card opens, and the data. Without script the cards are all there is to see."""
    data = data_of(snapshot, sheet, class_names)
    coarse = snapshot.clusterings[snapshot.coarse_to_fine()[0]]
    prototypes = sorted(
        data["levels"][0]["prototypes"],
        key=lambda one: one["phi"] if one["phi"] is not None else float("inf"),
    )
    first = len(prototypes) if len(prototypes) <= _MOST else _FIRST
    cards = [
        tag("li", _card(one, sheet, data["images"]), class_="later" if number >= first else None)
        for number, one in enumerate(prototypes)
    ]
    return tag(
        "div",
        _tools(coarse),
        tag(
            "nav",
            class_="crumbs",
            id="explorer-crumbs",
            aria_label="Where you are among the clusterings",
            hidden=True,
        ),
        tag(
            "div",
            id="explorer-panel",
            role="region",
            aria_label="The chosen prototype",
            tabindex="-1",
            hidden=True,
        ),
        tag("h3", f"All prototypes of K = {coarse.num_clusters:,}", id="explorer-all"),
        tag("ul", cards, class_="cards", id="explorer-cards"),
        _more(len(cards), first),
        data_script("explorer-data", data),
        class_="explorer sheet",
        id="explorer",
    )


def summary_sentence(snapshot: Snapshot) -> str:
    """What is seen, in a sentence or two."""
    order = [snapshot.clusterings[m] for m in snapshot.coarse_to_fine()]
    after = f"after epoch {snapshot.epoch}" if snapshot.epoch else "before the first step"
    counts = " · ".join(f"{clustering.num_clusters:,}" for clustering in order)
    text = f"{count(snapshot.num_images, 'image')} in {counts} clusters, {after}. "
    text += "Each card is a prototype with the images nearest to it."
    if len(order) > 1:
        text += " Open one to see all its images and which finer prototypes lie inside it."
    partial = [one for one in order if len(one.selected) < int((one.sizes > 0).sum())]
    if partial:
        counts = " and ".join(f"{clustering.num_clusters:,}" for clustering in partial)
        most = max(len(clustering.selected) for clustering in partial)
        text += f" Of {counts} prototypes the most telling {most} are shown."
    return text + (f" Note: {snapshot.note}." if snapshot.note else "")


def data_of(snapshot: Snapshot, sheet: Sheet | None, class_names: Sequence[str]) -> dict[str, Any]:
    """The script's data: levels from coarse to fine, with selected prototypes; pictures as image numbers, and
    the names of those.
    """
    numbers = snapshot.coarse_to_fine()
    order = [snapshot.clusterings[m] for m in numbers]
    finer: list[ClusteringSnapshot | None] = [*order[1:], None]
    levels = []
    for m, clustering, below in zip(numbers, order, finer, strict=True):
        prototypes = _prototypes(clustering, below, class_names)
        if snapshot.members.size and snapshot.num_images <= _MOST_LISTED:
            _add_members(prototypes, snapshot.members[m], snapshot.distances[m])
        levels.append({"k": clustering.num_clusters, "prototypes": prototypes})
    return {
        "images": snapshot.num_images,
        "strip": STRIP,
        "sheet": sheet.script_data() if sheet else None,
        "names": _names(levels, sheet),
        "levels": levels,
    }


def _add_members(prototypes: list[dict[str, Any]], members: np.ndarray, distances: np.ndarray) -> None:
    """Gives each prototype all of its images, the nearest first; those without a distance last."""
    order = np.lexsort((np.arange(len(members)), distances))
    own = members[order]
    for entry in prototypes:
        entry["members"] = order[own == entry["id"]].tolist()


def _names(levels: Sequence[dict[str, Any]], sheet: Sheet | None) -> dict[str, str]:
    """The files of all images that the data name, where they came from files."""
    if sheet is None or not sheet.names:
        return {}
    images = {
        image
        for level in levels
        for entry in level["prototypes"]
        for part in ("near", "far", "members")
        for image in entry.get(part, ())
    }
    return {str(image): sheet.names[image] for image in sorted(images) if image in sheet.names}


def class_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    return cut(class_names[label]) if 0 <= label < len(class_names) else str(label)


def _prototypes(
    clustering: ClusteringSnapshot, finer: ClusteringSnapshot | None, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    roles = {int(k): role for role, prototypes in clustering.roles().items() for k in prototypes}
    inside, children = _children(clustering, finer)
    entries = []
    for row, prototype in enumerate(clustering.selected.tolist()):
        label = int(clustering.top_class[row])
        entry = {
            "id": prototype,
            "size": int(clustering.sizes[prototype]),
            "phi": float(f"{clustering.concentration[prototype]:.5g}"),
            "top": class_name(label, class_names) if label >= 0 else None,
            "share": round(float(clustering.top_share[row]), 4) if label >= 0 else None,
            "role": roles.get(prototype),
            "parent": int(clustering.parents[prototype]),
            "parentShare": round(float(clustering.parent_shares[prototype]), 4),
            "near": [int(image) for image in clustering.nearest[row] if image >= 0],
            "far": [int(image) for image in clustering.farthest[row] if image >= 0],
            "inside": int(inside[prototype]),
            "children": children.get(prototype, []),
        }
        entries.append(entry)
    return entries


def _children(
    clustering: ClusteringSnapshot, finer: ClusteringSnapshot | None
) -> tuple[np.ndarray, dict[int, list[int]]]:
    """[K] how many finer prototypes lie in each, and which of them are selected, the largest first."""
    if finer is None:
        return np.zeros(clustering.num_clusters, np.int64), {}
    parents = finer.parents[(finer.sizes > 0) & (finer.parents >= 0)]
    children: dict[int, list[int]] = {}
    for child in finer.selected[np.argsort(-finer.sizes[finer.selected], kind="stable")].tolist():
        children.setdefault(int(finer.parents[child]), []).append(child)
    return np.bincount(parents, minlength=clustering.num_clusters), children


def _tools(coarse: ClusteringSnapshot) -> Html:
    orders = (("phi", "tightest first"), ("size", "largest first"), ("id", "by number"))
    buttons = [
        tag("button", text, type="button", data_sort=key, aria_pressed="true" if key == "phi" else "false")
        for key, text in orders
    ]
    return tag(
        "div",
        tag("span", "Order of the cards"),
        tag("div", buttons, class_="toggle", role="group", aria_label="Order of the cards"),
        class_="tools",
    )


def _more(count_: int, first: int) -> Html | None:
    if count_ <= min(first, _PHONE):
        return None
    return tag(
        "button",
        f"Show all {count_}",
        type="button",
        class_="more" if count_ > first else "more phone",
        id="explorer-more",
    )


def _card(one: dict[str, Any], sheet: Sheet | None, num_images: int) -> Html:
    pictures = [sheet.picture(image) for image in one["near"][:STRIP]] if sheet else None
    summary = [count(one["size"], "image"), f"φ {number(one['phi'])}"]
    label = None
    if one["top"] is not None:
        label = tag("span", f"“{one['top']}” {percent(one['share'])}", class_="top")
    return tag(
        "button",
        tag(
            "span",
            tag("b", f"{one['id']}"),
            tag("em", one["role"], class_="role") if one["role"] else None,
            label,
            class_="card-head",
        ),
        tag("span", pictures, class_="strip") if pictures else None,
        tag("span", " · ".join(summary), class_="summary-line"),
        type="button",
        class_="card",
        data_level=0,
        data_prototype=one["id"],
        data_phi=one["phi"],
        data_size=one["size"],
        aria_expanded="false",
        aria_controls="explorer-panel",
        aria_label=_words(one, num_images),
    )


def _words(one: dict[str, Any], num_images: int) -> str:
    """The card for a screen reader."""
    share = percent(one["size"] / max(1, num_images))
    words = f"Prototype {one['id']}, {count(one['size'], 'image')}, {share} of all, φ {number(one['phi'])}"
    if one["top"] is not None:
        words += f", {percent(one['share'])} of them “{one['top']}”"
    if one["role"]:
        words += f", {one['role']}"
    return words
