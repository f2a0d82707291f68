"""`pcl-ray up`, `down` and `status`: a cluster on this machine, and what is under way on any."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

from pcl_ray.cli.output import print_table, public_tracking_uri
from pcl_ray.cli.verb import Verb, add_address_argument, add_experiment_argument
from pcl_ray.errors import ConfigError

if TYPE_CHECKING:
    from pcl_ray.on_ray.local_head_record import Ports


def _add_up_arguments(parser: argparse.ArgumentParser) -> None:
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


def _up(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import head_processes, local_head, submit
    from pcl_ray.on_ray import local_head_record
    from pcl_ray.tracking import dashboard, server

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
    if dashboard.served(head.mlflow_uri):
        print(f"runs        {head.mlflow_uri}{dashboard.PATH}")
    print(f"MLflow      {head.mlflow_uri}/#/experiments?workflowType=machine_learning")
    print(f"submit      pcl-ray submit digits\n            {shown}")
    if head.host != local_head_record.LOOPBACK:
        print(
            "join        with a copy of that file:  RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=… ray start"
            f" --address {head.ray_address}"
        )
    print("then        pcl-ray status, pcl-ray runs, pcl-ray down")
    return 0


def _check_ports(ports: Ports) -> None:
    numbers = list(vars(ports).values())
    wrong = [number for number in numbers if not 0 < number < 65536]
    if wrong:
        raise ConfigError(f"port {wrong[0]}: a port is a number from 1 to 65535")
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"the ports {', '.join(map(str, numbers))} must differ from each other")


def _add_no_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb takes neither words nor options."""


def _down(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import local_head

    ended = local_head.down(lambda text: print(text, flush=True))
    print("ended: Ray and MLflow" if ended else "nothing of `pcl-ray up` runs here")
    return 0


def _add_status_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_argument(parser)
    add_experiment_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with everything that is known")


def _status(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status, submit

    cluster = status.cluster_state(submit.cluster(arguments.address))
    if not arguments.json:
        print("\n".join(status.cluster_lines(cluster)))
    rows, trouble = status.under_way(arguments.experiment)
    if arguments.json:
        mlflow = {"uri": public_tracking_uri(), "trouble": trouble}
        print(json.dumps({"cluster": cluster, "mlflow": mlflow, "runs": status.as_json(rows)}, indent=2))
        return 0
    print(f"MLflow      {trouble or public_tracking_uri()}")
    if not rows:
        print("runs        none under way; pcl-ray runs lists those that have ended")
        return 0
    print()
    print_table(lambda say: status.table(rows, say))
    return 0


UP = Verb("up", "start a Ray head and an MLflow server on this machine", _add_up_arguments, _up)
STATUS = Verb("status", "show the cluster, and the runs under way", _add_status_arguments, _status)
DOWN = Verb("down", "stop what `up` started, its jobs in good order", _add_no_arguments, _down)
