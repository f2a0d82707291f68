"""The driver of a sweep.

request → data, their held-out part split in two → folder (new or resumed) → MLflow parent run → Ray: data and
warm-ups once, then Tune
   Tune → TrialProcess × concurrency → runs/SWEEP.*  ─ state.json ─→ trial records
      trial records → leaderboard, figures, best recipe, one figure on the test split
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray import tracking
from pcl_ray.config import RunConfig, plain_yaml, stored_secret
from pcl_ray.config.figures import KNN_TOP1, SWEEP_FINISHED, SWEEP_STOPPED_EARLY
from pcl_ray.data import datasets
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError, RunFailed, Stopped
from pcl_ray.on_ray import current_job
from pcl_ray.report.sweep.leaderboard import is_number
from pcl_ray.runs import final_artifacts, preparation
from pcl_ray.runs.console import Display
from pcl_ray.runs.folder import StateEntries, SweepFolder
from pcl_ray.support import machine, redaction
from pcl_ray.support.paths import home
from pcl_ray.sweep import pickle_safety, tune_run
from pcl_ray.sweep import request as requests
from pcl_ray.sweep.interruption import Interruption
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.results import trial_records
from pcl_ray.sweep.results.conclusion import SweepResult, conclude
from pcl_ray.sweep.session import SweepSession
from pcl_ray.sweep.space import domains, spaces
from pcl_ray.sweep.space.objective import Objective
from pcl_ray.sweep.trials.context import SweepContext

_PARENT_WAIT_S = 20.0  # for the server to give the parent run its number
_CHANGEABLE = ("sweep.budget_s", "sweep.concurrency", "sweep.failures", "sweep.process_failures")
_SWEEP_YAML = {"name": str, "space": str, "recipe": str, "words": list, "settings": dict}


def start(request: SweepRequest, *, name: str | None = None, result_file: Path | None = None) -> SweepResult:
    """Runs a new sweep. Raises ConfigError or DataError before it starts, then RunFailed, or Stopped."""
    preparation.prepare_process()
    if name:
        SweepFolder.check_free(name)
    name = name or SweepFolder.free_name(request.space.name[:40], datetime.now().strftime("%m%d-%H%M%S"))
    if len(name) > 60:
        raise ConfigError(f"sweep name {name!r} is too long: at most 60 characters, its trials add to it")
    if left := sorted((home() / "runs").glob(f"{name}.*")):
        raise ConfigError(
            f"{len(left)} runs of an earlier sweep {name!r} are under {left[0].parent}; remove them, or"
            " choose another --name"
        )
    data = _load(request)
    _objective(request, data)
    for note in request.notes:
        print(f"note        {note}")
    with SweepFolder.create(name, request.base) as folder:
        _write_request(folder, request)
        return _sweep(folder, request, data, result_file, resumed=False)


def resume(
    name: str, words: list[str], options: Mapping[str, Any], *, result_file: Path | None = None
) -> SweepResult:
    """Goes on with a sweep: ended trials stay, the others go on from checkpoints. Raises as `start` does."""
    preparation.prepare_process()
    with SweepFolder.open(name) as folder:
        request = _secret_into_environment(stored(folder, words, options))
        data = _load(request)
        preparation.check_same_images(f"sweep {name!r}", folder.read_state(), data.whole)
        return _sweep(folder, request, data, result_file, resumed=True)


def stored(folder: SweepFolder, words: list[str], options: Mapping[str, Any]) -> SweepRequest:
    """The request of an earlier `start`. Only what does not change the trials may be another one now: budget,
    concurrency, limits of failures.
    """
    pickle_safety.check(folder.path)
    content = _read_request(folder)
    changed = {
        **dict(part.split("=", 1) for part in words if "=" in part),
        **{key: value for key, value in options.items() if value is not None},
    }
    if wrong := [key for key in changed if key not in _CHANGEABLE]:
        raise ConfigError(
            f"{wrong[0]} cannot change when a sweep goes on (what can: {', '.join(_CHANGEABLE)}); start a new"
            " sweep"
        )
    settings = {f"sweep.{key}": value for key, value in content["settings"].items() if value is not None}
    settings.pop("sweep.budget_s", None)  # it was for that session
    settings.setdefault("sweep.with_recipe", False)  # an earlier version's had no such trials
    request = requests.check(
        str(folder.path / content["space"]),
        list(content["words"]),
        {**settings, **changed},
        str(folder.path / "recipe.yaml"),
        stored=True,
    )
    return replace(request, space=replace(request.space, name=content["name"], base=content["recipe"]))


def _read_request(folder: SweepFolder) -> dict[str, Any]:
    """sweep.yaml, as `_write_request` wrote it."""
    try:
        content = plain_yaml.load((folder.path / "sweep.yaml").read_text(encoding="utf-8"), aliases=True)
    except (OSError, ValueError):
        raise ConfigError(
            f"sweep {folder.name!r} was killed before it had begun; start it anew under another --name"
        ) from None
    if (
        not isinstance(content, dict)
        or any(not isinstance(content.get(name), kind) for name, kind in _SWEEP_YAML.items())
        or content["space"] not in pickle_safety.SPACES
    ):
        raise ConfigError(
            f"{folder.path / 'sweep.yaml'} is not as pcl-ray wrote it; mend it, or start the sweep anew under"
            " another --name"
        )
    return content


def _write_request(folder: SweepFolder, request: SweepRequest) -> None:
    """Writes what `stored` needs: space and recipe themselves, since their files may change or move."""
    (folder.path / "recipe.yaml").write_text(configs.load(request.space.base).to_yaml(), encoding="utf-8")
    file, text = spaces.source(request.space_source)
    space_file = f"space{Path(file).suffix}"
    (folder.path / space_file).write_text(text, encoding="utf-8")
    content = {
        "name": request.space.name,
        "space": space_file,
        "recipe": request.space.base,
        "words": list(request.words),
        "settings": request.settings.model_dump(mode="json"),
    }
    (folder.path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    pickle_safety.keep_from_others(folder.path)


def _secret_into_environment(request: SweepRequest) -> SweepRequest:
    """Takes a password that a sweep of an earlier version has in `tracking.uri` into this process's
    environment, and out of every trial's configuration.
    """
    secret = request.base.tracking.uri
    if not secret or not stored_secret(request.base):
        return request
    print(f"warning: {redaction.STORED_SECRET}", file=sys.stderr)
    os.environ["MLFLOW_TRACKING_URI"] = secret
    recipe, base = (
        configs.with_overrides(config, {"tracking.uri": None}) for config in (request.recipe, request.base)
    )
    return replace(request, recipe=recipe, base=base)


@dataclass(frozen=True)
class _SweepData:
    for_trials: DataSplits  # labels of the test split hidden
    whole: DataSplits

    @property
    def class_names(self) -> tuple[str, ...]:
        """() without labels."""
        return tuple(self.whole.train.class_names) if self.whole.train.labels is not None else ()


def _load(request: SweepRequest) -> _SweepData:
    whole, _ = preparation.load_data(request.base, Display())
    return _SweepData(datasets.without_test_labels(whole, request.settings.test_share), whole)


def _objective(request: SweepRequest, data: _SweepData) -> Objective:
    """Raises ConfigError where it needs labels that these images lack."""
    train, holdout = data.whole.train, data.whole.holdout
    labelled = train.labels is not None and holdout is not None and holdout.labels is not None
    return requests.objective_of(request.space, request.settings, labelled=labelled)


def _sweep(
    folder: SweepFolder, request: SweepRequest, data: _SweepData, result_file: Path | None, *, resumed: bool
) -> SweepResult:
    session = _session(folder, request, data)
    link = session.tracker.link(view=True) or ""
    if link:
        session.console.print(f"dashboard   {link}", markup=False, soft_wrap=True)
    folder.write_state(
        state="running",
        phase="starting",
        machine=machine.identity(),
        error=None,
        submission_id=job.id if (job := current_job.current()) else None,
        waits_for="",
        mlflow_run_id=session.tracker.run_id,
        **preparation.image_entries(data.whole),
        link=link,
        **_report_entries(session),
    )
    result, interruption = _train_and_conclude(session, data, resumed=resumed)
    final_artifacts.write_result(result, result_file)
    if interruption is not None and interruption.signal_number:
        raise Stopped(f"go on with: pcl-ray sweep --resume {folder.name}", interruption.signal_number)
    if interruption is not None and interruption.by_failures:
        raise RunFailed(
            f"{interruption.failures}\nWhat has ended is kept; mend the cause and go on"
            f" with: pcl-ray sweep --resume {folder.name}"
        )
    trained = result.metrics[SWEEP_FINISHED.name] or result.metrics[SWEEP_STOPPED_EARLY.name]
    if interruption is None and not trained:
        raise RunFailed("all trials failed; the reasons are above and in the leaderboard")
    return result


def _report_entries(session: SweepSession) -> StateEntries:
    """What the sweep's page and the doctor need of it beside its trials."""
    request, context = session.request, session.context
    return {
        "objective": {"metric": context.objective.metric, "direction": context.objective.direction},
        "knobs": {
            name: words for name, words in spaces.described(request.space) if name in request.space.domains
        },
        "recipe_point": request.recipe_point,
        "num_images": context.num_images,
        "num_holdout": context.num_holdout,
        "class_names": list(context.class_names),
    }


def _session(folder: SweepFolder, request: SweepRequest, data: _SweepData) -> SweepSession:
    """What this process works with; the sweep's run in MLflow is open from here on."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # a log: no line is broken for a screen that is not there
        console = Console(highlight=False, width=160)
    objective = _objective(request, data)
    base = _base_of_trials(requests.with_objective(request.base, objective.metric))
    train, num_holdout = data.whole.train, data.whole.num_holdout
    plan = plans.make(base, len(train), num_holdout)
    tracker = preparation.open_tracker(
        folder,
        base,
        train.fingerprint,
        lambda text: console.print(f"warning: {text}", markup=False),
        preparation.TrackingDetails(
            tags={"objective.name": objective.metric},
            excluded_knobs=request.space.domains,
            plan=plan,
            classes=preparation.num_classes(data.whole),
            sweep=tracking.Sweep(
                folder.name,
                objective.metric,
                objective.direction,
                _numeric_knobs(request),
                plan.total_steps - 1,
            ),
        ),
    )
    context = SweepContext(
        sweep=folder.name,
        base=base,
        settings=request.settings,
        objective=objective,
        num_images=len(train),
        num_holdout=num_holdout,
        fingerprint=train.fingerprint,
        home=str(home()),
        class_names=data.class_names,
        parent_run_id=_run_id(tracker, base.tracking.enabled),
        tracking_environment=redaction.tracking_environment(),
    )
    return SweepSession(folder, request, context, tracker, console)


def _base_of_trials(base: RunConfig) -> RunConfig:
    """What all trials share. One sheet of prototypes is recorded of each; its folder gives the rest."""
    changes: dict[str, Any] = {
        "tracking.pictures": min(base.tracking.pictures, 1),
        "tracking.model": False,
        "tracking.report": False,
        "tracking.system_metrics_s": 0,
    }
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    # then a trial that goes on alone is recorded there as well
    if uri and not base.tracking.uri and not redaction.holds_secret(uri):
        changes["tracking.uri"] = uri
    return configs.with_overrides(base, changes)


def _train_and_conclude(
    session: SweepSession, data: _SweepData, *, resumed: bool
) -> tuple[SweepResult, Interruption | None]:
    """Trains what is left and concludes; however that ends, the sweep's state says how."""
    state: Literal["finished", "stopped", "failed"] = "failed"
    begun = time.monotonic()
    if resumed and trial_records.of_the_head(session.folder.name, session.context.objective.metric):
        session.console.print(
            f"warning: {KNN_TOP1.name} of the trials so far is that of the head's output, as an earlier"
            " version measured it, and of further ones that of the backbone: they cannot be compared. Start a"
            " new sweep",
            markup=False,
            soft_wrap=True,
        )
    try:
        interruption = tune_run.run(session, data.for_trials, resumed=resumed)
        session.folder.write_state(phase="recording")
        session.tracker.tag({tracking.PHASE_TAG: "recording"})
        unfinished = interruption.reason if interruption is not None else ""
        result = conclude(session, data.whole, seconds=time.monotonic() - begun, unfinished=unfinished)
        if interruption is None:
            state = "finished"
        elif not interruption.by_failures:
            state = "stopped"
    finally:
        session.folder.write_state(state=state)
        session.tracker.finish(state)
        session.folder.write_state(mlflow_run_id=session.tracker.run_id, phase="")
    return result, interruption


def _numeric_knobs(request: SweepRequest) -> dict[str, bool]:
    """The swept knobs, and whether their values are numbers."""
    return {
        name: all(map(is_number, domains.edges(domain))) for name, domain in request.space.domains.items()
    }


def _run_id(tracker: tracking.MlflowRun | tracking.NullRun, enabled: bool) -> str | None:
    """The parent's, once the server has answered; else children can be found by their tag pcl_ray.sweep."""
    deadline = time.monotonic() + (_PARENT_WAIT_S if enabled else 0)
    while tracker.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return tracker.run_id
