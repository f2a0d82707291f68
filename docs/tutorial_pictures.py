"""The pictures of docs/tutorial.md, from a run that was trained as the tutorial says.

    pcl-ray train digits train.epochs=20 e_step.warmup_epochs=4 --name first
    python docs/tutorial_pictures.py ~/.pcl_ray/runs/first

The run's own sheets of prototypes at three times, below each other, and its report as a browser shows it. It
needs Chromium (`PCL_RAY_TEST_CHROMIUM`, or on the path).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).parent / "tutorial"
COLOURS = 64  # of a palette: small files, and the report has few colours
PARTS = {"report": "#summary", "findings": "#findings", "map": "#feature-map-section"}
HIDDEN = ".tiles > :nth-child(n+7) { display: none }"  # the machine's speed


def main(run_dir: Path) -> None:
    """Writes the pictures beside the tutorial."""
    OUT.mkdir(exist_ok=True)
    _save(_prototypes(run_dir), "prototypes")
    with sync_playwright() as playwright:
        program = os.environ.get("PCL_RAY_TEST_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1000, "height": 700})
        view.goto((run_dir / "report.html").absolute().as_uri())
        view.add_style_tag(content=HIDDEN)
        for name, part in PARTS.items():
            _shoot(view, part, name)
        view.locator('#explorer-cards [data-level="0"]').first.click()
        _shoot(view, "#prototypes", "explorer")
        browser.close()


def _prototypes(run_dir: Path) -> Image.Image:
    """The sheets of the first clustering at three times, below each other. They lie in the embedded MLflow
    store, where the dashboard has them from.
    """
    run_id = json.loads((run_dir / "state.json").read_text())["mlflow_run_id"]
    folder = run_dir.parents[1] / "mlflow" / "artifacts" / run_id / "artifacts" / "images"
    sheets = sorted(folder.glob("prototypes~0+step+*.png"), key=lambda path: int(path.name.split("+")[2]))
    pictures = [Image.open(path).convert("RGB") for path in (sheets[0], sheets[1], sheets[-1])]
    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _shoot(view: Any, part: str, name: str) -> None:
    path = OUT / f"{name}.png"
    view.locator(part).screenshot(path=path)
    with Image.open(path) as picture:
        _save(picture.convert("RGB"), name)


def _save(picture: Image.Image, name: str) -> None:
    limited = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    limited.save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
