"""What a sweep ends with: leaderboard, importances, figures, the best configuration as a recipe, and its
figure on the test split.
"""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pcl_ray import tracking
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import with_overrides
from pcl_ray.data.datasets import DataSplits
from pcl_ray.errors import ConfigError
from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import Row, TrialRecord
from pcl_ray.runs import final_artifacts, preparation
from pcl_ray.runs.folder import RunFolder, SweepFolder, read_state_at
from pcl_ray.support.paths import home
from pcl_ray.support.text import value_text
from pcl_ray.sweep.request import SweepRequest
from pcl_ray.sweep.trial import Setting

_SHOWN = 12
_STATES: dict[str, leaderboard.State] = {
    "finished": "finished",
    "stopped early": "stopped early",
    "failed": "failed",
}


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended. `best_recipe` is a path that `pcl-ray train` takes; `metrics` are the best
    configuration's means over its seeds, with totals.
    """

    sweep_name: str
    mlflow_run_id: str | None
    state: str
    sweep_dir: str
    objective: str
    best: dict[str, Any]
    best_recipe: str | None
    trials: int
    metrics: dict[str, float] = field(default_factory=dict)

    def write(self, file: Path | None) -> None:
        """As JSON, where a file was asked for."""
        final_artifacts.write_result(self, file)


def _states(sweep: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder and the state of every trial that has begun."""
    for path in sorted((home() / "runs").glob(f"{sweep}.*")):
        state = read_state_at(path)
        if state.get("sweep") == sweep:
            yield path, state


def records(sweep: str) -> list[TrialRecord]:
    """Every trial that has begun, from the folders of their runs."""
    found = []
    for path, state in _states(sweep):
        trial = state.get("trial") or {}
        found.append(
            TrialRecord(
                title=state.get("title", path.name),
                run_name=path.name,
                state=_STATES.get(state.get("state", ""), "unfinished"),
                point=dict(state.get("point", {})),
                seed=int(state.get("seed", 0)),
                objective=trial.get("objective"),
                refused=trial.get("refused", ""),
                epochs=int(state.get("epochs", 0)),
                device_seconds=float(trial.get("device_seconds", 0.0)),
                saved_seconds=float(trial.get("saved_seconds", 0.0)),
                error=state.get("error") or "",
                metrics=trial.get("metrics", {}),
            )
        )
    return found


def preload() -> None:
    """Imports what `conclude` needs, some seconds' worth: done beside the training, no device waits for
    it.
    """
    for name in (
        "optuna.importance",
        "sklearn.ensemble",
        "scipy.stats",
        "pcl_ray.report.sweep.figures",
        "pcl_ray.sweep.test_accuracy",
    ):
        importlib.import_module(name)


def conclude(
    folder: SweepFolder,
    asked: SweepRequest,
    setting: Setting,
    whole: DataSplits,
    tracker: Any,
    console: Console,
    *,
    seconds: float,
    unfinished: str,
) -> SweepResult:
    """Ranks, writes, shows and logs. Works on what there is, so that an interrupted sweep has its leaderboard
    too.
    """
    found, objective, knobs = records(folder.name), setting.objective, list(asked.space.domains)
    rows = leaderboard.ranked(found, objective.direction)
    best = leaderboard.best(rows)
    importances = leaderboard.importances(found, objective.direction)
    recipe = _write_recipe(folder, asked, setting, best) if best else None
    totals = _totals(found, seconds)
    files = _write(folder, rows, knobs, setting, found, importances)
    _settle(setting)
    test = _test_accuracy(setting, whole, best, console) if best and not unfinished else {}
    _show(console, rows, knobs, setting, importances, totals, test, found)
    if unfinished:
        console.print(
            f"unfinished  {unfinished}; go on with: pcl-ray sweep --resume {folder.name}",
            markup=False,
            soft_wrap=True,
        )
    elif recipe:
        console.print(
            f"\nNext:\n  pcl-ray train {shlex.quote(str(recipe))}"
            f" train.epochs={4 * setting.base.train.epochs}",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print(
            "no winner   no configuration finished with all its seeds and passed the guards; the notes above"
            " say why",
            markup=False,
        )
    _log(tracker, folder, setting, files, importances, totals, test, best, recipe)
    metrics = _means(best) | totals | test if best else totals
    return SweepResult(
        sweep_name=folder.name,
        mlflow_run_id=tracker.run_id,
        state="stopped" if unfinished else "finished",
        sweep_dir=str(folder.path),
        objective=objective.metric,
        best=dict(best.point) if best else {},
        best_recipe=str(recipe) if recipe else None,
        trials=len(found),
        metrics=metrics,
    )


def _settle(setting: Setting) -> None:
    """Closes the MLflow runs of trials that could not do it themselves: their process was killed, or the
    server did not answer at the time.
    """
    for path, state in _states(setting.sweep):
        if state.get("recorded"):
            continue
        # one that is still held is closed by whoever holds it
        with suppress(ConfigError), RunFolder.open(path.name) as folder:
            ended: Any = state["state"] if state["state"] in _STATES else "stopped"
            tags = {"trial.status": ended, "pcl_ray.sweep": setting.sweep} | (
                {"mlflow.parentRunId": setting.parent_run_id} if setting.parent_run_id else {}
            )
            tracker = preparation.open_tracker(
                folder,
                folder.read_config(),
                setting.fingerprint,
                lambda text: None,
                preparation.TrackingDetails(title=state.get("title"), tags=tags),
            )
            for entry in folder.read_history():
                tracker.log(entry["metrics"], entry["step"])
            tracker.finish(ended)
            folder.write_state(state=ended, mlflow_run_id=tracker.run_id, recorded=tracker.run_id is not None)


def exploits(sweep: str) -> list[dict[str, Any]]:
    """Of a population: who went on from whom, with which values before and after."""
    return [
        {"member": state["member"], **exploit}
        for _, state in _states(sweep)
        for exploit in state.get("exploits", [])
    ]


def _totals(found: list[TrialRecord], seconds: float) -> dict[str, float]:
    return {
        "sweep/device_minutes": sum(record.device_seconds for record in found) / 60,
        "sweep/saved_minutes": sum(record.saved_seconds for record in found) / 60,
        "sweep/trials_on_shared_warmup": float(sum(record.saved_seconds > 0 for record in found)),
        "sweep/seconds": seconds,
        "sweep/trials": float(len(found)),
        "sweep/finished": float(sum(record.state == "finished" for record in found)),
        "sweep/stopped_early": float(sum(record.state == "stopped early" for record in found)),
        "sweep/failed": float(sum(record.state == "failed" for record in found)),
    }


def _means(best: Row) -> dict[str, float]:
    names = set.intersection(*(set(trial.metrics) for trial in best.trials))
    return {
        name: sum(trial.metrics[name] for trial in best.trials) / len(best.trials) for name in sorted(names)
    }


def _write_recipe(folder: SweepFolder, asked: SweepRequest, setting: Setting, best: Row) -> Path:
    """The recipe itself with the best values: not how trials ran it, one beside the other."""
    path = folder.path / "best.yaml"
    spread = f" ± {best.spread:.4f}" if best.spread is not None else ""
    of_seeds = f"{len(best.trials)} seeds" if len(best.trials) > 1 else "one seed"
    history = (
        "\n# A member of a population: the values it ended with, not those that its weights went through"
        " (exploits.json)."
    )
    heading = (
        f"# The best of sweep {folder.name}: {setting.objective.metric} {best.mean:.4f}{spread} after"
        f" {setting.base.train.epochs} epochs,"
        f" {of_seeds}.{history if setting.settings.scheduler == 'pbt' else ''}\n#   pcl-ray train"
        f" {shlex.quote(str(path))}\n"
    )
    config = with_overrides(asked.recipe, {**best.point, "seed": best.trials[0].seed})
    path.write_text(heading + config.to_yaml(), encoding="utf-8")
    return path


def _test_accuracy(setting: Setting, whole: DataSplits, best: Row, console: Console) -> dict[str, float]:
    """kNN accuracy of the best configuration on held-out images that no trial was compared by; {} where there
    are none.
    """
    holdout = whole.holdout
    if (
        whole.train.labels is None
        or holdout is None
        or holdout.labels is None
        or not setting.settings.test_share
    ):
        return {}
    from pcl_ray.sweep.test_accuracy import test_accuracy  # torch

    values = []
    for trial in best.trials:
        newest = epoch_files.latest(epoch_files.folder_of(RunFolder.path_of(trial.run_name)))
        if newest is not None:
            config = with_overrides(setting.base, {**trial.point, "seed": trial.seed})
            try:
                values.append(test_accuracy(newest, config, whole, setting.settings.test_share))
            # too little memory here, an image that has gone: the sweep's results stand without this figure
            except Exception as error:
                console.print(
                    f"warning: no figure on the test split ({type(error).__name__}: {error})",
                    markup=False,
                    soft_wrap=True,
                )
    return (
        {"eval/test_knn_top1": sum(values) / len(values), "eval/test_knn_top1_least": min(values)}
        if values
        else {}
    )


def _write(
    folder: SweepFolder,
    rows: list[Row],
    knobs: list[str],
    setting: Setting,
    found: list[TrialRecord],
    importances: dict[str, float],
) -> list[tuple[Path, str]]:
    """Files, and what they are called among the parent run's artifacts."""
    from pcl_ray.report.sweep import figures as sweep_figures

    metric = setting.objective.metric
    texts = {
        "leaderboard.csv": leaderboard.as_csv(rows, knobs),
        "leaderboard.md": leaderboard.as_markdown(rows, knobs, metric),
        "leaderboard.json": leaderboard.as_json(rows, knobs, metric),
        "importances.json": json.dumps(importances, indent=2) + "\n",
    }
    if setting.settings.scheduler == "pbt":
        texts["exploits.json"] = json.dumps(exploits(folder.name), indent=2) + "\n"
    files = []
    for name, text in texts.items():
        (folder.path / name).write_text(text, encoding="utf-8")
        files.append((folder.path / name, name))
    figures = folder.path / "figures"
    figures.mkdir(exist_ok=True)
    for path in sweep_figures.write_all(
        found, knobs, metric, setting.objective.direction, importances, figures
    ):
        files.append((path, f"figures/{path.name}"))
    return files


def _show(
    console: Console,
    rows: list[Row],
    knobs: list[str],
    setting: Setting,
    importances: dict[str, float],
    totals: dict[str, float],
    test: dict[str, float],
    found: list[TrialRecord],
) -> None:
    heading, *lines = leaderboard.table(rows, knobs, setting.objective.metric, _SHOWN)
    table = Table(*heading, box=None, padding=(0, 2, 0, 0))
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))  # a reason may hold brackets, which are no markup
    console.print()
    console.print(table, markup=False)
    if len(rows) > _SHOWN:
        console.print(f"… and {len(rows) - _SHOWN} more in leaderboard.csv")
    if importances:
        shares = ", ".join(
            f"{leaderboard.short(name)} {share:.0%}"
            for name, share in sorted(importances.items(), key=lambda entry: -entry[1])
        )
        console.print(f"importance  {shares} (fANOVA)", markup=False)
    agreement = leaderboard.agreement_with_labels(found)
    if agreement:
        said = ", ".join(f"{name} {value:+.2f}" for name, value in agreement.items())
        console.print(f"no labels   rank correlation with kNN accuracy: {said}", markup=False)
    console.print(
        f"device time {totals['sweep/device_minutes']:.1f} minutes in {len(found)} trials", markup=False
    )
    if totals["sweep/trials_on_shared_warmup"]:
        console.print(
            f"warm-up     {totals['sweep/trials_on_shared_warmup']:.0f} trials began from another's:"
            f" {totals['sweep/saved_minutes']:.1f} device minutes saved",
            markup=False,
        )
    if setting.settings.scheduler == "pbt":
        console.print(
            f"population  {len(exploits(setting.sweep))} times a member went on from a stronger one"
            " (exploits.json)",
            markup=False,
        )
    if test:
        console.print(
            f"test split  kNN accuracy of the best configuration {test['eval/test_knn_top1']:.4f}, on images"
            " that no trial was chosen by",
            markup=False,
        )
    for reason in sorted({record.error for record in found if record.state == "failed"})[:5]:
        console.print(f"failed      {reason}", markup=False, soft_wrap=True)


def _log(
    tracker: Any,
    folder: SweepFolder,
    setting: Setting,
    files: list[tuple[Path, str]],
    importances: dict[str, float],
    totals: dict[str, float],
    test: dict[str, float],
    best: Row | None,
    recipe: Path | None,
) -> None:
    step = int(totals["sweep/trials"])
    tracker.log(
        totals | {f"sweep/importance/{name}": share for name, share in importances.items()} | test, step
    )
    for path, name in files:
        tracker.log_file(path, name)
    if best is not None and recipe is not None:
        tracker.log({"sweep/best": best.mean} if best.mean is not None else {}, step)
        tracker.log_file(recipe, "best.yaml")
        tracker.tag({f"best.{name}": str(value) for name, value in best.point.items()})
    tracker.tag({tracking.NOTE: _note(folder, setting, totals, best)})


def _note(folder: SweepFolder, setting: Setting, totals: dict[str, float], best: Row | None) -> str:
    """The sweep in Markdown."""
    settings, metric = setting.settings, setting.objective.metric
    lines = [
        (
            f"**{folder.name}**: {totals['sweep/trials']:.0f} trials, {totals['sweep/finished']:.0f}"
            f" finished, {totals['sweep/failed']:.0f} failed"
        ),
        "",
        (
            f"- objective {metric}, scheduler {settings.scheduler}, {settings.seeds} seeds;"
            f" {totals['sweep/device_minutes']:.1f} device minutes"
        ),
        f"- go on: `pcl-ray sweep --resume {folder.name}`; folder `{folder.path}`",
    ]
    if best is not None and best.mean is not None:
        point = ", ".join(f"{name} = {value_text(value)}" for name, value in best.point.items())
        lines += [
            f"- best: {point}: {metric} {best.mean:.4f} (`best.yaml`, `leaderboard.md` among the artifacts)"
        ]
    return "\n".join(lines)
