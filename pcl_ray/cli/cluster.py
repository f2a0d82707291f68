"""`pcl-ray up`, `down`, `status`, `submit`, `runs`, `resume`, `fork`: running experiments on a cluster, and
keeping an eye on them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pcl_ray.errors import ConfigError, Problem
from pcl_ray.support import redaction


def add_up_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any other than 127.0.0.1 lets other machines in, with the token",
    )
    parser.add_argument("--port", type=int, default=6379, help="of the Ray head")
    parser.add_argument("--dashboard-port", type=int, default=8265, help="of Ray's dashboard and Jobs API")
    parser.add_argument(
        "--metrics-port", type=int, default=8080, help="of the metrics that Prometheus scrapes"
    )
    parser.add_argument("--mlflow-port", type=int, default=5000, help="of the MLflow server")
    parser.add_argument(
        "--num-cpus",
        type=int,
        help=(
            "CPUs that Ray gives away; left out: this machine's, and at least 4, so that small runs take"
            " turns"
        ),
    )
    parser.add_argument("--num-gpus", type=int, help="GPUs that Ray gives away; left out: this machine's")


def up(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import head_processes, local_head, submit
    from pcl_ray.on_ray import local_head_record
    from pcl_ray.tracking import server

    ports = local_head_record.Ports(
        arguments.port, arguments.dashboard_port, arguments.metrics_port, arguments.mlflow_port
    )
    _check_ports(ports)
    for option, number in (("--num-cpus", arguments.num_cpus), ("--num-gpus", arguments.num_gpus)):
        if number is not None and number < 0:
            raise ConfigError(f"{option} {number}: 0 or more")
    request = local_head.HeadRequest(arguments.host, ports, arguments.num_cpus, arguments.num_gpus)
    # ends what was started, as Ctrl-C does
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        head = local_head.up(request, lambda text: print(text, flush=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    if not server.loopback(head.host) and head.mlflow:
        print(
            f"warning: whoever reaches {head.mlflow_uri} reads and changes all runs: MLflow asks for no"
            " password there",
            file=sys.stderr,
        )
    folder, words = submit.uploaded(["digits"])
    shown = submit.example(head_processes.cluster_of(head), folder, words)
    print(f"Ray         {head.dashboard_address}   (asks for the token in {local_head_record.token_file()})")
    print(f"MLflow      {head.mlflow_uri}/#/experiments?workflowType=machine_learning")
    print(f"submit      pcl-ray submit digits\n            {shown}")
    if head.host != local_head_record.LOOPBACK:
        print(
            "join        with a copy of that file:  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=… ray start"
            f" --address {head.ray_address}"
        )
    print("then        pcl-ray status, pcl-ray runs, pcl-ray down")
    return 0


def _check_ports(ports: Any) -> None:
    numbers = list(vars(ports).values())
    wrong = [number for number in numbers if not 0 < number < 65536]
    if wrong:
        raise ConfigError(f"port {wrong[0]}: a port is a number from 1 to 65535")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"the ports {', '.join(map(str, numbers))} must differ from each other")


def add_down_arguments(parser: argparse.ArgumentParser) -> None: ...


def down(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import local_head

    ended = local_head.down(lambda text: print(text, flush=True))
    print("ended: Ray and MLflow" if ended else "nothing of `pcl-ray up` runs here")
    return 0


def add_status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help=(
            "dashboard of the cluster; left out: RAY_API_SERVER_ADDRESS, that of `pcl-ray up`, or Ray's"
            " default"
        ),
    )
    parser.add_argument("--experiment", default="pcl_ray", help="of MLflow")


def status(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status as overview
    from pcl_ray.cluster import submit

    for line in overview.cluster_or_none(submit.cluster(arguments.address)):
        print(line)
    rows, trouble = overview.under_way(arguments.experiment)
    print(f"MLflow      {trouble or _public_uri()}")
    if not rows:
        print("runs        none under way; pcl-ray runs lists those that have ended")
        return 0
    print()
    _table(lambda say: overview.table(rows, say))
    return 0


def _public_uri() -> str:
    from pcl_ray.cluster import status as overview

    return redaction.public_uri(overview.uri())


def _table(show: Callable[[Callable[[Any], None]], None]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    show(console.print if console.is_terminal else Console(highlight=False, width=160).print)


def add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", default="pcl_ray", help="of MLflow")
    parser.add_argument("--state", default="", help="only these: running, finished, stopped or failed")
    parser.add_argument("--limit", type=int, default=30, metavar="N", help="the newest N")
    parser.add_argument("--trials", action="store_true", help="the trials of sweeps too")
    parser.add_argument("--json", action="store_true", help="as JSON, with everything that is known")


def runs(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status as overview
    from pcl_ray.tracking import run_list

    if arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: 1 or more")
    overview.local_runs()  # what was killed reads so in MLflow too
    found = run_list.recorded(
        overview.uri(),
        arguments.experiment,
        limit=arguments.limit,
        trials=arguments.trials,
        state=arguments.state,
    )
    if arguments.json:
        print(json.dumps(overview.as_json(found), indent=2))
    elif not found:
        print(
            f"no {arguments.state + ' ' if arguments.state else ''}runs in the experiment"
            f" {arguments.experiment!r} at {_public_uri()}"
        )
    else:
        _table(lambda say: overview.table(overview.recorded_rows(found), say, dated=True))
    return 0


_WITH_VALUE, _ALONE = ("--address", "--memory-gb"), ("--no-wait", "--print", "--help", "-h")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for `pcl-ray submit` itself, and what is for the job, in its order."""
    ours: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word in _ALONE or word.startswith(tuple(f"{option}=" for option in _WITH_VALUE)):
            ours.append(word)
        elif word in _WITH_VALUE:
            ours += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            others.append(word)
    return ours, others


def add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "pcl-ray submit [train|sweep] RECIPE|SPACE [KEY=VALUE ...] [options of train or sweep] [--address"
        " URL] [--memory-gb GB] [--no-wait] [--print]"
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help=(
            "dashboard of the cluster; left out: RAY_API_SERVER_ADDRESS, that of `pcl-ray up`, or Ray's"
            " default"
        ),
    )
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=1.0,
        metavar="GB",
        help="memory that the driver reserves; it never gets a GPU",
    )
    parser.add_argument("--no-wait", action="store_true", help="come back as soon as the job is accepted")
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="print the line, submit nothing"
    )


def check_places(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a path that would lie in the job's working directory, which is thrown away."""
    for name in ("data.path", "resources.storage"):
        value = settings.get(name)
        if value and "://" not in str(value) and not Path(str(value)).is_absolute():
            raise ConfigError(
                [
                    Problem(
                        name,
                        value,
                        "has to be an absolute path: a job runs in a copy of this folder, on another machine"
                        " perhaps",
                    )
                ]
            )


def submit(arguments: argparse.Namespace, verb: str, words: Sequence[str], asked: argparse.Namespace) -> int:
    """words: of the job, in their order; asked: the same, read."""
    from pcl_ray.cluster import submit as submits
    from pcl_ray.runs.folder import RunFolder, SweepFolder

    if not 0.01 <= arguments.memory_gb < 1e5:
        raise ConfigError(
            f"--memory-gb {arguments.memory_gb:g}: 0.01 to 100000; without any Ray would show the driver"
            " every GPU"
        )
    kind = SweepFolder if verb == "sweep" else RunFolder
    stem = next((Path(word).stem for word in asked.words if "=" not in word), verb)
    run = asked.resume or asked.name or kind.free_name(stem, datetime.now().strftime("%m%d-%H%M%S"))
    kind.path_of(run)  # is it a name
    named = [] if asked.resume or asked.name else ["--name", run]
    to = submits.cluster(arguments.address)
    folder, there = submits.uploaded(words)
    line = submits.experiment(
        to,
        verb,
        [*there, *named],
        run,
        memory_gb=arguments.memory_gb,
        wait=not arguments.no_wait,
        folder=folder,
    )
    print(line, flush=True)
    if arguments.only_print:
        return 0
    to.jobs()  # is it there, and does it take the token: in one sentence, before Ray says so in forty lines
    return submits.run(line, to)


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run or a sweep")
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="KEY=VALUE",
        help="knobs that may change when it goes on, like train.epochs",
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="write the outcome as JSON")


def resume_words(arguments: argparse.Namespace) -> list[str]:
    """`train --resume RUN …`, or `sweep --resume RUN …` where it is one. Raises ConfigError where there is
    neither.
    """
    from pcl_ray.runs.folder import RunFolder, SweepFolder

    is_sweep = (
        not (RunFolder.path_of(arguments.run) / "config.yaml").exists()
        and (SweepFolder.path_of(arguments.run) / "config.yaml").exists()
    )
    result = ["--result", str(arguments.result)] if arguments.result else []
    return ["sweep" if is_sweep else "train", "--resume", arguments.run, *arguments.changes, *result]


def add_fork_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of the run to start from, which stays as it is")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="knobs of the new run")
    parser.add_argument("--name", help="name of the new run; made up where it is left out")
    parser.add_argument(
        "--epoch", type=int, metavar="N", help="from its checkpoint after N epochs; left out: the newest"
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="write the outcome as JSON")
