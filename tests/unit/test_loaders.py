from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pcl_ray.config import RunConfig
from pcl_ray.data import folders
from pcl_ray.data.augment import evaluation_view, to_floats
from pcl_ray.data.images import ArrayImages, Images
from pcl_ray.data.loaders import Batch, EvaluationLoader, TrainingLoader


def config(batch_size: int = 8, seed: int = 0, workers: int = 0, channels: int = 1, size: int = 8) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"channels": channels, "loader_workers": workers},
            "augment": {"image_size": size, "mean": (0.5,) * channels, "std": (0.25,) * channels},
            "train": {"batch_size": batch_size},
            "seed": seed,
        }
    )


def images(n: int = 30, channels: int = 1, side: int = 8) -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8))


def joined(parts: Iterable[Batch]) -> Batch:
    """The workers' parts of one step as one batch."""
    parts = list(parts)
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in ("query_views", "key_views", "indices")))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("query_views", "key_views", "indices"))


def indices(batches: Iterable[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.indices.tolist()]


def test_a_batch_has_two_views_and_the_position_of_each_image() -> None:
    batches = list(TrainingLoader(images(), config()).epoch(0))
    assert len(batches) == 3  # the incomplete fourth is dropped
    for batch in batches:
        assert batch.query_views.shape == batch.key_views.shape == (8, 1, 8, 8)
        assert batch.query_views.dtype == batch.key_views.dtype == torch.float32
        assert batch.indices.shape == (8,)
        assert batch.indices.dtype == torch.int64
        assert not torch.equal(batch.query_views, batch.key_views)


@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_workers_parts_together_are_the_batch_of_one_worker(world_size: int, batch_size: int) -> None:
    data, settings = images(), config(batch_size)
    alone = TrainingLoader(data, settings).epoch(2)
    several = [TrainingLoader(data, settings, rank=rank, world_size=world_size).epoch(2) for rank in range(world_size)]
    steps = 0
    for whole, *parts in zip(alone, *several, strict=True):
        assert min(len(part.indices) for part in parts) >= batch_size // world_size
        assert same(whole, joined(parts))
        steps += 1
    assert steps == 30 // batch_size


def test_processes_that_read_change_nothing() -> None:
    here, there = TrainingLoader(images(), config()), TrainingLoader(images(), config(workers=2))
    state = torch.get_rng_state()
    for epoch in (0, 3):  # the same processes serve every epoch
        assert all(same(a, b) for a, b in zip(here.epoch(epoch), there.epoch(epoch), strict=True))
    next(there.epoch(1))  # an epoch that is left early leaves nothing behind
    assert all(same(a, b) for a, b in zip(here.epoch(2), there.epoch(2), strict=True))
    assert torch.equal(state, torch.get_rng_state())


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_visits_distinct_images(n: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = list(TrainingLoader(images(n), config(batch_size, seed)).epoch(epoch))
    visited = indices(batches)
    assert len(batches) == n // batch_size
    assert len(set(visited)) == len(visited) == n // batch_size * batch_size
    assert set(visited) <= set(range(n))


def test_the_same_epoch_again_is_the_same_and_another_is_not() -> None:
    loader = TrainingLoader(images(), config(10))
    first, other, again = (list(loader.epoch(epoch)) for epoch in (0, 1, 0))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert indices(first) != indices(other)
    assert sorted(indices(first)) == sorted(indices(other)) == list(range(30))
    views = {i: view for batch in first for i, view in zip(batch.indices.tolist(), batch.query_views, strict=True)}
    renewed = [torch.equal(views[i], view) for batch in other for i, view in zip(batch.indices.tolist(), batch.query_views, strict=True)]
    assert sum(renewed) < 3  # new views of the same images; two random views may be equal


def test_another_seed_gives_another_order_and_other_views() -> None:
    first, other = (next(TrainingLoader(images(), config(30, seed)).epoch(0)) for seed in (0, 1))
    assert first.indices.tolist() != other.indices.tolist()
    assert (first.query_views[first.indices.argsort()] != other.query_views[other.indices.argsort()]).flatten(1).any(dim=1).sum() > 25


def test_equal_images_get_views_of_their_own() -> None:
    alike = ArrayImages(np.repeat(images(1).pixels, 30, axis=0))
    batch = next(TrainingLoader(alike, config(30)).epoch(0))
    assert len({view.numpy().tobytes() for view in (*batch.query_views, *batch.key_views)}) > 50


def test_a_view_does_not_depend_on_the_batch_around_it() -> None:
    small, large = (list(TrainingLoader(images(), config(size)).epoch(4)) for size in (3, 30))
    assert same(joined(small), joined(large))


def test_epochs_asked_for_at_once_do_not_mix() -> None:
    loader = TrainingLoader(images(), config(10))
    alone = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    for step, (first, second) in enumerate(pairs):
        assert same(first, alone[0][step])
        assert same(second, alone[1][step])


def test_torchs_own_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loader = TrainingLoader(images(), config())
    for _ in itertools.islice(loader.epoch(0), 2):
        assert torch.equal(state, torch.get_rng_state())
    list(EvaluationLoader(images(), config()))
    assert torch.equal(state, torch.get_rng_state())
    first = next(loader.epoch(0))
    torch.manual_seed(6)  # nor does it matter for the batches
    assert same(first, next(loader.epoch(0)))


@given(st.integers(1, 200), st.integers(1, 9), st.integers(2, 300))
def test_evaluation_covers_every_image_once_over_any_number_of_workers(n: int, world_size: int, batch_size: int) -> None:
    data, settings = images(n, side=2), config(batch_size, size=4)
    seen: list[int] = []
    for rank in range(world_size):
        for views, ids in EvaluationLoader(data, settings, rank=rank, world_size=world_size):
            assert views.shape == (len(ids), 1, 4, 4)
            assert ids.dtype == torch.int64
            seen += ids.tolist()
    assert seen == list(range(n))


def test_more_workers_than_images() -> None:
    parts = [[i for _, ids in EvaluationLoader(images(3), config(), rank=rank, world_size=5) for i in ids.tolist()] for rank in range(5)]
    assert sorted(sum(parts, [])) == [0, 1, 2]
    assert parts.count([]) == 2


def files(folder: Path) -> Images:
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9 + i, 14, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folders.find_images(folder, 3)


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_evaluation_views_are_those_of_the_images(tmp_path: Path, kind: str) -> None:
    data = files(tmp_path / "data") if kind == "files" else images(6, 3, side=11)
    settings = config(channels=3)
    ((views, ids),) = EvaluationLoader(data, settings)
    view = evaluation_view(settings.augment)
    expected = [to_floats(view(torch.tensor(data.read(i)).permute(2, 0, 1)), settings.augment) for i in ids.tolist()]
    assert ids.tolist() == list(range(6))
    assert torch.allclose(views, torch.stack(expected), atol=1e-6)


def test_images_of_many_sizes_come_in_one_batch(tmp_path: Path) -> None:
    batch = next(TrainingLoader(files(tmp_path / "data"), config(6, channels=3)).epoch(0))
    assert batch.query_views.shape == (6, 3, 8, 8)


def test_read_only_memory_is_enough(recwarn: pytest.WarningsRecorder) -> None:
    """Images come read-only out of Ray's store."""
    data = images()
    data.pixels.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch says it once a process
    batches = [*TrainingLoader(data, config()).epoch(0), *EvaluationLoader(data, config())]
    torch.set_warn_always(before)
    assert len(batches) == 4
    assert [str(entry.message) for entry in recwarn if "writ" in str(entry.message)] == []
