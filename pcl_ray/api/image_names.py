"""Pictures that are handed over by the name of a folder, a list or a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcl_ray.errors import ConfigError, DataError


def with_names(images: Any, *, missing_ok: bool = False) -> tuple[Any, tuple[str, ...]]:
    """The pictures as an embedder takes them, and their names where they came by a file, a folder, a list of
    paths or a table; else as they are, and ().

    missing_ok: images of a list or table that are not there stay as names, which nobody can read. Raises
    ConfigError for what does not exist, DataError for a folder without images and for such images.
    """
    from pcl_ray.data.folders import SUFFIXES
    from pcl_ray.embedding import inputs

    if not isinstance(images, str | Path):
        return images, ()
    if not str(images).strip():
        raise ConfigError("the name of the images is empty")
    if Path(images).suffix.lower() in SUFFIXES and not Path(images).is_dir():
        return images, (str(images),)
    names = tuple(inputs.names_of([str(images)]))
    reader = inputs.ImageReader()

    def picture(name: str) -> str | bytes:
        if Path(name).is_file():
            return name
        try:
            return reader.read(name)  # a row of a table has no file of its own
        except OSError as error:
            if missing_ok:
                return name
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None

    return [picture(name) for name in names], names
