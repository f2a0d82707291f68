"""A worker that dies: what is said, and when it is not tried again. Real processes, really ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import DIGITS_RUN

SMALL = ("resources.workers=2", *DIGITS_RUN, "train.epochs=6")

# Python imports this in every process of the run: worker 1 breaks when it records that it is at step 6.
BREAKS = """
import ctypes, os, sys

_pwrite = os.pwrite


def pwrite(descriptor, content, offset):
    written = _pwrite(descriptor, content, offset)
    if b'"step": 6,' in content and b'"rank": 1,' in content:
        print("the decoder is unhappy", file=sys.stderr, flush=True)
        {ending}
    return written


os.pwrite = pwrite
"""
ENDINGS = {"SIGSEGV": "ctypes.string_at(0)", "SIGKILL": "os.kill(os.getpid(), 9)"}


@pytest.fixture(params=ENDINGS)
def ending(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "pcl_ray_home" / "broken"
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(BREAKS.format(ending=ENDINGS[request.param]))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return request.param


@pytest.mark.slow
def test_a_death_is_explained_by_who_how_where_and_its_last_words(
    ending: str, pcl_ray: Callable[..., Any]
) -> None:
    ended = pcl_ray("digits", *SMALL, "resources.max_failures=0", "--name", "broken")
    assert ended.code == 1
    assert "worker 1 (process " in ended.err
    how = "died of SIGSEGV" if ending == "SIGSEGV" else "was killed or lost, without a trace of its own"
    assert f"{how} in the M-step of epoch 2, step 6" in ended.err
    assert "the decoder is unhappy" in ended.err
    assert "pcl-ray train --resume broken" in ended.err
    assert "common causes" not in ended.err
    assert "raylet" not in ended.out + ended.err


@pytest.mark.slow
def test_deaths_at_the_same_step_end_the_run(ending: str, pcl_ray: Callable[..., Any]) -> None:
    ended = pcl_ray("digits", *SMALL, "resources.max_failures=9", "--name", "broken")
    assert ended.code == 1
    assert "another one would end there too" in ended.err
    assert "step 6" in ended.err
    deaths = {"SIGSEGV": 2, "SIGKILL": 3}[ending]
    assert ended.err.count("workers were lost and replaced") < deaths
    assert "raylet" not in ended.out + ended.err
