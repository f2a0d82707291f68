"""Pages in a real browser, for tests: `with page(1400, 900) as view: view.goto(...)`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def chromium() -> str:
    """Where the browser is. Skips the test without one, but fails it where CI is set: there it has to be."""
    found = (
        os.environ.get("PCL_RAY_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    if found:
        return found
    message = "no Chromium: install one, or set PCL_RAY_TEST_CHROMIUM"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def page(width: int, height: int, **options: Any) -> Iterator[Any]:
    """A Playwright page of that size. `options` are those of a browser context, e.g. color_scheme="dark".

    `view.problems` lists errors of the console and of scripts, `view.asked` the addresses that were asked
    for.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            view: Any = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
            view.problems, view.asked = [], []
            view.on(
                "console",
                lambda message: (
                    view.problems.append(message.text) if message.type in ("error", "warning") else None
                ),
            )
            view.on("pageerror", lambda error: view.problems.append(str(error)))
            view.on("request", lambda request: view.asked.append(request.url))
            yield view
        finally:
            browser.close()


def overflow(view: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
