"""The ready-made views as somebody sees them who opens a link for the first time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Dashboard
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from pcl_ray import tracking_views
from pcl_ray.tracking_views import link

PATIENCE_MS = 30_000
TALL = {"width": 1600, "height": 7000}  # charts are drawn when they come into sight: here all of them do


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """In a context of its own, which has never seen the dashboard; a screenshot of how it ended."""
    context = browser.new_context(viewport=TALL)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    found = context.new_page()
    yield found
    folder = Path(os.environ.get("PCL_RAY_TEST_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    found.screenshot(path=folder / f"{request.node.name}.png")
    context.close()


expect.set_options(timeout=PATIENCE_MS)


def opened(page: Page, address: str) -> None:
    """Opens it and closes the assistant, which takes a quarter of the page on the first visit of a local server."""
    page.goto(address)
    page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').click()


def cards(page: Page) -> Locator:
    return page.get_by_test_id("experiment-view-compare-runs-card")


def headers(page: Page) -> list[str]:
    page.locator(".ag-header-cell[col-id^='metrics.']").first.wait_for()
    return page.locator(".ag-header-cell").evaluate_all("cells => cells.map(cell => cell.getAttribute('col-id'))")


def titles(page: Page) -> list[str]:
    return [title.splitlines()[0] for title in cards(page).all_inner_texts()]


def sections(page: Page) -> list[str]:
    cards(page).first.wait_for()
    texts = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
    return [" ".join(text.replace("Add chart", "").split()) for text in texts]


def pictures(page: Page, title: str) -> Locator:
    """The images of a card."""
    return cards(page).filter(has_text=title).locator("img")


def wait_until_seen(images: Locator, number: int) -> list[str]:
    """Waits for that many pictures; their addresses. A picture that is no picture has no width."""
    expect(images).to_have_count(number)
    for index in range(number):
        images.nth(index).evaluate("image => image.decode()")
    assert all(images.evaluate_all("images => images.map(image => image.naturalWidth > 0)"))
    return images.evaluate_all("images => images.map(image => image.src)")


def drawn(page: Page, title: str) -> int:
    """Lines, points or bars of the chart with this title, once there are any."""
    marks = cards(page).filter(has_text=title).first.locator(".trace")
    marks.first.wait_for()
    return marks.count()


def test_the_table_of_runs(page: Page, dashboard: Dashboard) -> None:
    page.set_viewport_size({"width": 1800, "height": 900})
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=tracking_views.RUNS))
    metrics = [f"metrics.`{name}`" for name in ("eval/knn_top1", "cluster/0/ami", "eval/rankme", "train/loss", "perf/device_minutes")]
    params = [f"params.`{name}`" for name in ("loss.temperature", "e_step.alpha", "e_step.num_clusters")]
    shown = headers(page)
    assert [name for name in shown if name.startswith(("metrics.", "params."))] == [*metrics, *params]
    names = page.locator(".ag-pinned-left-cols-container [col-id='attributes.`Run Name`']")
    expect(names).to_have_text(["digits-0", "digits-1", "digits-2", dashboard.sweep.name])  # the best first, no trials
    expect(page.get_by_test_id("saved-views-trigger")).to_contain_text("PCL runs")


def test_the_charts_of_runs(page: Page, dashboard: Dashboard) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=tracking_views.RUNS, charts=True))
    ours = ["Losses (3)", "Accuracy of both heads (3)", "Evaluation (3)", "Concentration φ of the prototypes (2)", "Cluster health (6)", "Training health (3)"]
    assert sections(page)[:8] == [*ours, "Throughput (3)", "Pictures through training (6)"]
    of_each = ["phi_p10", "largest_share", "empty", "nmi_previous", "drift", "collisions"]
    together = [" vs ".join(f"cluster/{m}/{name}" for m in range(2)) for name in of_each[1:]]
    parts = [" vs ".join(f"cluster/{m}/{part}" for part in ("phi_p10", "phi_p50", "phi_p90")) for m in range(2)]
    alone = ["train/loss", "train/accuracy_prototype_1", "eval/knn_top1", "train/lr", "cluster/rank", "perf/images_per_second"]
    assert {*parts, *together, *alone} <= set(titles(page))
    assert drawn(page, "cluster/0/phi_p10") == 9, "three runs, three percentiles"
    assert drawn(page, "train/gradient_norm") == 3
    assert not any("No charts" in text for text in page.get_by_test_id("experiment-view-compare-runs-chart-area").all_inner_texts())


def test_pictures_change_with_the_slider(page: Page, dashboard: Dashboard) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=tracking_views.RUNS, charts=True))
    before = wait_until_seen(pictures(page, "prototypes/0"), 3)
    assert all("step%2B0%2B" in address for address in before)
    thumb = cards(page).filter(has_text="prototypes/0").get_by_role("slider")
    assert (thumb.get_attribute("aria-valuemin"), thumb.get_attribute("aria-valuemax")) == ("0", "320")
    thumb.press("ArrowRight")
    expect(thumb).to_have_attribute("aria-valuenow", "80")
    expect(pictures(page, "prototypes/0").first).to_have_attribute("src", re.compile("step%2B80%2B"))
    after = wait_until_seen(pictures(page, "prototypes/0"), 3)
    assert not set(before) & set(after)
    assert all("step%2B0%2B" in address for address in wait_until_seen(pictures(page, "clusters/phi"), 3)), "each card has a slider of its own"


def test_the_table_of_a_sweep(page: Page, dashboard: Dashboard) -> None:
    page.set_viewport_size({"width": 1800, "height": 900})
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=tracking_views.sweep_key(dashboard.sweep.name)))
    shown = headers(page)
    assert shown.index(f"metrics.`{dashboard.sweep.objective}`") < shown.index("params.`loss.temperature`") < shown.index("tags.`trial.status`")
    assert {f"params.`{name}`" for name in dashboard.sweep.knobs} <= set(shown)
    values = page.locator(f".ag-cell[col-id='metrics.`{dashboard.sweep.objective}`']")
    expect(values).to_have_count(6)
    found = [float(text.rstrip("…")) for text in values.all_inner_texts()]
    assert found == sorted(found, reverse=True)


def test_the_charts_of_a_sweep(page: Page, dashboard: Dashboard) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=tracking_views.sweep_key(dashboard.sweep.name), charts=True))
    compared = ["Knobs and objective, a line for each trial (1)", "Knobs and objective, a point for each trial (6)", "Differences (1)"]
    assert sections(page)[:5] == [*compared, "Pictures of the trials (6)", "Losses (3)"]
    points = ["loss.temperature", "e_step.alpha", "plan.num_clusters_0", "eval/rankme"]
    assert {f"{name} vs. eval/knn_top1" for name in points} <= set(titles(page))
    assert {"Parallel Coordinates", "eval/knn_top1", "loss.temperature vs. e_step.alpha vs. eval/knn_top1", "prototypes/0"} <= set(titles(page))
    assert drawn(page, "plan.num_clusters_0 vs. eval/knn_top1") == 1, "the points are one trace"
    axes = cards(page).filter(has_text="Parallel Coordinates").locator(".parcoords .axis-title")
    expect(axes).to_have_text(["loss.temperature", "e_step.alpha", "plan.num_clusters_0", "eval/rankme", "eval/knn_top1"])
    for key in ("prototypes/0", "prototypes/1", "map"):  # at once, although trials have none at step 0
        assert all("step%2B320%2B" in address for address in wait_until_seen(pictures(page, key), 6))


def test_every_view_is_in_the_menu(page: Page, dashboard: Dashboard) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id))
    page.get_by_test_id("saved-views-trigger").click()
    for name in ("PCL runs", "PCL runs and trials", f"Sweep {dashboard.sweep.name}"):
        expect(page.get_by_role("menuitem", name=name, exact=True).or_(page.get_by_text(name, exact=True)).first).to_be_visible()
