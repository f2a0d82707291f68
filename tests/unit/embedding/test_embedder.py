"""What is served of a run: training's features from any pictures, prototypes with images, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import GREY_ENCODER

from pcl_ray import config
from pcl_ray.checkpoints import run_state
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.images import ArrayImages, FileImages, Images
from pcl_ray.data.loaders import EvaluationLoader
from pcl_ray.data.pictures.decoding import DecodingOptions
from pcl_ray.e_step import extract_features
from pcl_ray.embedding.embedder import Embedded, Embedder
from pcl_ray.errors import DataError, RunFailed
from pcl_ray.model import KeyQueue, MomentumPair
from pcl_ray.model.encoder import build
from pcl_ray.model.weights import load_encoder

SIZES = [3, 5]


def config_of(channels: int, size: int, **more: Any) -> RunConfig:
    flat = {
        **GREY_ENCODER,
        "data.channels": channels,
        "augment.mean": [0.4] * channels,
        "augment.std": [0.3] * channels,
        "augment.image_size": size,
    }
    return config.load("digits", {**flat, "encoder.dim": 8, "e_step.num_clusters": SIZES, **more})


def written(settings: RunConfig, folder: Path, clusters: ClusterSet | None = None) -> Path:
    """A checkpoint whose momentum encoder differs from its query encoder and has its own batch statistics."""
    torch.manual_seed(3)
    query, key = (build(settings.encoder, settings.data.channels) for _ in range(2))
    key.train()(
        torch.randn(16, settings.data.channels, settings.augment.image_size, settings.augment.image_size)
    )
    pair = MomentumPair(query, key, 0.9)
    queue = KeyQueue(16, settings.encoder.dim).state_dict()
    learner = {"model": pair.state_dict(), "queue": queue, "optimizer": {}}
    return run_state.save(
        run_state.RunState(2, learner, clusters, [], [], settings.encoder, settings.data.channels), folder, 1
    )


def clusters_of(features: np.ndarray, valid: torch.Tensor | None = None) -> ClusterSet:
    made = []
    for k in SIZES:
        prototypes = torch.nn.functional.normalize(torch.from_numpy(features[:k].copy()) + 0.01, dim=1)
        assignments = (torch.from_numpy(features) @ prototypes.T).argmax(1)
        made.append(Clustering(prototypes, assignments, torch.full((k,), 0.2), valid=valid))
    return ClusterSet(2, tuple(made))


def trained_features(images: Images, settings: RunConfig, path: Path) -> np.ndarray:
    shard = extract_features(
        load_encoder(path, encoder="momentum"), EvaluationLoader(images, settings), torch.device("cpu")
    )
    return shard.features[np.argsort(shard.indices)]


def pixels(*shape: int) -> np.ndarray:
    """Smooth, so that a picture resized in another way differs a little only where it should."""
    rng = np.random.default_rng(5)
    count, height, width, channels = shape
    low = rng.integers(0, 256, (count, 5, 5, channels), dtype=np.uint8)
    parts = [
        [
            Image.fromarray(one[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(channels)
        ]
        for one in low
    ]
    return np.stack([np.stack([np.asarray(part) for part in one], axis=-1) for one in parts])


def same(found: Embedded, expected: np.ndarray) -> None:
    assert found.embeddings.dtype == np.float32
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("channels", "side", "size"), [(1, 8, 8), (3, 12, 8), (3, 80, 64)])
def test_arrays_have_the_features_and_clusters_of_training(
    channels: int, side: int, size: int, tmp_path: Path
) -> None:
    settings, images = config_of(channels, size), pixels(20, side, side, channels)
    expected = trained_features(ArrayImages(images), settings, written(settings, tmp_path))
    clusters = clusters_of(expected)
    path = written(settings, tmp_path, clusters)
    before = torch.random.get_rng_state()
    embedder = Embedder.of_checkpoint(path, settings.augment)
    assert torch.equal(before, torch.random.get_rng_state())  # a training may be under way
    for given in (images, list(images), images[..., 0] if channels == 1 else images):
        found = embedder.embed(given)
        same(found, expected)
        for m, clustering in enumerate(clusters.clusterings):
            assert found.prototypes[m].dtype == np.int64
            assert found.distances[m].dtype == np.float32
            assert (found.prototypes[m] == clustering.assignments.numpy()).all()
            far = np.linalg.norm(
                found.embeddings - clustering.prototypes.numpy()[found.prototypes[m]], axis=1
            )
            np.testing.assert_allclose(found.distances[m], far, atol=1e-5)


def test_a_halving_stem_and_a_wide_head_with_batch_norm_are_served(tmp_path: Path) -> None:
    shape = {"encoder.stem_stride": 2, "encoder.head_width": 12, "encoder.head_batch_norm": True}
    settings, images = config_of(1, 8, **{"encoder.head": "mlp", **shape}), pixels(20, 8, 8, 1)
    path = written(settings, tmp_path)
    expected = trained_features(ArrayImages(images), settings, path)
    same(Embedder.of_checkpoint(path, settings.augment).embed(images), expected)


def jpeg_lying(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)


def sixteen_bits(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def half_clear(image: Image.Image, path: Path) -> None:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


WAYS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "plain.png": lambda image, path: image.save(path),
    "lying.jpg": jpeg_lying,
    "sixteen.png": sixteen_bits,
    "clear.png": half_clear,
    "palette.png": lambda image, path: image.quantize(30).save(path),
    "grey.jpg": lambda image, path: image.convert("L").save(path),
    "large.jpg": lambda image, path: image.resize((900, 700)).save(path),  # decoded at a quarter or an eighth
}


@pytest.mark.parametrize(("size", "channels", "reduced"), [(32, 3, True), (64, 3, True), (64, 1, False)])
def test_files_of_all_kinds_have_the_features_of_training(
    size: int, channels: int, reduced: bool, tmp_path: Path
) -> None:
    settings = config_of(channels, size, **{"data.reduced_decoding": reduced})
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(WAYS, pixels(len(WAYS), 90, 120, 3), strict=True):
        WAYS[name](Image.fromarray(image), folder / name)
    names = sorted(WAYS)
    files = [folder / name for name in names]
    path = written(settings, tmp_path)
    expected = trained_features(
        FileImages(str(folder), np.array([name.encode() for name in names]), channels), settings, path
    )
    embedder = Embedder.of_checkpoint(path, settings.augment, DecodingOptions(reduced=reduced))
    assert embedder.embed(files).prototypes == ()  # no clusters yet
    same(embedder.embed(files), expected)
    same(embedder.embed([str(file) for file in files]), expected)
    same(embedder.embed([file.read_bytes() for file in files]), expected)
    # a JPEG that somebody else opens is decoded whole
    opened = [name.endswith(".png") or not reduced for name in names]
    same(
        embedder.embed([Image.open(file) for file, taken in zip(files, opened, strict=True) if taken]),
        expected[opened],
    )
    same(embedder.embed(files[0]), expected[:1])


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    settings, images = config_of(3, 8), pixels(12, 10, 10, 3)
    features = trained_features(ArrayImages(images), settings, written(settings, tmp_path))
    embedder = Embedder.of_checkpoint(written(settings, tmp_path, clusters_of(features)), settings.augment)
    embedder.save(tmp_path / "served")
    assert sorted(file.name for file in (tmp_path / "served").iterdir()) == [
        "embedder.json",
        "embedder.safetensors",
    ]
    again = Embedder.load(tmp_path / "served")
    first, second = embedder.embed(images), again.embed(images)
    assert (first.embeddings == second.embeddings).all()
    for ours, theirs in zip(
        (*first.prototypes, *first.distances), (*second.prototypes, *second.distances), strict=True
    ):
        assert (ours == theirs).all()
    assert torch.equal(again.clusterings[1].concentration, embedder.clusterings[1].concentration)


def test_prototypes_without_images_are_nobodys_nearest(tmp_path: Path) -> None:
    settings, images = config_of(3, 8), pixels(12, 8, 8, 3)
    features = trained_features(ArrayImages(images), settings, written(settings, tmp_path))
    clusters = clusters_of(features)
    without = tuple(
        Clustering(c.prototypes, c.assignments, c.concentration, valid=torch.arange(c.num_clusters) != 0)
        for c in clusters.clusterings
    )
    found = Embedder.of_checkpoint(
        written(settings, tmp_path, ClusterSet(2, without)), settings.augment
    ).embed(images)
    for ids, clustering in zip(found.prototypes, clusters.clusterings, strict=True):
        assert (clustering.assignments == 0).any()
        expected = (torch.from_numpy(features) @ clustering.prototypes[1:].T).argmax(1) + 1
        assert (ids == expected.numpy()).all()


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (np.full((2, 8, 8, 3), 3.0), ValueError, r"floats of images must be in 0 … 1, not 3 … 3"),
        (np.zeros((2, 8, 8, 3), np.int64), ValueError, "uint8"),
        (7, ValueError, "a int is no image"),
        (None, ValueError, "a NoneType is no image"),
        (np.zeros(4, np.uint8), ValueError, r"\[4\]"),
        (np.zeros((2, 8, 8, 5), np.uint8), ValueError, r"image 0 .*\[8, 8, 5\]"),
        (np.zeros((2, 0, 8, 3), np.uint8), ValueError, "no pixels"),
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.int32)], ValueError, "image 1 must be uint8"),
        ([np.full((8, 8), np.nan)], ValueError, "floats of image 0 must be in"),
        ([np.zeros((8, 8), np.uint8), np.zeros((0, 8), np.uint8)], ValueError, "image 1"),
        ([np.zeros((8, 8), np.uint8), 7], ValueError, "image 1 is a int"),
        (["/nowhere/a.png"], DataError, "image 0 .*/nowhere/a.png.*No such file"),
        ([b"this is no picture"], DataError, "image 0 cannot be read: no image"),
    ],
)
def test_refusals_say_which_image_and_why(
    given: Any, kind: type[Exception], said: str, embedder: Embedder
) -> None:
    with pytest.raises(kind, match=said):
        embedder.embed(given)


def test_a_cut_file_is_named(embedder: Embedder, tmp_path: Path) -> None:
    file = BytesIO()
    Image.fromarray(pixels(1, 40, 40, 3)[0]).save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:300])
    with pytest.raises(DataError, match=r"image 1 .*cut\.jpg"):
        embedder.embed([np.zeros((8, 8, 3), np.uint8), tmp_path / "cut.jpg"])


def test_transparent_arrays_lie_on_white(embedder: Embedder) -> None:
    clear, white = np.zeros((8, 8, 4), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    same(embedder.embed([clear]), embedder.embed([white]).embeddings)


def test_no_images_give_nothing(embedder: Embedder) -> None:
    for given in ([], np.zeros((0, 8, 8, 3), np.uint8)):
        assert embedder.embed(given).embeddings.shape == (0, 8)


def test_what_cannot_be_read_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    with pytest.raises(DataError, match="no embedder"):
        Embedder.load(tmp_path)
    embedder.save(tmp_path)
    text = (tmp_path / "embedder.json").read_text()
    (tmp_path / "embedder.json").write_text(text.replace('"version": 1', '"version": 9'))
    with pytest.raises(DataError, match="upgrade pcl_ray"):
        Embedder.load(tmp_path)
    (tmp_path / "embedder.json").write_text(text)
    (tmp_path / "embedder.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="no embedder"):
        Embedder.load(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"short")
    with pytest.raises(RunFailed, match=r"broken\.pt"):
        Embedder.of_checkpoint(tmp_path / "broken.pt", config_of(3, 8).augment)


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    settings = config_of(3, 8)
    return Embedder.of_checkpoint(written(settings, tmp_path / "run"), settings.augment)


def test_serving_needs_neither_mlflow_nor_ray_nor_faiss(loaded_by: Callable[..., list[str]]) -> None:
    heavy = ("ray", "mlflow", "faiss", "sklearn", "scipy", "pandas")
    assert loaded_by("pcl_ray.embedding.embedder", *heavy) == []
