"""A client of a Ray cluster's dashboard over HTTP: its jobs, its nodes, what is in use.

It does without Ray: importing that takes two seconds, and attaching to a cluster a worker process.
"""

from __future__ import annotations

import json
import os
import stat
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.tracking.server import loopback

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_TIMEOUT_S = 10.0
_STOPPABLE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Cluster:
    """A cluster's dashboard: its address, and the token that requests carry ("" for none)."""

    address: str
    token: str = ""

    def alive(self, timeout_s: float = 2.0) -> bool:
        """Whether the head answers; needs no token."""
        try:
            with opened(f"{self.address}/api/gcs_healthz", timeout_s) as answer:
                return answer.status == 200
        except (OSError, ValueError, HTTPException):
            return False

    def jobs(self) -> list[dict[str, Any]]:
        """The submitted jobs, newest first. Raises RunFailed; ConfigError for a missing or wrong token."""
        jobs = [job for job in self._listed(self._ask("/api/jobs/")) if job.get("submission_id")]
        return sorted(jobs, key=lambda job: job.get("start_time") or 0, reverse=True)

    def job(self, number: str) -> dict[str, Any]:
        """One job by its submission id. Raises as `jobs` does."""
        return self._table(self._ask(f"/api/jobs/{quote(number, safe='')}"))

    def under_way(self) -> list[str]:
        """Ids of the jobs that have not ended."""
        return [job["submission_id"] for job in self.jobs() if job["status"] in _STOPPABLE]

    def stop_job(self, number: str) -> None:
        """Tells a job to stop, and does not wait for it. Raises as `jobs` does."""
        self._ask(f"/api/jobs/{quote(number, safe='')}/stop", method="POST")

    def usage(self) -> dict[str, tuple[float, float]]:
        """CPU, GPU, memory …: what is in use, and what there is (bytes of memory)."""
        answer = self._table(self._ask("/api/cluster_status"))
        report = ((answer.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport") or {}
        return {kind: (float(used), float(has)) for kind, (used, has) in (report.get("usage") or {}).items()}

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive: node_ip, resources_total, is_head_node."""
        answer = self._table(self._ask("/api/v0/nodes?limit=1000"))
        nodes = ((answer.get("data") or {}).get("result") or {}).get("result")
        return [node for node in self._listed(nodes) if node.get("state") == "ALIVE"]

    def _table(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise RunFailed(f"what answers at {self.address} is no dashboard of Ray")
        return answer

    def _listed(self, answer: Any) -> list[dict[str, Any]]:
        if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
            raise RunFailed(f"what answers at {self.address} is no dashboard of Ray")
        return answer

    def _ask(self, path: str, method: str = "GET") -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            request = urllib.request.Request(f"{self.address}{path}", headers=headers, method=method)
            with opened(request, _TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConfigError(self._refused(error.code)) from None
            raise RunFailed(
                f"the cluster at {self.address} answers with {error.code} to {path.partition('?')[0]}"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise RunFailed(
                f"no Ray cluster answers at {self.address} ({reason}); `pcl-ray up` starts one on this"
                " machine"
            ) from None
        except (ValueError, HTTPException):  # their texts repeat what was sent, the token too
            raise RunFailed(
                f"what answers at {self.address} is no dashboard of Ray, or the token has characters that"
                " cannot be sent"
            ) from None

    def _refused(self, code: int) -> str:
        reason = "does not take this token"
        if code == 401 and not self.token:
            reason = "asks for a token, and there is none"
        return f"the cluster at {self.address} {reason}: RAY_AUTH_TOKEN_PATH=/file/with/the/cluster's/token"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a token is for the server that it was given for, not for one that it points to."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def opened(request: str | urllib.request.Request, timeout_s: float) -> Any:
    """Sends a request, and gives back the answer, to be closed.

    This machine is asked without the proxy that others may be reached through, and no redirect is followed.
    """
    address = request if isinstance(request, str) else request.full_url
    direct = [urllib.request.ProxyHandler({})] if loopback(urlsplit(address).hostname or "") else []
    return urllib.request.build_opener(_NoRedirects, *direct).open(request, timeout=timeout_s)


def checked_address(address: str) -> str:
    """`http://host:port`. Raises ConfigError for anything else."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port and not parts.username:
            return f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        pass
    raise ConfigError(
        f"--address {address!r} is not the address of a cluster's dashboard, like {DEFAULT_ADDRESS}"
    )


def user_token() -> str:
    """The token that Ray would use here: of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    "" where RAY_AUTH_MODE is disabled, or there is none.

    Raises ConfigError for a file that cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return read_token(Path(named or "~/.ray/auth_token").expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # not there, no text, a home that does not exist
        if named:
            raise ConfigError(
                f"RAY_AUTH_TOKEN_PATH = {named} cannot be read"
                f" ({getattr(error, 'strerror', None) or 'it is no file with a token'})"
            ) from None
        return ""


def read_token(file: Path) -> str:
    """The token in a file. Raises OSError, or ValueError where it holds no text."""
    return file.read_text(encoding="utf-8").strip()


def write_token(file: Path, token: str) -> None:
    """Writes a token that only its owner can read, from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(token)


def open_to_others(file: Path) -> bool:
    """Whether others than its owner may read or write a file."""
    return bool(file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
