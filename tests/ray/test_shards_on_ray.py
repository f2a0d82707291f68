"""Workers that read shards: the same run as over a folder, from one copy a node."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shard_files import CLASSES, order, write_folder, write_parquet
from small import DIGITS_RUN

SMALL = (
    *("resources.workers=2", *DIGITS_RUN, "data.limit=null", "data.channels=3", "train.epochs=2"),
    *("augment.mean=0.5,0.5,0.5", "augment.std=0.5,0.5,0.5", "train.batch_size=32", "loss.queue_size=64"),
)


@pytest.mark.slow
def test_workers_read_shards_as_they_read_files(pcl_ray: Callable[..., Any], tmp_path: Path) -> None:
    numbers = order(120)
    write_folder(tmp_path / "folder", numbers)
    write_parquet(tmp_path / "shards/a.parquet", numbers[:50])
    write_parquet(tmp_path / "shards/b.parquet", numbers[50:])
    losses = []
    for source, path in (("folder", "folder"), ("parquet", "shards")):
        words = [f"data.source={source}", f"data.path={tmp_path}/{path}", "data.in_memory=false"]
        ended = pcl_ray("digits", *SMALL, *words, "data.loader_workers=1", "--name", source)
        assert ended.code == 0, ended.err
        losses.append({key: ended.result["metrics"][key] for key in ("train/loss", "eval/knn_top1")})
    assert losses[0] == losses[1]
    home = Path(os.environ["PCL_RAY_HOME"])
    assert json.loads((home / "runs/parquet/state.json").read_text())["class_names"] == list(CLASSES)
    assert len(list((home / "cache").glob("*.data"))) == 2
