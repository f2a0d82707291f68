"""Pickles of Ray Tune that a sweep of an earlier version has left."""

from __future__ import annotations

import pickle
import sys

import pytest

from pcl_ray.sweep import earlier_pickles
from pcl_ray.sweep.progress import ProgressCallback
from pcl_ray.sweep.space import search, spaces

EARLIER = {
    "follow": ("Follow",),
    "search": ("Listed", "_Snapped", "_Repeated", "_Population", "_Within", "_ValueOf"),
    "spaces": ("Space", "snap"),
}
NAMES = [(f"pcl_ray.service.sweep.{module}", name) for module, names in EARLIER.items() for name in names]


def by_name(module: str, name: str) -> bytes:
    """A pickle of a class or a function, which is no more than where it is."""
    return f"c{module}\n{name}\n.".encode()


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_what_an_earlier_version_pickled_is_what_it_is_called_now(module: str, name: str) -> None:
    with earlier_pickles.readable():
        current = pickle.loads(by_name(module, name))
    assert current.__module__.startswith(("pcl_ray.sweep.progress", "pcl_ray.sweep.space."))
    assert pickle.loads(pickle.dumps(current)) is current  # and is pickled under its name of today


def test_renamed_and_moved_ones_are_the_same_objects() -> None:
    with earlier_pickles.readable():
        assert pickle.loads(by_name("pcl_ray.service.sweep.follow", "Follow")) is ProgressCallback
        assert pickle.loads(by_name("pcl_ray.service.sweep.search", "Listed")) is search.Listed
        assert pickle.loads(by_name("pcl_ray.service.sweep.spaces", "Space")) is spaces.Space


def test_the_earlier_names_are_there_only_while_a_sweep_is_restored() -> None:
    with earlier_pickles.readable():
        pass
    assert not any(name.startswith("pcl_ray.service") for name in sys.modules)
    for module, name in NAMES:
        with pytest.raises(ModuleNotFoundError):
            pickle.loads(by_name(module, name))
