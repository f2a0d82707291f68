"""What differs between runs: knobs, figures at the same epoch and at the end, and sentences about both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pcl_ray.config import figures, properties
from pcl_ray.config.figures import Figure
from pcl_ray.report.curves import clustering_names
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.summary import setting
from pcl_ray.support.text import listed, measured_duration, number

_SAME = 0.1  # times that differ by less than this share are called the same
_PLUS_MINUS = "±: 95 %, from the number of held-out images"
_NAMED = 4  # knobs that a sentence names


@dataclass(frozen=True)
class Measure:
    """A figure to compare runs by. better: 1 where more is, −1 where less is, 0 where it ranks no runs."""

    title: str
    better: int
    at: Callable[[RunRecord, int], float | None]  # after that many epochs
    write: Callable[[float], str] = number
    relative: bool = False  # differences in per cent
    note: str = ""
    is_aim: bool = True  # whether the best value is worth marking: of a sign that may mislead it is not
    error: Callable[[RunRecord, int], float | None] | None = None  # its ±


@dataclass(frozen=True)
class KnobValues:
    """The values that a knob has in the runs."""

    name: str
    values: tuple[Any, ...]  # one for each run

    def differs(self, run: int) -> bool:
        """Whether the run's value is not the first run's."""
        return self.values[run] != self.values[0]

    @property
    def silent(self) -> bool:
        """Whether no figure depends on the knob."""
        return not properties(self.name).changes_figures


def letters(records: Sequence[RunRecord]) -> list[str]:
    """A, B, … by which runs are called, whose names may be long or alike."""
    return [chr(65 + n % 26) + (str(n // 26 + 1) if n >= 26 else "") for n in range(len(records))]


def differing(records: Sequence[RunRecord]) -> list[KnobValues]:
    """Knobs that not all runs have the same value of, in the configuration's order."""
    flat = [record.config.flatten() for record in records]
    knobs = [KnobValues(name, tuple(values.get(name) for values in flat)) for name in flat[0]]
    return [knob for knob in knobs if any(knob.differs(run) for run in range(len(flat)))]


def common_evaluation(records: Sequence[RunRecord]) -> int | None:
    """The last epoch after which every run was evaluated; None where there is none."""
    evaluated = [
        {int(epoch) for figure in figures.OBJECTIVES for epoch, _ in record.finite(figure)}
        for record in records
    ]
    return max(set.intersection(*evaluated), default=None) if evaluated else None


def measures(records: Sequence[RunRecord], knobs: Sequence[KnobValues]) -> list[Measure]:
    """The measures that at least one run has."""
    changed = [knob.name for knob in knobs]
    losses_compare = not any(properties(name).scales_the_loss for name in changed)
    ranks_compare = "encoder.dim" not in changed
    rank_note = "" if ranks_compare else "of other dimensions: not to be compared"
    loss_note = "" if losses_compare else "on other scales: not to be compared"
    every = [
        Measure(
            figures.KNN_TOP1.label, 1, _value(figures.KNN_TOP1), note=_PLUS_MINUS, error=RunRecord.knn_error
        ),
        Measure(figures.HEAD_KNN_TOP1.label, 1, _value(figures.HEAD_KNN_TOP1)),
        *(Measure(line.label, 0, _value(line)) for line in (*figures.REFERENCES, figures.LARGEST_CLASS)),
        *_of_clusterings(records),
        Measure(
            figures.RANKME.label, int(ranks_compare), _value(figures.RANKME), note=rank_note, is_aim=False
        ),
        Measure(figures.LOSS.label, -int(losses_compare), _value(figures.LOSS), note=loss_note),
        Measure(figures.IMAGES_PER_SECOND.label, 1, _median(figures.IMAGES_PER_SECOND), relative=True),
        Measure(figures.E_STEP_SECONDS.label, -1, _median(figures.E_STEP_SECONDS), relative=True),
        Measure("Time", -1, time_until, measured_duration, relative=True, note="all epochs so far"),
    ]
    return [
        measure
        for measure in every
        if any(measure.at(record, record.epochs) is not None for record in records)
    ]


def _of_clusterings(records: Sequence[RunRecord]) -> list[Measure]:
    """The agreement of each clustering with the labels; K in its title where all runs have the same."""
    names = [clustering_names(record) for record in records]
    agreements = []
    for m in range(max(len(of_run) for of_run in names)):
        different = list(dict.fromkeys(of_run[m] for of_run in names if m < len(of_run)))
        alike = len(different) == 1
        title = (
            f"{figures.AMI.label}, {different[0]}" if alike else f"{figures.AMI.label}, clustering {m + 1}"
        )
        agreements.append(Measure(title, 1, _value(figures.AMI.at(m)), note="" if alike else "K differs"))
    return agreements


def _value(figure: Figure) -> Callable[[RunRecord, int], float | None]:
    """Reads the figure's value after an epoch, or the last before it where the run ended there."""

    def at(record: RunRecord, epoch: int) -> float | None:
        points = [point for point in record.finite(figure) if point[0] <= epoch]
        if epoch < record.epochs:
            points = [point for point in points if point[0] == epoch]
        return points[-1][1] if points else None

    return at


def _median(figure: Figure) -> Callable[[RunRecord, int], float | None]:
    """Reads the figure's median over the epochs until one."""

    def at(record: RunRecord, epoch: int) -> float | None:
        values = [value for when, value in record.finite(figure) if when <= epoch]
        return statistics.median_low(values) if values else None

    return at


def time_until(record: RunRecord, epoch: int) -> float | None:
    """Seconds of the epochs until then."""
    values = [
        value
        for figure in (figures.EPOCH_SECONDS, figures.OWED_SECONDS)
        for when, value in record.finite(figure)
        if when <= epoch
    ]
    return sum(values) if values else None


def best_of(measure: Measure, values: Sequence[float | None]) -> set[int]:
    """The runs with the best value; none where all are the same, or runs cannot be ranked by it."""
    measured = {run: value for run, value in enumerate(values) if value is not None}
    # what reads the same is equally good
    texts = {run: measure.write(value) for run, value in measured.items()}
    if not measure.better or not measure.is_aim or len(set(texts.values())) < 2:
        return set()
    top = max(measured, key=lambda run: measured[run] * measure.better)
    return {run for run in measured if texts[run] == texts[top]}


def difference(measure: Measure, value: float, first: float) -> str:
    """The difference of two values as it is written: "+0.038", "−12 %", "±0"."""
    if measure.relative:
        return _relative_difference(value, first)
    change = value - first
    largest = max(abs(value), abs(first))
    digits = next((digits for limit, digits in ((1, 3), (10, 2), (100, 1)) if largest < limit), 0)
    size = f"{abs(change):,.{digits}f}"
    if float(size.replace(",", "")) == 0:
        return "±0"
    return f"{'+' if change > 0 else '−'}{size}"


def _relative_difference(value: float, first: float) -> str:
    if first == 0:
        return ""
    change = 100 * (value / first - 1)
    if abs(change) < 0.5:
        return "±0 %"
    return f"{'+' if change > 0 else '−'}{abs(change):,.0f} %"


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """Why figures of these runs may not be compared."""
    return [*_different_images(records), *_different_epochs(records), *_unfinished(records)]


def _different_images(records: Sequence[RunRecord]) -> list[str]:
    names = letters(records)
    fingerprints = {record.fingerprint for record in records if record.fingerprint}
    if len(fingerprints) > 1 or len({record.num_images for record in records if record.num_images}) > 1:
        return [
            "The runs are on different images, so that differences of their figures may come from those"
            " alone."
        ]
    missing = [name for name, record in zip(names, records, strict=True) if not record.fingerprint]
    if fingerprints and missing:
        return [f"Nobody recorded which images {listed(missing)} saw: they may be others."]
    return []


def _different_epochs(records: Sequence[RunRecord]) -> list[str]:
    names = letters(records)
    texts = []
    if len({record.epochs for record in records}) > 1:
        done = [f"{name} {record.epochs:,}" for name, record in zip(names, records, strict=True)]
        texts.append(
            f"The runs have done different numbers of epochs ({', '.join(done)}): compare them where all were"
            " evaluated, not at their ends."
        )
    planned = {record.config.train.epochs for record in records}
    if len(planned) > 1 and any(record.config.optimizer.schedule == "cosine" for record in records):
        texts.append(
            "They were planned for different numbers of epochs, so that their learning rates differ at one"
            " and the same epoch."
        )
    return texts


def _unfinished(records: Sequence[RunRecord]) -> list[str]:
    unfinished = [
        f"{name} ({record.state})"
        for name, record in zip(letters(records), records, strict=True)
        if record.state != "finished"
    ]
    return [f"Not finished: {', '.join(unfinished)}."] if unfinished else []


def sentences(records: Sequence[RunRecord], knobs: Sequence[KnobValues], epoch: int | None) -> list[str]:
    """What can be said about each run beside the first, and what cannot."""
    names = letters(records)
    chief = _chief(records, measures(records, knobs), epoch)
    felt = [knob for knob in knobs if not knob.silent]
    texts = [_about(names, run, records, felt, chief, epoch) for run in range(1, len(records))]
    if any(sum(knob.differs(run) for knob in felt) > 1 for run in range(1, len(records))):
        texts.append("Where several knobs differ at once, no single one can be named as the cause.")
    return texts + _of_chance(names, records, felt, chief, epoch)


def _chief(records: Sequence[RunRecord], compared: Sequence[Measure], epoch: int | None) -> list[Measure]:
    """The measures of quality, at most two, that all runs have at that epoch; by labels if there are any."""
    if epoch is None:
        return []
    quality = [
        measure
        for measure in compared
        if measure.better
        and not measure.relative
        and measure.note in ("", _PLUS_MINUS)
        and measure.title != figures.LOSS.label
    ]
    common = [
        measure for measure in quality if all(measure.at(record, epoch) is not None for record in records)
    ]
    beside = {figures.RANKME.label}
    if any(measure.title == figures.KNN_TOP1.label for measure in common):
        beside.add(figures.HEAD_KNN_TOP1.label)  # the backbone's says more
    of_labels = [measure for measure in common if measure.title not in beside]
    return (of_labels or common)[:2]


def _about(
    names: Sequence[str],
    run: int,
    records: Sequence[RunRecord],
    knobs: Sequence[KnobValues],
    chief: Sequence[Measure],
    epoch: int | None,
) -> str:
    changed = [knob for knob in knobs if knob.differs(run)]
    if not changed:
        what = f"{names[run]} has the configuration of {names[0]}"
    elif len(changed) <= _NAMED:
        values = [
            f"{knob.name} {setting(knob.values[run])} instead of {setting(knob.values[0])}"
            for knob in changed
        ]
        what = f"{names[run]} has {listed(values)}"
    else:
        what = f"{names[run]} differs from {names[0]} in {len(changed)} knobs"
    effects = [_effect(measure, records[run], records[0], epoch) for measure in chief]
    measured = [effect for effect in effects if effect]
    if not measured:
        return f"{what}. There is no epoch after which both were evaluated."
    return f"{what}: {', '.join(measured)}{_cost(records[run], records[0], epoch)}."


def _effect(measure: Measure, record: RunRecord, first: RunRecord, epoch: int | None) -> str:
    """ "kNN top-1 0.934 instead of 0.912 (+0.022)"; "" where one of the two is not known."""
    value, value_of_first = measure.at(record, epoch or 0), measure.at(first, epoch or 0)
    if value is None or value_of_first is None:
        return ""
    change = difference(measure, value, value_of_first)
    return f"{measure.title} {measure.write(value)} instead of {measure.write(value_of_first)} ({change})"


def _cost(record: RunRecord, first: RunRecord, epoch: int | None) -> str:
    """ ", in 3 min instead of 2 min"; "" where one of the two is not known."""
    seconds, seconds_of_first = time_until(record, epoch or 0), time_until(first, epoch or 0)
    if not seconds or not seconds_of_first:
        return ""
    if abs(seconds / seconds_of_first - 1) < _SAME:
        return ", in about the same time"
    return f", in {measured_duration(seconds)} instead of {measured_duration(seconds_of_first)}"


def _of_chance(
    names: Sequence[str],
    records: Sequence[RunRecord],
    knobs: Sequence[KnobValues],
    chief: Sequence[Measure],
    epoch: int | None,
) -> list[str]:
    """How large differences by chance are, where runs differ in nothing but the seed."""
    groups: dict[str, list[int]] = {}
    for run in range(len(records)):
        groups.setdefault(str([knob.values[run] for knob in knobs if knob.name != "seed"]), []).append(run)
    texts = _of_few_images(records, chief, epoch)
    few = len(texts)
    for runs in groups.values():
        values = []
        if chief and epoch:
            values = [value for run in runs if (value := chief[0].at(records[run], epoch)) is not None]
        if len(values) > 1 and len({records[run].config.seed for run in runs}) > 1:
            spread = f"{chief[0].title} from {number(min(values))} to {number(max(values))}"
            texts.append(
                f"{listed([names[run] for run in runs])} differ in nothing but the seed: {spread}."
                " Differences of that size are chance."
            )
    if len(texts) > few:
        return texts
    return [
        *texts,
        "Each configuration ran with one seed, so that nobody can tell how much of a difference is chance;"
        " the same with other seeds would show it.",
    ]


def _of_few_images(records: Sequence[RunRecord], chief: Sequence[Measure], epoch: int | None) -> list[str]:
    """Which differences of the kNN accuracy the number of held-out images alone explains."""
    if not chief or not epoch or chief[0].error is None:
        return []
    errors = [error for record in records if (error := chief[0].error(record, epoch)) is not None]
    values = [value for record in records if (value := chief[0].at(record, epoch)) is not None]
    if not errors or len(values) < 2:
        return []
    largest, spread = max(errors), max(values) - min(values)
    if spread > largest * 2**0.5:
        return []
    return [
        f"{chief[0].title} is known to ± {number(largest)} with so few held-out images: the differences here,"
        f" up to {number(spread)}, may be chance."
    ]
