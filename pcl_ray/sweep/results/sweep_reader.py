"""Reads the record of a sweep from its folder and those of its trials, to look at it. Takes no lock: it may
be under way. The space's own file is not run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcl_ray import config as configs
from pcl_ray.config import plain_yaml
from pcl_ray.config.figures import KNN_TOP1
from pcl_ray.errors import ConfigError
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import TrialRecord
from pcl_ray.report.sweep.sweep_record import SweepRecord
from pcl_ray.runs import record_reader
from pcl_ray.runs.folder import State, SweepFolder, parse_entries, read_state_at
from pcl_ray.support import redaction
from pcl_ray.support.paths import CONFIG_FILE
from pcl_ray.sweep.results import trial_records
from pcl_ray.sweep.space import objective

_CURVES = 5  # trials whose histories are read, the best first


def read(name: str) -> SweepRecord:
    """The record of the sweep of this name. Raises ConfigError where there is none."""
    return read_at(SweepFolder.existing(name))


def read_at(path: Path, state: State | None = None) -> SweepRecord:
    """The record of the sweep in this folder. state: instead of the one that is written down there. Raises
    ConfigError where its configuration cannot be read.
    """
    written, request = read_state_at(path), _request(path)
    trials = trial_records.read(path.name)
    metric, direction = _objective(path, written)
    config = configs.public_config(configs.load_stored(path / CONFIG_FILE))
    best_recipe = path / "best.yaml"
    record = SweepRecord(
        name=path.name,
        config=config,
        objective=metric,
        direction=direction,
        trials=trials,
        knobs=_knobs(written, trials),
        state=state or written.get("state", "running"),
        planned=int((written.get("progress") or {}).get("trials") or 0),
        settings=request.get("settings") or {},
        space=str(request.get("name") or ""),
        recipe=str(request.get("recipe") or ""),
        recipe_point=written.get("recipe_point"),
        num_images=int(written.get("num_images") or 0),
        num_holdout=int(written.get("num_holdout") or 0),
        test=written.get("results") or {},
        link=redaction.public_uri(str(written.get("link") or "")),
        best_recipe=str(best_recipe) if best_recipe.is_file() else "",
    )
    return replace(record, runs=_runs(record))


def _request(path: Path) -> dict[str, Any]:
    """sweep.yaml; {} where it is missing or damaged: it is only looked at."""
    try:
        content = plain_yaml.load((path / "sweep.yaml").read_text(encoding="utf-8"), aliases=True)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _objective(path: Path, written: Mapping[str, Any]) -> tuple[str, leaderboard.Direction]:
    """Metric and direction; of sweeps that earlier versions made, from the leaderboard and the catalogue."""
    stored = written.get("objective")
    if isinstance(stored, dict) and stored.get("direction") in ("max", "min", "nearest_one"):
        return str(stored["metric"]), stored["direction"]
    try:
        metric = parse_entries((path / "leaderboard.json").read_bytes()).get("objective")
    except OSError:
        metric = None
    metric = str(metric or (written.get("progress") or {}).get("figure") or KNN_TOP1.name)
    return metric, objective.of(metric).direction


def _knobs(written: Mapping[str, Any], trials: list[TrialRecord]) -> dict[str, str]:
    """The swept knobs and what they may be; of earlier versions' sweeps those that the trials have."""
    stored = written.get("knobs")
    if isinstance(stored, dict):
        return {str(name): str(words) for name, words in stored.items()}
    return {name: "" for trial in trials for name in trial.point}


def _runs(record: SweepRecord) -> dict[str, RunRecord]:
    """The best trials and those of the recipe, by the names of their runs; those that can be read."""
    rows = record.rows[:_CURVES] + [row for row in record.rows[_CURVES:] if row.of_recipe]
    runs = {}
    for row in rows:
        name = row.trials[0].run_name
        try:
            runs[name] = record_reader.read(name)
        except (ConfigError, json.JSONDecodeError):
            continue
    return runs
