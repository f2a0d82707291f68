"""Search spaces for tests, and what is wrong with them for the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcl_ray import config as configs
from pcl_ray.errors import Problem
from pcl_ray.on_ray import environment

environment.set_defaults()  # before Ray is imported

from pcl_ray.sweep.space import checks  # noqa: E402
from pcl_ray.sweep.space.spaces import Space  # noqa: E402

NUM_IMAGES, HOLDOUT = 1438, 359  # digits


def space_of(searched: dict[str, Any], **fixed: Any) -> Space:
    return Space(
        "test",
        "digits",
        searched,
        {name.replace("__", "."): value for name, value in fixed.items()},
        None,
        None,
        None,
    )


def problems_of(space: Space, *overrides: str, num_images: int = NUM_IMAGES) -> list[Problem]:
    return checks.problems(space, configs.load(space.base, list(overrides)), num_images, HOLDOUT)


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(("from ray import tune\n" if name.endswith(".py") else "") + text)
    return str(folder / name)
