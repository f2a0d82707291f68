"""The first page of the dashboard as somebody sees it who has never opened MLflow before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from browser.browsing import overflow, page
from playwright.sync_api import expect

from pcl_ray.tracking import dashboard as own_pages

PATIENCE_MS = 120_000  # a loaded machine draws its first chart after more than half a minute
expect.set_options(timeout=PATIENCE_MS)


@pytest.mark.parametrize("size", [(1440, 900), (1000, 800)], ids=["1440", "1000"])
def test_from_the_overview_into_mlflow_and_on(dashboard: Any, size: tuple[int, int], tmp_path: Path) -> None:
    assert own_pages.installed(), "MLflow does not find the app: `make install`"
    shots = Path(os.environ.get("PCL_RAY_TEST_SCREENSHOTS") or tmp_path)
    with page(*size) as view:
        view.set_default_timeout(PATIENCE_MS)
        view.goto(f"{dashboard.uri}{own_pages.PATH}")
        links = view.locator("[data-run][href]")
        expect(links).to_have_count(3)  # two runs and the sweep: its trials are not listed
        view.screenshot(path=shots / f"overview_{size[0]}.png")
        assert overflow(view) == 0
        assert view.problems == []
        assert all(address.startswith((dashboard.uri, "data:")) for address in view.asked)
        # three decimals, of the backbone and of pixels
        row = view.locator("table.overview tr", has_text="digits-0")
        expect(row.locator("td.number").first).to_have_text(accuracy_of_the_first(dashboard))
        images = view.locator("table.overview img")
        assert all(images.evaluate_all("images => images.map(image => image.naturalWidth > 0)"))
        row.get_by_text("MLflow").click()
        expect(view.get_by_role("heading", name="digits-0")).to_be_visible()
        assert_greets_well(view)
        view.screenshot(path=shots / f"overview_run_{size[0]}.png")
        view.goto(f"{dashboard.uri}/#/experiments/{dashboard.experiment_id}")  # an address of somebody else's
        expect(view.get_by_text("digits-1").first).to_be_visible()
        assert_greets_well(view)


def assert_greets_well(view: Any) -> None:
    """The menu is that of training, and no assistant covers the page."""
    expect(view.get_by_text("Model registry")).to_be_visible()
    assert view.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').count() == 0


def accuracy_of_the_first(dashboard: Any) -> str:
    """Three decimals of the first run's accuracy, from what it has left."""
    rows = (dashboard.home / "runs/digits-0/figures.csv").read_text().splitlines()
    column = rows[0].split(",").index("eval/knn_top1")
    value = [row.split(",")[column] for row in rows[1:] if row.split(",")[column]][-1]
    return f"{float(value):.3f}"
