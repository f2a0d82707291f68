"""The warning about shared memory that is too small for what a run passes between its processes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from small_training import SmallTraining

from pcl_ray.on_ray import shared_memory

Usage = namedtuple("Usage", "total used free")


def test_what_a_run_needs_is_what_lies_in_the_store() -> None:
    small = SmallTraining.of("resources.workers=2")
    images = 300 + small.splits.num_holdout
    assert shared_memory.bytes_needed(small.plan, small.splits) == (
        images * 8 * 8 + small.plan.feature_bytes + 2 * 300 * 2 * 8
    )


@pytest.mark.parametrize(("free", "warns"), [(10**9, False), (50_000, True)])
def test_only_too_little_is_a_shortage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, warns: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free, 0, free))
    small = SmallTraining.of("resources.workers=2")
    sentence = shared_memory.shortage(small.plan, small.splits, tmp_path)
    assert bool(sentence) is warns
    assert not warns or f"{tmp_path} has 0.1 MB free" in sentence
    assert shared_memory.shortage(small.plan, small.splits, tmp_path / "nowhere") == ""
