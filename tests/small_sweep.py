"""A sweep's session as its parts see it, without Ray and without training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from small import DIGITS_RUN

from pcl_ray import plan
from pcl_ray.runs.folder import RunFolder, SweepFolder
from pcl_ray.sweep import request as requests
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.space import objective
from pcl_ray.sweep.trial_point import TrialPoint, run_name_of
from pcl_ray.sweep.trials.context import SweepContext

SPACE = """
base: digits
space:
  loss.temperature: {type: choice, values: [0.1, 0.3]}
  e_step.alpha: {type: choice, values: [1, 10]}
"""


class FakeTracker:
    """Remembers what is logged."""

    run_id = None

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.files: list[str] = []
        self.tags: dict[str, str] = {}

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((metrics, step))

    def log_file(self, path: Path, name: str) -> None:
        assert path.is_file()
        self.files.append(name)

    def tag(self, tags: dict[str, str]) -> None:
        self.tags |= tags


@contextmanager
def open_session(
    tmp_path: Path, *words: str, name: str = "small", text: str = SPACE
) -> Iterator[SweepSession]:
    """words: knobs of the recipe or of the sweep."""
    (tmp_path / "small.yaml").write_text(text)
    sweep = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("sweep.")}
    recipe = [word for word in words if not word.startswith("sweep.")]
    request = requests.check(str(tmp_path / "small.yaml"), [*DIGITS_RUN, *recipe], sweep)
    context = SweepContext(
        sweep=name,
        base=request.base,
        settings=request.settings,
        objective=objective.of("eval/knn_top1"),
        num_images=300,
        num_holdout=60,
        fingerprint="f",
        home="unused",
        parent_run_id=None,
    )
    tracker: Any = FakeTracker()
    with SweepFolder.create(name, request.base) as folder:
        yield SweepSession(folder, request, context, tracker, Console(file=io.StringIO(), width=160))


def printed(session: SweepSession) -> str:
    file: Any = session.console.file
    return file.getvalue()


def write_trial(session: SweepSession, values: dict[str, Any], seed: int = 0, **state: Any) -> str:
    """A trial's run as it lies on disk; its name."""
    point = TrialPoint(values, seed)
    name = run_name_of(session.context.sweep, point)
    config = point.config(session.context.base)
    with RunFolder.create(name, config) as folder:
        title = f"{plan.make(config, 300, 60).num_clusters}-{values}-s{seed}"
        folder.write_state(
            sweep=session.context.sweep, point=values, seed=seed, title=title, recorded=True, **state
        )
    return name
