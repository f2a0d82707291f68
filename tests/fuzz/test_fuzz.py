"""Damaged input of every kind ends in a result or in one sentence: a few thousand; `make fuzz` has more."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import driver
from fuzz.targets import TARGETS, Target
from hypothesis import given
from hypothesis import strategies as st

import pcl_ray
from pcl_ray import config
from pcl_ray.config import plain_yaml
from pcl_ray.errors import ConfigError

TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)


def test_no_damaged_input_ends_in_a_traceback_or_without_end() -> None:
    root = str(Path(pcl_ray.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, driver.__file__, "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        timeout=1800,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" 0 findings") == len(TARGETS) == len(driver.QUICK)


class _Faulty(Target):
    """Has the fault that its folder names."""

    def try_input(self, rng: random.Random, place: Path) -> None:
        match (self.folder / "fault").read_text():
            case "traceback":
                raise KeyError("missing")
            case "printed":
                print("Traceback (most recent call last):")
            case "memory":
                bytearray(driver.MEMORY * 2)
            case "hang":
                while True:
                    pass
            case "sleep":
                time.sleep(60)
            case "killed":
                os.kill(os.getpid(), 9)
            case "refused":
                raise ConfigError("refused")
            case "silent":
                raise ConfigError("")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("traceback", "KeyError: 'missing'"),
        ("printed", "a traceback was printed"),
        ("memory", "MemoryError"),
        ("hang", "more than"),
        ("sleep", "more than"),
        ("killed", "the process died of SIGKILL"),
        ("silent", "ConfigError without a word"),
        ("refused", ""),
        ("nothing", ""),
    ],
)
def test_the_driver_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch, fault: str, said: str) -> None:
    class Faulty(_Faulty):
        def __init__(self, folder: Path):
            super().__init__(folder)
            (folder / "fault").write_text(fault)

    monkeypatch.setitem(TARGETS, "faulty", Faulty)
    monkeypatch.setattr(driver, "SECONDS", 0.2)
    findings = list(driver.run("faulty", 7, 3))
    assert [finding.number for finding in findings] == ([7, 8, 9] if said else [])
    assert all(said in finding.text for finding in findings)


def test_an_input_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    target, made = TARGETS["tar"](tmp_path), []
    for name, numbers in (("one", (3,)), ("other", (1, 3))):
        for number in numbers:
            place = tmp_path / f"{name} {number}"
            place.mkdir()
            driver.outcome(target, "tar", number, place)
        made.append({path.name: path.read_bytes() for path in place.glob("*.tar*")})
    assert made[0] == made[1]
    assert made[0]


@given(TEXTS)
def test_any_text_is_yaml_or_no_value(text: str) -> None:
    reason = "none"
    try:
        plain_yaml.load(text)
    except ValueError as error:
        reason = str(error)
    assert reason
    assert "\n" not in reason


@given(st.sampled_from(sorted(config.knobs.text_knobs() - {"data.exclude"})), TEXTS)
def test_a_text_is_stored_and_read_as_it_was_typed(name: str, text: str) -> None:
    section, leaf = name.split(".")
    try:
        loaded = config.load("digits", {name: text})
    except ConfigError:
        return  # it has a pattern, which the text does not match
    assert getattr(getattr(loaded, section), leaf) == text
    tree = plain_yaml.load(loaded.to_yaml().encode("utf-8").decode("utf-8"))
    assert tree[section][leaf] == text
