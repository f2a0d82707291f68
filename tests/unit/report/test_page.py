"""The report of a run as one page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import PageReader, explorer_of, read_report
from reported import NAMES, digits_record, digits_snapshot, history, synthetic

from pcl_ray.report import page
from pcl_ray.snapshot import Snapshot, Thumbnails


def test_nothing_is_asked_for_outside(tmp_path: Path) -> None:
    found = read_report(digits_record(link="https://tracking.example/runs/1"), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r"https?://[^\s\"'<)]*", text)
    assert outside == ["https://tracking.example/runs/1"]  # a link to follow, and no namespaces or fonts
    for attributes in found.having("src") + found.having("href"):
        assert attributes.get("src", "") == ""
        assert attributes.get("href", "#").startswith(("#", "data:", "https://tracking.example/"))
    assert all(address.startswith("data:image/") for address in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text


def test_many_large_pictures_stay_within_the_size(tmp_path: Path) -> None:
    """Three clusterings of 96 prototypes with 16 pictures each, and pictures that nothing can compress."""
    rng = np.random.default_rng(0)
    images = np.arange(3 * 96 * 16)
    noise = rng.integers(0, 256, (len(images), 48, 48, 3), dtype=np.uint8)
    shown = [synthetic(4096 * 2**m, images[m * 1536 : (m + 1) * 1536].reshape(96, 16), rng) for m in range(3)]
    record = digits_record(
        snapshot=Snapshot(6, 66, 1_000_000, tuple(shown)),
        thumbnails=Thumbnails(images, noise),
        num_clusters=(4096, 8192, 16384),
    )
    path = page.write(record, tmp_path / "report.html")
    assert path.stat().st_size < 6_000_000
    PageReader(path.read_text(encoding="utf-8"))


def test_everything_is_escaped(tmp_path: Path) -> None:
    nasty = "<b>\"x\" & 'y'</b></script><script>alert(1)</script>"
    shown, thumbnails = digits_snapshot()
    record = digits_record(
        name=nasty,
        command=nasty,
        error=nasty,
        state="failed",
        fingerprint=nasty,
        link=f"javascript:{nasty}",
        versions={nasty: nasty},
        class_names=tuple(f"</script>{name}<!--" for name in NAMES),
        snapshot=replace(shown, note=nasty, map_name=nasty),
    )
    page.write(record, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = PageReader(text)
    assert "<script>alert" not in text
    assert "</script>zero" not in text
    assert "javascript:" not in " ".join(attributes.get("href", "") for _, attributes in found.found)
    assert explorer_of(found)["levels"][0]["prototypes"][0]["top"].startswith("</script>")
    assert nasty in "".join(found.words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"snapshot": None, "thumbnails": None}, "no pictures of its prototypes were kept"),
        ({"snapshot": None, "thumbnails": None, "history": history(2)}, "2 of its 3 warm-up epochs"),
        (
            {"snapshot": None, "thumbnails": None, "history": [], "state": "running"},
            "Nothing has been measured yet",
        ),
        ({"history": []}, "nothing to draw"),
        ({"history": history(1)}, "1 of 6"),
        ({"thumbnails": None}, "shown in numbers alone"),
        (
            {"thumbnails": Thumbnails(np.empty(0, np.int64), np.empty((0, 8, 8, 3), np.uint8))},
            "shown in numbers alone",
        ),
        ({"state": "failed", "error": "the loss is nan in epoch 3"}, "the loss is nan in epoch 3"),
        (
            {
                "num_images": 0,
                "num_clusters": (),
                "class_names": (),
                "versions": {},
                "fingerprint": "",
                "command": "",
            },
            "Versions were not recorded",
        ),
        (
            {
                "history": [
                    {
                        "epoch": 0,
                        "step": 9,
                        "metrics": {"train/loss": float("nan"), "eval/rankme": float("inf")},
                    }
                ]
            },
            "Summary",
        ),
        (
            {"history": [*history(4), {"epoch": 4, "step": 9, "metrics": {"train/loss": float("nan")}}]},
            "Loss",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = read_report(digits_record(**changes), tmp_path)
    assert words in found.text
    assert "nan%" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_reading_it_takes_neither_ray_nor_mlflow(loaded_by: Callable[..., list[str]]) -> None:
    assert loaded_by("pcl_ray.report.page, pcl_ray.report.comparison", "ray", "mlflow", "matplotlib") == []
