"""Values as people read them, and suggestions for a mistyped word."""

from __future__ import annotations

import pytest

from pcl_ray.support.text import (
    alike,
    binary_size,
    closest,
    count,
    cut,
    duration,
    gigabytes,
    listed,
    measured_duration,
    number,
    percent,
    suggestion,
    suggestion_sentence,
    value_text,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0.1, "0.1"),
        (20.0, "20"),
        (0.123456789, "0.123457"),
        (100_000_000, "100000000"),
        ([0.01, 0.02], "0.01,0.02"),
        ((250, 500), "250,500"),
        ("0.05", "0.05"),
    ],
)
def test_a_knob_is_written_as_the_command_line_takes_it(value: object, shown: str) -> None:
    assert value_text(value) == shown


def test_digits_and_separator_of_a_knob() -> None:
    assert value_text(0.12345678901, digits=None) == "0.12345678901"
    assert value_text([0.1 + 0.2, None, (True, 3)], digits=10, separator=", ") == "0.3, null, true, 3"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9610027, "0.961"),
        (26.88, "26.9"),
        (2768.8, "2,769"),
        (0.0, "0"),
        (None, "–"),
        (29, "29"),
        (1.2e-5, "1.2e-05"),
        (100.4, "100."),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown.rstrip(".")


def test_numbers_that_are_none() -> None:
    assert [number(float(value)) for value in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.001, "0.1 %"),
        (0.0099, "1.0 %"),
        (0.25, "25 %"),
        (0.985, "98 %"),
        (0.995, "99.5 %"),
        (0.9996, "> 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_percentages_are_not_rounded_to_all_or_nothing(share: float, shown: str) -> None:
    assert percent(share) == shown.replace(" %", "\u00a0%")


def test_counts() -> None:
    assert count(1, "image") == "1 image"
    assert count(0, "image") == "0 images"
    assert count(1438, "image") == "1,438 images"
    assert count(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (5340, "89 min"),
        (5400, "1 h 30 min"),
        (172_800, "2 d 0 h"),
        (300_000, "3 d 11 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4234, "0.42 s"),
        (4.23, "4.2 s"),
        (42.4, "42 s"),
        (89.9, "90 s"),
        (90, "2 min"),
        (725, "12 min"),
        (5400, "1 h 30 min"),
        (11_100, "3 h 05 min"),
        (3_600_000, "1,000 h 00 min"),
    ],
)
def test_measured_durations(seconds: float, shown: str) -> None:
    assert measured_duration(seconds) == shown


def test_sizes() -> None:
    assert gigabytes(13_420_000_000) == "13.4 GB"
    assert gigabytes(24e9, 0) == "24 GB"
    sizes = [binary_size(size) for size in (0, 1023, 1024, 1536 * 1024, 3 * 2**40, 5000 * 2**40)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 TiB", "5000.0 TiB"]


def test_the_closest_option_is_suggested() -> None:
    assert closest("digts", ["cifar10", "digits"]) == "digits"
    assert suggestion("digts", ["cifar10", "digits"]) == "did you mean 'digits'?"
    assert suggestion("digts", ["cifar10", "digits"], start="; ") == "; did you mean 'digits'?"
    assert suggestion_sentence("digts", ["cifar10", "digits"]) == " Did you mean 'digits'?"


def test_what_is_like_nothing_is_no_suggestion() -> None:
    assert closest("wxyz", ["digits"]) is None
    assert suggestion("wxyz", ["digits"], start="; ") == suggestion_sentence("wxyz", []) == ""


def test_a_higher_cutoff_wants_more_likeness() -> None:
    assert closest("digs", ["digits"]) == "digits"
    assert closest("digs", ["digits"], 0.9) is None


def test_several_options_may_be_alike() -> None:
    assert alike("resnet", ["resnet18", "resnet34", "vgg"], 5) == ["resnet34", "resnet18"]
    assert alike("resnet", ["resnet18", "resnet34", "vgg"], 1) == ["resnet34"]


def test_words_as_a_sentence_has_them() -> None:
    assert [listed(words) for words in ([], ["A"], ["A", "B"], ["A", "B", "C"])] == [
        *("", "A", "A and B", "A, B and C")
    ]


def test_a_long_text_is_cut() -> None:
    assert cut("abcde", 5) == "abcde"
    assert cut("abcdef", 5) == "abcd…"
