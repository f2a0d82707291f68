"""The benchmark of the time to an accuracy: who is trained when, and what is compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pcl_ray.config import RunConfig, with_overrides

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import time_to_accuracy  # pyrefly: ignore[missing-import]

    return time_to_accuracy


def test_the_first_epoch_that_is_as_good_counts(benchmark: Any) -> None:
    curve = [(10.0, 0.5), (20.0, 0.7), (30.0, 0.65), (40.0, 0.8)]
    assert benchmark.time_to(curve, 0.6) == 20.0
    assert benchmark.time_to(curve, 0.7) == 20.0
    assert benchmark.time_to(curve, 0.75) == 40.0
    assert benchmark.time_to(curve, 0.9) is None


def test_both_come_to_their_ends_together(benchmark: Any) -> None:
    order: list[str] = []

    class Fake:
        def __init__(self, name: str, epochs: int):
            self.name, self._epochs, self.curve = name, epochs, []

        @property
        def done(self) -> float:
            return len(self.curve) / self._epochs

        def advance(self) -> None:
            order.append(self.name)
            self.curve.append((1.0, 0.5))

    benchmark.in_turns([Fake("a", 6), Fake("b", 3)])
    assert "".join(order) == "abaabaaba"


def test_the_two_settings_differ_where_they_should(benchmark: Any) -> None:
    asked = SimpleNamespace(device="cpu", quick=False, epochs=8)
    reference, ours = (benchmark._config(name, {"seed": 3}, asked) for name in ("reference", "ours"))
    assert reference.augment.engine == "torchvision"
    assert reference.train.memory_format == "contiguous"
    assert reference.e_step.warm_start == "none"
    assert (reference.e_step.cold_iterations, reference.e_step.restarts) == (20, 5)
    assert ours.augment.engine == "batch"
    assert ours.train.memory_format == "channels_last"
    assert reference.seed == ours.seed == 3
    assert reference.train.epochs == 8
    assert ours.train.epochs < benchmark.study_settings.FAST["train.epochs"] + 1


def test_a_pipeline_is_trained_epoch_by_epoch_and_measured(benchmark: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 256, (4, 8, 8))
    labels = draw.integers(0, 4, 200)
    pixels = (0.8 * kinds[labels] + 0.2 * draw.integers(0, 256, (200, 8, 8))).astype(np.uint8)
    path = tmp_path / "images.npz"
    np.savez(
        path, images=pixels[:160], labels=labels[:160], test_images=pixels[160:], test_labels=labels[160:]
    )
    knobs = {
        "data.source": "arrays",
        "data.path": str(path),
        "data.channels": 1,
        "augment.image_size": 8,
        "augment.mean": [0.4],
        "augment.std": [0.3],
        "encoder.backbone": "small_resnet",
        "encoder.width": 8,
        "encoder.blocks": [1],
        "encoder.dim": 16,
        "loss.queue_size": 64,
        "e_step.num_clusters": [8],
        "e_step.warmup_epochs": 1,
        "e_step.collapse_rank": 0.0,
        "e_step.collapse_cone": 1.0,
        "train.epochs": 3,
        "train.batch_size": 32,
    }
    config = with_overrides(RunConfig(), knobs | benchmark.study_training.machinery())
    pipeline = benchmark.Pipeline("ours", config, path, tmp_path / "run", "cpu")
    benchmark.in_turns([pipeline])
    seconds, accuracies = zip(*pipeline.curve, strict=True)
    assert len(seconds) == 3
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert all(accuracy > 0.5 for accuracy in accuracies)  # chance is 0.25
