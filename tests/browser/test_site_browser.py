"""The pages as a site, built as `make docs` does: whole, searched and read without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser.browsing import overflow, page
from documented import DOCUMENTS, ROOT

import pcl_ray
from pcl_ray.config import figures, knobs

PATIENCE_MS = 60_000
LIMIT_S = 300  # a guard against hanging, not a measurement


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    nowhere = "http://127.0.0.1:9"  # whatever would be fetched ends here
    variables = {"http_proxy": nowhere, "https_proxy": nowhere, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [*command, "--site-dir", str(out)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there_and_those_made_of_the_code_are_whole(site: Path) -> None:
    for document in DOCUMENTS:
        name = document.relative_to(ROOT).with_suffix(".html").as_posix().replace("README", "index")
        assert (site / name).is_file(), name
    text = (site / "docs/knobs.html").read_text(encoding="utf-8")
    assert [name for name in knobs.names() if f"<code>{name}</code>" not in text] == []
    text = (site / "docs/figures.html").read_text(encoding="utf-8")
    assert [each.name for each in figures.CATALOGUE if f"<code>{each.name}</code>" not in text] == []
    text = (site / "docs/reference.html").read_text(encoding="utf-8")
    offered = [name for name in pcl_ray.__all__ if not name.startswith("_")]
    assert [name for name in offered if not re.search(rf"\b{name}\b", text)] == []
    assert "trains a new run to its end" in text.lower() or "Raises ConfigError" in text  # the docstrings


@pytest.mark.slow
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    for name in ("docs", "docker", "benchmarks", "examples"):
        ignored = shutil.ignore_patterns("*.jsonl", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for path in (*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "mkdocs.yml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "pcl_ray").symlink_to(ROOT / "pcl_ray")
    with (tmp_path / "docs/doctor.md").open("a") as page_of_doctor:
        page_of_doctor.write("\n[a page](nowhere.md)\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["wide", "phone"])
def test_it_is_searched_from_the_disk(site: Path, size: tuple[int, int]) -> None:
    with page(*size) as view:
        view.set_default_timeout(PATIENCE_MS)
        view.goto((site / "index.html").as_uri())
        assert overflow(view) == 0
        if size[0] < 1000:
            view.locator('label[for="__search"]').first.click()
        view.locator("input.md-search__input").click()
        view.locator("input.md-search__input").press_sequentially("queue negatives")
        result = view.locator(".md-search-result__link").first
        result.wait_for()
        result.click()
        view.wait_for_url(lambda address: "index.html" not in address)
        view.goto((site / "docs/tutorial.html").as_uri())
        images = view.locator("article img")
        assert images.count() >= 4
        assert all(images.evaluate_all("images => images.map(image => image.naturalWidth > 0)"))
        folder = Path(os.environ.get("PCL_RAY_TEST_SCREENSHOTS") or site)
        view.screenshot(path=folder / f"site_{size[0]}.png")
        elsewhere = [
            address for address in view.asked if not address.startswith(("file:", "data:", "about:"))
        ]
        assert elsewhere == []
        assert view.problems == []
