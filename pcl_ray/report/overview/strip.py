"""A small picture of what a run has found: the images nearest to its tightest prototypes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pcl_ray.snapshot import Snapshot, Thumbnails

_ROWS, _COLUMNS, _SIDE, _GAP = 3, 6, 22, 1


def strip_of(snapshot: Snapshot, thumbnails: Thumbnails) -> bytes | None:
    """The picture as PNG, of the coarsest clustering; None where there is none."""
    if not snapshot.clusterings:
        return None
    clustering = min(snapshot.clusterings, key=lambda each: each.num_clusters)
    tightest = np.argsort(clustering.concentration[clustering.selected], kind="stable")[:_ROWS]
    height, width = (count * (_SIDE + _GAP) - _GAP for count in (_ROWS, _COLUMNS))
    sheet = Image.new("RGB", (width, height), "white")
    for y, row in enumerate(tightest):
        for x, image in enumerate(clustering.nearest[row][:_COLUMNS]):
            pixels = thumbnails.picture(int(image)) if image >= 0 else None
            if pixels is not None:
                picture = Image.fromarray(pixels).resize((_SIDE, _SIDE))
                sheet.paste(picture, (x * (_SIDE + _GAP), y * (_SIDE + _GAP)))
    written = BytesIO()
    sheet.save(written, "PNG")
    return written.getvalue()
