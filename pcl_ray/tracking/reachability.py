"""Whether a tracking store can be used, asked without MLflow, by HTTP or of the file, with time-outs."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import re
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pcl_ray.support.redaction import scrubbed

Level = Literal["ok", "warning", "failed"]
Answer = tuple[Level, str, str]  # level, what is the case, what to do

_TIMEOUT_S = 5.0
_LONGEST_ANSWER = 65536  # bytes of an answer that are read
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_NETWORK = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "fuse.", "9p", "beegfs", "gpfs", "afs")


def reachable(uri: str, timeout_s: float = _TIMEOUT_S) -> Answer:
    """Whether runs can be recorded there. Asks a server, looks at an sqlite file, connects to the port of
    another database. No password is repeated.
    """
    level, text, advice = _answer(uri, timeout_s)
    return level, scrubbed(text), advice


def _answer(uri: str, timeout_s: float) -> Answer:
    scheme = urlsplit(uri).scheme.lower()
    kind = scheme.partition("+")[0]
    if kind in ("http", "https"):
        return _server(uri, timeout_s)
    if kind == "sqlite":
        return _sqlite(Path(unquote(uri.partition("://")[2].partition("?")[0].removeprefix("/"))))
    if kind in _PORTS:
        return _database(uri, kind, timeout_s)
    return "ok", f"{kind or uri.partition(':')[0]} is not asked: only MLflow knows how to", ""


# --- a server ---


def _server(uri: str, timeout_s: float) -> Answer:
    host = urlsplit(uri).netloc.rpartition("@")[2]
    try:
        status, text = _post(uri, "/api/2.0/mlflow/experiments/search", {"max_results": 1}, timeout_s)
    except (OSError, ValueError) as error:  # refused, no such name, no answer in time, no HTTP
        return _no_answer(host, error, timeout_s)
    if status == 200 and _is_json(text):
        return "ok", f"the server at {host} answers", ""
    if status in (401, 407):
        return (
            "failed",
            f"the server at {host} wants credentials (401)",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if status == 403 and "host" in text.lower():
        advice = (
            f"start it with `mlflow server --allowed-hosts {host},localhost:*,127.0.0.1:*`: setting the list"
            " replaces the one it has by itself"
        )
        return (
            "failed",
            f"the server is up, but does not take requests for the name {host} (403: {_line(text)})",
            advice,
        )
    if status == 403:
        return (
            "failed",
            f"the server at {host} does not let this user in (403: {_line(text)})",
            "ask whoever runs it, or use other credentials",
        )
    if status == 404 or status == 200:
        return (
            "failed",
            f"something answers at {host}, but it is no MLflow server ({status})",
            "check the address, its port and its path",
        )
    return (
        "failed",
        f"the server at {host} answers with {status} ({_line(text)})",
        "look at its log: most likely its database is not there",
    )


def _no_answer(host: str, error: Exception, timeout_s: float) -> Answer:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return (
            "failed",
            f"{host} does not answer within {timeout_s:g} s",
            "is it an MLflow server, and is a firewall or a proxy in between?",
        )
    if isinstance(reason, ssl.SSLError):
        return (
            "failed",
            f"no secure connection to {host} ({_line(str(reason))})",
            "http:// instead of https://, or MLFLOW_TRACKING_SERVER_CERT_PATH",
        )
    advice = (
        "start it (`mlflow server --host 127.0.0.1 --port 5000`), or correct MLFLOW_TRACKING_URI; meanwhile"
        " runs keep their figures and send them later"
    )
    return "failed", f"nothing answers at {host} ({_line(str(reason))})", advice


def _post(uri: str, path: str, content: dict[str, Any], timeout_s: float) -> tuple[int, str]:
    """Status and text of the answer, or of an error. OSError without one, ValueError for a bad address."""
    parts = urlsplit(uri)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{path}"
    request = urllib.request.Request(
        address, json.dumps(content).encode(), {"Content-Type": "application/json", **_credentials(parts)}
    )
    context = _secure_context() if parts.scheme == "https" else None
    try:
        with urllib.request.urlopen(request, timeout=timeout_s, context=context) as answer:
            return answer.status, answer.read(_LONGEST_ANSWER).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code, error.read(_LONGEST_ANSWER).decode(errors="replace")


def _secure_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _credentials(parts: Any) -> dict[str, str]:
    """The header with the user's credentials, from the address as in MLflow, else from the environment."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if parts.username:
        user, password = unquote(parts.username), unquote(parts.password or "")
    if user is not None and password is not None:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _line(text: str) -> str:
    return scrubbed(" ".join(re.sub(r"<[^>]*>", " ", text).split()))[:120]


def _database(uri: str, kind: str, timeout_s: float) -> Answer:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "localhost", parts.port or _PORTS[kind]
        socket.create_connection((host, port), timeout=timeout_s).close()
    except (OSError, ValueError) as error:
        return (
            "failed",
            f"the {kind} database does not answer ({_line(str(error))})",
            "is it running, and are host and port right?",
        )
    return (
        "ok",
        (
            f"something listens at {host}:{port}; whether it is the {kind} database, and takes us, shows with"
            " the first run"
        ),
        "",
    )


# --- an sqlite file ---


def _sqlite(file: Path) -> Answer:
    folder = (
        file if file.exists() else next((parent for parent in file.parents if parent.exists()), Path("/"))
    )
    if not os.access(folder, os.W_OK) or (file.exists() and not os.access(file.parent, os.W_OK)):
        return (
            "failed",
            f"{folder} cannot be written",
            (
                "give yourself the right to, or set tracking.uri to a file of yours:"
                " sqlite:////absolute/path/mlflow.db"
            ),
        )
    if file.is_dir():
        return "failed", f"{file} is a folder", "name a file in it: sqlite:////absolute/path/mlflow.db"
    if file.exists():
        level, text, advice = _schema(file)
    else:
        level, text, advice = "ok", f"{file} is made by the first run", ""
    if level == "ok" and (kind := network_file_system(file)):
        advice = (
            "put the file on a local disk, or use `mlflow server`, for runs of several machines in any case"
        )
        return (
            "warning",
            f"{file} lies on a network file system ({kind}), where sqlite's locks do not always hold",
            advice,
        )
    return level, text, advice


def _schema(file: Path) -> Answer:
    if file.stat().st_size == 0:
        return "ok", f"{file} is empty; the first run fills it", ""
    try:
        tables, revision, runs = _read_database(file)
    except sqlite3.Error as error:
        return (
            "failed",
            f"{file} cannot be read as a database ({error})",
            "is it MLflow's? If another process holds it for long, end that; else restore the file",
        )
    if revision is None and not tables:
        return "ok", f"{file} is empty", ""
    if revision is None:
        return "failed", f"{file} is no database of MLflow", "set tracking.uri to another file"
    revisions, newest = _revisions()
    if revisions and revision not in revisions:
        return (
            "failed",
            f"{file} was written by a newer MLflow than the one here (schema {revision})",
            "upgrade mlflow",
        )
    if revisions and revision not in newest:
        advice = f"make a copy of it, then: mlflow db upgrade sqlite:///{file.absolute()}"
        return (
            "failed",
            (
                f"{file} was written by an older MLflow (schema {revision}), and the one here does not open"
                " it as it is"
            ),
            advice,
        )
    return "ok", f"{file}, {runs} run{'s' * (runs != 1)}", ""


def _read_database(file: Path) -> tuple[set[str], str | None, int]:
    """The tables of a database, the revision of MLflow's schema that it has, and how many runs are in it."""
    # For writing, too: a process that was killed in a write has left a part of it, which only a writer may
    # take back. A file that is not there is not made.
    address = f"{file.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_TIMEOUT_S)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        revision = None
        if "alembic_version" in tables:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            revision = row[0] if row else None
        runs = database.execute("SELECT COUNT(*) FROM runs").fetchone()[0] if "runs" in tables else 0
    return tables, revision, runs


def _revisions() -> tuple[set[str], set[str]]:
    """The schemas of the installed MLflow, and those that none follows; empty where there is no MLflow. Read,
    not imported: that takes seconds.
    """
    spec = importlib.util.find_spec("mlflow")
    if spec is None or not spec.origin:
        return set(), set()
    revisions: set[str] = set()
    followed: set[str] = set()
    for file in (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        revisions |= set(re.findall(r"^revision\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE))
        earlier = "".join(re.findall(r"^down_revision\s*=(.*)$", text, re.MULTILINE))
        followed |= set(re.findall(r"[\"'](\w+)[\"']", earlier))
    return revisions, revisions - followed


def network_file_system(path: Path) -> str:
    """The kind of network file system that the path lies on; "" where it lies on none."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    absolute = str(path.absolute())
    above = [
        (mount[1], mount[2])
        for mount in mounts
        if len(mount) > 2 and (absolute == mount[1] or absolute.startswith(mount[1].rstrip("/") + "/"))
    ]
    kind = max(above, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind.startswith(_NETWORK) else ""
