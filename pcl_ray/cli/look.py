"""`pcl-ray runs`, `report`, `compare`, `doctor` and `ui`: the verbs that look at runs and train none."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from pcl_ray.cli.output import print_table, public_tracking_uri
from pcl_ray.cli.verb import Verb, add_experiment_argument
from pcl_ray.errors import ConfigError
from pcl_ray.support.paths import home
from pcl_ray.support.text import count, suggestion

_MOST_RUNS = 20


def _add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    add_experiment_argument(parser)
    parser.add_argument("--state", default="", help="only these: running, finished, stopped or failed")
    parser.add_argument("--limit", type=int, default=30, metavar="N", help="the newest N")
    parser.add_argument("--trials", action="store_true", help="the trials of sweeps too")
    parser.add_argument("--json", action="store_true", help="as JSON, with everything that is known")


def _runs(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status
    from pcl_ray.tracking import run_list

    if arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: 1 or more")
    status.local_runs()  # what was killed reads so in MLflow too
    status.close_ended(arguments.experiment)
    recorded_runs = run_list.recorded(
        status.uri(),
        arguments.experiment,
        limit=arguments.limit,
        trials=arguments.trials,
        state=arguments.state,
    )
    if arguments.json:
        print(json.dumps(status.as_json(recorded_runs), indent=2))
    elif not recorded_runs:
        print(
            f"no {arguments.state + ' ' if arguments.state else ''}runs in the experiment"
            f" {arguments.experiment!r} at {public_tracking_uri()}"
        )
    else:
        rows = status.recorded_rows(recorded_runs)
        print_table(lambda say: status.table(rows, say, dated=True))
    return 0


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="name of a run or a sweep: what it has shown; left out: whether this machine is fit for runs",
    )


def _doctor(arguments: argparse.Namespace) -> int:
    """Exit code 1 where the machine has a fault. A run's findings are no failure of the command."""
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before anything imports Ray
    if arguments.run is None:
        from pcl_ray.cluster import machine_check

        checks = machine_check.check()
        print(machine_check.as_text(checks))
        return int(any(check.level == "failed" for check in checks))
    if (folder := _sweep_folder(arguments.run)) is not None:
        from pcl_ray.report.sweep import sweep_rules
        from pcl_ray.sweep.results import sweep_reader

        sweep = sweep_reader.read_at(folder)
        print(sweep_rules.as_text(sweep, sweep_rules.findings(sweep)))
        return 0
    from pcl_ray.report.doctor import diagnosis as rules
    from pcl_ray.runs import record_reader

    record = record_reader.read(arguments.run)
    print(rules.as_text(record, rules.findings(record)))
    return 0


def _sweep_folder(name: str) -> Path | None:
    """The folder of the sweep of this name or path, None where a run has it. Raises ConfigError where neither
    has.
    """
    from pcl_ray.runs import record_reader
    from pcl_ray.runs.folder import RunFolder, SweepFolder

    try:
        record_reader.folder_of(name)
    except ConfigError as error:
        bare = name.rstrip("/").rpartition("/")[2]
        sweeps = SweepFolder.names()
        if bare in sweeps:
            return SweepFolder.path_of(bare)
        if hint := suggestion(bare, [*RunFolder.names(), *sweeps], start="; "):
            raise ConfigError(
                f"there is no run {name!r}, and no sweep of that name, under {home()}{hint}"
            ) from None
        raise error from None
    return None


def _add_out_argument(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help=meaning)


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run, of a sweep, or of one of its trials")
    _add_out_argument(parser, "where to write it; left out: report.html in the folder of the run or sweep")


def _report(arguments: argparse.Namespace) -> int:
    from pcl_ray.api import open_run
    from pcl_ray.runs.folder import REPORT_FILE

    if (folder := _sweep_folder(arguments.run)) is not None:
        from pcl_ray.report.sweep import sweep_page
        from pcl_ray.sweep.results import sweep_reader

        sweep, page = sweep_reader.read_at(folder), arguments.out or folder / REPORT_FILE
        print(f"report      {_written(lambda: sweep_page.write(sweep, page), page)}")
        return 0
    run = open_run(arguments.run)
    target = arguments.out or run.path / REPORT_FILE
    print(f"report      {_written(lambda: run.report(target), target)}")
    return 0


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="names of two runs or more; differences are to the first"
    )
    _add_out_argument(parser, "where to write the page; left out: compare.html under PCL_RAY_HOME")


def _compare(arguments: argparse.Namespace) -> int:
    from pcl_ray.report import comparison
    from pcl_ray.runs import record_reader

    names = list(dict.fromkeys(arguments.runs))
    if not 2 <= len(names) <= _MOST_RUNS:
        raise ConfigError(
            f"{count(len(names), 'run')} given: a comparison takes 2 to {_MOST_RUNS} different ones"
        )
    records = [record_reader.read(name) for name in names]
    target = arguments.out or home() / "compare.html"
    print(f"comparison  {_written(lambda: comparison.write(records, target), target)}")
    return 0


def _written(write: Callable[[], Path], target: Path) -> Path:
    """Where `write` has written. Raises ConfigError where the file cannot be written."""
    try:
        return write()
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); give another --out") from None


def _add_ui_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; whoever can reach it can change and run what is recorded",
    )
    parser.add_argument("--port", type=int, help="left out: the first free one from 5000 on")
    add_experiment_argument(parser, "the experiment to open")
    parser.add_argument("--open", action="store_true", dest="open_browser", help="open it in a browser")


def _ui(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status
    from pcl_ray.support.paths import home
    from pcl_ray.tracking import server

    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise ConfigError(f"--port {arguments.port}: a port is a number from 1 to 65535")
    uri = status.uri()  # where `pcl-ray up` serves this store already, its server
    return server.ui(
        uri,
        home(),
        arguments.experiment,
        host=arguments.host,
        port=arguments.port,
        open_browser=arguments.open_browser,
    )


RUNS = Verb("runs", "list the runs that MLflow has", _add_runs_arguments, _runs)
UI = Verb("ui", "open the MLflow dashboard", _add_ui_arguments, _ui)
REPORT = Verb("report", "write the report of a run or sweep as one HTML file", _add_report_arguments, _report)
COMPARE = Verb("compare", "write one page that compares runs", _add_compare_arguments, _compare)
DOCTOR = Verb(
    "doctor",
    "say what a run or a sweep has shown and what to try; without a name, check this machine",
    _add_doctor_arguments,
    _doctor,
)
