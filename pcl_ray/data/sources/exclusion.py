"""Patterns of files that are left out (`data.exclude`), with the meaning that they have in a .gitignore."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pcl_ray.support.paths import path_text


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a path, relative to the root of the images, is matched by one of the patterns.

    A pattern without a slash is the name of a file or of a folder above it, at any depth; one with a slash is
    a path from the root, of a file or of a folder above it. `*` and `?` stay within a name, `**` does not.
    """
    if not patterns:
        return lambda path: False
    expression = re.compile("|".join(f"(?:{_anchored(pattern)})" for pattern in patterns), re.DOTALL)
    # names that cannot be typed are matched as they are shown, too
    return lambda path: any(expression.fullmatch(name) for name in {path, path_text(path)})


def pattern_body(pattern: str) -> str:
    """A pattern as a regular expression, for the whole of a path."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        elif pattern[at] in "*?":
            parts.append("[^/]*" if pattern[at] == "*" else "[^/]")
            at += 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            parts.append(f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]")
            at = end + 1
        else:
            parts.append(re.escape(pattern[at]))
            at += 1
    return "".join(parts)


def _anchored(pattern: str) -> str:
    anywhere = "/" not in pattern.strip("/")
    body = pattern_body(pattern.strip("/").removeprefix("./"))
    return f"{'(?:.*/)?' if anywhere else ''}{body}(?:/.*)?"
