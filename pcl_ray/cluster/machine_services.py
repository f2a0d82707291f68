"""Checks of what a run would reach: the Ray cluster with its token, and the tracking store."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from pcl_ray import tracking
from pcl_ray.cluster.check import Check, Level
from pcl_ray.config import TrackingConfig
from pcl_ray.runs.request import gpus_here
from pcl_ray.support import paths, redaction
from pcl_ray.tracking.reachability import reachable

_CONNECT_S = 2.0


def ray_cluster(answer_s: float = 8.0) -> Check:
    """Whether the cluster of RAY_ADDRESS answers, if one is named.

    answer_s: the time that it has for it; importing Ray takes two seconds of them.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address == "local":
        return Check(
            "Ray",
            "ok",
            f"RAY_ADDRESS is not set: each run with workers starts a Ray of its own, with {os.cpu_count()}"
            f" CPUs and {gpus_here()} GPUs here",
        )
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    advice = "unset RAY_ADDRESS to start a Ray on this machine, or start one there: ray start --head"
    try:
        if colon:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return Check("Ray", "failed", f"RAY_ADDRESS = {address}: nothing answers there ({error})", advice)
    if address.startswith("ray://"):
        return Check(
            "Ray",
            "warning",
            f"RAY_ADDRESS = {address} is for Ray's client, which no training goes through",
            "give the cluster's own address, host:6379",
        )
    return _health(address, advice, answer_s)


def _health(address: str, advice: str, answer_s: float) -> Check:
    """Asks in a process of its own: Ray's client tries for a minute, and cannot be made to try for less."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=answer_s, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(
            "Ray",
            "failed",
            f"RAY_ADDRESS = {address}: something listens there, but does not answer as a Ray cluster within"
            f" {answer_s:g} s",
            f"is it the cluster's own port (6379 by default), and is the token right? Else {advice}",
        )
    if answer.returncode == 0:
        return Check(
            "Ray", "ok", f"RAY_ADDRESS = {address}: the cluster answers, with the Ray version of this machine"
        )
    output = answer.stdout + answer.stderr
    if "auth" in output.lower() and "token" in output.lower():
        return Check(
            "Ray",
            "failed",
            f"RAY_ADDRESS = {address}: the cluster asks for a token, and ours is missing or wrong",
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=/file/with/the/cluster's/token",
        )
    lines = [line.strip()[:200] for line in output.splitlines() if line.strip()]
    reason = lines[-1] if lines else "no cluster answers"
    return Check("Ray", "failed", f"RAY_ADDRESS = {address}: {reason}", advice)


def ray_token() -> Check:
    """What happens about Ray's token, without repeating it."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    source, trouble = _token_source()
    if mode == "disabled":
        return _token(
            "warning",
            "RAY_AUTH_MODE = disabled: whoever reaches Ray's ports can run code as you",
            "RAY_AUTH_MODE=token, or only on a machine and a network that nobody else uses",
        )
    if trouble:
        return _token(
            "failed" if "cannot" in trouble else "warning",
            trouble,
            "chmod 600 it, and let RAY_AUTH_TOKEN_PATH name a file of yours",
        )
    if not os.environ.get("RAY_ADDRESS"):
        if mode:
            source = source or "~/.ray/auth_token, which it makes"
            return _token("ok", f"RAY_AUTH_MODE = {mode}: a Ray of our own takes {source}")
        origin = " (here RAY_AUTH_TOKEN)" if source == "RAY_AUTH_TOKEN" else ", new for each run"
        return _token("ok", f"a Ray of our own gets a token in memory{origin}")
    if mode != "token":
        return _token(
            "warning",
            "RAY_ADDRESS is set and RAY_AUTH_MODE is not: whether a token is asked for differs from command"
            " to command",
            "set RAY_AUTH_MODE to what the cluster has: token or disabled",
        )
    if not source:
        return _token(
            "failed",
            "RAY_AUTH_MODE = token, but there is no token",
            "RAY_AUTH_TOKEN_PATH=/file/with/the/cluster's/token, chmod 600",
        )
    return _token("ok", f"the cluster is given {source}")


def _token(level: Level, message: str, advice: str = "") -> Check:
    return Check("Ray's token", level, message, advice)


def _token_source() -> tuple[str, str]:
    """Where Ray takes its token from, "" for nowhere; and what is wrong with that file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", ""
    setting = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(setting or "~/.ray/auth_token").expanduser()
    if not os.access(path, os.R_OK):
        if not setting:
            return "", ""
        return "", f"RAY_AUTH_TOKEN_PATH = {setting} cannot be read, and Ray does not start then"
    open_to_others = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    return str(path), f"{path} can be read by others of this machine" if open_to_others else ""


def tracking_store() -> Check:
    """Whether the store that runs record in can be used."""
    config = TrackingConfig()
    uri = tracking.tracking_uri(config, paths.home())
    if problems := tracking.check_uri(config, paths.home()):
        message = "; ".join(f"{problem.value}: {problem.message}" for problem in problems)
        return Check("tracking", "failed", message)
    level, message, advice = reachable(uri)
    if not uri.startswith("sqlite"):
        message = f"{redaction.public_uri(uri)}: {message}"
    return Check("tracking", level, message, advice)
