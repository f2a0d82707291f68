from __future__ import annotations

import itertools
import multiprocessing
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pcl_ray.config import RunConfig
from pcl_ray.data import folders
from pcl_ray.data.colour import to_floats
from pcl_ray.data.evaluation_view import evaluation_view
from pcl_ray.data.images import ArrayImages, FileImages, Images
from pcl_ray.data.loaders import Batch, EvaluationLoader, TrainingLoader
from pcl_ray.data.reading import Readers
from pcl_ray.errors import DataError

CPU = torch.device("cpu")


def config(
    batch_size: int = 8, seed: int = 0, workers: int = 0, channels: int = 1, size: int = 8
) -> RunConfig:
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
    small = zip(*(part.small_views for part in parts), strict=True)
    return Batch(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("query_views", "key_views", "indices")
        ),
        small_views=tuple(torch.cat(views) for views in small),
    )


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("query_views", "key_views", "indices")]
    return all(torch.equal(*pair) for pair in [*pairs, *zip(a.small_views, b.small_views, strict=True)])


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
    several = [
        TrainingLoader(data, settings, rank=rank, world_size=world_size).epoch(2)
        for rank in range(world_size)
    ]
    steps = 0
    for whole, *parts in zip(alone, *several, strict=True):
        assert min(len(part.indices) for part in parts) >= batch_size // world_size
        assert same(whole, joined(parts))
        steps += 1
    assert steps == 30 // batch_size


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
    views = {
        i: view for batch in first for i, view in zip(batch.indices.tolist(), batch.query_views, strict=True)
    }
    renewed = [
        torch.equal(views[i], view)
        for batch in other
        for i, view in zip(batch.indices.tolist(), batch.query_views, strict=True)
    ]
    assert sum(renewed) < 3  # new views of the same images; two random views may be equal


def test_another_seed_gives_another_order_and_other_views() -> None:
    first, other = (next(TrainingLoader(images(), config(30, seed)).epoch(0)) for seed in (0, 1))
    assert first.indices.tolist() != other.indices.tolist()
    assert (first.query_views[first.indices.argsort()] != other.query_views[other.indices.argsort()]).flatten(
        1
    ).any(dim=1).sum() > 25


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
def test_evaluation_covers_every_image_once_over_any_number_of_workers(
    n: int, world_size: int, batch_size: int
) -> None:
    data, settings = images(n, side=2), config(batch_size, size=4)
    seen: list[int] = []
    for rank in range(world_size):
        for views, ids in EvaluationLoader(data, settings, rank=rank, world_size=world_size):
            assert views.shape == (len(ids), 1, 4, 4)
            assert ids.dtype == torch.int64
            seen += ids.tolist()
    assert seen == list(range(n))


def test_more_workers_than_images() -> None:
    parts = [
        [i for _, ids in EvaluationLoader(images(3), config(), rank=rank, world_size=5) for i in ids.tolist()]
        for rank in range(5)
    ]
    assert sorted(sum(parts, [])) == [0, 1, 2]
    assert parts.count([]) == 2


def files(folder: Path) -> Images:
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9 + i, 14, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folders.find_images(folder, 3)


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_evaluation_views_are_those_of_the_images(tmp_path: Path, kind: str) -> None:
    data = files(tmp_path / "data") if kind == "files" else images(6, 3, side=11)
    settings = config(channels=3)
    ((views, ids),) = EvaluationLoader(data, settings)
    view = evaluation_view(settings.augment)
    expected = [
        to_floats(view(torch.tensor(data.read(i)).permute(2, 0, 1)), settings.augment) for i in ids.tolist()
    ]
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


ALONE = {"flip": 0.0, "jitter": 0.0, "hue": 0.0, "grey": 0.0, "blur": 0.0}  # crops alone


def changed(settings: RunConfig, section: str, **knobs: object) -> RunConfig:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=knobs)})


def photographs(
    folder: Path, count: int = 6, height: int = 600, width: int = 800, orientation: int | None = None
) -> FileImages:
    """Smooth JPEGs."""
    folder.mkdir()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    for i in range(count):
        small = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{i}.jpg", quality=95, exif=exif
        )
    return folders.find_images(folder, 3)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Height and width of every file decoded in this process."""
    sizes: list[tuple[int, int]] = []
    decode = FileImages.decode

    def noted(self: FileImages, index: int, scale: Callable[[int, int], float] | None = None) -> np.ndarray:
        pixels = decode(self, index, scale)
        sizes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(FileImages, "decode", noted)
    return sizes


@pytest.mark.parametrize(("engine", "workers"), [("batch", 2), ("torchvision", 1)])
def test_processes_that_decode_files_change_nothing(tmp_path: Path, engine: str, workers: int) -> None:
    data, settings = (
        photographs(tmp_path / "data", 7, 90, 120),
        changed(config(3, channels=3), "augment", engine=engine, rotate=20, erase=0.5, small_crops=2),
    )
    here, there = (
        TrainingLoader(data, settings),
        TrainingLoader(data, settings, readers=Readers(settings, CPU, workers)),
    )
    state = torch.get_rng_state()
    for epoch in (0, 3):  # the same processes serve every epoch
        assert all(same(a, b) for a, b in zip(here.epoch(epoch), there.epoch(epoch), strict=True))
    next(there.epoch(1))  # an epoch that is left early leaves nothing behind
    assert all(same(a, b) for a, b in zip(here.epoch(2), there.epoch(2), strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_the_same_processes_read_for_training_and_evaluation(tmp_path: Path) -> None:
    data, settings = photographs(tmp_path / "data", 7, 90, 120), config(3, channels=3)
    readers, before = Readers(settings, CPU, 1), len(multiprocessing.active_children())
    training, evaluation = (
        kind(data, settings, readers=readers) for kind in (TrainingLoader, EvaluationLoader)
    )
    expected = list(TrainingLoader(data, settings).epoch(1)), list(EvaluationLoader(data, settings))
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(training.epoch(1), expected[0], strict=True))
        assert all(torch.equal(a[0], b[0]) for a, b in zip(evaluation, expected[1], strict=True))
        assert len(multiprocessing.active_children()) == before + 1


@pytest.mark.slow
def test_a_process_that_decodes_for_evaluation_changes_nothing_and_names_a_broken_file(
    tmp_path: Path,
) -> None:
    data = photographs(tmp_path / "data", 66, 30, 40)
    (tmp_path / "data" / "9.jpg").write_bytes(b"no picture")  # the last in order
    views: list[Tensor] = []
    for workers in (0, 1):
        batches = iter(
            EvaluationLoader(data, config(channels=3), readers=Readers(config(channels=3), CPU, workers))
        )
        views.append(next(batches)[0])
        with pytest.raises(DataError, match=r"^\S+9\.jpg cannot be read") as caught:
            next(batches)
        # what a traceback holds is freed late, and then the process ends slowly
        traceback.clear_frames(caught.tb)
        del caught, batches
    assert torch.equal(*views)


@pytest.mark.parametrize("engine", ["batch", "torchvision"])
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_views_do_not_depend_on_the_number_of_workers_of_a_run(
    tmp_path: Path, kind: str, engine: str
) -> None:
    data = photographs(tmp_path / "data", 6, 40, 50) if kind == "files" else images(6, 3, side=11)
    moved = {"shift": 0.2, "rotate": 20, "shear": 10, "erase": 0.5, "small_crops": 2}
    settings = changed(config(5, channels=3), "augment", engine=engine, **moved)
    (whole,) = TrainingLoader(data, settings).epoch(1)
    parts = [next(TrainingLoader(data, settings, rank=rank, world_size=3).epoch(1)) for rank in range(3)]
    assert whole.indices.tolist() == joined(parts).indices.tolist()
    assert torch.allclose(whole.query_views, joined(parts).query_views, atol=1e-5)
    assert torch.allclose(whole.key_views, joined(parts).key_views, atol=1e-5)
    for mine, others in zip(whole.small_views, joined(parts).small_views, strict=True):
        assert torch.allclose(mine, others, atol=1e-5)


@pytest.mark.parametrize("engine", ["batch", "torchvision"])
@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_small_views_come_with_the_others_from_every_source(tmp_path: Path, kind: str, engine: str) -> None:
    data = photographs(tmp_path / "data", 6, 40, 50) if kind == "files" else images(6, 3, side=40)
    settings = changed(config(6, channels=3, size=14), "augment", engine=engine)
    (plain,) = TrainingLoader(data, settings).epoch(1)
    (batch,) = TrainingLoader(data, changed(settings, "augment", small_crops=3)).epoch(1)
    assert plain.small_views == ()
    assert torch.equal(plain.query_views, batch.query_views)
    assert torch.equal(plain.key_views, batch.key_views)
    assert [view.shape for view in batch.small_views] == [(6, 3, 6, 6)] * 3
    assert len({view.numpy().tobytes() for view in batch.small_views}) == 3
    assert all(view.dtype == torch.float32 for view in batch.small_views)


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_torchvisions_views_are_whole_and_of_every_images_own(tmp_path: Path, kind: str) -> None:
    data = photographs(tmp_path / "data", 6, 40, 50) if kind == "files" else images(6, 3, side=11)
    settings = changed(config(6, channels=3), "augment", engine="torchvision")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    (first,), (again,), (other,) = (list(TrainingLoader(data, settings).epoch(epoch)) for epoch in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert first.query_views.shape == first.key_views.shape == (6, 3, 8, 8)
    assert first.query_views.dtype == torch.float32
    assert same(first, again)
    assert (
        len(
            {
                view.numpy().tobytes()
                for batch in (first, other)
                for view in (*batch.query_views, *batch.key_views)
            }
        )
        == 24
    )
    pixels = (first.query_views * 0.25 + 0.5) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)


def test_the_engines_agree_where_nothing_is_random() -> None:
    data, off = images(6, 3), {**ALONE, "min_crop": 1.0}
    batch, reference = (
        next(TrainingLoader(data, changed(config(6, channels=3), "augment", engine=e, **off)).epoch(0))
        for e in ("batch", "torchvision")
    )
    assert batch.indices.tolist() == reference.indices.tolist()
    assert torch.allclose(batch.query_views, reference.query_views, atol=1e-6)
    assert torch.allclose(batch.key_views, reference.key_views, atol=1e-6)


def test_files_and_the_arrays_of_their_pixels_have_about_the_same_views(tmp_path: Path) -> None:
    data = photographs(tmp_path / "data", 6, 60, 80)
    settings = changed(config(6, channels=3, size=16), "augment", small_crops=2)
    arrays = ArrayImages(np.stack([data.read(i) for i in range(6)]))
    (there,), (here,) = (
        list(TrainingLoader(source, changed(settings, "data", reduced_decoding=False)).epoch(2))
        for source in (data, arrays)
    )
    assert there.indices.tolist() == here.indices.tolist()
    assert (there.query_views - here.query_views).abs().mean() < 0.02
    assert (there.key_views - here.key_views).abs().mean() < 0.02
    assert len(there.small_views) == 2
    for mine, others in zip(there.small_views, here.small_views, strict=True):
        assert (mine - others).abs().mean() < 0.03


@pytest.mark.parametrize("orientation", [None, 3, 6, 8])
@pytest.mark.parametrize(("height", "width"), [(600, 800), (603, 801)])
def test_crops_of_pictures_decoded_smaller_are_nearly_the_same(
    tmp_path: Path, decoded: list[tuple[int, int]], height: int, width: int, orientation: int | None
) -> None:
    data = photographs(tmp_path / "data", 6, height, width, orientation)
    settings = changed(config(6, channels=3, size=32), "augment", **ALONE)
    (reduced,) = TrainingLoader(data, settings).epoch(0)
    upright = (width, height) if orientation in (6, 8) else (height, width)
    assert len(decoded) == 6  # once for both views
    assert all(a <= upright[0] // 2 + 1 and b <= upright[1] // 2 + 1 for a, b in decoded)
    assert all((a > b) == (upright[0] > upright[1]) for a, b in decoded)
    decoded.clear()
    (whole,) = TrainingLoader(data, changed(settings, "data", reduced_decoding=False)).epoch(0)
    assert set(decoded) == {upright}
    for a, b in [(reduced.query_views, whole.query_views), (reduced.key_views, whole.key_views)]:
        assert (a - b).abs().flatten(1).mean(dim=1).max() * 0.25 < 0.03
        assert not torch.equal(a, b)


@pytest.mark.parametrize("size", [16, 64])
def test_evaluation_views_of_pictures_decoded_smaller_are_nearly_the_same(
    tmp_path: Path, decoded: list[tuple[int, int]], size: int
) -> None:
    data, settings = photographs(tmp_path / "data", 4, orientation=6), config(4, channels=3, size=size)
    ((reduced, _),) = EvaluationLoader(data, settings)
    assert all(shape[0] < 410 and shape[1] < 310 for shape in decoded)
    decoded.clear()
    ((whole, _),) = EvaluationLoader(data, changed(settings, "data", reduced_decoding=False))
    assert set(decoded) == {(800, 600)}
    assert (reduced - whole).abs().mean() * 0.25 < 0.01


def test_small_crops_are_not_enlarged_out_of_small_pictures(
    tmp_path: Path, decoded: list[tuple[int, int]]
) -> None:
    """What is decoded has the smaller crop at no less than the view's size."""
    settings = changed(config(6, channels=3, size=64), "augment", min_crop=0.9)
    list(TrainingLoader(photographs(tmp_path / "data", 6, 100, 120), settings).epoch(0))
    assert set(decoded) == {(100, 120)}


def test_pictures_are_decoded_as_large_as_small_views_need(
    tmp_path: Path, decoded: list[tuple[int, int]]
) -> None:
    settings = changed(config(6, channels=3, size=16), "augment", min_crop=0.9)
    data = photographs(tmp_path / "data", 6, 640, 640)
    list(TrainingLoader(data, settings).epoch(0))
    assert set(decoded) == {(80, 80)}
    decoded.clear()
    tiny = {"small_crops": 4, "small_crop_size": 12, "small_crop_max": 0.051}
    list(TrainingLoader(data, changed(settings, "augment", **tiny)).epoch(0))
    assert set(decoded) == {
        (80, 80)
    }  # parts of 124 to 165 px, from 640 · √(0.05 · 3/4) on: at an eighth 15 to 21
    decoded.clear()
    tiny["small_crop_size"] = 20
    list(TrainingLoader(data, changed(settings, "augment", **tiny)).epoch(0))
    assert set(decoded) == {(160, 160)}


@pytest.mark.parametrize("side", [88, 354])
def test_crops_of_white_pictures_are_white(tmp_path: Path, side: int) -> None:
    """To their edges, also where a picture's decoded size is odd."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (side, side), "white").save(tmp_path / "data" / "0.jpg")
    data = folders.find_images(tmp_path / "data", 3).take(
        np.zeros(600 if side < 100 else 200, dtype=np.int64)
    )
    settings = changed(
        config(100, channels=3), "augment", **ALONE, min_crop=0.7, image_size=8 if side < 100 else 100
    )
    for batch in TrainingLoader(data, settings).epoch(0):
        assert batch.query_views.min() == batch.key_views.min() == 2


@pytest.mark.parametrize("prefetch", [1, 2, 50])
def test_batches_made_ahead_are_the_same(prefetch: int) -> None:
    ahead = TrainingLoader(images(), changed(config(), "data", prefetch=prefetch))
    for epoch in (0, 1):
        assert all(
            same(a, b)
            for a, b in zip(
                ahead.epoch(epoch),
                TrainingLoader(images(), changed(config(), "data", prefetch=0)).epoch(epoch),
                strict=True,
            )
        )


def prefetching() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_epoch_that_is_left_early_leaves_no_thread_behind(taken: int) -> None:
    loader = TrainingLoader(images(100), changed(config(), "data", prefetch=2))
    batches = loader.epoch(0)
    for _ in range(taken):
        next(batches)
    assert prefetching() == (taken > 0)
    batches.close()  # type: ignore[attr-defined]
    assert prefetching() == 0
    for step, _ in enumerate(loader.epoch(0)):
        if step == 1:
            break
    assert prefetching() == 0
    assert len(list(loader.epoch(0))) == 12
    assert prefetching() == 0


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_mistake_while_reading_reaches_the_caller(prefetch: int) -> None:
    read: list[np.ndarray] = []

    class Failing(ArrayImages):
        def rows(self, indices: np.ndarray) -> np.ndarray:
            read.append(indices)
            if len(read) == 4:
                raise OSError("the disk is gone")
            return super().rows(indices)

    loader = TrainingLoader(Failing(images(100).pixels), changed(config(), "data", prefetch=prefetch))
    seen: list[Batch] = []

    def run(batches: Iterator[Batch]) -> None:
        for batch in batches:
            seen.append(batch)

    with pytest.raises(OSError, match="the disk is gone"):
        run(loader.epoch(0))
    assert len(seen) == 3
    assert prefetching() == 0
