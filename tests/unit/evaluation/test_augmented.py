"""LiDAR's views: of which images, how many, on any number of workers; and the run trains as without."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small import DIGITS_RUN, GREY_ENCODER
from small_training import StopsIn

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray.checkpoints import run_state
from pcl_ray.config import RunConfig
from pcl_ray.data import folders
from pcl_ray.data.images import ArrayImages, Images
from pcl_ray.data.loaders import TrainingLoader
from pcl_ray.data.reading import Readers
from pcl_ray.data.views import Views
from pcl_ray.errors import Stopped
from pcl_ray.evaluation import augmented, lidar
from pcl_ray.evaluation.augmented import AugmentedViews, sampled
from pcl_ray.model.learner import Learner, build_learner
from pcl_ray.runs import driver, request

CPU = torch.device("cpu")
N, DIM = 150, 6


def config_of(**knobs: object) -> RunConfig:
    small = {
        "augment.image_size": 8,
        "encoder.dim": DIM,
        "train.batch_size": 16,
        "evaluation.lidar_images": 100,
        "evaluation.lidar_views": 6,
    }
    return configs.with_overrides(
        RunConfig(), GREY_ENCODER | small | {name.replace("__", "."): value for name, value in knobs.items()}
    )


def images() -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8))


def augmented_views(config: RunConfig, data: Images | None = None) -> AugmentedViews:
    return AugmentedViews(data or images(), config, CPU, Readers(config, CPU))


def learner_of(config: RunConfig) -> Learner:
    """With statistics of batch norm that are no longer those of the beginning."""
    learner = build_learner(config, CPU)
    learner.pair.train()
    with torch.no_grad():
        for _ in range(5):
            learner.pair.key(
                torch.randn(32, config.data.channels, 8, 8, generator=torch.Generator().manual_seed(0))
            )
    return learner


@given(st.integers(1, 5000), st.integers(2, 5000))
def test_the_sample_is_spread_evenly(num_images: int, count: int) -> None:
    rows = sampled(num_images, count)
    assert len(rows) == min(num_images, count)
    assert rows[0] == 0
    assert rows[-1] < num_images
    if len(rows) > 1:
        assert set(np.diff(rows)) <= {num_images // len(rows), -(-num_images // len(rows))} - {0}


def test_features_are_those_of_the_views_one_by_one() -> None:
    config = config_of()
    learner, data = learner_of(config), images()
    found = augmented_views(config).features(learner)
    assert found.shape == (100, 6, DIM)
    assert found.dtype == torch.float32
    encoder, views = learner.pair.key.eval(), Views(config, CPU)
    for place, image in enumerate(sampled(N, 100).tolist()):
        for number in range(6):
            pixels = torch.from_numpy(data.pixels[image : image + 1])
            view = views.of_images(pixels, 2**31 - 1 + number // 2, torch.tensor([image]))[number % 2]
            with torch.no_grad():
                assert torch.allclose(found[place, number], encoder(view)[0], atol=1e-5)


def test_each_image_has_as_many_different_views() -> None:
    config = config_of()
    found = augmented_views(config).features(learner_of(config))
    for rows in found:
        assert len({row.numpy().tobytes() for row in rows}) == 6
    trained = TrainingLoader(images(), config).views(0, [sampled(N, 100)])
    assert not torch.equal(
        next(trained).query_views,
        next(TrainingLoader(images(), config).views(2**31 - 1, [sampled(N, 100)])).query_views,
    )


def test_fewer_views_are_the_first_of_many_and_odd_numbers_are_rounded_up() -> None:
    learner = learner_of(config_of())
    many, few = (
        augmented_views(config_of(evaluation__lidar_views=count)).features(learner) for count in (10, 3)
    )
    assert few.shape == (100, 4, DIM)
    assert torch.equal(many[:, :4], few)


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("count", [100, 5])
def test_the_workers_parts_together_are_those_of_one(
    world_size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five images, two of seven workers have none."""
    config = config_of(evaluation__lidar_images=count)
    learner = learner_of(config)
    whole = augmented_views(config).features(learner)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(augmented, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(augmented, "world_size", lambda: world_size)
        parts.append(augmented_views(config).features(learner))
    assert [len(part) for part in parts] == [
        len(part) for part in np.array_split(np.arange(count), world_size)
    ]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


def test_figures_and_what_is_left_as_it_was() -> None:
    config = config_of()
    learner, measured = learner_of(config), augmented_views(config)
    torch.manual_seed(3)
    before = torch.get_rng_state(), {name: value.clone() for name, value in learner.pair.state_dict().items()}
    figures = measured.figures(learner)
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(value, learner.pair.state_dict()[name]) for name, value in before[1].items())
    assert learner.pair.key.training
    assert figures.keys() == {"eval/lidar", "perf/lidar_seconds"}
    assert (
        figures["eval/lidar"] == lidar(measured.features(learner)) == measured.figures(learner)["eval/lidar"]
    )
    assert 1 <= figures["eval/lidar"] <= DIM
    with torch.no_grad():
        next(learner.pair.key.parameters()).fill_(float("nan"))
    assert measured.figures(learner).keys() == {"perf/lidar_seconds"}


def pictures(folder: Path, count: int = 40) -> Images:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (10 + i % 3, 12, 3), dtype=np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    return folders.find_images(folder, 3)


@pytest.mark.parametrize("engine", ["batch", "torchvision"])
def test_views_of_files(tmp_path: Path, engine: str) -> None:
    colour = {
        "data__channels": 3,
        "augment__mean": (0.5,) * 3,
        "augment__std": (0.5,) * 3,
        "data__loader_workers": 0,
    }
    config = config_of(
        augment__engine=engine, evaluation__lidar_images=25, evaluation__lidar_views=4, **colour
    )
    data, learner = pictures(tmp_path / "data"), learner_of(config)
    state = torch.get_rng_state()
    found = augmented_views(config, data).features(learner)
    assert torch.equal(state, torch.get_rng_state())
    encoder = learner.pair.key.eval()
    for number in range(2):
        (batch,) = TrainingLoader(data, config).views(2**31 - 1 + number, [sampled(40, 25)])
        with torch.no_grad():
            assert torch.allclose(found[:, 2 * number], encoder(batch.query_views), atol=1e-5)
            assert torch.allclose(found[:, 2 * number + 1], encoder(batch.key_views), atol=1e-5)


def test_views_are_made_in_full_precision_where_the_encoder_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(augment__blur=1.0)
    learner, seen = learner_of(config), []
    exact = augmented_views(config).features(learner)

    def halved(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    original = augmented.views_for
    monkeypatch.setattr(augmented, "precision", halved)
    monkeypatch.setattr(
        augmented, "views_for", lambda learner, views: seen.append(views.dtype) or original(learner, views)
    )
    found = augmented_views(config).features(learner)
    assert set(seen) == {torch.float32}
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.1)


# --- in runs

TINY = ("resources.workers=0", *DIGITS_RUN, "train.log_every_steps=2", "train.keep_checkpoints=20")
LIDAR = ("evaluation.lidar_images=50", "evaluation.lidar_views=4")


def train(*words: str) -> int:
    return cli.main(["train", "digits", *TINY, *words])


def state_of(name: str, epoch: int) -> run_state.RunState:
    return run_state.load(
        Path(os.environ["PCL_RAY_HOME"], "runs", name, "checkpoints", f"epoch_{epoch:05d}.pt")
    )


def figures_of(name: str, epoch: int) -> list[float | None]:
    """LiDAR after each epoch, as the checkpoint after `epoch` has it."""
    return [entry["metrics"].get("eval/lidar") for entry in state_of(name, epoch).history]


def numbers(name: str, epoch: int) -> list[torch.Tensor]:
    state = state_of(name, epoch)
    found = [value for value in state.learner["model"].values() if isinstance(value, torch.Tensor)]
    found += [state.learner["queue"]["keys"], *state.random_states]
    for clustering in state.clusters.clusterings if state.clusters else ():
        found += [clustering.prototypes, clustering.assignments, clustering.concentration]
    return found


@pytest.mark.parametrize(
    "words",
    [(), ("augment.engine=torchvision", "data.loader_workers=0", "train.epochs=2")],
    ids=["batch", "torchvision"],
)
def test_a_run_trains_as_it_would_without(words: tuple[str, ...]) -> None:
    for name, more in (("with", LIDAR), ("without", ())):
        assert train("--name", name, *words, *more) == 0
    epochs = 2 if words else 4
    for epoch in range(1, epochs + 1):
        first, second = numbers("with", epoch), numbers("without", epoch)
        assert len(first) == len(second)
        assert all(torch.equal(a, b) for a, b in itertools.zip_longest(first, second))
    assert all(figure is not None and 1 <= figure <= 16 for figure in figures_of("with", epochs))
    assert figures_of("without", epochs) == [None] * epochs
    assert "perf/lidar_seconds" not in state_of("without", epochs).history[-1]["metrics"]


@pytest.mark.slow
def test_only_where_the_run_is_evaluated() -> None:
    assert train("--name", "second", *LIDAR, "evaluation.every_epochs=2") == 0
    assert [figure is not None for figure in figures_of("second", 4)] == [False, True, False, True]


@pytest.mark.slow
def test_its_seconds_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the epoch, so that the sum would be too large if the E-step's held them too."""
    monkeypatch.setattr(augmented, "lidar", lambda features: time.sleep(2) or lidar(features))
    assert train("--name", "slow", *LIDAR, "train.epochs=2") == 0
    metrics = state_of("slow", 2).history[-1]["metrics"]
    parts = ("m_step", "e_step", "lidar", "evaluation")
    assert metrics["perf/lidar_seconds"] > 2
    assert sum(metrics[f"perf/{part}_seconds"] for part in parts) <= metrics["perf/epoch_seconds"]


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_figures_at_the_same_epochs() -> None:
    """With overlap, epoch 2's E-step begins again: its figures are not epoch 3's, even if LiDAR is new."""
    words = ("e_step.overlap=true", "e_step.switch_step=2")
    assert train("--name", "whole", *words, *LIDAR) == 0
    for first, seen in ((LIDAR, [True] * 4), ((), [False, True, True, True])):
        with pytest.raises(Stopped):
            driver.start(
                request.check("digits", [*TINY, *words, *first]), name=f"cut{len(first)}", display=StopsIn(2)
            )
        assert cli.main(["train", "--resume", f"cut{len(first)}", *LIDAR]) == 0
        expected = [
            figure if there else None for figure, there in zip(figures_of("whole", 4), seen, strict=True)
        ]
        assert figures_of(f"cut{len(first)}", 4) == expected
