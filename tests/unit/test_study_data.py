"""The study's data sets: what is drawn, split, read from packages, and refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import study_data  # pyrefly: ignore[missing-import]
    import study_rendering  # pyrefly: ignore[missing-import]

    return SimpleNamespace(data=study_data, rendering=study_rendering)


def test_a_path_of_curves_becomes_the_points_on_them(study: SimpleNamespace) -> None:
    svg = '<path id="a" d="M10,20c3,0,6,3,6,9s3,9,9,9"/><path id="b" d="m1-2 L5.5.5"/>'
    curve, line = study.rendering.strokes_of(svg)
    start, controls = np.array([10.0, 20]), np.array([[13.0, 20], [16, 23], [16, 29]])
    half = 0.125 * start + 0.375 * controls[0] + 0.375 * controls[1] + 0.125 * controls[2]
    np.testing.assert_allclose(curve[0], start)
    np.testing.assert_allclose(curve[4], half)
    # The second curve's first control point mirrors (16, 23) at (16, 29).
    mirrored = 0.125 * controls[2] + 0.375 * np.array([16.0, 35]) + 0.375 * np.array([19.0, 38])
    np.testing.assert_allclose(curve[12], mirrored + 0.125 * np.array([25.0, 38]))
    np.testing.assert_allclose(curve[16], [25, 38])
    np.testing.assert_allclose(line, [[1, -2], [5.5, 0.5]])
    with pytest.raises(ValueError, match="'A'"):
        study.rendering.strokes_of('<path d="M1,1A2,2,0,0,1,3,3"/>')


def test_a_drawing_follows_from_its_seed_and_shows_its_character(study: SimpleNamespace) -> None:
    upright, flat = np.array([[54.0, 15], [54, 95]]), np.array([[15.0, 54], [95, 54]])

    def drawings(stroke: np.ndarray) -> np.ndarray:
        return np.stack(
            [study.rendering.drawing([stroke], 28, np.random.default_rng([3, seed])) for seed in range(20)]
        ).astype(float)

    first = drawings(upright)
    np.testing.assert_array_equal(first, drawings(upright))
    assert len(np.unique(first.reshape(20, -1), axis=0)) == 20
    # an upright stroke fills few columns and many rows, in every drawing
    assert ((first > 0).any(axis=2).sum(axis=1) > (first > 0).any(axis=1).sum(axis=1)).all()
    other = drawings(flat)
    assert ((other > 0).any(axis=2).sum(axis=1) < (other > 0).any(axis=1).sum(axis=1)).all()


def test_a_pickle_may_hold_an_array_and_nothing_else(study: SimpleNamespace, tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(study.data._unpickled(pickle.dumps(array, protocol=4)), array)

    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/run",)

    with pytest.raises(DataError, match="system"):
        study.data._unpickled(pickle.dumps(Attack()))
    assert not (tmp_path / "run").exists()
    for wrong in ([1, 2], np.array([{}], dtype=object)):
        with pytest.raises(DataError):
            study.data._unpickled(pickle.dumps(wrong))
    with pytest.raises(DataError):
        study.data._unpickled(pickle.dumps(array)[:-20])


def test_tuning_never_sees_a_reported_test_image(study: SimpleNamespace) -> None:
    images = np.arange(1000)
    reported, tuning = (study.data._random_split(images, images % 7, flag) for flag in (False, True))
    assert sorted([*reported.images, *reported.test_images]) == list(range(1000))
    assert len(reported.test_images) == 200
    assert not set(reported.test_images) & {*tuning.images, *tuning.test_images}
    assert not set(tuning.images) & set(tuning.test_images)
    np.testing.assert_array_equal(tuning.labels, tuning.images % 7)


def test_fashion_mnist_and_its_long_tail(study: SimpleNamespace, tmp_path: Path) -> None:
    whole = study.data._whole_fashion_mnist()
    reported, tuning = (study.data._fashion_mnist(tmp_path, flag) for flag in (False, True))
    np.testing.assert_array_equal(reported.images, whole.images[:20000])
    np.testing.assert_array_equal(reported.test_images, whole.test_images)
    np.testing.assert_array_equal(tuning.images, whole.images[20000:40000])
    np.testing.assert_array_equal(tuning.test_images, whole.images[40000:50000])  # no test image
    tail, tuning_tail = (study.data._long_tail(tmp_path, flag) for flag in (False, True))
    sizes = np.bincount(tail.labels)
    np.testing.assert_array_equal(sizes, [round(2900 * 100 ** (-c / 9)) for c in range(10)])
    np.testing.assert_array_equal(np.bincount(tail.test_labels), [1000] * 10)
    others = {image.tobytes() for image in whole.images[20000:40000]}
    assert {image.tobytes() for image in tuning_tail.images} <= others


def test_a_file_is_made_once_and_any_run_can_take_it(study: SimpleNamespace, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    made = study.data.Arrays(
        draw.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8),
        draw.integers(0, 4, 40),
        draw.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8),
        draw.integers(0, 4, 10),
    )
    calls = []
    study.data.SOURCES["toy"] = study.data.Source(lambda folder, tuning: calls.append(tuning) or made)
    try:
        path = study.data.file_of("toy", folder=tmp_path)
        assert study.data.file_of("toy", folder=tmp_path) == path
        study.data.file_of("toy", folder=tmp_path, tuning=True)
    finally:
        del study.data.SOURCES["toy"]
    assert calls == [False, True]
    assert study.data.read(path).checksum == made.checksum
    splits = datasets.load(DataConfig(source="arrays", path=str(path), channels=3), cache_dir=tmp_path)
    assert len(splits.train) == 40
    assert splits.num_holdout == 10
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="remove it"):
        study.data.read(path)


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path) -> None:
    script = str(BENCHMARKS / "study_data.py")
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(BENCHMARKS.parent)}
    for words in (["nothing"], ["emoji", "--folder", str(tmp_path / "data")]):
        done = subprocess.run(
            [sys.executable, script, *words], capture_output=True, text=True, env=environment, timeout=100
        )
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "emoji-datasource-apple 16.0.0" in done.stderr
    assert "there is no npm" in done.stderr
