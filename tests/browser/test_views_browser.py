"""The ready-made views as somebody sees them who opens a link for the first time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from pcl_ray.tracking import saved_views
from pcl_ray.tracking.saved_views import link

pytestmark = pytest.mark.slow
PATIENCE_MS = 120_000  # a loaded machine draws its first chart after more than half a minute


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """In a context of its own, which has never seen the dashboard; a screenshot of how it ended."""
    context = browser.new_context(viewport={"width": 1800, "height": 1600})
    context.set_default_timeout(PATIENCE_MS)
    found = context.new_page()
    yield found
    folder = Path(os.environ.get("PCL_RAY_TEST_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    found.screenshot(path=folder / f"{request.node.name}.png", timeout=PATIENCE_MS)
    context.close()


expect.set_options(timeout=PATIENCE_MS)


def opened(page: Page, address: str) -> None:
    """Opens it and closes the assistant, which on a first visit takes a quarter of a local server's page."""
    page.goto(address)
    page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').click()


def cards(page: Page) -> Locator:
    return page.get_by_test_id("experiment-view-compare-runs-card")


def headers(page: Page) -> list[str]:
    """The columns as seen, from left to right; metrics' come a moment after the runs are loaded."""
    page.locator(".ag-header-cell[col-id^='metrics.']").first.wait_for()
    page.wait_for_timeout(1000)
    places = "cell => [cell.getBoundingClientRect().left, cell.getAttribute('col-id')]"
    return [
        name
        for _, name in sorted(page.locator(".ag-header-cell").evaluate_all(f"cells => cells.map({places})"))
    ]


def sections(page: Page) -> list[str]:
    cards(page).first.wait_for()
    texts = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
    return [" ".join(text.replace("Add chart", "").split()) for text in texts]


def section(page: Page, name: str) -> None:
    """Goes to a section: what is not in sight has no cards."""
    page.get_by_test_id("experiment-view-compare-runs-section-header").filter(has_text=name).first.evaluate(
        "header => header.scrollIntoView()"
    )


def card(page: Page, title: str) -> Locator:
    """A chart in sight, by its title or the beginning of it."""
    return cards(page).filter(has_text=re.compile(f"^{re.escape(title)}")).first


def pictures(page: Page, title: str) -> Locator:
    return card(page, title).locator("img")


def wait_until_seen(images: Locator, number: int) -> list[str]:
    """Waits for that many pictures; their addresses. A picture that is no picture has no width."""
    expect(images).to_have_count(number)
    for index in range(number):
        images.nth(index).evaluate("image => image.decode()")
    assert all(images.evaluate_all("images => images.map(image => image.naturalWidth > 0)"))
    return images.evaluate_all("images => images.map(image => image.src)")


def lines(page: Page, *metrics: str) -> None:
    """Checks that a chart draws these metrics together, for every single run."""
    chart = card(page, " vs ".join(metrics))
    # a level line has no height, which counts as hidden
    expect(chart.locator(".scatterlayer .js-line").first).to_be_attached()
    for metric in metrics:
        for run in ("digits-0", "digits-1"):
            expect(chart).to_contain_text(f"{run} ({metric})")


def test_the_table_of_runs(page: Page, dashboard: Any) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=saved_views.RUNS))
    accuracies = ("eval/knn_top1", "eval/pixels/knn_top1", "eval/untrained/knn_top1")
    metrics = [f"metrics.`{name}`" for name in (*accuracies, "cluster/0/ami", "perf/device_minutes")]
    knobs = ("train.epochs", "e_step.num_clusters", "loss.temperature", "e_step.alpha", "encoder.backbone")
    params = [f"params.`{name}`" for name in knobs]
    shown = headers(page)
    assert [name for name in shown if name.startswith(("metrics.", "params."))] == [*params, *metrics]
    names = page.locator(".ag-pinned-left-cols-container [col-id='attributes.`Run Name`'] a")
    expect(names).to_have_count(3)  # no trials
    found = names.all_inner_texts()
    assert sorted(found[:2]) == ["digits-0", "digits-1"]  # the best first; the sweep has no such figure
    assert found[2] == dashboard.sweep.name
    expect(page.get_by_test_id("saved-views-trigger")).to_contain_text("PCL runs")


def test_the_charts_of_runs(page: Page, dashboard: Any) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=saved_views.RUNS, charts=True))
    ours = [
        "Losses (3)",
        "Accuracy of both heads (3)",
        "Evaluation (3)",
        "Few labels and clusters, at the end (5)",
        "Concentration φ of the prototypes (2)",
        "Cluster health (6)",
        "Training health (3)",
    ]
    assert sections(page)[:9] == [*ours, "Throughput (3)", "Pictures through training (6)"]
    lines(page, "train/loss_prototype")
    section(page, "Accuracy of both heads")
    lines(page, "train/accuracy_prototype_1")
    section(page, "Evaluation")
    lines(page, "eval/knn_top1", "eval/pixels/knn_top1", "eval/untrained/knn_top1", "eval/head/knn_top1")
    lines(page, "cluster/0/ami", "cluster/1/ami")
    section(page, "Few labels")
    at_the_end = (
        "linear_top1",
        "few_1/linear_top1",
        "few_5/linear_top1",
        "clusters/ami",
        "clusters/accuracy",
    )
    for name in at_the_end:
        expect(card(page, f"eval/{name}").locator(".barlayer .point")).to_have_count(2)
    section(page, "Concentration")
    lines(page, "cluster/0/phi_p10", "cluster/0/phi_p50", "cluster/0/phi_p90")
    section(page, "Cluster health")
    for name in ("largest_share", "empty", "nmi_previous", "drift", "collisions"):
        lines(page, f"cluster/0/{name}", f"cluster/1/{name}")
    section(page, "Training health")
    for name in ("train/gradient_norm", "train/feature_std", "train/lr"):
        lines(page, name)
    section(page, "Throughput")
    for name in ("perf/images_per_second", "perf/data_share"):
        lines(page, name)
    lines(page, "perf/m_step_seconds", "perf/e_step_seconds")


def test_pictures_change_with_the_slider(page: Page, dashboard: Any) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id, view=saved_views.RUNS, charts=True))
    section(page, "Pictures")
    before = wait_until_seen(pictures(page, "prototypes/0"), 2)
    assert all("step%2B0%2B" in address for address in before)
    thumb = card(page, "prototypes/0").get_by_role("slider")
    assert (thumb.get_attribute("aria-valuemin"), thumb.get_attribute("aria-valuemax")) == ("0", "15")
    thumb.press("ArrowRight")
    expect(thumb).to_have_attribute("aria-valuenow", "3")
    expect(pictures(page, "prototypes/0").first).to_have_attribute("src", re.compile("step%2B3%2B"))
    after = wait_until_seen(pictures(page, "prototypes/0"), 2)
    assert not set(before) & set(after)
    assert all("step%2B0%2B" in address for address in wait_until_seen(pictures(page, "clusters/phi"), 2)), (
        "each card has a slider of its own"
    )


def test_the_table_of_a_sweep(page: Page, dashboard: Any) -> None:
    opened(
        page, link(dashboard.uri, dashboard.experiment_id, view=saved_views.sweep_key(dashboard.sweep.name))
    )
    shown = headers(page)
    assert (
        shown.index(f"metrics.`{dashboard.sweep.objective}`")
        < shown.index("params.`loss.temperature`")
        < shown.index("tags.`trial.status`")
    )
    assert {f"params.`{name}`" for name in dashboard.sweep.knobs} <= set(shown)
    values = page.locator(f".ag-cell[col-id='metrics.`{dashboard.sweep.objective}`']")
    expect(values).to_have_count(4)
    found = [float(text.rstrip("…")) for text in values.all_inner_texts()]
    assert found == sorted(found, reverse=True)


def test_the_charts_of_a_sweep(page: Page, dashboard: Any) -> None:
    opened(
        page,
        link(
            dashboard.uri,
            dashboard.experiment_id,
            view=saved_views.sweep_key(dashboard.sweep.name),
            charts=True,
        ),
    )
    compared = [
        "Knobs and objective, a line for each trial (1)",
        "Knobs and objective, a point for each trial (5)",
        "Differences (1)",
    ]
    assert sections(page)[:5] == [*compared, "Pictures of the trials (2)", "Losses (3)"]
    for axis in ("loss.temperature", "e_step.alpha", "eval/rankme", "eval/knn_top1"):
        expect(card(page, "Parallel Coordinates")).to_contain_text(axis)
    expect(card(page, "eval/knn_top1").locator(".barlayer .point")).to_have_count(4)
    for axis in ("loss.temperature", "e_step.alpha", "eval/rankme"):
        expect(card(page, f"{axis} vs. eval/knn_top1").locator(".scatterlayer .point")).to_have_count(4)
    expect(
        card(page, "loss.temperature vs. e_step.alpha vs. eval/knn_top1").locator(".contourlayer path").first
    ).to_be_attached()
    section(page, "Pictures")
    for key in ("prototypes/0", "prototypes/1"):  # at once, although trials have none at step 0
        assert all("step%2B15%2B" in address for address in wait_until_seen(pictures(page, key), 4))


def test_the_report_of_a_real_run(page: Page, dashboard: Any) -> None:
    """The one that the run left: its explorer goes from coarse to fine."""
    page.goto((dashboard.home / "runs" / "digits-0" / "report.html").as_uri())
    page.locator("#explorer [data-level='0']").first.click()
    panel = page.locator("#explorer-panel")
    expect(panel).to_be_visible()
    finer = panel.locator("[data-level='1']")
    expect(finer.first).to_be_visible()
    prototype = finer.first.get_attribute("data-prototype")
    finer.first.click()
    expect(panel).to_contain_text(f"Prototype {prototype}")
    expect(page.locator(".crumb").first).to_be_visible()


def test_every_view_is_in_the_menu(page: Page, dashboard: Any) -> None:
    opened(page, link(dashboard.uri, dashboard.experiment_id))
    page.get_by_test_id("saved-views-trigger").click()
    for name in ("PCL runs", "PCL runs and trials", f"Sweep {dashboard.sweep.name}"):
        expect(
            page.get_by_role("menuitem", name=name, exact=True).or_(page.get_by_text(name, exact=True)).first
        ).to_be_visible()
