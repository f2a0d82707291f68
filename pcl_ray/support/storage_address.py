"""The address of a storage as it is written: an absolute path or a URI."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

_SCHEMES = ("s3", "gs", "abfs", "abfss", "hdfs", "viewfs", "file")
_S3_OPTIONS = ("endpoint_override", "scheme", "region", "tls_ca_file_path")
_SECRET = re.compile(r"key|secret|token|passw|credential|signature|^sas|^sig", re.IGNORECASE)


def problem_with(uri: str) -> str | None:
    """What is wrong with the address of a storage, and the way out; None where nothing is."""
    if "://" not in uri:
        if uri.startswith("/"):
            return None
        return "is no absolute path; give one that all nodes see, or a URI such as s3://bucket/path"
    try:
        parts = urlsplit(uri)
        password = parts.password
    except ValueError:
        return "is no URI; write it as s3://bucket/path"
    if parts.scheme not in _SCHEMES:
        allowed = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        return f"{parts.scheme}:// is not known here; use an absolute path or one of {allowed}"
    options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    names_user = parts.scheme == "s3" and parts.username is not None  # an access key, for S3
    if password is not None or names_user or any(_SECRET.search(name) for name in options):
        return (
            "holds credentials, which would be stored with the run; leave them to the environment of every"
            " node (AWS_ACCESS_KEY_ID and the like)"
        )
    return _problem_with_parts(parts, options)


def _problem_with_parts(parts: SplitResult, options: list[str]) -> str | None:
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        return "a file:// URI has three slashes and an absolute path: file:///path"
    if parts.scheme in ("s3", "gs") and not parts.netloc:
        return f"names no bucket; write it as {parts.scheme}://bucket/path"
    unknown = [name for name in options if name not in _S3_OPTIONS]
    if parts.scheme == "s3" and unknown:
        return f"option {unknown[0]!r} is not known; there are {', '.join(_S3_OPTIONS)}"
    return None


def without_secrets(uri: str) -> str:
    """The address as it may be printed: without user, password and secret options."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"{uri.partition('://')[0]}://…"
    host = parts.netloc
    names_container = parts.scheme.startswith("abfs") and ":" not in host  # CONTAINER@ACCOUNT
    if not names_container:
        host = host.rpartition("@")[2]
    options = [(name, value) for name, value in parse_qsl(parts.query) if not _SECRET.search(name)]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(options, safe=":/"), ""))
