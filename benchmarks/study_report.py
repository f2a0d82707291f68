"""Tables and figures out of the study's lines of results: means, paired differences, 95 % intervals.

A difference is one of the same seed and data set: both arms went on from the same weights. Its interval is
Student's t over the seeds. Lines of other settings than those of study_settings.py are counted and left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import study_overview
import study_runs
from study_settings import ABLATION_TASK, ABLATIONS, ARMS, FIRST_TUNING_SEED, MAIN, REFERENCES, TASKS, Run

Row = dict[str, Any]

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results: written by `study.py report` -->", "<!-- end of results -->"
FIGURES = {
    "ami": "AMI",
    "accuracy": "cluster accuracy",
    "one_label": "1 label",
    "five_labels": "5 labels",
    "knn_20": "kNN 20",
    "knn_200": "kNN 200",
    "linear": "linear",
}
PRIMARY = ("ami", "accuracy", "one_label", "five_labels")
COMPARISONS = {"infonce": "InfoNCE", "infonce_longer": "InfoNCE, as long", "pcl_shuffled": "PCL, shuffled"}
_COLOURS = {"infonce": "#4c72b0", "infonce_longer": "#55a868", "pcl_shuffled": "#c44e52"}


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with the ends of its 95 % interval (NaN for a single pair)."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if self.pairs < 2:
            return f"{100 * self.mean:+.1f} (n = 1)"
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def difference(one: dict[int, float], other: dict[int, float]) -> Difference | None:
    """One less the other over the seeds that both have; None where there is no such seed."""
    each = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if not each:
        return None
    mean = statistics.mean(each)
    if len(each) == 1:
        return Difference(mean, float("nan"), float("nan"), 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
    return Difference(mean, mean - half, mean + half, len(each))


class Results:
    """The lines that are of today's settings, by data set and arm."""

    def __init__(self, rows: list[Row], device: str):
        self.others = 0
        self._rows: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            if row["device"] != device or row["seed"] >= FIRST_TUNING_SEED:
                continue
            run = Run(row["task"], row["arm"], row["seed"], device)
            if row["arm"] not in ARMS or run.digest != row["digest"]:
                self.others += 1
                continue
            self._rows.setdefault((row["task"], row["arm"]), {})[row["seed"]] = row

    def rows(self, task: str, arm: str) -> list[Row]:
        """Of all seeds, failed ones too."""
        return list(self._rows.get((task, arm), {}).values())

    def of(self, task: str, arm: str, figure: str, part: str = "backbone") -> dict[int, float]:
        """A figure by seed."""
        rows = self._rows.get((task, arm), {})
        return {seed: row[part][figure] for seed, row in rows.items() if figure in row.get(part, {})}

    def difference(
        self, task: str, one: str, other: str, figure: str, part: str = "backbone"
    ) -> Difference | None:
        return difference(self.of(task, one, figure, part), self.of(task, other, figure, part))

    @property
    def tasks(self) -> list[str]:
        present = {task for task, _ in self._rows}
        return [task for task in (*TASKS, "quick") if task in present]

    def failures(self) -> Iterator[str]:
        for (task, arm), rows in self._rows.items():
            for seed, row in rows.items():
                if "failed" in row:
                    yield f"{task}, {ARMS[arm].title}, seed {seed}: {row['failed']}"


def main(file: Path, json_file: Path | None, device: str) -> int:
    """Writes tables into docs/study.md and the README, and figures into docs. Exit code 2 where there are no
    results.
    """
    results = Results(study_runs.lines(file), device)
    if not results.tasks:
        print(f"{file} has no results of these settings on {device}; `study.py run` makes them")
        return 2
    suffix = "" if device == "cpu" else f"_{device}"
    pictures = _draw(results, DOCS, suffix)
    text = "\n".join([*_tables(results), *(f"![{title}]({name})\n" for name, title in pictures)])
    document = DOCS / f"study{suffix}.md"
    insert(document, text)
    if device == "cpu":
        study_overview.draw(results, DOCS / "learning.svg")
        overview = "\n".join(study_overview.table(results))
        insert(DOCS.parent / "README.md", f"{overview}\n", study_overview.BEGIN, study_overview.END)
    print(text)
    print(f"written: {document}, {', '.join(name for name, _ in pictures)}")
    _claims(results, file, quick=False).write(json_file)
    return 0


def quick(file: Path, json_file: Path | None) -> int:
    """The report of --quick: everything is computed and drawn, nothing is left of it but the JSON file."""
    results = Results(study_runs.lines(file), "cpu")
    print("\n".join(_tables(results)))
    _draw(results, file.parent, "")
    failed = list(results.failures())
    _claims(results, file, quick=True).write(json_file)
    return 1 if failed else 0


def insert(document: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Puts the results between their marks, at the end where there are none."""
    whole = document.read_text(encoding="utf-8") if document.is_file() else "# The study on a GPU\n\n"
    before, _, rest = whole.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n\n{text}\n{end}{after or chr(10)}", encoding="utf-8")


# --- tables


def _tables(results: Results) -> Iterator[str]:
    for task in results.tasks:
        yield from _means(results, task)
        yield from _differences(results, task)
    yield from _ablations(results)
    failed = list(results.failures())
    lines = sum(len(results.rows(task, arm)) for task in results.tasks for arm in ARMS)
    yield f"{lines} runs; {results.others} lines of other settings are left out; {len(failed)} runs failed."
    yield ""
    yield from (f"- {text}" for text in failed)


def _means(results: Results, task: str) -> Iterator[str]:
    """Mean ± standard deviation over the seeds, in per cent."""
    figures = [name for name in FIGURES if any(results.of(task, arm, name) for arm in ARMS)]
    yield f"### {task}\n"
    yield table_line(
        "", "seeds", *(FIGURES[name] for name in figures), "head: AMI", "head: kNN 20", "epochs", "CPU s"
    )
    yield table_line("---", *["---:"] * (len(figures) + 5))
    for arm in (*MAIN, *REFERENCES):
        rows = results.rows(task, arm)
        if not rows:
            continue
        cells = [mean_and_spread(results.of(task, arm, name)) for name in figures]
        cells += [mean_and_spread(results.of(task, arm, name, "head")) for name in ("ami", "knn_20")]
        lengths = sorted({row["epochs"] for row in rows if "epochs" in row})
        cells.append("–".join(map(str, (lengths[0], lengths[-1]) if len(lengths) > 1 else lengths)))
        seconds = [row["seconds"] + row["warm_up_seconds"] for row in rows if "seconds" in row]
        cells.append(f"{statistics.mean(seconds):.0f}" if seconds else "")
        yield table_line(ARMS[arm].title, len(rows), *cells)
    yield ""


def mean_and_spread(values: dict[int, float]) -> str:
    """The mean ± the standard deviation over the seeds, in per cent."""
    if not values:
        return ""
    numbers = [100 * value for value in values.values()]
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{spread}"


def _differences(results: Results, task: str) -> Iterator[str]:
    """PCL less each of the other arms, points."""
    figures = [name for name in FIGURES if results.of(task, "pcl", name)]
    lines = []
    for other, title in COMPARISONS.items():
        found = [results.difference(task, "pcl", other, name) for name in figures]
        if any(found):
            pairs = max(one.pairs for one in found if one)
            lines.append(table_line(f"PCL − {title}", pairs, *(one or "" for one in found)))
    if lines:
        yield table_line("points [95 % interval]", "pairs", *(FIGURES[name] for name in figures))
        yield table_line("---", *["---:"] * (len(figures) + 1))
        yield from lines
        yield ""


def _ablations(results: Results) -> Iterator[str]:
    """Each variant less PCL, points."""
    lines = []
    figures = [name for name in FIGURES if results.of(ABLATION_TASK, "pcl", name)]
    for task in [ABLATION_TASK, "quick"]:
        for arm, settings in ABLATIONS.items():
            found = [results.difference(task, arm, "pcl", name) for name in figures or PRIMARY]
            if any(found):
                pairs = max(one.pairs for one in found if one)
                ratio = _ratio(results, task, arm)
                lines.append(table_line(settings.title, pairs, *(one or "" for one in found), ratio))
    if lines:
        yield f"### Ablations ({ABLATION_TASK}): the variant less PCL, points [95 % interval]\n"
        yield table_line("", "pairs", *(FIGURES[name] for name in figures or PRIMARY), "CPU time, of PCL's")
        yield table_line("---", *["---:"] * (len(figures or PRIMARY) + 2))
        yield from lines
        yield ""


def _ratio(results: Results, task: str, arm: str) -> str:
    """That of an arm's training time after the warm-up to PCL's."""
    ours, theirs = (
        {row["seed"]: row["seconds"] for row in results.rows(task, name) if "seconds" in row}
        for name in (arm, "pcl")
    )
    return median_ratio(ours, theirs)


def median_ratio(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The median over the seeds that both have of one by the other."""
    each = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys()]
    return f"{statistics.median(each):.2f}" if each else ""


def table_line(*cells: Any) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


# --- figures


def _draw(results: Results, folder: Path, suffix: str) -> list[tuple[str, str]]:
    """Writes the figures; gives back the name and the title of each."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "study", "font.size": 8, "svg.fonttype": "none"})
    written = []
    tasks = [task for task in results.tasks if any(_bars(results, task, "ami"))]
    if tasks:
        name = f"study_differences{suffix}.svg"
        _draw_differences(results, tasks, folder / name)
        written.append((name, "PCL less the other arms, points with 95 % intervals"))
    variants = [arm for arm in ABLATIONS if results.difference(ABLATION_TASK, arm, "pcl", "ami")]
    if variants:
        name = f"study_ablations{suffix}.svg"
        _draw_ablations(results, variants, folder / name)
        written.append((name, "Variants less PCL, points with 95 % intervals"))
    return written


def _bars(results: Results, task: str, figure: str) -> Iterator[tuple[str, Difference]]:
    for other in COMPARISONS:
        found = results.difference(task, "pcl", other, figure)
        if found is not None:
            yield other, found


def _draw_differences(results: Results, tasks: list[str], path: Path) -> None:
    """A panel for each primary figure and full kNN, a group of bars for each data set."""
    from matplotlib import pyplot

    panels = (*PRIMARY, "knn_20")
    figure, axes = pyplot.subplots(
        1, len(panels), sharey=True, figsize=(2.1 * len(panels), 0.8 + 0.62 * len(tasks))
    )
    for axis, name in zip(axes, panels, strict=True):
        for row, task in enumerate(tasks):
            for offset, (other, bar) in enumerate(_bars(results, task, name)):
                _draw_bar(axis, bar, row + 0.24 * (offset - 1), _COLOURS[other], COMPARISONS[other], row == 0)
        _finish(axis, FIGURES[name])
    study_overview.save_rows(figure, axes, tasks, path, legend_columns=3)


def _draw_ablations(results: Results, variants: list[str], path: Path) -> None:
    from matplotlib import pyplot

    panels = (*PRIMARY, "knn_20")
    figure, axes = pyplot.subplots(
        1, len(panels), sharey=True, figsize=(2.1 * len(panels), 0.6 + 0.28 * len(variants))
    )
    for axis, name in zip(axes, panels, strict=True):
        for row, arm in enumerate(variants):
            bar = results.difference(ABLATION_TASK, arm, "pcl", name)
            if bar is not None:
                _draw_bar(axis, bar, row, "#4c72b0", "", False)
        _finish(axis, FIGURES[name])
    study_overview.save_rows(figure, axes, [ABLATIONS[arm].title for arm in variants], path)


def _draw_bar(axis: Any, bar: Difference, height: float, colour: str, label: str, with_label: bool) -> None:
    if bar.pairs > 1:
        axis.plot([100 * bar.low, 100 * bar.high], [height, height], color=colour, linewidth=1.5)
    axis.plot(
        [100 * bar.mean], [height], "o", color=colour, markersize=3.5, label=label if with_label else None
    )


def _finish(axis: Any, title: str) -> None:
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_title(title, fontsize=8)
    axis.set_xlabel("points")
    axis.spines[["top", "right"]].set_visible(False)


# --- claims


def _claims(results: Results, file: Path, *, quick: bool) -> common.Report:
    """What the hypotheses of docs/study.md come to, as other benchmarks write it. Nothing fails by them."""
    report = common.Report("study", quick)
    report.rows = [row for row in study_runs.lines(file) if row["task"] in results.tasks]
    for task in results.tasks:
        for figure in PRIMARY:
            for other, bar in _bars(results, task, figure):
                if bar.pairs > 1:
                    report.claim(
                        f"{task}: {FIGURES[figure]} of PCL less that of {COMPARISONS[other]}, low end",
                        bar.low,
                        at_least=0.0,
                        full_size=True,
                    )
    return report
