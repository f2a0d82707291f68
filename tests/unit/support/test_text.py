from __future__ import annotations

from pcl_ray.support import text


def test_the_closest_option_is_suggested() -> None:
    assert text.closest("digts", ["cifar10", "digits"]) == "digits"
    assert text.suggestion("digts", ["cifar10", "digits"]) == "did you mean 'digits'?"
    assert text.suggestion_sentence("digts", ["cifar10", "digits"]) == " Did you mean 'digits'?"


def test_what_is_like_nothing_is_no_suggestion() -> None:
    assert text.closest("wxyz", ["digits"]) is None
    assert text.suggestion("wxyz", ["digits"]) == text.suggestion_sentence("wxyz", []) == ""


def test_a_higher_cutoff_wants_more_likeness() -> None:
    assert text.closest("digs", ["digits"]) == "digits"
    assert text.closest("digs", ["digits"], 0.9) is None
