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
TRACKING_URI = "tracking.uri"  # the knob
_REFUSED_IN_TRACKING_URI = (
    "holds a password or a token, and knobs are recorded and seen among the processes; leave it out of the"
    " address and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; or"
    " give the whole address as MLFLOW_TRACKING_URI, or PostgreSQL its password in ~/.pgpass"
)
_REFUSED = (
    "holds a password or a key, and knobs are recorded and seen among the processes; leave it out of the"
    " address: libraries of stores take it from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
    " for one) or from files of their own"
)
STORED_SECRET = (
    "an address in the config.yaml of this run holds a password; the run goes on with it. To be rid of it:"
    " take it out of tracking.uri there, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"
    " keep the whole address in MLFLOW_TRACKING_URI alone"
)
CLOUD_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_MLFLOW_TRACKING = "MLFLOW_TRACKING_"
_SHORTEST = 5  # characters: shorter ones are in too many words, and no secret
_PORT = r"\d{1,5}(?:[/?#\s'\"]|$)"
# Before a host: `user:password@`. A database's password may hold / and ?; a port with a path is none.
_USERINFO = re.compile(rf"(?!\[[\da-fA-F:.%]+\])[^/?#@:]*(?::(?!{_PORT})[^@]*)?@")
_SECRET_WORD = (
    r"(?:password|passwd|passphrase|pwd|token|secret|api_?key|access_?key|accountkey|credential|signature)"
)
_SECRET_NAME = re.compile(_SECRET_WORD, re.IGNORECASE)
_SECRET_ASSIGNMENT = re.compile(rf"{_SECRET_WORD}[^=;&]*=", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|(?<![A-Z])TOKEN(?![A-Z])|SECRET|API_?KEY|ACCESS_?KEY|CONNECTION_STRING",
    re.IGNORECASE,
)
_FILE_VARIABLE = re.compile(r"_(PATH|FILE|DIR)$", re.IGNORECASE)
_TEXT_PATTERNS = (
    (
        re.compile(
            rf"([A-Za-z][\w+.-]*://)(?!\[[\da-fA-F:.%]+\])[^\s/?#@:]*:(?!{_PORT})[^\s@]*@(?:[^\s/?#@]*@)*"
        ),
        rf"\1{HIDDEN}@",
    ),
    (
        re.compile(rf"((?:[?&;#]|%3B)[\w.%-]*{_SECRET_WORD}[\w.%-]*(?:=|%3D))[^\s&'\"]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # as libpq writes a connection
    (re.compile(r"((?:^|\s)(?:password|passwd|pwd)=)[^\s&'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Basic|Bearer)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)


def public_uri(uri: str) -> str:
    """The address without what stands before its host, and without the values of secrets in its query."""
    userinfo, rest = _split(uri)
    return uri[: len(uri) - len(userinfo) - len(rest)] + _public_rest(rest)


def holds_secret(uri: str) -> bool:
    """Whether it says a password or a token; a user's name alone is one only where a server is addressed."""
    userinfo, rest = _split(uri)
    name, _, password = userinfo.removesuffix("@").partition(":")
    server = uri.lower().startswith(("http://", "https://"))
    return bool(password or (server and name)) or _public_rest(rest) != rest


def refuse_in(words: Iterable[str]) -> None:
    """Raises ConfigError for KEY=VALUE words whose value is an address with a password."""
    knobs = [word.partition("=") for word in words if "=" in word]
    problems = [
        Problem(name, public_uri(value), refusal(name))
        for name, _, value in knobs
        if (name == TRACKING_URI or "://" in value) and holds_secret(value)
    ]
    if problems:
        raise ConfigError(problems)


def refusal(knob: str) -> str:
    """Why a password in the value of this knob is refused, and where it belongs instead."""
    return _REFUSED_IN_TRACKING_URI if knob == TRACKING_URI else _REFUSED


def _split(uri: str) -> tuple[str, str]:
    """`user:password@`, or "", and what comes after it."""
    start, slashes, rest = uri.partition("://")
    if not slashes:
        before, at, after = uri.rpartition("@")  # no address at all, which is said elsewhere
        return (before + at, after) if ":" in before else ("", uri)
    userinfo = None if rest.startswith("/") else _USERINFO.match(rest)
    if userinfo is None:
        return "", rest
    # a password may hold an @ too: the last one in front of the path ends it
    path = re.search(r"[/?#]" if start.lower().startswith("http") else r"\?", rest[userinfo.end() :])
    host = rest.rfind("@", 0, userinfo.end() + path.start() if path else len(rest)) + 1
    return rest[:host], rest[host:]


def _public_rest(rest: str) -> str:
    """Host, path and query, without the values of secrets."""

    def public(part: str) -> str:
        name, equals, value = part.partition("=")
        secret = value and (
            _SECRET_NAME.search(unquote_plus(name)) or _SECRET_ASSIGNMENT.search(unquote_plus(value))
        )
        return f"{name}{equals}{HIDDEN}" if secret else part

    cut = re.search(r"[?#]", rest)
    return rest if cut is None else rest[: cut.end()] + "&".join(map(public, rest[cut.end() :].split("&")))


def tracking_environment() -> dict[str, str]:
    """The variables that say where and as whom runs are recorded; for our processes, in memory alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_MLFLOW_TRACKING) or name in CLOUD_KEYS
    }


def take_tracking_environment(variables: dict[str, str]) -> None:
    """Sets elsewhere what `tracking_environment` gave: this machine's own setting must not count there."""
    if f"{_MLFLOW_TRACKING}URI" not in variables:
        os.environ.pop(f"{_MLFLOW_TRACKING}URI", None)
    os.environ.update(variables)


def without_credentials(variables: dict[str, str]) -> dict[str, str]:
    """The variables without the keys to Ray and to a tracking server, for a program that needs neither."""
    keys = {"RAY_AUTH_TOKEN"}
    keys |= {_MLFLOW_TRACKING + key for key in ("USERNAME", "PASSWORD", "TOKEN", "URI")}
    return {name: value for name, value in variables.items() if name not in keys}


def scrubbed(text: str) -> str:
    """The text with *** for every secret of the environment, for passwords in addresses, and for what is
    called a password or a token in a query.
    """
    for secret in sorted(set(_secrets_of_environment()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _TEXT_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _secrets_of_environment() -> Iterator[str]:
    """The secrets of the environment, as they are and as they would be written in an address."""
    for name, value in os.environ.items():
        secrets: Iterable[str] = ()
        if _SECRET_VARIABLE.search(name) and not _FILE_VARIABLE.search(name):
            secrets = (value,)
        elif "://" in value:
            secrets = _secrets_of_uri(value)
        for secret in secrets:
            forms = {secret, unquote(secret), quote(secret, safe="")}
            yield from (form for form in forms if len(form) >= _SHORTEST)


def _secrets_of_uri(uri: str) -> Iterator[str]:
    userinfo, rest = _split(uri)
    name, _, password = userinfo.removesuffix("@").partition(":")
    if holds_secret(uri):
        yield password or name
    for part in urlsplit(f"//{rest}").query.split("&") if "?" in rest else []:
        name, _, value = part.partition("=")
        if _SECRET_NAME.search(unquote_plus(name)):
            yield value


def error_line(error: Exception, uri: str) -> str:
    """What a store's error says, in one line and without the password that the store's address may hold."""
    text = " ".join(str(error).split()).replace(uri.rstrip("/"), public_uri(uri).rstrip("/"))
    return scrubbed(text)[:300]


def hide_from_tracebacks() -> None:
    """Has tracebacks of this process `scrubbed`: database and server errors repeat addresses. Idempotent."""
    if isinstance(sys.excepthook, _ScrubbingHook):
        return
    earlier_hook = threading.excepthook

    def print_of_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is SystemExit:
            return
        if arguments.exc_value is None:
            earlier_hook(arguments)
        else:
            _print_scrubbed(arguments.exc_value)

    sys.excepthook = _ScrubbingHook(sys.excepthook)
    threading.excepthook = print_of_thread


@dataclass(frozen=True)
class _ScrubbingHook:
    """Prints the traceback of an error without secrets. Other hooks, as that of Ray, print what they get: the
    earlier one is left Ctrl-C alone.
    """

    earlier: Callable[..., object]

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> object:
        if issubclass(kind, KeyboardInterrupt):
            return self.earlier(kind, error, trace)
        return _print_scrubbed(error)


def _print_scrubbed(error: BaseException) -> None:
    sys.stderr.write(scrubbed("".join(traceback.format_exception(error))))
