"""What differs between runs: knobs, figures at the same epoch and at the end, and careful sentences about
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pcl_ray.config import properties
from pcl_ray.report.curves import clustering_names
from pcl_ray.report.run_record import RunRecord
from pcl_ray.report.summary import middle, setting
from pcl_ray.support.text import measured_duration, number

_SAME = 0.1  # times that differ by less than this share are called the same
_NAMED = 4  # knobs that a sentence names


@dataclass(frozen=True)
class Measure:
    """A figure that counts. `better`: 1 where more is, −1 where less is, 0 where runs cannot be ranked by
    it.
    """

    title: str
    better: int
    at: Callable[[RunRecord, int], float | None]  # after that many epochs
    write: Callable[[float], str] = number
    relative: bool = False  # differences in per cent
    note: str = ""


@dataclass(frozen=True)
class Knob:
    name: str
    values: tuple[Any, ...]  # one a run

    def differs(self, run: int) -> bool:
        """From the first."""
        return self.values[run] != self.values[0]

    @property
    def silent(self) -> bool:
        """Whether no figure can depend on it."""
        return not properties(self.name).changes_figures


def letters(records: Sequence[RunRecord]) -> list[str]:
    """A, B, … by which runs are called, whose names may be long or alike."""
    return [chr(65 + n % 26) + (str(n // 26 + 1) if n >= 26 else "") for n in range(len(records))]


def differing(records: Sequence[RunRecord]) -> list[Knob]:
    """Knobs that not all runs have the same value of, in the configuration's order."""
    flat = [record.config.flatten() for record in records]
    knobs = [Knob(name, tuple(values.get(name) for values in flat)) for name in flat[0]]
    return [knob for knob in knobs if any(knob.differs(run) for run in range(len(flat)))]


def common_evaluation(records: Sequence[RunRecord]) -> int | None:
    """The last epoch after which every run was evaluated; None where there is none."""
    evaluated = [
        {int(epoch) for name in ("eval/knn_top1", "eval/rankme") for epoch, _ in record.finite(name)}
        for record in records
    ]
    both = set.intersection(*evaluated) if evaluated else set()
    return max(both) if both else None


def measures(records: Sequence[RunRecord], knobs: Sequence[Knob]) -> list[Measure]:
    """Those that at least one run has."""
    changed = [knob.name for knob in knobs]
    losses_compare = not any(properties(name).scales_the_loss for name in changed)
    ranks_compare = "encoder.dim" not in changed
    found = [
        Measure("kNN top-1", 1, _value("eval/knn_top1")),
        *_of_clusterings(records),
        Measure(
            "RankMe",
            1 if ranks_compare else 0,
            _value("eval/rankme"),
            note="" if ranks_compare else "of other dimensions: not to be compared",
        ),
        Measure(
            "Loss",
            -1 if losses_compare else 0,
            _value("train/loss"),
            note="" if losses_compare else "on other scales: not to be compared",
        ),
        Measure("Images a second", 1, _median("perf/images_per_second"), relative=True),
        Measure("Seconds of an E-step", -1, _median("perf/e_step_seconds"), relative=True),
        Measure("Time", -1, time_until, measured_duration, relative=True, note="all epochs so far"),
    ]
    return [
        measure
        for measure in found
        if any(measure.at(record, record.epochs) is not None for record in records)
    ]


def _of_clusterings(records: Sequence[RunRecord]) -> list[Measure]:
    names = [clustering_names(record) for record in records]
    made = []
    for m in range(max(len(of_run) for of_run in names)):
        alike = len({of_run[m] for of_run in names if m < len(of_run)}) == 1
        title = (
            f"AMI, {next(of_run[m] for of_run in names if m < len(of_run))}"
            if alike
            else f"AMI, clustering {m + 1}"
        )
        made.append(Measure(title, 1, _value(f"cluster/{m}/ami"), note="" if alike else "K differs"))
    return made


def _value(name: str) -> Callable[[RunRecord, int], float | None]:
    """Its value after that epoch, or the last before it where the run ended there."""

    def at(record: RunRecord, epoch: int) -> float | None:
        values = [
            value
            for when, value in record.finite(name)
            if (when <= epoch if epoch >= record.epochs else when == epoch)
        ]
        return values[-1] if values else None

    return at


def _median(name: str) -> Callable[[RunRecord, int], float | None]:
    def at(record: RunRecord, epoch: int) -> float | None:
        values = [value for when, value in record.finite(name) if when <= epoch]
        return middle(values) if values else None

    return at


def time_until(record: RunRecord, epoch: int) -> float | None:
    """Seconds of the epochs until then."""
    values = [
        value
        for name in ("perf/epoch_seconds", "perf/owed_seconds")
        for when, value in record.finite(name)
        if when <= epoch
    ]
    return sum(values) if values else None


def best_of(measure: Measure, values: Sequence[float | None]) -> set[int]:
    """The runs with the best value; none where all are the same, or runs cannot be ranked by it."""
    known = {run: value for run, value in enumerate(values) if value is not None}
    # what reads the same is equally good
    written = {run: measure.write(value) for run, value in known.items()}
    if not measure.better or len(set(written.values())) < 2:
        return set()
    top = max(known, key=lambda run: known[run] * measure.better)
    return {run for run in known if written[run] == written[top]}


def difference(measure: Measure, value: float, first: float) -> str:
    """ "+0.038", "−12 %", "±0"."""
    if measure.relative:
        if first == 0:
            return ""
        change = 100 * (value / first - 1)
        return "±0 %" if abs(change) < 0.5 else f"{'+' if change > 0 else '−'}{abs(change):,.0f} %"
    change = value - first
    largest = max(abs(value), abs(first))
    size = f"{abs(change):,.{3 if largest < 1 else 2 if largest < 10 else 1 if largest < 100 else 0}f}"
    return "±0" if float(size.replace(",", "")) == 0 else f"{'+' if change > 0 else '−'}{size}"


def warnings(records: Sequence[RunRecord]) -> list[str]:
    """Why figures of these runs may not be compared."""
    names = letters(records)
    said = []
    known = {record.fingerprint for record in records if record.fingerprint}
    if len(known) > 1 or len({record.num_images for record in records if record.num_images}) > 1:
        said.append(
            "The runs are on different images, so that differences of their figures may come from those"
            " alone."
        )
    elif known and not all(record.fingerprint for record in records):
        missing = [name for name, record in zip(names, records, strict=True) if not record.fingerprint]
        said.append(f"Nobody recorded which images {listed(missing)} saw: they may be others.")
    if len({record.epochs for record in records}) > 1:
        done = [f"{name} {record.epochs:,}" for name, record in zip(names, records, strict=True)]
        said.append(
            f"The runs have done different numbers of epochs ({', '.join(done)}): compare them where all were"
            " evaluated, not at their ends."
        )
    planned = {record.config.train.epochs for record in records}
    if len(planned) > 1 and any(record.config.optimizer.schedule == "cosine" for record in records):
        said.append(
            "They were planned for different numbers of epochs, so that their learning rates differ at one"
            " and the same epoch."
        )
    unfinished = [
        f"{name} ({record.state})"
        for name, record in zip(names, records, strict=True)
        if record.state != "finished"
    ]
    return [*said, f"Not finished: {', '.join(unfinished)}."] if unfinished else said


def sentences(records: Sequence[RunRecord], knobs: Sequence[Knob], epoch: int | None) -> list[str]:
    """What can be said about each run beside the first, and what cannot."""
    names = letters(records)
    chief = _chief(records, measures(records, knobs), epoch)
    felt = [knob for knob in knobs if not knob.silent]
    said = [_about(names, run, records, felt, chief, epoch) for run in range(1, len(records))]
    if any(sum(knob.differs(run) for knob in felt) > 1 for run in range(1, len(records))):
        said.append("Where several knobs differ at once, no single one can be named as the cause.")
    return said + _of_chance(names, records, felt, chief, epoch)


def _chief(records: Sequence[RunRecord], found: Sequence[Measure], epoch: int | None) -> list[Measure]:
    """At most two figures of quality that all runs have at that epoch."""
    if epoch is None:
        return []
    quality = [
        measure
        for measure in found
        if measure.better and not measure.relative and not measure.note and measure.title != "Loss"
    ]
    known = [
        measure for measure in quality if all(measure.at(record, epoch) is not None for record in records)
    ]
    of_labels = [measure for measure in known if measure.title != "RankMe"]
    return (of_labels or known)[:2]


def _about(
    names: Sequence[str],
    run: int,
    records: Sequence[RunRecord],
    knobs: Sequence[Knob],
    chief: Sequence[Measure],
    epoch: int | None,
) -> str:
    changed = [knob for knob in knobs if knob.differs(run)]
    if not changed:
        what = f"{names[run]} has the configuration of {names[0]}"
    elif len(changed) <= _NAMED:
        what = f"{names[run]} has " + listed(
            [
                f"{knob.name} {setting(knob.values[run])} instead of {setting(knob.values[0])}"
                for knob in changed
            ]
        )
    else:
        what = f"{names[run]} differs from {names[0]} in {len(changed)} knobs"
    outcome = [told for measure in chief if (told := _outcome(measure, records[run], records[0], epoch))]
    if not outcome:
        return f"{what}. There is no epoch after which both were evaluated."
    return f"{what}: {', '.join(outcome)}{_cost(records[run], records[0], epoch)}."


def _outcome(measure: Measure, record: RunRecord, first: RunRecord, epoch: int | None) -> str:
    here, there = (measure.at(one, epoch or 0) for one in (record, first))
    if here is None or there is None:
        return ""
    return (
        f"{measure.title} {measure.write(here)} instead of {measure.write(there)}"
        f" ({difference(measure, here, there)})"
    )


def _cost(record: RunRecord, first: RunRecord, epoch: int | None) -> str:
    here, there = (time_until(one, epoch or 0) for one in (record, first))
    if not here or not there:
        return ""
    if abs(here / there - 1) < _SAME:
        return ", in about the same time"
    return f", in {measured_duration(here)} instead of {measured_duration(there)}"


def _of_chance(
    names: Sequence[str],
    records: Sequence[RunRecord],
    knobs: Sequence[Knob],
    chief: Sequence[Measure],
    epoch: int | None,
) -> list[str]:
    """How large differences by chance are, where runs differ in nothing but the seed."""
    groups: dict[str, list[int]] = {}
    for run in range(len(records)):
        groups.setdefault(str([knob.values[run] for knob in knobs if knob.name != "seed"]), []).append(run)
    said = []
    for runs in groups.values():
        values = [
            value
            for run in runs
            if chief and epoch and (value := chief[0].at(records[run], epoch)) is not None
        ]
        if (
            len(runs) > 1
            and len(values) > 1
            and any(records[run].config.seed != records[runs[0]].config.seed for run in runs)
        ):
            spread = f"{chief[0].title} from {number(min(values))} to {number(max(values))}"
            said.append(
                f"{listed([names[run] for run in runs])} differ in nothing but the seed: {spread}."
                " Differences of that size are chance."
            )
    if said:
        return said
    return [
        "Each configuration ran with one seed, so that nobody can tell how much of a difference is chance;"
        " the same with other seeds would show it."
    ]


def listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
