"""The address of a storage as it is written: an absolute path or a URI."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "viewfs", "file")
_S3_OPTIONS = ("endpoint_override", "scheme", "region", "tls_ca_file_path")
_SECRET = re.compile(r"key|secret|token|passw|credential|signature|^sas|^sig", re.IGNORECASE)


def problem(uri: str) -> str | None:
    """What is wrong with a storage as it is written, and the way out; None where nothing is."""
    if "://" not in uri:
        return (
            None
            if uri.startswith("/")
            else "is no absolute path; give one that all nodes see, or a URI such as s3://bucket/path"
        )
    try:
        parts = urlsplit(uri)
        password = parts.password
    except ValueError:
        return "is no URI; write it as s3://bucket/path"
    if parts.scheme not in _SCHEMES:
        return (
            f"{parts.scheme}:// is not known here; use an absolute path or one of"
            f" {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
        )
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if (
        password is not None
        or (parts.scheme == "s3" and parts.username is not None)
        or any(_SECRET.search(name) for name in names)
    ):
        return (
            "holds credentials, which would be stored with the run; leave them to the environment of every"
            " node (AWS_ACCESS_KEY_ID and the like)"
        )
    if parts.scheme == "file":
        return (
            None
            if not parts.netloc and parts.path.startswith("/")
            else "a file:// URI has three slashes and an absolute path: file:///path"
        )
    if parts.scheme in ("s3", "gs") and not parts.netloc:
        return f"names no bucket; write it as {parts.scheme}://bucket/path"
    if parts.scheme == "s3" and (unknown := [name for name in names if name not in _S3_OPTIONS]):
        return f"option {unknown[0]!r} is not known; there are {', '.join(_S3_OPTIONS)}"
    return None


def shown(uri: str) -> str:
    """The storage as it may be printed: without name, password and secret options."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"{uri.partition('://')[0]}://…"
    host = (
        parts.netloc
        if parts.scheme.startswith("abfs") and ":" not in parts.netloc
        else parts.netloc.rpartition("@")[2]
    )
    options = [(name, value) for name, value in parse_qsl(parts.query) if not _SECRET.search(name)]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(options, safe=":/"), ""))
