"""Texts for people: what a mistyped word was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that is most like a mistyped word; None where none is at least `cutoff` (0 to 1) alike."""
    matches = difflib.get_close_matches(word, list(options), 1, cutoff)
    return matches[0] if matches else None


def suggestion(word: str, options: Iterable[str]) -> str:
    """`did you mean 'digits'?`, or "" where no option is like the word."""
    option = closest(word, options)
    return f"did you mean {option!r}?" if option else ""


def suggestion_sentence(word: str, options: Iterable[str]) -> str:
    """The same as a sentence that follows another: ` Did you mean 'digits'?`, or ""."""
    text = suggestion(word, options)
    return f" D{text[1:]}" if text else ""
