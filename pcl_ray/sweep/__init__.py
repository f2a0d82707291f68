"""Sweeps: Ray Tune over the knobs of a run. `space` says what is searched, `trials` runs in the process of
each trial, `results` is what a sweep ends with. `run` starts one, for the command line and from Python alike:
there it is `pcl_ray.sweep(…)`, since the room has the name of the function and can be called itself.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pcl_ray.config import as_words
from pcl_ray.errors import ConfigError

if TYPE_CHECKING:
    from pcl_ray.sweep.results.conclusion import SweepResult

__all__ = ["driver", "dry_run", "request", "results", "run", "space", "trials", "tune_run"]


def run(
    space: str | Path | Mapping[str, Any] = "",
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    recipe: str | Path | None = None,
    name: str | None = None,
    resume: str | None = None,
    result_file: Path | None = None,
    **settings: Any,
) -> SweepResult:
    """Runs a sweep to its end, and gives back what it found: `.best`, `.best_recipe`, `.leaderboard`.

    space: the name of a shipped space, a .py or .yaml file, or the knobs and what they may be, as in such a
    file: {"loss.temperature": {"type": "choice", "values": [0.1, 0.2]}}, for which a recipe is needed.
    overrides: knobs that all trials have. recipe: instead of the space's own. resume: the name of a sweep to
    go on with, without a space. result_file: gets the result as JSON. settings: those of `pcl-ray sweep
    --describe` without their prefix: samples=12, search="random", scheduler="asha", seeds=2, budget_s=7200.

    Raises ConfigError or DataError before anything has started, with all mistakes at once; RunFailed after,
    Stopped on Ctrl-C: `resume` goes on from where it was.
    """
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before spaces, which import Ray
    from pcl_ray.sweep import driver, request, tune_run

    tune_run.quiet_tune()
    options = {f"sweep.{key}": value for key, value in settings.items() if value is not None}
    words = as_words(overrides)
    if resume:
        if space or recipe or name:
            raise ConfigError(f"sweep {resume!r} has its own space, recipe and name: give none of them")
        return driver.resume(resume, words, options, result_file=result_file)
    with tempfile.TemporaryDirectory() as scratch:
        file = _file_of(space, recipe, Path(scratch))
        checked = request.check(file, words, options, None if recipe is None else str(recipe))
        return driver.start(checked, name=name, result_file=result_file)


def _file_of(space: str | Path | Mapping[str, Any], recipe: str | Path | None, scratch: Path) -> str:
    """The space as `sweep.request` takes it: a name or a file."""
    if not isinstance(space, Mapping):
        return str(space)
    if recipe is None:
        raise ConfigError("a space that is given by its knobs has no recipe of its own: give one, too")
    import yaml

    file = scratch / "space.yaml"
    file.write_text(yaml.safe_dump({"base": str(recipe), "space": dict(space)}), encoding="utf-8")
    return str(file)


class _CallableRoom(ModuleType):
    """This room as a module that can be called."""

    def __call__(self, *arguments: Any, **settings: Any) -> SweepResult:
        """Runs a sweep to its end: see `run`."""
        return run(*arguments, **settings)


sys.modules[__name__].__class__ = _CallableRoom
