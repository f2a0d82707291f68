from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_arrays import idx_folder, load, numbers, pixels
from PIL import Image

from pcl_ray.config import DataConfig
from pcl_ray.data import datasets
from pcl_ray.errors import DataError

# --- digits


@pytest.mark.parametrize("channels", [1, 3])
def test_digits(channels: int) -> None:
    splits = load("digits", channels=channels)
    assert (len(splits.train), splits.num_holdout, splits.bad) == (1438, 359, ())
    for part in (splits.train, splits.holdout):
        assert part.read(0).shape == (8, 8, channels)
        assert part.read(0).dtype == np.uint8
        assert part.class_names == tuple("0123456789")
        assert set(part.labels) == set(range(10))


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train = load("digits", channels=1, holdout=0).train
    assert np.array_equal(train.labels, bunch.target)
    assert (
        np.abs(np.stack([train.read(i)[:, :, 0] for i in range(1797)]) / (255 / 16) - bunch.images).max()
        < 0.05
    )
    assert max(train.read(i).max() for i in range(1797)) == 255


def test_the_parts_are_disjoint_and_together_the_whole() -> None:
    whole, splits = load("digits", channels=1, holdout=0), load("digits", channels=1)
    assert whole.holdout is None
    assert whole.num_holdout == 0
    everything = sorted(
        part.read(i).tobytes() for part in (splits.train, splits.holdout) for i in range(len(part))
    )
    assert everything == sorted(whole.train.read(i).tobytes() for i in range(1797))


def test_the_choice_is_fixed_and_nested() -> None:
    splits = load("digits", channels=1)
    assert splits.train.fingerprint == load("digits", channels=1).train.fingerprint
    assert splits.holdout.fingerprint == load("digits", channels=1, limit=50).holdout.fingerprint
    few, some = (load("digits", channels=1, limit=limit).train for limit in (50, 200))
    inside = [part.read(i).tobytes() for part in (few, some) for i in range(len(part))]
    assert set(inside[:50]) < set(inside[50:])
    # a random choice, not the first ones
    assert few.labels.tolist() != load("digits", channels=1).train.labels[:50].tolist()
    assert load("digits", channels=1, limit=5000).train.fingerprint == splits.train.fingerprint


def test_limited_images_keep_their_labels() -> None:
    whole = load("digits", channels=1, holdout=0).train
    label_of = {whole.read(i).tobytes(): whole.labels[i] for i in range(1797)}
    for part in (load("digits", channels=1, limit=100).train, load("digits", channels=1).holdout):
        assert all(label_of[part.read(i).tobytes()] == part.labels[i] for i in range(len(part)))


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "stl10", "idx", "folder", "imagenet"])
def test_a_missing_folder_is_named(tmp_path: Path, source: str) -> None:
    for ask in (datasets.sizes, lambda config: datasets.load(config, cache_dir=tmp_path)):
        with pytest.raises(DataError, match=rf"source = {source} needs data\.path"):
            ask(DataConfig(source=source))
        with pytest.raises(DataError, match=r"nowhere' is not a folder \(it does not exist\)"):
            ask(DataConfig(source=source, path=str(tmp_path / "nowhere")))


# --- every source


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (2, 2), i).save(folder / f"{i:02}.png")


def some_source(root: Path, kind: str, count: int, own_holdout: int) -> tuple[str, str]:
    """A data set of `count` images, with `own_holdout` held-out ones of its own if not 0: source and path."""
    match kind:
        case "idx":
            idx_folder(
                root,
                train_images=pixels(count),
                **({"t10k_images": pixels(own_holdout)} if own_holdout else {}),
            )
            return "idx", str(root)
        case "folder":
            write_images(root / "train" if own_holdout else root, count)
            if own_holdout:
                write_images(root / "val", own_holdout)
            return "folder", str(root)
        case _:
            content = {"images": pixels(count)} | (
                {"test_images": pixels(own_holdout)} if own_holdout else {}
            )
            np.savez(root.with_suffix(".npz"), **content)
            return "arrays", str(root.with_suffix(".npz"))


@given(
    st.sampled_from(["idx", "folder", "npz"]),
    st.integers(1, 12),
    st.integers(0, 4),
    st.floats(0, 0.9),
    st.none() | st.integers(2, 15),
)
def test_sizes_announces_what_load_gives(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    count: int,
    own_holdout: int,
    share: float,
    limit: int | None,
) -> None:
    source, path = some_source(tmp_path_factory.mktemp("data") / "set", kind, count, own_holdout)
    config = DataConfig(source=source, path=path, holdout=share, limit=limit)
    splits = datasets.load(config, cache_dir=tmp_path_factory.mktemp("cache"))
    assert datasets.sizes(config) == (len(splits.train), splits.num_holdout)
    assert len(splits.train) >= 1
    if own_holdout:
        assert splits.num_holdout == own_holdout
    elif limit is None:
        assert len(splits.train) + splits.num_holdout == count
    if limit is None and not own_holdout:
        parts = [splits.train] + ([splits.holdout] if splits.holdout is not None else [])
        assert sorted(number for part in parts for number in numbers(part)) == list(range(count))


@pytest.mark.parametrize("holdout", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("limit", [None, 10, 1797])
def test_sizes_announces_what_load_gives_for_digits(holdout: float, limit: int | None) -> None:
    config = DataConfig(source="digits", holdout=holdout, limit=limit)
    splits = datasets.load(config, cache_dir=Path("unused"))
    assert datasets.sizes(config) == (len(splits.train), splits.num_holdout)


@pytest.mark.parametrize("kind", ["idx", "folder", "npz"])
def test_every_source_gives_the_same_images_again_and_survives_pickling(tmp_path: Path, kind: str) -> None:
    source, path = some_source(tmp_path / "set", kind, 9, 0)
    config = DataConfig(source=source, path=path, limit=5)
    first, again = (datasets.load(config, cache_dir=tmp_path / "cache") for _ in range(2))
    assert first.train.fingerprint == again.train.fingerprint != first.holdout.fingerprint
    copy = pickle.loads(pickle.dumps(first))
    assert copy.train.fingerprint == first.train.fingerprint
    assert numbers(copy.train) == numbers(first.train)
    assert numbers(copy.holdout) == numbers(first.holdout)


def test_sizes_reads_no_torch(run_python: object) -> None:
    script = (
        "import sys; from pcl_ray.data import datasets; print(datasets.sizes(datasets.DataConfig()), 'torch'"
        " in sys.modules)"
    )
    done = run_python(script)  # type: ignore[operator]
    assert done.stdout.strip() == "(1438, 359) False", done.stderr
