"""What a sweep found: its configurations in order, which knob mattered, and the same as CSV, Markdown and
JSON.

Pure functions from records. A configuration is a point of the space; its trials differ in nothing but the
seed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pcl_ray.config.figures import KNN_TOP1, WITHOUT_LABELS, Direction, Figure
from pcl_ray.support.text import cut, value_text

State = Literal["finished", "stopped early", "failed", "unfinished"]

OF_RECIPE = "the recipe's own"
SHORT = {"loss.temperature": "τ", "e_step.alpha": "α", "e_step.num_clusters": "K"}
_WORST_FIRST: tuple[State, ...] = ("unfinished", "failed", "stopped early", "finished")
_COMPLETE, _PARTIAL, _REFUSED, _NOTHING = range(4)  # standings of a configuration, best first
_FEWEST = 4  # trials that rank correlations are taken of
_FEWEST_FOR_IMPORTANCES = 10  # forests of fewer find shares in noise
_NOTE_CHARACTERS = 120
_LOG_FACTOR = 20.0


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a sweep, as its folder tells of it."""

    title: str  # "tau0.1-a10-K29-s0"
    run_name: str  # the run's folder
    state: State
    point: dict[str, Any]  # swept dotted knobs → value, a number or text such as "0.02,0.04"
    seed: int
    objective: float | None  # raw value of the objective's metric, None where it was never measured
    refused: str = ""  # the guard that the trial did not pass, e.g. collapsed features: it ranks last
    epochs: int = 0  # done
    device_seconds: float = 0.0  # own training
    saved_seconds: float = 0.0  # of a shared warm-up that it did not have to train
    error: str = ""  # why it failed
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """One configuration of the space with its trials, which differ in nothing but the seed.

    spread: the sample standard deviation over seeds, None with one value. values: the objective of the trials
    that did not fail. of_recipe: its values are the recipe's own.
    """

    point: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    mean: float | None
    spread: float | None
    values: tuple[float, ...]
    device_seconds: float
    state: State
    note: str
    of_recipe: bool = False


def ranked(
    records: Sequence[TrialRecord], direction: Direction, recipe_point: Mapping[str, Any] | None = None
) -> list[Configuration]:
    """Configurations, best first: all trials finished and passed the guards; stopped early or some failed;
    refused; without any value.

    Within each of the four by mean objective, then by device seconds, fewer first. recipe_point: the recipe's
    own values of the swept knobs.
    """
    groups: dict[tuple[Any, ...], list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(_identity(record.point), []).append(record)
    of_recipe = None if recipe_point is None else _identity(recipe_point)
    rows = [_row(trials, of_recipe=point == of_recipe) for point, trials in groups.items()]
    return sorted(rows, key=lambda row: _sort_key(row, direction))


def best(rows: Sequence[Configuration]) -> Configuration | None:
    """The first configuration whose every trial finished, was measured and passed the guards, or None."""
    return next((row for row in rows if _standing(row) == _COMPLETE), None)


def value_of(record: TrialRecord) -> float | None:
    """A trial's objective where it can be compared: not of a failed trial, whose last measurement is from
    some epoch or other, and never NaN.
    """
    if record.state == "failed" or record.objective is None or not math.isfinite(record.objective):
        return None
    return float(record.objective)


def score(value: float, direction: Direction) -> float:
    """The objective's value turned so that more is better."""
    return {"max": value, "min": -value, "nearest_one": -abs(value - 1)}[direction]


def _identity(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """A point in a form to compare: equal points have equal ones, and 10 and 10.0 are the same K."""
    return tuple(
        (name, float(point[name]) if is_number(point[name]) else value_text(point[name]))
        for name in sorted(point)
    )


def _row(trials: list[TrialRecord], *, of_recipe: bool) -> Configuration:
    values = tuple(value for trial in trials if (value := value_of(trial)) is not None)
    notes = [OF_RECIPE] if of_recipe else []
    notes += [note] if (note := _note(trials)) else []
    state = next(state for state in _WORST_FIRST if any(trial.state == state for trial in trials))
    return Configuration(
        point=trials[0].point,
        trials=tuple(trials),
        mean=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        values=values,
        device_seconds=sum(trial.device_seconds for trial in trials),
        state=state,
        note=cut("; ".join(notes), _NOTE_CHARACTERS),
        of_recipe=of_recipe,
    )


def _note(trials: Sequence[TrialRecord]) -> str:
    """What keeps a configuration from the first places, "" where nothing does."""
    reasons = dict.fromkeys(trial.refused for trial in trials if trial.refused)
    parts = [f"refused: {reason}" for reason in reasons]
    for state in ("failed", "stopped early", "unfinished"):
        affected = [trial for trial in trials if trial.state == state]
        # where all are unfinished, the state of the configuration says that already
        if affected and not (state == "unfinished" and len(affected) == len(trials)):
            parts.append(_share_of(affected, state, len(trials)))
    unmeasured = sum(trial.state == "finished" and value_of(trial) is None for trial in trials)
    if unmeasured:
        parts.append(f"{unmeasured} of {len(trials)} without a value")
    return " ".join("; ".join(parts).split())


def _share_of(trials: Sequence[TrialRecord], state: State, total: int) -> str:
    """How many of the trials are in this state, and why: "2 of 3 failed: out of memory"."""
    text = f"{len(trials)} of {total} {state}" if total > 1 else state
    if state == "stopped early":
        epochs = ", ".join(str(done) for done in sorted({trial.epochs for trial in trials}))
        text += f" after {epochs} epochs"
    reasons = "; ".join(dict.fromkeys(trial.error for trial in trials if trial.error))
    return f"{text}: {reasons}" if reasons else text


def _standing(row: Configuration) -> int:
    """The group that the configuration is ranked in, the best group first."""
    if not row.values:
        return _NOTHING
    if any(trial.refused for trial in row.trials):
        return _REFUSED
    return _COMPLETE if row.state == "finished" and len(row.values) == len(row.trials) else _PARTIAL


def _sort_key(row: Configuration, direction: Direction) -> tuple[float, float, float, str]:
    worth = 0.0 if row.mean is None else score(row.mean, direction)
    return _standing(row), -worth, row.device_seconds, row.trials[0].title


def importances(records: Sequence[TrialRecord], direction: Direction) -> dict[str, float]:
    """Share of the objective's variance that each knob alone explains, largest first, summing to 1: fANOVA
    (Hutter et al., ICML 2014).

    {} where it cannot be known: below 10 trials with a value, one value for all, or no knob that varies.
    Knobs that do not vary are left out.
    """
    measured = [record for record in records if not record.refused and value_of(record) is not None]
    values = [value for record in measured if (value := value_of(record)) is not None]
    scores = [score(value, direction) for value in values]
    if len(measured) < _FEWEST_FOR_IMPORTANCES or len(set(scores)) < 2:
        return {}
    columns = {name: column for name in measured[0].point if (column := _column(name, measured)) is not None}
    return _fanova(columns, scores) if columns else {}


def _column(name: str, records: Sequence[TrialRecord]) -> list[float] | list[str] | None:
    """A knob's values as fANOVA takes them, None where some trial lacks the knob or all have the same.
    Forests ask for < and =; ranges count by length.
    """
    if any(name not in record.point for record in records):
        return None
    values = [record.point[name] for record in records]
    if not all(is_number(value) for value in values):
        texts = [value_text(value) for value in values]
        return texts if len(set(texts)) > 1 else None
    numbers = [float(value) for value in values]
    if len(set(numbers)) < 2:
        return None
    return [math.log(number) for number in numbers] if log_scaled(name, numbers) else numbers


def _fanova(columns: Mapping[str, list[float] | list[str]], scores: Sequence[float]) -> dict[str, float]:
    import optuna  # takes a second
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    distributions: dict[str, BaseDistribution] = {}
    for name, column in columns.items():
        numbers = [value for value in column if isinstance(value, float)]
        if numbers:
            distributions[name] = FloatDistribution(min(numbers), max(numbers))
        else:
            distributions[name] = CategoricalDistribution(sorted(set(map(str, column))))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        for number, worth in enumerate(scores):
            params = {name: column[number] for name, column in columns.items()}
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=worth)
            )
        raw = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    except RuntimeError:  # no tree found anything to split by
        return {}
    finally:
        optuna.logging.set_verbosity(verbosity)
    total = sum(raw.values())
    if not math.isfinite(total) or total <= 0:
        return {}
    return {name: float(share / total) for name, share in raw.items()}


def agreement_with_labels(
    records: Sequence[TrialRecord], criteria: Sequence[Figure] = WITHOUT_LABELS, labelled: Figure = KNN_TOP1
) -> dict[str, float]:
    """Spearman's rank correlation, −1 to 1, of each label-free criterion with the accuracy; for eval/areq of
    −|x − 1|. By the names of the criteria.

    Left out: criteria that fewer than 4 trials have together with the accuracy, or where one of the two is
    the same for all.
    """
    from scipy.stats import spearmanr

    correlations = {}
    for figure in criteria:
        pairs = []
        for record in records:
            x = record.metrics.get(figure.name, math.nan)
            y = record.metrics.get(labelled.name, math.nan)
            if math.isfinite(x) and math.isfinite(y):
                pairs.append((score(x, figure.direction or "max"), y))
        if len(pairs) >= _FEWEST and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            correlations[figure.name] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return correlations


@dataclass(frozen=True)
class MeasuredShare:
    """A share, 0..1, that was counted on so many images."""

    value: float
    images: int

    @property
    def error(self) -> float:
        """Its standard error, as far as that follows from the number of images."""
        return math.sqrt(max(self.value * (1 - self.value), 0.0) / max(self.images, 1))

    @property
    def text(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f} on {self.images} images"


def selection_and_test(selected: MeasuredShare, test: MeasuredShare, trials: int) -> list[str]:
    """Lines with the accuracy that the best of so many trials was chosen by, that on images which chose none,
    and what their difference means.
    """
    return [
        f"selected    kNN accuracy of the best {selected.text} that it was chosen by",
        f"test split  {test.text} that chose no trial",
        f"            {what_test_means(selected, test, trials)}",
    ]


def differ(first: MeasuredShare, second: MeasuredShare) -> bool:
    """Whether two shares lie apart by more than two standard errors of their difference."""
    return abs(first.value - second.value) > 2 * math.hypot(first.error, second.error)


def what_test_means(selected: MeasuredShare, test: MeasuredShare, trials: int) -> str:
    """What the difference of the two means."""
    apart, noise = selected.value - test.value, math.hypot(selected.error, test.error)
    if not differ(selected, test):
        return f"{abs(apart):.3f} apart, within the noise of so few images (± {noise:.3f})"
    if apart > 0:
        return f"{apart:.3f} lower, more than noise: the best of {trials} trials was also the luckiest"
    return f"{-apart:.3f} higher, more than noise: the images of the test split are easier"


def short(knob: str) -> str:
    """A knob's name for a column: τ, α, K, else the leaf of the dotted name."""
    return SHORT.get(knob, knob.rpartition(".")[2])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def log_scaled(knob: str, values: Sequence[float]) -> bool:
    """Whether these numbers belong on a logarithmic axis: positive, and τ, α or more than a factor 20."""
    if not values or min(values) <= 0:
        return False
    return SHORT.get(knob) in ("τ", "α") or max(values) / min(values) > _LOG_FACTOR


def table(rows: Sequence[Configuration], knobs: Sequence[str], objective: str, limit: int) -> list[list[str]]:
    """The heading and at most `limit` lines of the leaderboard, for people."""
    leaves = Counter(short(knob) for knob in knobs)
    names = [short(knob) if leaves[short(knob)] == 1 else knob for knob in knobs]
    lines = [["rank", objective, *names, "seeds", "device min", "state", "note"]]
    for rank, row in enumerate(rows[:limit], start=1):
        measured = "–" if row.mean is None else f"{row.mean:.4f}"
        if row.spread is not None:
            measured += f" ± {row.spread:.4f}"
        values = [value_text(row.point[knob]) if knob in row.point else "–" for knob in knobs]
        minutes = f"{row.device_seconds / 60:.1f}"
        lines.append([str(rank), measured, *values, str(len(row.trials)), minutes, row.state, row.note])
    return lines


def as_markdown(rows: Sequence[Configuration], knobs: Sequence[str], objective: str) -> str:
    heading, *lines = [
        [cell.replace("|", "\\|") for cell in line] for line in table(rows, knobs, objective, len(rows))
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heading, ["---"] * len(heading), *lines])


def as_csv(rows: Sequence[Configuration], knobs: Sequence[str]) -> str:
    """The leaderboard for programs: dotted names, and numbers in full, so that a line can be run again."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["rank", "mean", "spread", "seeds", *knobs, "device_minutes", "state", "note"])
    for rank, row in enumerate(rows, start=1):
        values = [
            value if is_number(value := row.point.get(knob, "")) else value_text(value) for knob in knobs
        ]
        minutes = round(row.device_seconds / 60, 4)
        writer.writerow([rank, row.mean, row.spread, len(row.trials), *values, minutes, row.state, row.note])
    return written.getvalue()


def as_json(rows: Sequence[Configuration], knobs: Sequence[str], objective: str) -> str:
    """{"objective", "knobs", "rows"}; a row has its trials and their folders. Never NaN: JSON has none."""
    entries = []
    for rank, row in enumerate(rows, start=1):
        trials = [
            {
                "run": trial.run_name,
                "seed": trial.seed,
                "state": trial.state,
                "epochs": trial.epochs,
                "objective": value_of(trial),
            }
            for trial in row.trials
        ]
        entry = {
            "rank": rank,
            "mean": row.mean,
            "spread": row.spread,
            "seeds": len(row.trials),
            "point": {knob: row.point.get(knob) for knob in knobs},
            "device_minutes": row.device_seconds / 60,
            "state": row.state,
            "note": row.note,
            "trials": trials,
        }
        entries.append(entry)
    whole = {"objective": objective, "knobs": list(knobs), "rows": entries}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
