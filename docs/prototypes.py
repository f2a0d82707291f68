"""Draws the prototypes of a run, each row the images nearest to one of them.

    python docs/prototypes.py RUN_DIR OUT.png

The rows are the tightest clusters of the first clustering, by their concentration φ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pcl_ray import config
from pcl_ray.checkpoints import epoch_files, run_state
from pcl_ray.data import datasets
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.e_step import extract_features
from pcl_ray.model.weights import load_encoder

ROWS, COLUMNS, SIDE, GAP = 10, 16, 40, 4


def main(run_dir: Path, out: Path) -> None:
    """Writes the sheet of a run's newest checkpoint."""
    settings = config.load(run_dir / "config.yaml")
    images = datasets.load(settings.data, cache_dir=run_dir).train
    newest = epoch_files.latest(run_dir / "checkpoints")
    assert newest is not None, f"no checkpoint in {run_dir}"
    clusters = run_state.load(newest).clusters
    assert clusters is not None, "the run never clustered"
    clustering = clusters.clusterings[0]
    encoder = load_encoder(newest, encoder="momentum")
    shard = extract_features(encoder, EvaluationLoader(images, settings), torch.device("cpu"))
    similarity = torch.from_numpy(shard.features) @ clustering.prototypes.T
    full = (clustering.sizes >= COLUMNS).nonzero().flatten()
    rows = full[clustering.concentration[full].argsort()[:ROWS]]
    sheet = np.full((len(rows) * (SIDE + GAP) + GAP, COLUMNS * (SIDE + GAP) + GAP, 3), 255, np.uint8)
    for y, prototype in enumerate(rows.tolist()):
        members = (clustering.assignments == prototype).nonzero().flatten()
        nearest = members[similarity[members, prototype].argsort(descending=True)[:COLUMNS]]
        for x, index in enumerate(nearest.tolist()):
            pixels = images.read(index)
            grey_or_colour = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
            picture = Image.fromarray(grey_or_colour).convert("RGB").resize((SIDE, SIDE))
            top, left = GAP + y * (SIDE + GAP), GAP + x * (SIDE + GAP)
            sheet[top : top + SIDE, left : left + SIDE] = np.array(picture)
    Image.fromarray(sheet).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
