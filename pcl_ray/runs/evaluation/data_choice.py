"""Which images an encoder is evaluated on: those of its run, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcl_ray import config as configs
from pcl_ray.config import RunConfig
from pcl_ray.data.sources import shard_parts
from pcl_ray.errors import ConfigError, DataError

_ARRAYS = (".npy", ".npz")
# Knobs that say which images there are and how they are looked at; the others have no meaning here.
_SECTIONS = ("data", "augment", "evaluation", "seed", "train.precision")


def evaluation_config(own: RunConfig, data: str | None, overrides: Sequence[str]) -> RunConfig:
    """The configuration with the images that are wanted: DATA is a recipe, a folder, shards, an .npy or
    .npz file.

    own: of the run, or with the view that the weights know. The view stays, unless `augment` is overridden.
    Raises ConfigError, DataError.
    """
    parsed, problems = configs.parse(overrides)
    if problems:
        raise ConfigError(problems)
    for name in parsed:
        if name not in _SECTIONS and name.partition(".")[0] not in _SECTIONS:
            raise ConfigError(
                f"{name} means nothing to an evaluation; allowed are the knobs of {', '.join(_SECTIONS)}"
            )
    if data is None:
        return configs.with_overrides(own, parsed)
    return configs.with_overrides(own, _knobs_of(data) | parsed)


def _knobs_of(data: str) -> dict[str, object]:
    """The knobs of section data that DATA stands for."""
    path = Path(data).expanduser()
    if data in configs.recipe_names() or path.suffix in (".yaml", ".yml"):
        section = configs.load(data).data.model_dump()
        section.pop("channels")
        return {f"data.{name}": value for name, value in section.items()}
    defaults = {f"data.{name}": value for name, value in configs.DataConfig().model_dump().items()}
    del defaults["data.channels"]
    if source := shard_parts.source_of(data):
        return defaults | {
            "data.source": source,
            "data.path": data if "://" in data else str(path.absolute()),
        }
    if path.is_dir():
        source = "idx" if any(path.glob("train-images*idx*")) else "folder"
        return defaults | {"data.source": source, "data.path": str(path.absolute())}
    if path.suffix in _ARRAYS and path.is_file():
        return defaults | {"data.source": "arrays", "data.path": str(path.absolute())}
    recipes = ", ".join(configs.recipe_names())
    raise DataError(
        f"{data!r} is no data set: a folder with images, shards (.parquet, .tar), an .npy or .npz file, or"
        " the data of a recipe"
        f" ({recipes}) is needed"
    )
