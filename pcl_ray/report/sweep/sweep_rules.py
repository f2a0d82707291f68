"""What a sweep has shown, in plain words, and what to try: one rule looks at one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pcl_ray.config.figures import KNN_TOP1, TEST_KNN_TOP1
from pcl_ray.report.doctor import diagnosis
from pcl_ray.report.doctor.findings import Finding
from pcl_ray.report.sweep.leaderboard import (
    Configuration,
    MeasuredShare,
    TrialRecord,
    differ,
    is_number,
    short,
    what_test_means,
)
from pcl_ray.report.sweep.sweep_record import SweepRecord, against_recipe
from pcl_ray.support.text import count, listed, value_text

_MANY_FAILED = 0.25  # of the trials that ended
_FEWEST_VALUES = 3  # of a knob, before its edge means anything
_MOST_TEXTS = 3  # values that a sentence lists
_WITHOUT_EFFECT = 0.05  # share of the objective's variance
_OF_THE_BEST = ("no_better_than_pixels", "still_improving", "collapse", "diverged", "copies", "blank")


def findings(record: SweepRecord) -> list[Finding]:
    """What there is to say about a sweep, problems first."""
    every = [finding for rule in RULES if (finding := rule(record)) is not None]
    return diagnosis.problems_first([*every, *_of_best_run(record)])


def as_text(record: SweepRecord, every: list[Finding]) -> str:
    """The findings for a terminal."""
    ended = sum(trial.state != "unfinished" for trial in record.trials)
    of = max(record.planned, len(record.trials))
    heading = f"{record.name} (sweep, {record.state}): {ended} of {count(of, 'trial')} ended"
    nothing = "nothing stands out" if ended else "nothing to say: no trial has ended"
    text = diagnosis.text_of(heading, every, nothing)
    if record.best is not None:
        text += f"\n\nIts best trial by itself: pcl-ray doctor {record.best.trials[0].run_name}"
    return text


def failed(record: SweepRecord) -> Finding | None:
    """Trials that failed, with the reason that most of them have."""
    lost = [trial for trial in record.trials if trial.state == "failed"]
    ended = [trial for trial in record.trials if trial.state != "unfinished"]
    if not lost:
        return None
    reason, often = Counter(_kind(trial) for trial in lost).most_common(1)[0]
    meaning = f"{len(lost)} of {count(len(ended), 'trial')} that ended failed. {often} of them: {reason}."
    meaning += _where(record, lost)
    if len(lost) == len(ended):
        return Finding("failed", "problem", "All trials failed", meaning, _mend(record))
    severity = "warning" if len(lost) > _MANY_FAILED * len(ended) else "note"
    return Finding("failed", severity, f"{count(len(lost), 'trial')} failed", meaning, _mend(record))


def _kind(trial: TrialRecord) -> str:
    return trial.error.strip().splitlines()[0].rstrip(".") if trial.error.strip() else "no reason is known"


def _where(record: SweepRecord, lost: Sequence[TrialRecord]) -> str:
    """Values of a knob that all lost trials have and none that ended well; "" where there are none."""
    well = [
        trial for trial in record.trials if trial.state in ("finished", "stopped early") and trial not in lost
    ]
    shared = []
    for knob in record.knobs:
        bad = [trial.point[knob] for trial in lost if knob in trial.point]
        good = [trial.point[knob] for trial in well if knob in trial.point]
        if bad and good and (words := _apart(bad, good)):
            shared.append(f"{short(knob)} {words}")
    return f" All of them, and none of the others, have {listed(shared)}." if shared else ""


def _apart(bad: list[Any], good: list[Any]) -> str:
    """Which values are bad, where none of them is good as well; "" where that cannot be said."""
    if all(is_number(value) for value in (*bad, *good)):
        if min(bad) > max(good):
            return f"≥ {min(bad):g}"
        if max(bad) < min(good):
            return f"≤ {max(bad):g}"
    texts = sorted({value_text(value) for value in bad})
    if len(texts) > _MOST_TEXTS or set(texts) & {value_text(value) for value in good}:
        return ""
    return f"= {' or '.join(texts)}"


def _mend(record: SweepRecord) -> tuple[str, ...]:
    return (f"mend the cause, then try them again: pcl-ray sweep --resume {record.name}",)


def refused(record: SweepRecord) -> Finding | None:
    """Trials that did not pass the guards of a criterion without labels."""
    lost = [trial for trial in record.trials if trial.refused]
    if not lost:
        return None
    measured = [trial for trial in record.trials if trial.objective is not None]
    reason = Counter(trial.refused.partition(",")[0] for trial in lost).most_common(1)[0][0]
    meaning = (
        f"{len(lost)} of {count(len(measured), 'measured trial')} rank last because their features have"
        f" collapsed, e.g. {reason}.{_where(record, lost)}"
    )
    severity = "warning" if 2 * len(lost) > len(measured) else "note"
    return Finding("refused", severity, f"{count(len(lost), 'trial')} collapsed", meaning, ())


def no_winner(record: SweepRecord) -> Finding | None:
    """No configuration that finished with all its seeds."""
    ended = any(trial.state in ("finished", "stopped early") for trial in record.trials)
    if record.state == "running" or record.best is not None or not ended:
        return None
    meaning = (
        "No configuration has finished with all its seeds and passed the guards: what the leaderboard ranks"
        " first was stopped early, or lacks a seed."
    )
    advice = f"train what is left: pcl-ray sweep --resume {record.name}"
    return Finding("no_winner", "warning", "There is no winner", meaning, (advice,))


def recipe(record: SweepRecord) -> Finding | None:
    """The best against the recipe's own values."""
    gain, best, own = record.gain(), record.best, record.of_recipe
    if gain is None or best is None or own is None:
        return None
    meaning = f"By {record.objective} the recipe's own values reach {against_recipe(record)}."
    noise = record.noise(best, own)
    if best.of_recipe:
        title = "Nothing was found that is better than the recipe"
        return Finding("recipe", "note", title, meaning, _other_ways(record))
    if noise is not None and gain <= noise:
        title = "The best cannot be told from the recipe's own values"
        return Finding("recipe", "warning", title, meaning, _more_seeds(record))
    return Finding("recipe", "good", "The best is better than the recipe's own values", meaning, ())


def _more_seeds(record: SweepRecord) -> tuple[str, ...]:
    seeds = int(record.settings.get("seeds") or 1)
    return (f"more seeds of few configurations: --seeds {max(3, 2 * seeds)} (now {seeds})",)


def _other_ways(record: SweepRecord) -> tuple[str, ...]:
    return (
        f"other knobs than {listed([short(knob) for knob in record.knobs])}, or longer runs:"
        f" train.epochs={2 * record.config.train.epochs} (now {record.config.train.epochs})",
    )


def alike(record: SweepRecord) -> Finding | None:
    """Several configurations in front that noise alone may have ranked."""
    near = record.as_good()
    if len(near) < 2:
        return None
    meaning = (
        f"The first {len(near)} of {len(record.rows)} configurations lie within the noise of the best"
        f" ({_ranges(record, near)}): their order may be another one next time."
    )
    title = f"{len(near)} configurations are as good as the best"
    return Finding("alike", "note", title, meaning, _more_seeds(record))


def _ranges(record: SweepRecord, rows: Sequence[Configuration]) -> str:
    """What the values of each knob are in these configurations."""
    parts = []
    for knob in record.knobs:
        values = [row.point[knob] for row in rows if knob in row.point]
        texts = list(dict.fromkeys(value_text(value) for value in values))
        if values and all(is_number(value) for value in values) and len(texts) > 3:
            parts.append(f"{short(knob)} from {min(values):g} to {max(values):g}")
        elif texts:
            parts.append(f"{short(knob)} {' or '.join(texts[:4])}" + (" …" if len(texts) > 4 else ""))
    return "; ".join(parts)


def luck(record: SweepRecord) -> Finding | None:
    """What chose the best against what its images that chose none say."""
    best, tested = record.best, record.test.get(TEST_KNN_TOP1.name)
    if best is None or best.mean is None or tested is None or record.objective != KNN_TOP1.name:
        return None
    if not record.compared_on or not record.test_images:
        return None
    selected = MeasuredShare(best.mean, record.compared_on)
    test = MeasuredShare(tested, record.test_images)
    meaning = (
        f"The best was chosen by {selected.text}; images that chose no trial give {test.text}:"
        f" {what_test_means(selected, test, len(record.trials))}."
    )
    if selected.value < test.value or not differ(selected, test):
        return Finding("luck", "good", "The best holds on images that chose no trial", meaning, ())
    title = "The best is partly luck"
    return Finding("luck", "warning", title, meaning, ("believe the figure of the test split",))


def at_the_edge(record: SweepRecord) -> Finding | None:
    """Knobs whose best value is the lowest or highest that was tried."""
    best, edges, advice = record.best, [], []
    if best is None:
        return None
    near = record.as_good() or [best]
    for knob in record.knobs:
        tried = {row.point[knob] for row in record.rows if is_number(row.point.get(knob)) and row.values}
        of_near = {row.point.get(knob) for row in near}
        if len(tried) < _FEWEST_VALUES or not is_number(best.point.get(knob)):
            continue
        for edge, words in ((min(tried), "lowest"), (max(tried), "highest")):
            if of_near == {edge}:
                edges.append(f"{short(knob)} = {edge:g}, the {words} of {len(tried)} values")
                way = "below" if words == "lowest" else "above"
                advice.append(f"a range of {knob} that goes on {way} {edge:g}")
    if not edges:
        return None
    meaning = f"The best has {listed(edges)}: what lies beyond has not been tried."
    return Finding("at_the_edge", "note", "The best lies at the edge of the space", meaning, tuple(advice))


def without_effect(record: SweepRecord) -> Finding | None:
    """Knobs that hardly explain anything."""
    idle = [knob for knob, share in record.importances.items() if share < _WITHOUT_EFFECT]
    if not idle or len(idle) == len(record.knobs):
        return None
    shares = listed([f"{short(knob)} {record.importances[knob]:.0%}" for knob in idle])
    meaning = f"Of what configurations differ by in {record.objective}, {shares} (fANOVA)."
    advice = (f"leave out {listed(idle)}, and search the others more finely",)
    return Finding("without_effect", "note", "Some knobs hardly matter here", meaning, advice)


def before_clusters(record: SweepRecord) -> Finding | None:
    """Knobs of the clustering that were swept over trials which made no clusters."""
    swept = [knob for knob in record.knobs if knob.startswith("e_step.")]
    measured = [trial for trial in record.trials if trial.objective is not None]
    warm_up = record.config.e_step.warmup_epochs
    if not swept or not measured or any(trial.epochs > warm_up for trial in measured):
        return None
    meaning = (
        f"{listed(swept)} act from the first E-step, after {count(warm_up, 'epoch')} of warm-up, and no trial"
        " came so far: what they differ by is chance."
    )
    return Finding(
        "before_clusters", "warning", "No trial made prototypes", meaning, ("a shorter e_step.warmup_epochs",)
    )


def unfinished(record: SweepRecord) -> Finding | None:
    """A sweep that was stopped before its end."""
    left = max(record.planned, len(record.trials)) - sum(
        trial.state != "unfinished" for trial in record.trials
    )
    if record.state != "stopped" or not left:
        return None
    meaning = f"{count(left, 'trial')} of {max(record.planned, len(record.trials))} have not ended."
    advice = (f"go on with it: pcl-ray sweep --resume {record.name}",)
    return Finding("unfinished", "note", "The sweep was stopped before its end", meaning, advice)


def _of_best_run(record: SweepRecord) -> list[Finding]:
    """What the doctor finds in the best configuration's first trial that concerns the sweep as a whole."""
    best = record.best
    run = record.runs.get(best.trials[0].run_name) if best is not None else None
    if run is None:
        return []
    return [
        replace(finding, title=f"Best trial: {finding.title[:1].lower()}{finding.title[1:]}")
        for finding in diagnosis.findings(run)
        if finding.rule in _OF_THE_BEST
    ]


RULES: tuple[Callable[[SweepRecord], Finding | None], ...] = (
    failed,
    no_winner,
    refused,
    before_clusters,
    recipe,
    luck,
    alike,
    at_the_edge,
    without_effect,
    unfinished,
)
