"""The driver of a sweep.

request → data, their held-out part split in two → folder (new or resumed) → MLflow parent run → Ray: data and
warm-ups once, then Tune
   Tune → TrialProcess × concurrency → runs/SWEEP.*  ─ state.json ─→ records
      records → leaderboard, figures, best recipe, one figure on the test split
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, DataError, RunFailed, Stopped
from pcl_ray.report.sweep.leaderboard import is_number
from pcl_ray.runs import preparation
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import SweepFolder
from pcl_ray.support import redaction
from pcl_ray.support.paths import home
from pcl_ray.sweep import pickle_safety, results
from pcl_ray.sweep import request as requests
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.results import SweepResult
from pcl_ray.sweep.space import domains, spaces
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.trial import Setting

_PARENT_WAIT_S = 20.0  # for the server to give the parent run its number
_QUIET = {
    # one file of results for each trial and format: ours are in the runs' folders
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial has no score before its first evaluation
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Ended:
    """Why Tune came back before every trial had ended: "" if it did not."""

    reason: str = ""
    signal_number: int = 0


def start(asked: SweepRequest, *, name: str | None = None, result_file: Path | None = None) -> SweepResult:
    """Runs a new sweep to its end. Raises ConfigError or DataError before anything has started, RunFailed
    after, Stopped on a signal.
    """
    preparation.prepare_process()
    if name:
        SweepFolder.check_free(name)
    chosen = name or SweepFolder.free_name(asked.space.name[:40], datetime.now().strftime("%m%d-%H%M%S"))
    if len(chosen) > 60:
        raise ConfigError(f"sweep name {chosen!r} is too long: at most 60 characters, its trials add to it")
    if left := sorted((home() / "runs").glob(f"{chosen}.*")):
        raise ConfigError(
            f"{len(left)} runs of an earlier sweep {chosen!r} are under {left[0].parent}; remove them, or"
            " choose another --name"
        )
    data = _load(asked)
    _objective(asked, data)
    for note in asked.notes:
        print(f"note        {note}")
    with SweepFolder.create(chosen, asked.base) as folder:
        _keep(folder, asked)
        return _sweep(folder, asked, data, result_file, resumed=False)


def resume(
    name: str, words: list[str], options: Mapping[str, Any], *, result_file: Path | None = None
) -> SweepResult:
    """Goes on with a sweep: ended trials are kept, the others go on from their checkpoints. Raises as `start`
    does.
    """
    preparation.prepare_process()
    with SweepFolder.open(name) as folder:
        asked = _secret_into_environment(stored(folder, words, options))
        data = _load(asked)
        known = folder.read_state().get("fingerprint")
        if known and known != data.whole.train.fingerprint:
            raise DataError(
                f"the images of sweep {name!r} have changed since it began (others, or in another order);"
                " start a new sweep"
            )
        return _sweep(folder, asked, data, result_file, resumed=True)


def stored(folder: SweepFolder, words: list[str], options: Mapping[str, Any]) -> SweepRequest:
    """The request of an earlier `start`. Only what does not change the trials may be another one now: budget,
    concurrency, limits of failures.
    """
    pickle_safety.check(folder.path)
    kept = _kept(folder)
    given = {f"sweep.{key}": value for key, value in kept["settings"].items() if value is not None}
    changed = {
        **dict(part.split("=", 1) for part in words if "=" in part),
        **{key: value for key, value in options.items() if value is not None},
    }
    allowed = ("sweep.budget_s", "sweep.concurrency", "sweep.failures", "sweep.process_failures")
    if wrong := [key for key in changed if key not in allowed]:
        raise ConfigError(
            f"{wrong[0]} cannot change when a sweep goes on (what can: {', '.join(allowed)}); start a new"
            " sweep"
        )
    given.pop("sweep.budget_s", None)  # it was for that session
    source = str(folder.path / kept["space"])
    words_then = list(kept["words"])
    asked = requests.check(
        source, words_then, {**given, **changed}, str(folder.path / "recipe.yaml"), stored=True
    )
    return replace(asked, space=replace(asked.space, name=kept["name"], base=kept["recipe"]))


def _kept(folder: SweepFolder) -> dict[str, Any]:
    """sweep.yaml, as `_keep` wrote it."""
    try:
        kept = yaml.safe_load((folder.path / "sweep.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise ConfigError(
            f"sweep {folder.name!r} was killed before it had begun; start it anew under another --name"
        ) from None
    kinds = {"name": str, "space": str, "recipe": str, "words": list, "settings": dict}
    if (
        not isinstance(kept, dict)
        or any(not isinstance(kept.get(name), kind) for name, kind in kinds.items())
        or kept["space"] not in pickle_safety.SPACES
    ):
        raise ConfigError(
            f"{folder.path / 'sweep.yaml'} is not as pcl-ray wrote it; mend it, or start the sweep anew under"
            " another --name"
        )
    return kept


def _secret_into_environment(asked: SweepRequest) -> SweepRequest:
    """Of a sweep of an earlier version: a password in `tracking.uri` goes on by this process's environment,
    and into no trial's configuration.
    """
    secret = asked.base.tracking.uri
    if not secret or not tracking.stored_secret(asked.base):
        return asked
    print(f"warning: {redaction.STORED}", file=sys.stderr)
    os.environ["MLFLOW_TRACKING_URI"] = secret
    recipe, base = (
        configs.with_overrides(config, {"tracking.uri": None}) for config in (asked.recipe, asked.base)
    )
    return replace(asked, recipe=recipe, base=base)


def _keep(folder: SweepFolder, asked: SweepRequest) -> None:
    """What `stored` needs: space and recipe themselves, since their files may change or be elsewhere next
    time.
    """
    (folder.path / "recipe.yaml").write_text(configs.load(asked.space.base).to_yaml(), encoding="utf-8")
    file, text = spaces.source(asked.space_source)
    kept_as = f"space{Path(file).suffix}"
    (folder.path / kept_as).write_text(text, encoding="utf-8")
    content = {
        "name": asked.space.name,
        "space": kept_as,
        "recipe": asked.space.base,
        "words": list(asked.words),
        "settings": asked.settings.model_dump(mode="json"),
    }
    (folder.path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    pickle_safety.keep_from_others(folder.path)


@dataclass(frozen=True)
class _Data:
    splits: DataSplits  # as trials see them: labels of the test split hidden
    whole: DataSplits


def _load(asked: SweepRequest) -> _Data:
    display = Display()
    whole, _ = preparation.load_data(asked.base, display)
    return _Data(datasets.without_test_labels(whole, asked.settings.test_share), whole)


def _objective(asked: SweepRequest, data: _Data) -> Objective:
    """Raises ConfigError where it needs labels that these images lack."""
    labelled = (
        data.whole.train.labels is not None
        and data.whole.holdout is not None
        and data.whole.holdout.labels is not None
    )
    return requests.objective_of(asked.space, asked.settings, labelled=labelled)


def _sweep(
    folder: SweepFolder, asked: SweepRequest, data: _Data, result_file: Path | None, *, resumed: bool
) -> SweepResult:
    console = Console(highlight=False)
    if not console.is_terminal:
        # a log: no line is broken for a screen that is not there
        console = Console(highlight=False, width=160)
    objective = _objective(asked, data)
    base = requests.with_objective(asked.base, objective.metric)
    # A sheet of prototypes for each trial; everything else of it can be made from its folder.
    few = {
        "tracking.pictures": min(base.tracking.pictures, 1),
        "tracking.model": False,
        "tracking.report": False,
        "tracking.system_metrics_s": 0,
    }
    base = configs.with_overrides(base, few)
    plan = plans.make(base, len(data.whole.train), data.whole.num_holdout)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    # then a trial that goes on alone is recorded there as well
    if uri and not base.tracking.uri and not redaction.holds_secret(uri):
        base = configs.with_overrides(base, {"tracking.uri": uri})
    tracker = preparation.open_tracker(
        folder,
        base,
        data.whole.train.fingerprint,
        lambda text: console.print(f"warning: {text}", markup=False),
        preparation.TrackingDetails(
            tags={"objective.name": objective.metric},
            excluded_knobs=asked.space.domains,
            data=preparation.DataSummary(plan, preparation.num_classes(data.whole)),
            sweep=tracking.Sweep(
                folder.name, objective.metric, objective.direction, _numeric(asked), plan.total_steps - 1
            ),
        ),
    )
    setting = Setting(
        sweep=folder.name,
        base=base,
        settings=asked.settings,
        objective=objective,
        num_images=len(data.whole.train),
        num_holdout=data.whole.num_holdout,
        fingerprint=data.whole.train.fingerprint,
        home=str(home()),
        class_names=tuple(data.whole.train.class_names) if data.whole.train.labels is not None else (),
        parent_run_id=_run_id(tracker, base.tracking.enabled),
        tracking_environment=redaction.tracking_environment(),
    )
    if link := tracker.link(view=True):
        console.print(f"dashboard   {link}", markup=False, soft_wrap=True)
    folder.write_state(
        state="running", mlflow_run_id=tracker.run_id, fingerprint=data.whole.train.fingerprint
    )
    ended, state = Ended("failed"), "failed"
    begun = time.monotonic()
    try:
        from pcl_ray.sweep import tune_run

        ended = tune_run.run(folder, asked, setting, data.splits, tracker, console, resumed=resumed)
        result = results.conclude(
            folder,
            asked,
            setting,
            data.whole,
            tracker,
            console,
            seconds=time.monotonic() - begun,
            unfinished=ended.reason,
        )
        state = (
            "finished" if not ended.reason else "failed" if ended.reason.startswith("failures") else "stopped"
        )
    finally:
        folder.write_state(state=state)
        tracker.finish("finished" if state == "finished" else "stopped" if state == "stopped" else "failed")
        folder.write_state(mlflow_run_id=tracker.run_id)
    result.write(result_file)
    if ended.signal_number:
        raise Stopped(folder.name, ended.signal_number, verb="sweep")
    if ended.reason.startswith("failures"):
        raise RunFailed(
            f"{ended.reason.removeprefix('failures: ')}\nWhat has ended is kept; mend the cause and go on"
            f" with: pcl-ray sweep --resume {folder.name}"
        )
    if (
        not result.metrics["sweep/finished"]
        and not result.metrics["sweep/stopped_early"]
        and not ended.reason
    ):
        raise RunFailed("all trials failed; the reasons are above and in the leaderboard")
    return result


def _numeric(asked: SweepRequest) -> dict[str, bool]:
    """The swept knobs, and whether their values are numbers."""
    return {name: all(map(is_number, domains.edges(domain))) for name, domain in asked.space.domains.items()}


def _run_id(tracker: tracking.MlflowRun | tracking.NullRun, enabled: bool) -> str | None:
    """The parent's, once the server has answered; children without it can still be found by their tag
    pcl_ray.sweep.
    """
    deadline = time.monotonic() + (_PARENT_WAIT_S if enabled else 0)
    while tracker.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return tracker.run_id


@contextmanager
def interruptible(
    budget_s: float | None,
) -> Iterator[tuple[Callable[[str], None], Callable[[], None], list[Ended]]]:
    """Ends Tune's loop in a way that it can be resumed from, by the signal that it listens to: after the
    budget, on Ctrl-C and SIGTERM, or by the first function. The second repeats the signal where the end is
    wanted already.
    """
    reasons: list[Ended] = []
    main = threading.current_thread() is threading.main_thread()

    def end(reason: str, number: int = 0) -> None:
        reasons.append(Ended(reason, number))
        if main:
            os.kill(os.getpid(), signal.SIGUSR1)

    def nudge() -> None:
        """Once more: what came before Tune listened was not heard."""
        if main and reasons:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_signal(number: int, _: Any) -> None:
        if any(reason.signal_number for reason in reasons):
            raise KeyboardInterrupt  # a second one: now
        end("stopped", number)

    before = (
        {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        if main
        else {}
    )
    usr1 = signal.signal(signal.SIGUSR1, lambda *_: None) if main else None
    timer = threading.Timer(budget_s, end, ("the budget is spent",)) if budget_s else None
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield lambda reason: end(f"failures: {reason}"), nudge, reasons
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if usr1 is not None:
            signal.signal(signal.SIGUSR1, usr1)


def quiet_tune() -> None:
    """Tune's own tables and warnings are for those who call it; ours says what its user needs. What is set
    already stands.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train", "ray.data", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
