"""The checks before `pcl-ray up` starts anything: the host, the ports, the token."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from pcl_ray.cluster import ray_api
from pcl_ray.errors import ConfigError
from pcl_ray.on_ray.local_head_record import Ports
from pcl_ray.tracking import server


def check_host(host: str) -> None:
    """Raises ConfigError where others could reach a Ray that asks for no token: they could run code here."""
    if host in ("0.0.0.0", "::", "") or not _is_of_this_machine(host):
        raise ConfigError(
            f"--host {host!r}: give one address of this machine, by which the others of the cluster reach it"
        )
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" and not server.loopback(host):
        raise ConfigError(
            f"RAY_AUTH_MODE = {os.environ['RAY_AUTH_MODE']}, and {host} can be reached by others: Ray's Jobs"
            " API runs whatever it is sent, so it is not started there without a token. Unset RAY_AUTH_MODE,"
            " or leave --host out"
        )


def _is_of_this_machine(host: str) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return False
    return True


def make_token(file: Path) -> None:
    """Writes a token where there is none yet. Raises ConfigError for one that others could have read."""
    try:
        has_token = file.exists() and ray_api.read_token(file)
    except (OSError, ValueError):
        raise ConfigError(
            f"{file} holds no token that can be read: remove it, and start again with a new one (`pcl-ray"
            " down`, then `up`)"
        ) from None
    if not has_token:
        ray_api.write_token(file, secrets.token_hex(32))
    elif ray_api.open_to_others(file):
        raise ConfigError(
            f"{file} can be read by others: take it as known, remove it, and start again with a new one"
            " (`pcl-ray down`, then `up`)"
        )


def check_ports(host: str, ports: Ports, *, ray: bool, mlflow: bool) -> None:
    """Tries the ports of what will be started. Raises ConfigError for one that is not free."""
    wanted: dict[str, int] = {}
    if ray:
        wanted |= {"--port": ports.ray, "--dashboard-port": ports.dashboard, "--metrics-port": ports.metrics}
    if mlflow:
        wanted["--mlflow-port"] = ports.mlflow
    _check_free(host, wanted)


def _check_free(host: str, ports: dict[str, int]) -> None:
    for option, port in ports.items():
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} cannot be had at {host} ({error.strerror}): is another Ray or MLflow there?"
                    f" Choose another {option}"
                ) from None
