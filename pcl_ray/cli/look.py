"""`pcl-ray doctor`, `report`, `compare` and `ui`: everything that looks at runs and trains none."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcl_ray.errors import ConfigError

_MOST_RUNS = 20


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="name of a run: what its curves mean; left out: whether this machine is fit for runs",
    )


def doctor(arguments: argparse.Namespace) -> int:
    """1 where the machine has a fault. A run's findings are no failure of the command."""
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before anything imports Ray
    if arguments.run is None:
        from pcl_ray.cluster import machine_check

        checks = machine_check.check()
        print(machine_check.as_text(checks))
        return int(any(check.level == "failed" for check in checks))
    from pcl_ray.report.doctor import diagnosis as rules
    from pcl_ray.runs import record_reader

    record = record_reader.read(arguments.run)
    print(rules.as_text(record, rules.findings(record)))
    return 0


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run, or of a trial of a sweep")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it; left out: report.html in the run's folder",
    )


def report(arguments: argparse.Namespace) -> int:
    from pcl_ray.report import page
    from pcl_ray.runs import final_artifacts, record_reader

    record = record_reader.read(arguments.run)
    target = arguments.out or record_reader.folder_of(arguments.run) / final_artifacts.REPORT
    print(f"report      {_written(lambda: page.write(record, target), target)}")
    return 0


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="names of two runs or more; differences are to the first"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write the page; left out: compare.html under PCL_RAY_HOME",
    )


def compare(arguments: argparse.Namespace) -> int:
    from pcl_ray.report import comparison
    from pcl_ray.runs import record_reader
    from pcl_ray.support.paths import home

    named = list(dict.fromkeys(arguments.runs))
    if not 2 <= len(named) <= _MOST_RUNS:
        raise ConfigError(
            f"{len(named)} run{'s' * (len(named) != 1)} given: a comparison takes 2 to {_MOST_RUNS} different"
            " ones"
        )
    found = [record_reader.read(name) for name in named]
    target = arguments.out or home() / "compare.html"
    print(f"comparison  {_written(lambda: comparison.write(found, target), target)}")
    return 0


def _written(write, target: Path) -> Path:
    """Raises ConfigError where the file cannot be written."""
    try:
        return write()
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); give another --out") from None


def add_ui_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; whoever can reach it can change and run what is recorded",
    )
    parser.add_argument("--port", type=int, help="left out: the first free one from 5000 on")
    parser.add_argument("--experiment", default="pcl_ray", help="the experiment to open")
    parser.add_argument("--open", action="store_true", dest="open_browser", help="open it in a browser")


def ui(arguments: argparse.Namespace) -> int:
    from pcl_ray import tracking
    from pcl_ray.config import TrackingConfig
    from pcl_ray.support.paths import home
    from pcl_ray.tracking import server

    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise ConfigError(f"--port {arguments.port}: a port is a number from 1 to 65535")
    uri = tracking.tracking_uri(TrackingConfig(), home())
    return server.ui(
        uri,
        home(),
        arguments.experiment,
        host=arguments.host,
        port=arguments.port,
        open_browser=arguments.open_browser,
    )
