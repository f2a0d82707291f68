"""Where everything is written: PCL_RAY_HOME; and the names of files as text.

On Linux a name is bytes: it may have line breaks, and need not be text at all. What is read may have any
name; `path_text` is how one is shown and stored, `path_from_text` finds the file again. What is written is
put in folders whose names are text (`check_is_text`): databases, Parquet and addresses hold no others.
"""

from __future__ import annotations

import codecs
import os
import re
from contextlib import suppress
from pathlib import Path

from pcl_ray.errors import ConfigError

RUNS = "runs"  # the folder of all runs below it
CHECKED_IMAGES = "checked_images"  # the folder with what was found of images that were looked at
CONFIG_FILE = "config.yaml"  # what makes a folder a run's

# What breaks a line, turns the direction of writing, is for terminals and not for people, or is no text
# (U+DC80 … U+DCFF stand for bytes that are no UTF-8). A list of its own: Unicode's grows with Python's
# version, and what is stored must not.
_UNREADABLE = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_ESCAPED = re.compile(rf"[{_UNREADABLE}\\]")
_REFUSED = re.compile(rf"[{_UNREADABLE}]")
_ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SHORT = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_LETTERS = {char: letter for letter, char in _SHORT.items()}


def path_text(path: str | os.PathLike[str]) -> str:
    r"""The name of a file as text of one line, which no other name has; most names are that already.

    A backslash is doubled, line breaks and the like are written as `\n`, bytes that are no UTF-8 as `\xff`,
    other signs that cannot be seen as `\u202e`.
    """
    text = os.fspath(path)
    with suppress(UnicodeEncodeError):  # which no file has as its name
        # Python has decoded it by the locale of this process
        text = os.fsencode(text).decode("utf-8", "surrogateescape")
    return escaped(text) if _ESCAPED.search(text) else text


def path_from_text(text: str) -> str:
    """The name of which `path_text` made this text; other text as it is."""
    name = _ESCAPE.sub(_unescaped, text)
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return name


def lines_of(content: bytes) -> list[str]:
    """The lines of a file that lists names, which may have any bytes.

    Where there are NULs, as `find -print0` writes them, these set the names apart and not line breaks. Raises
    ValueError for UTF-16 and UTF-32, which other systems write.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is no text in UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        return [os.fsdecode(name) for name in content.split(b"\0")]
    return [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]


def escaped(text: str) -> str:
    """The text with all signs escaped that `path_text` escapes."""
    return _ESCAPED.sub(_escaped, text)


def visible(text: str, but: str = "") -> str:
    """The text with the signs escaped that cannot be seen, except those in `but`. Backslashes stay."""
    if text.isprintable():
        return text
    return _REFUSED.sub(lambda match: match[0] if match[0] in but else escaped_sign(match[0]), text)


def storable(text: str) -> str:
    """The text without what no text in UTF-8 can hold, which is escaped."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", _escaped, text)


def escaped_sign(sign: str) -> str:
    r"""One sign as `path_text` escapes it; those beyond U+FFFF, which it does not, as `\U0001f98a`."""
    number = ord(sign)
    if sign in _LETTERS:
        return f"\\{_LETTERS[sign]}"
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def _escaped(match: re.Match[str]) -> str:
    return escaped_sign(match[0])


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return _SHORT[match[1]]
    if match[2]:
        number = int(match[2], 16)
        return chr(number if number < 0x80 else 0xDC00 + number)
    number = int(match[3] or match[4], 16)
    return chr(number) if number <= 0x10FFFF else match[0]


def home() -> Path:
    """PCL_RAY_HOME, or ~/.pcl_ray. Absolute: a submitted job's working directory is thrown away."""
    folder = os.environ.get("PCL_RAY_HOME") or "~/.pcl_ray"
    if "?" in folder:
        raise ConfigError(
            f"PCL_RAY_HOME = {folder!r} has a '?', which the address of a database in it cannot have; choose"
            " another folder"
        )
    try:
        path = Path(folder).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"PCL_RAY_HOME = {folder!r} names a home folder that does not exist") from None
    except FileNotFoundError:
        raise ConfigError(
            f"PCL_RAY_HOME = {folder!r} is below the working directory, which is gone; give the whole path"
        ) from None
    check_is_text(path, "PCL_RAY_HOME")
    return path


def check_writable() -> None:
    """Raises ConfigError where nothing can be written under PCL_RAY_HOME."""
    folder = home() / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(bytes(4096))  # an empty file would fit on a full disk
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"PCL_RAY_HOME = {str(home())!r} cannot be written ({error.strerror}); set PCL_RAY_HOME to a"
            " folder of yours"
        ) from None


def check_is_text(folder: str | os.PathLike[str], option: str) -> None:
    """Raises ConfigError for a place to write to whose name has signs that cannot be seen, or is no UTF-8."""
    if _REFUSED.search(os.fspath(folder)):
        raise ConfigError(
            f"{option} = '{path_text(folder)}' has line breaks, other signs that cannot be seen, or bytes"
            " that are no UTF-8, which databases and addresses cannot hold; choose another folder"
        )
