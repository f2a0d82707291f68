"""Every option that may help an encoder learn, one at a time, against one base setting.

    python benchmarks/levers.py run --minutes 30   # what is left of it, for so long; two at once share it
    python benchmarks/levers.py list               # what is done, under way, left
    python benchmarks/levers.py report             # tables into benchmarks/RESULTS.md
    python benchmarks/levers.py run --quick        # a minute: everything runs; says nothing about learning
    python benchmarks/levers.py run --bases pcl    # the general options on top of prototypes, too

20,000 images of Fashion-MNIST, 8 epochs, seeds from 100 on: images and seeds to choose settings on, of which
nothing is reported elsewhere. Each run appends a line to benchmarks/levers_results.jsonl; one that is stopped
goes on from its last epoch. A run takes about a minute of a core, all of them some three hours.
Settings are in levers_settings.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a run; read when torch is loaded

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import levers_settings as settings
import study_report
import study_runs
import torch
from levers_settings import BASE, BASES, LEVERS, SEEDS, Run
from study_report import Difference, difference, median_ratio, table_line
from study_runs import Images, Pause, Row
from study_settings import FIRST_TUNING_SEED

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.checkpoints import epoch_files
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, DataError, RunFailed

RESULTS = Path(__file__).parent / "levers_results.jsonl"
DOCUMENT = Path(__file__).parent / "RESULTS.md"
BEGIN, END = "<!-- levers: written by `levers.py report` -->", "<!-- end of levers -->"
SORTED_BY = ("backbone", "knn_20")
COLUMNS = {
    ("backbone", "knn_20"): "kNN 20",
    ("backbone", "linear"): "linear",
    ("backbone", "one_label"): "1 label",
    ("backbone", "five_labels"): "5 labels",
    ("backbone", "ami"): "AMI",
    ("backbone", "accuracy"): "cluster accuracy",
    ("head", "knn_20"): "head: kNN 20",
}


def main() -> int:
    arguments = _parser().parse_args()
    try:
        return _verb(arguments)
    except DataError as error:  # which says by itself which package is missing
        print(error, file=sys.stderr)
        return 2


def _verb(arguments: argparse.Namespace) -> int:
    if arguments.verb == "report":
        return _report(arguments.results, arguments.document, arguments.json)
    wanted = _wanted(arguments)
    if arguments.verb == "list":
        return study_runs.show(wanted, arguments.results)
    torch.set_num_threads(1)
    if not arguments.quick:
        os.nice(19)
        return _run(wanted, arguments)
    with tempfile.TemporaryDirectory() as folder:
        arguments.results, arguments.work = Path(folder, "results.jsonl"), Path(folder, "work")
        _run(settings.quick_runs(), arguments)
        return _quick_report(arguments.results, arguments.json)


def _parser() -> argparse.ArgumentParser:
    options = study_runs.parser(__doc__, RESULTS, "levers")
    options.add_argument(
        "--bases",
        nargs="+",
        metavar="BASE",
        help=f"of {', '.join(BASES)} (default: levers of prototypes on pcl, all others on infonce)",
    )
    options.add_argument("--levers", nargs="+", metavar="LEVER", help=f"of {', '.join(LEVERS)}")
    options.add_argument("--seeds", type=int, nargs="+", help=f"default: {' '.join(map(str, SEEDS))}")
    options.add_argument("--document", type=Path, default=DOCUMENT, help="where tables are written (report)")
    return options


def _wanted(arguments: argparse.Namespace) -> list[Run]:
    """The runs that were asked for, in their order. Raises ConfigError for names and seeds that cannot be."""
    study_runs.check_names("--bases", arguments.bases, BASES)
    study_runs.check_names("--levers", arguments.levers, LEVERS)
    seeds = tuple(arguments.seeds or SEEDS)
    if min(seeds) < FIRST_TUNING_SEED:
        raise ConfigError(
            f"--seeds: those below {FIRST_TUNING_SEED} are the study's, nothing is chosen by them"
        )
    bases = tuple(arguments.bases) if arguments.bases else None
    return settings.runs(bases, seeds, set(arguments.levers) if arguments.levers else None)


# --- one run


def _run(wanted: list[Run], arguments: argparse.Namespace) -> int:
    """Makes what is left, one run after the other, until it is done or time is up."""
    work = study_runs.work_folder(arguments.work, "levers")
    loaded: dict[str, Images] = {}

    def row_of(run: Run, done: dict[str, Row], pause: Pause) -> Row | None:
        name = "quick" if run.quick else "fashion_mnist"
        if name not in loaded:
            channels = settings.knobs_of(run)["data.channels"]
            loaded[name] = study_runs.images_of(name, channels, arguments.data, tuning=True)
        return _row(run, loaded[name], work, pause)

    return study_runs.make(wanted, row_of, arguments.results, work, minutes=arguments.minutes)


def _row(run: Run, images: Images, work: Path, pause: Pause) -> Row | None:
    """The line of a run, None where time was up first. A run that fails has a line that says why."""
    import study_evaluation as evaluation  # scikit-learn takes seconds
    import study_training as training

    from pcl_ray.training.local_e_step import LocalEStep
    from pcl_ray.training.training_task import TrainingTask

    row: Row = {"base": run.base, "lever": run.lever, "seed": run.seed, "digest": run.digest}
    row |= {"quick": run.quick, "data": images.checksum}
    splits, device = images.splits, torch.device("cpu")
    start = time.perf_counter()
    try:
        config = config_of(run, str(images.path))
        plan = plans.make(config, len(splits.train), splits.num_holdout)
        run_dir = training.run_folder(run, work)
        task = TrainingTask(config, plan, str(run_dir))
        e_step = LocalEStep(config, splits)
        seconds = training.trained_part(task, splits, device, e_step, plan.epochs, pause)
        checkpoint = epoch_files.latest(task.checkpoints)
        assert checkpoint is not None
        result = training.Trained(checkpoint, config, plan, seconds, warm_up_seconds=0.0)
        row |= training.described(result, settings.warmup_epochs(plan.epochs))
        row |= evaluation.of_checkpoint(checkpoint, config, splits, device)
        training.tidy(run_dir)
    except training.Paused:
        return None
    except RunFailed as failure:
        row["failed"] = str(failure)
    return row | study_runs.origin(start)


def config_of(run: Run, data_path: str) -> RunConfig:
    """The configuration of a run."""
    import study_training as training

    knobs = settings.knobs_of(run) | training.machinery()
    return configs.with_overrides(RunConfig(), knobs | {"data.path": data_path, "seed": run.seed})


# --- the report


class Results:
    """The lines that are of today's settings, by base and lever."""

    def __init__(self, rows: list[Row]):
        self.others = 0
        self.rows: list[Row] = []
        self._rows: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            known = row["base"] in BASES and row["lever"] in (BASE, *LEVERS)
            if not known or Run(row["base"], row["lever"], row["seed"], row["quick"]).digest != row["digest"]:
                self.others += 1
                continue
            self.rows.append(row)
            self._rows.setdefault((row["base"], row["lever"]), {})[row["seed"]] = row

    def levers(self, base: str) -> list[str]:
        """Those with a line, in the order of the settings."""
        return [lever for lever in (BASE, *LEVERS) if (base, lever) in self._rows]

    def of(self, base: str, lever: str, part: str, figure: str) -> dict[int, float]:
        """A figure by seed."""
        rows = self._rows.get((base, lever), {})
        return {seed: row[part][figure] for seed, row in rows.items() if figure in row.get(part, {})}

    def seconds(self, base: str, lever: str) -> dict[int, float]:
        """CPU seconds of training by seed."""
        rows = self._rows.get((base, lever), {})
        return {seed: row["seconds"] for seed, row in rows.items() if "seconds" in row}

    def failures(self) -> Iterator[str]:
        for (base, lever), rows in self._rows.items():
            for seed, row in rows.items():
                if "failed" in row:
                    yield f"{BASES[base]}, {lever}, seed {seed}: {row['failed']}"


def _report(file: Path, document: Path, json_file: Path | None) -> int:
    """Writes the tables into the document. Exit code 2 where there are no results."""
    results = Results(study_runs.lines(file))
    if not results.rows:
        print(f"{file} has no results of these settings; `levers.py run` makes them")
        return 2
    text = "\n".join(tables(results))
    study_report.insert(document, text, BEGIN, END)
    print(text)
    print(f"written: {document}")
    _json(results, quick=False).write(json_file)
    return 0


def _quick_report(file: Path, json_file: Path | None) -> int:
    """The report of --quick: nothing is left of it but the JSON file."""
    results = Results(study_runs.lines(file))
    print("\n".join(tables(results)))
    _json(results, quick=True).write(json_file)
    return 1 if list(results.failures()) else 0


def _json(results: Results, *, quick: bool) -> common.Report:
    """What other benchmarks write. Nothing is claimed: the levers are there to choose by."""
    report = common.Report("levers", quick)
    report.rows = results.rows
    return report


def tables(results: Results) -> Iterator[str]:
    """The report in Markdown, line by line."""
    yield from _means(results)
    for base, title in BASES.items():
        yield from _differences(results, (base, base), f"Levers on {title}: each less {title} without it")
    title = "Each setting with prototypes less InfoNCE"
    yield from _differences(results, ("pcl", "infonce"), title)
    failed = list(results.failures())
    machines = {str(row["machine"]).partition(", load")[0] for row in results.rows}
    dates = sorted(row["date"][:10] for row in results.rows)
    yield (
        f"{len(results.rows)} runs, {dates[0]} to {dates[-1]}, {'; '.join(sorted(machines))};"
        f" {results.others} lines of other settings are left out; {len(failed)} runs failed."
    )
    yield ""
    yield from (f"- {text}" for text in failed)


def _means(results: Results) -> Iterator[str]:
    """What the bases themselves reach: mean ± standard deviation over the seeds, in per cent."""
    yield table_line("", "seeds", *COLUMNS.values(), "CPU s")
    yield table_line("---", *["---:"] * (len(COLUMNS) + 2))
    for base, title in BASES.items():
        seconds = results.seconds(base, BASE)
        if seconds:
            cells = [study_report.mean_and_spread(results.of(base, BASE, *column)) for column in COLUMNS]
            yield table_line(title, len(seconds), *cells, f"{statistics.mean(seconds.values()):.0f}")
    yield ""


def _differences(results: Results, bases: tuple[str, str], title: str) -> Iterator[str]:
    """What each lever of the first base gains over the second, the most helpful first."""
    first, second = bases
    config = config_of(Run(first, BASE, SEEDS[0]), "")
    values = {f"{section}.{name}": value for section, name, value in _knobs(config)}
    found: list[tuple[Difference, str, list[Any]]] = []
    for lever in results.levers(first):
        if lever == BASE and first == second:
            continue
        bars = [
            difference(results.of(first, lever, *column), results.of(second, BASE, *column))
            for column in COLUMNS
        ]
        effect = bars[list(COLUMNS).index(SORTED_BY)]
        if effect is not None:
            ratio = median_ratio(results.seconds(first, lever), results.seconds(second, BASE))
            name = BASES[first] if lever == BASE else settings.described(lever, values)
            found.append((effect, name, [_shown(bar) for bar in bars] + [ratio]))
    if not found:
        return
    yield f"**{title}**, points [95 % interval], sorted by kNN\n"
    yield table_line("", "by kNN", "pairs", *COLUMNS.values(), "CPU time")
    yield table_line("---", "---", *["---:"] * (len(COLUMNS) + 2))
    for effect, name, cells in sorted(found, key=lambda entry: -entry[0].mean):
        yield table_line(name, _verdict(effect), effect.pairs, *cells)
    yield ""


def _knobs(config: RunConfig) -> Iterator[tuple[str, str, Any]]:
    for section, content in config.model_dump(mode="json").items():
        if isinstance(content, dict):
            yield from ((section, name, value) for name, value in content.items())


def _verdict(effect: Difference) -> str:
    """Whether the interval is above or below nothing."""
    if effect.pairs > 1 and effect.low > 0:
        return "gain"
    return "loss" if effect.pairs > 1 and effect.high < 0 else "open"


def _shown(bar: Difference | None) -> str:
    """A difference; in bold where its interval leaves out 0."""
    if bar is None:
        return ""
    return str(bar) if _verdict(bar) == "open" else f"**{bar}**"


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
