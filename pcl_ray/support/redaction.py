"""What must be written nowhere: passwords in addresses of tracking stores, and the credentials in the
environment. Imports neither MLflow nor torch.

An address is shown by `public_uri`. What others have composed (errors, tracebacks, what was typed) goes
through `scrubbed` before anybody keeps or reads it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from pcl_ray.errors import ConfigError, Problem

HIDDEN = "***"
REFUSED = (
    "holds a password or a token, and knobs are recorded and seen among the processes; leave it out of the"
    " address and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; or"
    " give the whole address as MLFLOW_TRACKING_URI, or PostgreSQL its password in ~/.pgpass"
)
REFUSED_ELSEWHERE = (
    "holds a password or a key, and knobs are recorded and seen among the processes; leave it out of the"
    " address: libraries of stores take it from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
    " for one) or from files of their own"
)
STORED = (
    "an address in the config.yaml of this run holds a password; the run goes on with it. To be rid of it:"
    " take it out of tracking.uri there, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"
    " keep the whole address in MLFLOW_TRACKING_URI alone"
)
CLOUD_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_TRACKING = "MLFLOW_TRACKING_"
_SHORTEST = 5  # characters: shorter ones are in too many words, and no secret
_PORT = r"\d{1,5}(?:[/?#\s'\"]|$)"
# In front of a host: `user:password@`. Databases take a password with / and ? in it as it is; what looks like
# a port and a path is none.
_USERINFO = re.compile(rf"(?!\[[\da-fA-F:.%]+\])[^/?#@:]*(?::(?!{_PORT})[^@]*)?@")
_WORD = (
    r"(?:password|passwd|passphrase|pwd|token|secret|api_?key|access_?key|accountkey|credential|signature)"
)
_NAME = re.compile(_WORD, re.IGNORECASE)
_ASSIGNED = re.compile(rf"{_WORD}[^=;&]*=", re.IGNORECASE)
_OF_ENVIRONMENT = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|(?<![A-Z])TOKEN(?![A-Z])|SECRET|API_?KEY|ACCESS_?KEY|CONNECTION_STRING",
    re.IGNORECASE,
)
_FILES = re.compile(r"_(PATH|FILE|DIR)$", re.IGNORECASE)
_IN_TEXT = (
    (
        re.compile(
            rf"([A-Za-z][\w+.-]*://)(?!\[[\da-fA-F:.%]+\])[^\s/?#@:]*:(?!{_PORT})[^\s@]*@(?:[^\s/?#@]*@)*"
        ),
        rf"\1{HIDDEN}@",
    ),
    (
        re.compile(rf"((?:[?&;#]|%3B)[\w.%-]*{_WORD}[\w.%-]*(?:=|%3D))[^\s&'\"]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # as libpq writes a connection
    (re.compile(r"((?:^|\s)(?:password|passwd|pwd)=)[^\s&'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Basic|Bearer)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)


def public_uri(uri: str) -> str:
    """The address without what stands in front of its host, and without the values of secrets in its
    query.
    """
    userinfo, rest = _split(uri)
    return uri[: len(uri) - len(userinfo) - len(rest)] + _public_rest(rest)


def holds_secret(uri: str) -> bool:
    """Whether it says a password or a token. A user's name alone is none, but for a server, where it can be
    nothing else.
    """
    userinfo, rest = _split(uri)
    name, _, password = userinfo.removesuffix("@").partition(":")
    server = uri.lower().startswith(("http://", "https://"))
    return bool(password or (server and name)) or _public_rest(rest) != rest


def refuse_in(words: Iterable[str]) -> None:
    """Raises ConfigError for KEY=VALUE words whose value is an address with a password."""
    given = [word.partition("=") for word in words if "=" in word]
    secret = [
        (name, value)
        for name, _, value in given
        if (name == "tracking.uri" or "://" in value) and holds_secret(value)
    ]
    if secret:
        raise ConfigError(
            [
                Problem(name, public_uri(value), REFUSED if name == "tracking.uri" else REFUSED_ELSEWHERE)
                for name, value in secret
            ]
        )


def _split(uri: str) -> tuple[str, str]:
    """`user:password@`, or "", and what comes after it."""
    start, slashes, rest = uri.partition("://")
    if not slashes:
        before, at, after = uri.rpartition("@")  # no address at all, which is said elsewhere
        return (before + at, after) if ":" in before else ("", uri)
    found = None if rest.startswith("/") else _USERINFO.match(rest)
    if found is None:
        return "", rest
    end = re.search(r"[/?#]" if start.lower().startswith("http") else r"\?", rest[found.end() :])
    last = rest.rfind("@", 0, found.end() + end.start() if end else len(rest)) + 1
    return rest[:last], rest[last:]


def _public_rest(rest: str) -> str:
    """Host, path and query, without the values of secrets."""

    def public(part: str) -> str:
        name, equals, value = part.partition("=")
        secret = value and (_NAME.search(unquote_plus(name)) or _ASSIGNED.search(unquote_plus(value)))
        return f"{name}{equals}{HIDDEN}" if secret else part

    cut = re.search(r"[?#]", rest)
    return rest if cut is None else rest[: cut.end()] + "&".join(map(public, rest[cut.end() :].split("&")))


def tracking_environment() -> dict[str, str]:
    """The variables that say where runs and their artifacts are kept and as whom: for other processes of
    ours, by memory alone.
    """
    return {
        name: value for name, value in os.environ.items() if name.startswith(_TRACKING) or name in CLOUD_KEYS
    }


def take_tracking_environment(variables: dict[str, str]) -> None:
    """As `tracking_environment` was elsewhere: a run must not be recorded where this machine would have
    it.
    """
    if f"{_TRACKING}URI" not in variables:
        os.environ.pop(f"{_TRACKING}URI", None)
    os.environ.update(variables)


def without_credentials(variables: dict[str, str]) -> dict[str, str]:
    """For a program that needs neither Ray nor a tracking server: without the keys to both."""
    keys = (
        "RAY_AUTH_TOKEN",
        f"{_TRACKING}USERNAME",
        f"{_TRACKING}PASSWORD",
        f"{_TRACKING}TOKEN",
        f"{_TRACKING}URI",
    )
    return {name: value for name, value in variables.items() if name not in keys}


def scrubbed(text: str) -> str:
    """The text with *** for every secret of the environment, for passwords in addresses, and for what is
    called a password or a token in a query.
    """
    for secret in sorted(set(_known()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def _known() -> Iterator[str]:
    """The secrets of the environment, as they are and as they would be written in an address."""
    for name, value in os.environ.items():
        found = (
            [value]
            if _OF_ENVIRONMENT.search(name) and not _FILES.search(name)
            else list(_in_uri(value))
            if "://" in value
            else []
        )
        for secret in found:
            yield from {
                form for form in (secret, unquote(secret), quote(secret, safe="")) if len(form) >= _SHORTEST
            }


def _in_uri(uri: str) -> Iterator[str]:
    userinfo, rest = _split(uri)
    name, _, password = userinfo.removesuffix("@").partition(":")
    if holds_secret(uri):
        yield password or name
    for part in urlsplit(f"//{rest}").query.split("&") if "?" in rest else []:
        name, _, value = part.partition("=")
        if _NAME.search(unquote_plus(name)):
            yield value


def said_of(error: Exception, uri: str) -> str:
    """What a store's error says, in one line and without the password that its address may hold."""
    said = " ".join(str(error).split()).replace(uri.rstrip("/"), public_uri(uri).rstrip("/"))
    return scrubbed(said)[:300]


def hide_from_tracebacks() -> None:
    """Tracebacks that this process prints are `scrubbed`: errors of databases and servers repeat addresses. A
    second call does nothing.
    """
    before, before_in_threads = sys.excepthook, threading.excepthook
    if isinstance(before, _Scrubbing):
        return

    def in_threads(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit:
            _print_scrubbed(told.exc_value) if told.exc_value is not None else before_in_threads(told)

    sys.excepthook = _Scrubbing(before)
    threading.excepthook = in_threads


@dataclass(frozen=True)
class _Scrubbing:
    before: Callable[..., object]  # others' hooks, as that of Ray, print what they are given

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> object:
        return (
            self.before(kind, error, trace) if issubclass(kind, KeyboardInterrupt) else _print_scrubbed(error)
        )


def _print_scrubbed(error: BaseException) -> None:
    sys.stderr.write(scrubbed("".join(traceback.format_exception(error))))
