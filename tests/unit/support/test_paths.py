from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcl_ray.errors import ConfigError
from pcl_ray.support.paths import check_writable, home, lines_of, path_from_text, path_text, visible


def test_a_writable_home_is_made_and_left_clean() -> None:
    check_writable()
    assert (home() / "runs").is_dir()
    assert list((home() / "runs").iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "file" / below))
    with pytest.raises(
        ConfigError,
        match=r"PCL_RAY_HOME = '.*file.*' cannot be written \(.+\); set PCL_RAY_HOME to a folder of yours",
    ):
        check_writable()
    assert (tmp_path / "file").read_text() == "in the way"


# --- names as text

ODD = {
    b"plain name, (1).png": "plain name, (1).png",
    "🦊 é 漢字 عربي zwj\u200d.png".encode(): "🦊 é 漢字 عربي zwj\u200d.png",
    b"back\\slash\\n.png": r"back\\slash\\n.png",
    b"line\nbreak\r\ttab.png": r"line\nbreak\r\ttab.png",
    b"escape\x1b[31m\x00.png": r"escape\x1b[31m\x00.png",
    b"latin-\xe9\xff.png": r"latin-\xe9\xff.png",
    "\u202egnp.exe\u2066".encode(): r"\u202egnp.exe\u2066",
    "next\x85line\u2028".encode(): r"next\u0085line\u2028",
    b"cut \xf0\x9f.png": r"cut \xf0\x9f.png",
}


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_name_as_text_is_one_line_that_can_be_stored_and_found_again(name: bytes) -> None:
    text = path_text(os.fsdecode(name))
    assert text == ODD[name]
    assert text.encode("utf-8").decode("utf-8") == text
    assert len(text.splitlines()) == 1
    assert os.fsencode(path_from_text(text)) == name


@given(st.binary())
def test_any_bytes_come_back_from_their_text(name: bytes) -> None:
    text = path_text(os.fsdecode(name))
    assert os.fsencode(path_from_text(text)) == name
    assert len(text.encode("utf-8").splitlines()) <= 1


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_no_path_has_a_text_as_well(name: str) -> None:
    assert len(path_text(name).encode("utf-8")) >= len(name)
    assert isinstance(path_from_text(name), str)


def test_text_that_is_no_escape_stays() -> None:
    assert path_from_text(r"C:\data\images\7.png \x1 \uzzzz \U00110000") == (
        r"C:\data\images\7.png \x1 \uzzzz \U00110000"
    )


def test_a_text_shows_what_commands_a_terminal_and_keeps_its_lines() -> None:
    assert visible("a\n\x1b[2J\u202eb\udcff", but="\n") == "a\n\\x1b[2J\\u202eb\\xff"
    assert visible(r"a\b – φ") == r"a\b – φ"


def test_lists_of_names_may_be_separated_by_nul_and_hold_any_bytes() -> None:
    assert lines_of(b"\xef\xbb\xbfa\r\nb\x0bc\n\xff\n") == ["a", "b\x0bc", "\udcff", ""]
    assert lines_of(b"a\nb\0c\r\0") == ["a\nb", "c\r", ""]
    with pytest.raises(ValueError, match="UTF-8"):
        lines_of("a".encode("utf-16"))


@pytest.mark.parametrize("name", [b"line\nbreak", b"\xff", "\u202e".encode(), b"\x1b[2J"])
def test_a_home_whose_name_no_database_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    monkeypatch.setenv("PCL_RAY_HOME", os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with pytest.raises(ConfigError, match="choose another folder") as refused:
        home()
    assert path_text(os.fsdecode(name)) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_home_below_a_folder_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setenv("PCL_RAY_HOME", "below")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="working directory, which is gone"):
        home()
