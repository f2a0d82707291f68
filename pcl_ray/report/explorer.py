"""The prototype explorer: cards of the coarsest clustering, and data for the script that opens one and goes
on to the finer ones inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcl_ray.report.drawing.html import Html, cut, data_script, tag
from pcl_ray.report.drawing.sprites import Sheet
from pcl_ray.snapshot import Exhibit, Shown
from pcl_ray.support.text import count, number, percent

STRIP = 6  # pictures of a card
_FIRST, _MOST = 24, 36  # cards before "show all", and how many are shown without that
_PHONE = 12  # the same on a narrow screen, as in report.css


def explorer(exhibit: Exhibit, sheet: Sheet | None, class_names: Sequence[str]) -> Html:
    """Cards, the panel that a card opens, and the data. Without script the cards are all there is to see."""
    data = data_of(exhibit, sheet, class_names)
    coarse = exhibit.clusterings[exhibit.coarse_to_fine()[0]]
    prototypes = sorted(
        data["levels"][0]["prototypes"],
        key=lambda one: one["phi"] if one["phi"] is not None else float("inf"),
    )
    first = len(prototypes) if len(prototypes) <= _MOST else _FIRST
    cards = [
        tag("li", _card(one, sheet, data["images"]), class_="later" if place >= first else None)
        for place, one in enumerate(prototypes)
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


def said(exhibit: Exhibit) -> str:
    """What is seen, in a sentence or two."""
    order = [exhibit.clusterings[m] for m in exhibit.coarse_to_fine()]
    after = f"after epoch {exhibit.epoch}" if exhibit.epoch else "before the first step"
    text = (
        f"{count(exhibit.num_images, 'image')} in {' · '.join(f'{shown.num_clusters:,}' for shown in order)}"
        f" clusters, {after}. "
    )
    text += "Each card is a prototype with the images nearest to it."
    if len(order) > 1:
        text += " Open one to see its other images and which finer prototypes lie inside it."
    hidden = [shown for shown in order if len(shown.chosen) < int((shown.sizes > 0).sum())]
    if hidden:
        text += (
            f" Of {' and '.join(f'{shown.num_clusters:,}' for shown in hidden)} prototypes the most telling"
            f" {max(len(s.chosen) for s in hidden)} are shown."
        )
    return text + (f" Note: {exhibit.note}." if exhibit.note else "")


def data_of(exhibit: Exhibit, sheet: Sheet | None, class_names: Sequence[str]) -> dict[str, Any]:
    """Levels from coarse to fine, each with its shown prototypes; pictures are numbers of images."""
    order = [exhibit.clusterings[m] for m in exhibit.coarse_to_fine()]
    finer: list[Shown | None] = [*order[1:], None]
    levels = [
        {"k": shown.num_clusters, "prototypes": _prototypes(shown, below, class_names)}
        for shown, below in zip(order, finer, strict=True)
    ]
    return {
        "images": exhibit.num_images,
        "strip": STRIP,
        "sheet": sheet.told() if sheet else None,
        "levels": levels,
    }


def class_name(number_: int, class_names: Sequence[str]) -> str:
    return cut(class_names[number_]) if 0 <= number_ < len(class_names) else str(number_)


def _prototypes(shown: Shown, finer: Shown | None, class_names: Sequence[str]) -> list[dict[str, Any]]:
    roles = {int(k): role for role, found in shown.roles().items() for k in found}
    inside, children = _children(shown, finer)
    found = []
    for row, prototype in enumerate(shown.chosen.tolist()):
        top = int(shown.top_class[row])
        found.append(
            {
                "id": prototype,
                "size": int(shown.sizes[prototype]),
                "phi": float(f"{shown.concentration[prototype]:.5g}"),
                "top": class_name(top, class_names) if top >= 0 else None,
                "share": round(float(shown.top_share[row]), 4) if top >= 0 else None,
                "role": roles.get(prototype),
                "parent": int(shown.parents[prototype]),
                "parentShare": round(float(shown.parent_shares[prototype]), 4),
                "near": [int(image) for image in shown.nearest[row] if image >= 0],
                "far": [int(image) for image in shown.farthest[row] if image >= 0],
                "inside": int(inside[prototype]),
                "children": children.get(prototype, []),
            }
        )
    return found


def _children(shown: Shown, finer: Shown | None) -> tuple[np.ndarray, dict[int, list[int]]]:
    """[K] how many finer prototypes lie in each, and which of them are shown, the largest first."""
    if finer is None:
        return np.zeros(shown.num_clusters, np.int64), {}
    held = finer.parents[(finer.sizes > 0) & (finer.parents >= 0)]
    children: dict[int, list[int]] = {}
    for child in finer.chosen[np.argsort(-finer.sizes[finer.chosen], kind="stable")].tolist():
        children.setdefault(int(finer.parents[child]), []).append(child)
    return np.bincount(held, minlength=shown.num_clusters), children


def _tools(coarse: Shown) -> Html:
    orders = (("phi", "tightest first"), ("size", "largest first"), ("id", "by number"))
    buttons = [
        tag("button", said_, type="button", data_sort=key, aria_pressed="true" if key == "phi" else "false")
        for key, said_ in orders
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
    facts = [count(one["size"], "image"), f"φ {number(one['phi'])}"]
    label = (
        tag("span", f"“{one['top']}” {percent(one['share'])}", class_="top")
        if one["top"] is not None
        else None
    )
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
        tag("span", " · ".join(facts), class_="facts"),
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
    words = (
        f"Prototype {one['id']}, {count(one['size'], 'image')}, {percent(one['size'] / max(1, num_images))}"
        f" of all, φ {number(one['phi'])}"
    )
    words += f", {percent(one['share'])} of them “{one['top']}”" if one["top"] is not None else ""
    return words + (f", {one['role']}" if one["role"] else "")
