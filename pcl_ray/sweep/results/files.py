"""The files that a sweep leaves in its folder: leaderboard, importances, figures, the best recipe."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from pcl_ray.config import with_overrides
from pcl_ray.report.sweep import leaderboard
from pcl_ray.report.sweep.leaderboard import Configuration
from pcl_ray.sweep.results import trial_records
from pcl_ray.sweep.results.ranking import Ranking
from pcl_ray.sweep.session import SweepSession

FIGURES = "figures"  # the folder of the drawn ones


def write(session: SweepSession, ranking: Ranking) -> list[tuple[Path, str]]:
    """Writes leaderboard, importances and figures. Returns each file and its name as a parent's artifact."""
    from pcl_ray.report.sweep import plots  # matplotlib

    objective = session.context.objective
    rows, knobs = ranking.rows, ranking.knobs
    texts = {
        "leaderboard.csv": leaderboard.as_csv(rows, knobs),
        "leaderboard.md": leaderboard.as_markdown(rows, knobs, objective.metric),
        "leaderboard.json": leaderboard.as_json(rows, knobs, objective.metric),
        "importances.json": json.dumps(ranking.importances, indent=2) + "\n",
    }
    if session.context.settings.scheduler == "pbt":
        exploits = trial_records.exploits(session.folder.name)
        texts["exploits.json"] = json.dumps(exploits, indent=2) + "\n"
    files = []
    for name, text in texts.items():
        path = session.folder.path / name
        path.write_text(text, encoding="utf-8")
        files.append((path, name))
    figures = session.folder.path / FIGURES
    figures.mkdir(exist_ok=True)
    paths = plots.write_all(
        ranking.records, knobs, objective.metric, objective.direction, ranking.importances, figures
    )
    return files + [(path, f"{FIGURES}/{path.name}") for path in paths]


def write_best_recipe(session: SweepSession, best: Configuration) -> Path:
    """Writes the recipe itself with the best values: not how trials ran it, one beside the other."""
    path, context = session.folder.path / "best.yaml", session.context
    spread = f" ± {best.spread:.4f}" if best.spread is not None else ""
    seeds = f"{len(best.trials)} seeds" if len(best.trials) > 1 else "one seed"
    heading = (
        f"# The best of sweep {session.folder.name}: {context.objective.metric} {best.mean:.4f}{spread} after"
        f" {context.base.train.epochs} epochs, {seeds}."
    )
    if context.settings.scheduler == "pbt":
        heading += (
            "\n# A member of a population: the values it ended with, not those that its weights went through"
            " (exploits.json)."
        )
    heading += f"\n#   pcl-ray train {shlex.quote(str(path))}\n"
    config = with_overrides(session.request.recipe, {**best.point, "seed": best.trials[0].seed})
    path.write_text(heading + config.to_yaml(), encoding="utf-8")
    return path
