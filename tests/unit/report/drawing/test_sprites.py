"""The sheet that all small pictures of a page are on."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pcl_ray.report.drawing import sprites
from pcl_ray.snapshot import Thumbnails


def test_the_sheet_holds_every_picture() -> None:
    rng = np.random.default_rng(0)
    thumbnails = Thumbnails(np.array([3, 5, 8, 11, 90]), rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    sheet = sprites.sheet_of(thumbnails, [5, 11, 90, 4])
    assert sheet is not None
    assert sheet.slots == {5: 0, 11: 1, 90: 2}
    pixels = decoded(sheet)
    for image, slot in sheet.slots.items():
        top, left = (slot // sheet.columns) * sheet.cell + 1, (slot % sheet.columns) * sheet.cell + 1
        assert (pixels[top : top + 8, left : left + 8] == thumbnails.picture(image)).all()
        # the border repeats the edge
        assert (pixels[top - 1, left : left + 8] == thumbnails.picture(image)[0]).all()
    assert sheet.slot(3) == -1
    assert "im none" in sheet.picture(3)
    assert sprites.sheet_of(None) is None
    assert sprites.sheet_of(thumbnails, [4]) is None


def decoded(sheet: sprites.Sheet) -> np.ndarray:

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2]))).convert("RGB"))
