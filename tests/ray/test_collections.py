"""A collection by Ray Data: it holds what one process makes, also after its driver was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from collections_made import checkpoint, embedded, pictures

from pcl_ray.embedding.collection import Collection

LIMIT_S = 600  # a guard against hanging, not a measurement


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pcl_ray.cli", "embed", *words]


@pytest.mark.slow
def test_parts_by_workers_are_those_of_one_process_also_after_a_kill(tmp_path: Path) -> None:
    run, files = checkpoint(tmp_path / "run"), pictures(tmp_path / "pictures", 400)
    files[7].write_bytes(b"broken")
    words = (str(run), str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--workers", "2")
    first = started_until_the_first_part(words, tmp_path / "out")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    second = subprocess.run(command(*words), capture_output=True, text=True, timeout=LIMIT_S)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "Traceback" not in second.stderr
    one, two = Collection(embedded(tmp_path, *words[:2])), Collection(tmp_path / "out")
    assert one.broken() == two.broken() != {}
    assert len(one) == len(two) == len(set(two.paths.to_pylist())) == 399
    expected = dict(zip(one.paths.to_pylist(), rows(one), strict=True))
    for path, row in zip(two.paths.to_pylist(), rows(two), strict=True):
        np.testing.assert_allclose(row, expected[path], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_told_to_stop_says_how_to_go_on(workers: str, number: signal.Signals, tmp_path: Path) -> None:
    run, files = checkpoint(tmp_path / "run"), pictures(tmp_path / "pictures", 600)
    words = (str(run), str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--workers", workers)
    first = started_until_the_first_part(words, tmp_path / "out")
    first.send_signal(number)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 128 + number, (out, err)
    said = err.splitlines()[-1]
    assert said == "pcl-ray: stopped; what is embedded is kept; the same command goes on with the rest"
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(first.pid, 0)  # nobody of its session is left
    second = subprocess.run(command(*words), capture_output=True, text=True, timeout=LIMIT_S)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "are embedded already" in second.stdout
    assert len(Collection(tmp_path / "out")) == len(files)


def started_until_the_first_part(words: tuple[str, ...], out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + LIMIT_S
    while not list(out.glob("parts/part-*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


def rows(collection: Collection) -> np.ndarray:
    return np.concatenate([block for _, block in collection.embeddings()])


def test_what_a_worker_cannot_do_is_said_in_a_sentence(tmp_path: Path) -> None:
    run = checkpoint(tmp_path / "run")
    (tmp_path / "list.txt").write_text("gone.png\n")
    done = subprocess.run(
        command(str(run), str(tmp_path / "list.txt"), "--out", str(tmp_path / "out"), "--workers", "1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "none of 1 images is there any more" in done.stderr
    assert "Traceback" not in done.stderr
