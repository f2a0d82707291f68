"""Runs, as one starts them, by the command line and from Python. Heavy imports come after the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_ray.api.run import Run
from pcl_ray.config import as_words

if TYPE_CHECKING:
    from pcl_ray.runs.console import Display

# As on the command line, ["loss.temperature=0.1"], or by their names, {"loss.temperature": 0.1}.
Overrides = Sequence[str] | Mapping[str, Any]


def train(
    recipe: str | Path,
    overrides: Overrides = (),
    *,
    name: str | None = None,
    progress: bool = True,
    command: str = "",
    result_file: Path | None = None,
) -> Run:
    """Trains a new run to its end, and gives it back.

    recipe: the name of a shipped recipe, or a .yaml file. overrides: other values of its knobs. name: of the
    run; made up where it is left out. progress: whether it says how it goes. command: what was typed, for
    the record. result_file: gets how the run ended as JSON.

    Raises ConfigError or DataError before anything has started, with all mistakes at once; RunFailed where
    the run fails, Stopped on Ctrl-C: both leave its checkpoints, and `resume` goes on from them.
    """
    from pcl_ray.runs import driver, request

    result = driver.start(
        request.check(str(recipe), overrides),
        name=name,
        stem=Path(recipe).stem,
        command=command,
        display=_display(progress),
        result_file=result_file,
    )
    return Run(Path(result.run_dir))


def resume(
    name: str, overrides: Overrides = (), *, progress: bool = True, result_file: Path | None = None
) -> Run:
    """Goes on with a run from its last checkpoint; one that has finished is given back as it is.

    overrides: the knobs that may change then, such as {"train.epochs": 300}. Otherwise as `train`.
    """
    from pcl_ray.runs import driver

    result = driver.resume(name, as_words(overrides), display=_display(progress), result_file=result_file)
    return Run(Path(result.run_dir))


def fork(
    run: str,
    overrides: Overrides = (),
    *,
    name: str | None = None,
    epoch: int | None = None,
    progress: bool = True,
    command: str = "",
    result_file: Path | None = None,
) -> Run:
    """Trains a new run that begins with a checkpoint of another, which stays as it is.

    epoch: how many epochs that checkpoint has; None: the newest. Otherwise as `train`.
    """
    from pcl_ray.runs import fork as forks

    result = forks.fork(
        run,
        as_words(overrides),
        name=name,
        epoch=epoch,
        command=command,
        display=_display(progress),
        result_file=result_file,
    )
    return Run(Path(result.run_dir))


def open_run(name: str | Path) -> Run:
    """A run that was trained, or is being trained: by its name, or the path of its folder.

    Raises ConfigError where there is none.
    """
    from pcl_ray.runs import record_reader

    return Run(record_reader.folder_of(str(name)))


def _display(progress: bool) -> Display:
    from pcl_ray.runs.console import Display

    if progress:
        return Display()
    import io

    return Display(io.StringIO())
