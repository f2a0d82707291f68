"""Values as people read them, and what a mistyped word was meant to be."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "–"  # stands where a table has no value
_PERCENT = "\u00a0%"  # the line does not break before the sign
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def value_text(value: Any, *, digits: int | None = 6, separator: str = ",") -> str:
    """The value of a knob as the command line takes it: `0.01,0.02`, `[]`, `true`, `null`.

    digits: how many significant digits a number with a fraction has; None: all.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}g}"
    if isinstance(value, list | tuple):
        parts = [value_text(part, digits=digits, separator=separator) for part in value]
        return separator.join(parts) or "[]"
    return str(value)


def number(value: float | None, digits: int = 3) -> str:
    """A measured number: `digits` significant digits below 1,000, thousands set apart above, "–" for None."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000 or (value == int(value) and abs(value) >= 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A share of 1 as a percentage, never rounded up to all, nor down to nothing."""
    if 0 < share < 0.001:
        return f"< 0.1{_PERCENT}"
    if 0.999 < share < 1:
        return f"> 99.9{_PERCENT}"
    digits = 1 if 0 < share < 0.01 or 0.99 < share < 1 else 0
    return f"{100 * share:.{digits}f}{_PERCENT}"


def count(amount: int, word: str, plural: str = "") -> str:
    """An amount with its noun: "1 image", "1,438 images"."""
    return f"{amount:,} {word if amount == 1 else plural or word + 's'}"


def cut(text: str, length: int = 40) -> str:
    """The text, or its beginning and "…" where it is longer than that."""
    return text if len(text) <= length else text[: length - 1] + "…"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them: "A, B and C"."""
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def duration(seconds: float) -> str:
    """A time that is waited for or left: "45 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def measured_duration(seconds: float) -> str:
    """A time that was measured: "0.42 s", "4.2 s", "12 min", "3 h 05 min"."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return duration(seconds)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def gigabytes(size: float, digits: int = 1) -> str:
    """Bytes in units of 10⁹: "13.4 GB"."""
    return f"{size / 1e9:.{digits}f} GB"


def binary_size(size: float) -> str:
    """Bytes in the unit that fits: "512 B", "1.5 MiB"."""
    power = 0
    while size >= 1024 and power < len(_BINARY_UNITS) - 1:
        size /= 1024
        power += 1
    return f"{size:.1f} {_BINARY_UNITS[power]}" if power else f"{size:.0f} B"


def delimiter_of(line: str) -> str:
    """What sets the columns of a table apart, by its first line: tab, comma or semicolon."""
    return next((mark for mark in "\t,;" if mark in line), ",")


def closest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that is most like a mistyped word; None where none is at least `cutoff` (0 to 1) alike."""
    return next(iter(alike(word, options, 1, cutoff)), None)


def alike(word: str, options: Iterable[str], most: int, cutoff: float = 0.6) -> list[str]:
    """The options that a mistyped word may have meant, at most `most`, the likeliest first."""
    return difflib.get_close_matches(word, list(options), most, cutoff)


def suggestion(word: str, options: Iterable[str], start: str = "") -> str:
    """`did you mean 'digits'?` after `start`, or "" where no option is like the word."""
    option = closest(word, options)
    return f"{start}did you mean {option!r}?" if option else ""


def suggestion_sentence(word: str, options: Iterable[str]) -> str:
    """The same as a sentence that follows another: ` Did you mean 'digits'?`, or ""."""
    text = suggestion(word, options)
    return f" D{text[1:]}" if text else ""
