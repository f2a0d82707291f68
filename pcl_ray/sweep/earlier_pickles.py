"""Reads Ray Tune's pickles of earlier versions' sweeps, which name our classes by modules of that time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pcl_ray.sweep import progress
from pcl_ray.sweep.space import search, spaces

# Earlier module → where its classes and functions are now, and those that have another name there.
_MOVED: dict[str, tuple[ModuleType, dict[str, str]]] = {
    "pcl_ray.service.sweep.follow": (progress, {"Follow": "ProgressCallback"}),
    "pcl_ray.service.sweep.search": (search, {}),
    "pcl_ray.service.sweep.spaces": (spaces, {}),
}


@contextmanager
def readable() -> Iterator[None]:
    """Inside of the block, earlier versions' modules can be imported; what is pickled has today's names."""
    aliases = {name: _alias(name, module, renamed) for name, (module, renamed) in _MOVED.items()}
    sys.modules.update(aliases)
    try:
        yield
    finally:
        for name in aliases:
            del sys.modules[name]


def _alias(name: str, module: ModuleType, renamed: dict[str, str]) -> ModuleType:
    alias = ModuleType(name)
    vars(alias).update({key: value for key, value in vars(module).items() if not key.startswith("__")})
    vars(alias).update({earlier: vars(module)[now] for earlier, now in renamed.items()})
    return alias
