"""Reports as a reader has them: in a browser, from a file, without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser.browsing import overflow, page
from reported import digits_record, history

from pcl_ray.report import comparison
from pcl_ray.report import page as report_page

LONG = "a_run_with_quite_a_long_name_that_has_no_place_where_it_could_be_broken_0123456789"
WIDE, PHONE = (1400, 900), (390, 844)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_page.write(digits_record("seven"), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    others = [
        digits_record(f"run {n}", {"loss.temperature": 0.1 + n / 100}, history=history(6, better=n / 100))
        for n in range(9)
    ]
    return comparison.write(
        [digits_record(LONG), *others], tmp_path_factory.mktemp("compared") / "comparison.html"
    )


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PCL_RAY_TEST_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def opened(path: Path, size: tuple[int, int], **options: Any) -> Iterator[Any]:
    """The page; afterwards nothing may have failed, been asked for outside, or exceed the window's width."""
    with page(*size, **options) as view:
        view.goto(path.as_uri())
        yield view
        assert view.problems == []
        assert [address for address in view.asked if not address.startswith(("file:", "data:"))] == []
        assert overflow(view) == 0


def pictures(view: Any, inside: str) -> int:
    """How many of the sheet's pictures are seen there."""
    return view.locator(f"{inside} .im:not(.none)").count()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_from_coarse_to_fine_and_back(report: Path, shots: Path, size: tuple[int, int]) -> None:
    with opened(report, size) as view:
        view.screenshot(path=shots / f"report_{size[0]}.png", full_page=True)
        assert view.locator("#explorer-panel").is_hidden()
        first = view.locator('#explorer-cards [data-level="0"]').first
        first.click()
        panel = view.locator("#explorer-panel")
        assert panel.is_visible()
        assert f"Prototype {first.get_attribute('data-prototype')} of K = 8" in panel.inner_text()
        assert "At its edge" in panel.inner_text()
        assert pictures(view, "#explorer-panel .pictures .big") == 16
        assert pictures(view, "#explorer-panel .members .big") > 16  # all of its images
        assert first.get_attribute("aria-expanded") == "true"
        view.screenshot(path=shots / f"report_{size[0]}_open.png")
        finer = panel.locator('[data-level="1"]')
        assert finer.count() >= 2
        assert pictures(view, '#explorer-panel [data-level="1"]') == 6 * finer.count()
        number = finer.first.get_attribute("data-prototype")
        finer.first.click()
        assert f"Prototype {number} of K = 30" in panel.inner_text()
        assert panel.locator("[data-level]").count() == 0
        assert view.locator(".crumb").count() == 3
        view.locator(".crumb").nth(1).click()
        assert "of K = 8" in panel.inner_text()
        view.locator(".crumb").first.click()
        assert panel.is_hidden()
        assert first.get_attribute("aria-expanded") == "false"


def test_the_keyboard_opens_and_goes_on(report: Path) -> None:
    with opened(report, WIDE) as view:
        view.locator('[data-level="0"]').nth(2).focus()
        view.keyboard.press("Enter")
        assert view.locator("#explorer-panel").is_visible()
        assert view.evaluate("document.activeElement.id") == "explorer-panel"
        view.keyboard.press("Tab")
        assert view.evaluate("document.activeElement.dataset.level") == "1"
        view.keyboard.press("Enter")
        assert "of K = 30" in view.locator("#explorer-panel").inner_text()


def test_pictures_are_those_of_the_images(report: Path, shots: Path) -> None:
    """The pixels on the screen, in a card (drawn by Python) and the panel (by the script): the image's."""
    import numpy as np
    from PIL import Image

    record = digits_record("seven")
    assert record.thumbnails is not None
    with opened(report, WIDE) as view:
        view.locator('[data-level="0"]').nth(3).click()
        for place in ("#explorer-cards .im", "#explorer-panel .big .im"):
            one = view.locator(place).nth(4)
            one.evaluate("spot => { spot.style.borderRadius = 0; }")
            one.screenshot(path=shots / "one.png")
            seen = np.asarray(Image.open(shots / "one.png").convert("L")).astype(float)
            real = record.thumbnails.picture(int(one.get_attribute("title").split()[-1]))
            assert real is not None
            steps = ((np.arange(8) + 0.5) / 8 * np.array(seen.shape)[:, None]).astype(int)
            middles = seen[np.ix_(steps[0], steps[1])]
            assert np.abs(middles - real[..., 0]).max() < 3, place


def test_sorting(report: Path) -> None:
    with opened(report, WIDE) as view:
        order = "[...document.querySelectorAll('#explorer-cards .card')].map(card => Number(card.dataset.%s))"
        assert view.evaluate(order % "phi") == sorted(view.evaluate(order % "phi"))
        view.get_by_role("button", name="largest first").click()
        assert view.evaluate(order % "size") == sorted(view.evaluate(order % "size"), reverse=True)
        assert view.locator('[data-sort="size"]').get_attribute("aria-pressed") == "true"


def test_the_map_changes_its_colours_and_tells_points(report: Path) -> None:
    strokes = "[...view.querySelectorAll('path')].map(path => path.getAttribute('stroke')).join()"
    colours = (
        "[...document.querySelectorAll('.map-view')].filter(view => view.offsetParent).map(view =>"
        f" {strokes})"
    )
    with opened(report, PHONE) as view:
        (first,) = view.evaluate(colours)
        view.get_by_role("button", name="labels", exact=True).click()
        (second,) = view.evaluate(colours)
        assert first != second
        assert "seven" in view.locator(".map-view.labels").inner_text()
        spot = view.locator(".map-view.labels svg[role]")
        x, y = view.evaluate("JSON.parse(document.getElementById('map-data').textContent).points[0]")
        spot.scroll_into_view_if_needed()
        box = spot.bounding_box()
        view.mouse.move(box["x"] + x * box["width"] / 640, box["y"] + y * box["width"] / 640)
        told = view.locator("#tip").inner_text()
        assert told.startswith("image ")
        assert "K = 8: prototype" in told
        assert "label: " in told
    with opened(report, WIDE) as view:
        before = view.evaluate(colours)
        assert len(before) == 2  # the labels have room beside
        view.get_by_role("button", name="K = 30").click()
        after = view.evaluate(colours)
        assert after[0] != before[0]
        assert after[1] == before[1]


def test_curves_tell_their_values(report: Path) -> None:
    with opened(report, WIDE) as view:
        chart = view.locator("#chart-loss svg[role]")
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        view.mouse.move(box["x"] + box["width"] * 0.96, box["y"] + box["height"] / 2)
        told = view.locator("#tip").inner_text()
        assert told.startswith("epoch 6")
        assert "prototype term" in told
        view.mouse.move(5, 5)
        assert view.locator("#tip").is_hidden()


def test_dark(report: Path, shots: Path) -> None:
    with opened(report, WIDE, color_scheme="dark") as view:
        view.locator('[data-level="0"]').first.click()
        view.screenshot(path=shots / "report_dark.png", full_page=True)
        assert brightness(view) < 60


def brightness(view: Any) -> float:
    return view.evaluate(
        "getComputedStyle(document.querySelector('.tile')).backgroundColor.match(/\\d+/g).slice(0,"
        " 3).reduce((a, b) => a + Number(b), 0) / 3"
    )


def test_on_paper(report: Path, shots: Path) -> None:
    with opened(report, (720, 1000), color_scheme="dark") as view:
        view.emulate_media(media="print", color_scheme="dark")
        view.screenshot(path=shots / "report_print.png", full_page=True)
        assert brightness(view) == 255
        assert view.locator("#chart-loss svg[role]").is_visible()
        assert view.locator(".map-view:visible").count() == 2
        assert view.locator("details table").is_visible()
        assert view.locator("#explorer-cards .card").first.is_visible()
        assert view.locator(".toggle:visible").count() == 0
        pdf = view.pdf(format="A4")
        (shots / "report.pdf").write_bytes(pdf)
        assert pdf.startswith(b"%PDF")


def test_without_script(report: Path) -> None:
    with opened(report, WIDE, java_script_enabled=False) as view:
        assert view.locator("#explorer-cards .card:visible").count() == 8
        assert view.locator("#chart-loss svg[role]").is_visible()
        assert view.locator(".map-view:visible").count() == 3


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_comparison(compared: Path, shots: Path, size: tuple[int, int]) -> None:
    with opened(compared, size) as view:
        view.screenshot(path=shots / f"comparison_{size[0]}.png", full_page=True)
        assert view.locator("#chart-knn path.line").count() == 10
        assert pictures(view, ".sheet-3") == 36


@pytest.mark.parametrize(
    "changes",
    [
        {"snapshot": None, "thumbnails": None, "history": []},
        {"error": LONG * 3, "state": "failed", "history": history(1)},
    ],
    ids=["bare", "failed"],
)
def test_odd_runs_fit_a_phone(tmp_path: Path, shots: Path, changes: dict[str, Any]) -> None:
    path = report_page.write(digits_record(LONG, **changes), tmp_path / "odd.html")
    with opened(path, PHONE) as view:
        view.screenshot(path=shots / f"odd_{'failed' if 'error' in changes else 'bare'}.png", full_page=True)
