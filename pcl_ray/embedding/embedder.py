"""The embedder that is served: pictures in, embeddings and nearest prototypes out. Without MLflow and Ray.

arrays, files, bytes, Pillow images ─→ evaluation view, as in training ─→ momentum encoder ─→ embedding
                                                        nearest prototype of each clustering ←───┘

The momentum encoder, because the prototypes are means of its features.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pcl_ray.config import AugmentConfig, EncoderConfig
from pcl_ray.data import images as pictures
from pcl_ray.data.colour import to_floats
from pcl_ray.data.evaluation_view import as_tensor, evaluation_view, view_of_file
from pcl_ray.errors import DataError
from pcl_ray.model import encoder as encoders

FORMAT = 1
SETTINGS_FILE, WEIGHTS_FILE = "embedder.json", "embedder.safetensors"
_BATCH = 256  # images
_PIECE = 2**24  # numbers in a batch of views, or of distances: memory stays bounded

_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError)

Picture: TypeAlias = np.ndarray | str | Path | bytes | Image.Image


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One clustering, as far as new images need it."""

    prototypes: Tensor  # [K, C] float32, L2-normalised
    concentration: Tensor  # [K] float32, φ
    valid: Tensor  # [K] bool: has images


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of n images, and their nearest prototypes: one array a clustering, in the order of
    e_step.num_clusters, none for a run without clusters yet.
    """

    embeddings: np.ndarray  # [n, C] float32, unit vectors
    prototypes: tuple[np.ndarray, ...]  # [n] int64, the nearest prototype that has images
    distances: tuple[np.ndarray, ...]  # [n] float32, Euclidean: 0 … 2


class Embedder:
    """Made by `of_checkpoint` or `load`. `embed` may be called from several threads."""

    def __init__(
        self,
        encoder: nn.Module,
        settings: dict[str, Any],
        clusterings: Sequence[Prototypes],
        device: torch.device,
    ):
        self.settings, self.clusterings, self.device = settings, tuple(clusterings), device
        self.channels: int = settings["channels"]
        self.augment = AugmentConfig(**settings["view"])
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self._view = evaluation_view(self.augment)
        self._reading = threading.Lock()

    @classmethod
    def of_checkpoint(cls, path: Path, augment: AugmentConfig, *, reduced_decoding: bool = True) -> Embedder:
        """The embedder of a checkpoint of ours; torch's random state stays as it is. reduced_decoding:
        `data.reduced_decoding` of the run. Raises RunFailed.
        """
        from pcl_ray.checkpoints import run_state  # not at the top: whoever serves needs no k-means

        state = run_state.load(path)
        # copies in the usual layout: training may keep its weights in another one
        weights = {
            name.removeprefix("key."): value.clone(memory_format=torch.contiguous_format)
            for name, value in state.learner["model"].items()
            if name.startswith("key.")
        }
        settings = {
            "format": "pcl_ray.embedding.embedder",
            "version": FORMAT,
            "epoch": state.epoch,
            "encoder": state.encoder.model_dump(mode="json"),
            "channels": state.channels,
            "view": augment.model_dump(mode="json", include={"image_size", "mean", "std"}),
            "reduced_decoding": reduced_decoding,
        }
        clusterings = [] if state.clusters is None else state.clusters.clusterings
        prototypes = [_prototypes(c.prototypes, c.concentration, c.valid) for c in clusterings]
        encoder = _encoder(state.encoder, state.channels, weights)
        return cls(encoder, settings, prototypes, torch.device("cpu"))

    def save(self, folder: Path) -> None:
        """Two files, JSON and safetensors: nothing in them is executed when they are read."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        for m, clustering in enumerate(self.clusterings):
            tensors |= {
                f"{m}.prototypes": clustering.prototypes,
                f"{m}.concentration": clustering.concentration,
                f"{m}.valid": clustering.valid,
            }
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / WEIGHTS_FILE)
        (folder / SETTINGS_FILE).write_text(
            json.dumps(self.settings | {"clusterings": len(self.clusterings)}, indent=2) + "\n"
        )

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Embedder:
        """What `save` wrote. Raises DataError where it is damaged or of a later version."""
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text())
            if settings["version"] > FORMAT:
                raise DataError(
                    f"the embedder in {folder} has format {settings['version']}, this version reads up to"
                    f" {FORMAT}: upgrade pcl_ray"
                )
            tensors = load_file(folder / WEIGHTS_FILE)
            weights = {
                name.removeprefix("encoder."): value
                for name, value in tensors.items()
                if name.startswith("encoder.")
            }
            encoder = _encoder(EncoderConfig(**settings["encoder"]), settings["channels"], weights)
            parts = ("prototypes", "concentration", "valid")
            clusterings = [
                Prototypes(*(tensors[f"{m}.{part}"].to(device) for part in parts))
                for m in range(settings["clusterings"])
            ]
            return cls(encoder, settings, clusterings, torch.device(device))
        except DataError:
            raise
        except _DAMAGE as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"no embedder can be read from {folder}: {reason}") from error

    @torch.no_grad()
    def embed(self, images: np.ndarray | Sequence[Picture] | Picture) -> Embedded:
        """The embeddings of images, and their nearest prototypes.

        images: a list of uint8 arrays [H, W, channels] or [H, W], paths, bytes of encoded files and Pillow
        images, mixed as you like; one of these alone; or an array of many, [n, H, W, channels] or [n, H, W].
        An array of three axes is one image where the last has 1 to 4 entries.

        Raises ValueError for arrays of another shape or type, DataError for pictures that cannot be read;
        both say which image it is.
        """
        batch = as_batch(images)
        size = self.augment.image_size
        count = max(1, min(_BATCH, _PIECE // (self.channels * size * size)))
        rows = [self._features(batch, start, start + count) for start in range(0, len(batch), count)]
        if rows:
            features = torch.cat(rows)
        else:
            features = torch.empty(0, self.settings["encoder"]["dim"], device=self.device)
        nearest = [_nearest(features, clustering) for clustering in self.clusterings]
        return Embedded(
            features.cpu().numpy(),
            tuple(ids.cpu().numpy() for ids, _ in nearest),
            tuple(far.cpu().numpy() for _, far in nearest),
        )

    def _features(self, batch: np.ndarray | Sequence[Picture], start: int, end: int) -> Tensor:
        """The embeddings [b, C] of the images start … end − 1."""
        # of one size: resized as one batch
        if isinstance(batch, np.ndarray) and batch.ndim == 4 and batch.shape[3] in (1, 3):
            pixels = torch.from_numpy(pictures.to_channels(batch[start:end], self.channels).copy())
            views = self._view(pixels.permute(0, 3, 1, 2))
        else:
            views = torch.stack(
                [self._view_of(image, number) for number, image in enumerate(batch[start:end], start)]
            )
        return self.encoder(to_floats(views.to(self.device), self.augment)).float()

    def _view_of(self, image: Picture, number: int) -> Tensor:
        """The evaluation view of one image, [channels, S, S] uint8."""
        if isinstance(image, np.ndarray):
            return self._view(as_tensor(_of_array(image, self.channels, f"image {number}")))
        with self._named(image, number), self._reading, pictures.quiet():
            if isinstance(image, Image.Image):
                return self._view(as_tensor(pictures.as_array(pictures.upright(image), self.channels)))
            return self._of_file(BytesIO(image) if isinstance(image, bytes) else Path(image).expanduser())

    def _of_file(self, file: Path | BytesIO) -> Tensor:
        """The evaluation view as the E-step reads it: a JPEG is decoded no larger than the view needs."""

        def decode(scale: pictures.Scale) -> np.ndarray:
            # pyrefly: ignore[bad-argument-type]  # Pillow opens both
            return pictures.decode(file, self.channels, scale=scale)

        return view_of_file(decode, self.augment, self._view, reduced=self.settings["reduced_decoding"])

    @contextmanager
    def _named(self, image: Picture, number: int) -> Iterator[None]:
        if not isinstance(image, str | Path | bytes | Image.Image):
            raise ValueError(
                f"image {number} is a {type(image).__name__}; allowed: uint8 array, path, bytes of an encoded"
                " image, Pillow image"
            )
        path = f" ({image})" if isinstance(image, str | Path) else ""
        try:
            yield
        except Exception as error:  # Pillow raises many kinds
            reason = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "no image that is known"
            raise DataError(f"image {number}{path} cannot be read: {reason}") from error


def as_batch(images: np.ndarray | Sequence[Picture] | Picture) -> np.ndarray | list[Picture]:
    """The images as single ones or as an array [n, H, W, channels]. Raises ValueError for other arrays."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if not isinstance(images, np.ndarray):
        return list(images)
    if images.dtype == object or images.dtype.kind in "US":
        return images.reshape(-1).tolist()
    if images.ndim == 2 or (images.ndim == 3 and 1 <= images.shape[2] <= 4):
        return [images]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(
            f"an array of images must be [n, H, W, channels] or [n, H, W], not {list(images.shape)}"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (0 … 255), not {images.dtype}")
    if 0 in images.shape[1:] and len(images):
        raise ValueError(f"images of shape {list(images.shape)} have no pixels")
    return images


def _of_array(image: np.ndarray, channels: int, called: str) -> np.ndarray:
    """The pixels [H, W, channels] uint8 of one image; `called`: what error messages call it."""
    if image.dtype != np.uint8:
        raise ValueError(f"{called} must be uint8 (0 … 255), not {image.dtype}")
    flat = image[..., None] if image.ndim == 2 else image
    if flat.ndim != 3 or not 1 <= flat.shape[2] <= 4 or 0 in flat.shape:
        raise ValueError(f"{called} must be [H, W] or [H, W, 1 … 4], not {list(image.shape)}")
    if flat.shape[2] in (1, 3):
        return pictures.to_channels(flat[None], channels)[0]
    return pictures.as_array(Image.fromarray(np.ascontiguousarray(flat)), channels)  # with transparency


def _nearest(features_nC: Tensor, clustering: Prototypes) -> tuple[Tensor, Tensor]:
    """The nearest valid prototype [n] int64 of each feature, and how far it is [n] float32."""
    prototypes_KC = clustering.prototypes
    handicap_K = (prototypes_KC**2).sum(1) / 2
    handicap_K[~clustering.valid] = torch.inf
    count = max(1, _PIECE // len(prototypes_KC))
    ids_n = torch.empty(0, dtype=torch.int64, device=features_nC.device)
    if len(features_nC):
        ids_n = torch.cat(
            [(part @ prototypes_KC.T - handicap_K).argmax(1) for part in features_nC.split(count)]
        )
    return ids_n, (features_nC.double() - prototypes_KC[ids_n].double()).norm(dim=1).float()


def _prototypes(prototypes: Tensor, concentration: Tensor, valid: Tensor | None) -> Prototypes:
    if valid is None:
        valid = torch.ones(len(prototypes), dtype=torch.bool)
    return Prototypes(prototypes.float(), concentration.float(), valid)


def _encoder(config: EncoderConfig, channels: int, weights: dict[str, Tensor]) -> nn.Module:
    """An encoder with these weights, without a draw from torch's generator: a training may be using it."""
    try:
        with torch.device("meta"):
            model = encoders.build(config, channels)
        model.load_state_dict(weights, assign=True)
        if not any(part.is_meta for part in [*model.parameters(), *model.buffers()]):
            return model
    except (NotImplementedError, RuntimeError):  # some of timm's models compute while they are built
        pass
    with torch.random.fork_rng(devices=[]):
        model = encoders.build(config, channels)
    model.load_state_dict(weights)
    return model
