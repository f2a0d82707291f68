"""The embedder that is served: pictures in, embeddings and nearest prototypes out. Without MLflow and Ray.

arrays, files, bytes, Pillow images ─→ evaluation view, as in training ─→ momentum encoder: backbone ─→ head
                                                              nearest prototype of each clustering ←───┘

The momentum encoder, because the prototypes are means of its features.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_ray.config import AugmentConfig, DataConfig, EncoderConfig
from pcl_ray.data.colour import to_floats
from pcl_ray.data.evaluation_view import as_tensor, evaluation_view, view_of_file
from pcl_ray.data.images import to_channels
from pcl_ray.data.pictures import decoding
from pcl_ray.data.pictures.decoding import AS_THEY_ARE, DecodingOptions
from pcl_ray.embedding.conversion import Picture, as_batch, of_array, of_tensor
from pcl_ray.errors import DataError
from pcl_ray.model import encoder as encoders

if TYPE_CHECKING:
    from pcl_ray.clustering import ClusterSet

FORMAT, _HEADLESS = 1, 2  # an encoder without a head is none that earlier versions could read
SETTINGS_FILE, WEIGHTS_FILE = "embedder.json", "embedder.safetensors"
_BATCH = 256  # images
_PIECE = 2**24  # numbers in a batch of views, or of distances: memory stays bounded
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One clustering, as far as new images need it."""

    prototypes: Tensor  # [K, C] float32, L2-normalised
    concentration: Tensor  # [K] float32, φ
    valid: Tensor  # [K] bool: has images


@dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of n images, and their nearest prototypes: one array a clustering, in the order of
    e_step.num_clusters, none for a run without clusters yet and for weights of others.
    """

    embeddings: np.ndarray  # [n, C] float32, unit vectors: the head's, or else the backbone's
    prototypes: tuple[np.ndarray, ...]  # [n] int64, the nearest prototype that has images
    distances: tuple[np.ndarray, ...]  # [n] float32, Euclidean: 0 … 2
    backbone: np.ndarray  # [n, D] float32, the features before the head, as they come
    names: tuple[str, ...] = ()  # where the images are, if they came by name: paths, rows of tables
    broken: tuple[int, ...] = ()  # which of the images that were given could not be read and were left out


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder makes of b images, on its device."""

    backbone: Tensor  # [b, D] float32
    head: Tensor  # [b, C] float32, unit vectors; of an encoder without a head the backbone's, normalised


class Embedder:
    """Made by `open`, `of_checkpoint` or `load`. `embed` may be called from several threads."""

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
        self._options = DecodingOptions.of_settings(settings)
        self._reading = threading.Lock()

    @classmethod
    def open(cls, source: str | Path, *, device: torch.device | str = "cpu") -> Embedder:
        """The embedder of any weights: a run's name or folder, a checkpoint, a file of others; a folder that
        `save` wrote. Without a head the embeddings are the backbone's, without clusters there are no
        prototypes.

        Raises DataError, as `model.weights.read_weights` does.
        """
        if (folder := Path(source).expanduser()).is_dir() and (folder / SETTINGS_FILE).is_file():
            return cls.load(folder, device)
        from pcl_ray.model.weights import activation_of, read_weights

        weights = read_weights(source, encoder="momentum")
        settings = {
            "format": "pcl_ray.embedding.embedder",
            "version": FORMAT if weights.has_head else _HEADLESS,
            "encoder": weights.config.model_dump(mode="json"),
            "has_head": weights.has_head,
            "activation": activation_of(weights.encoder.get_submodule("head")),
            "channels": weights.channels,
            "view": weights.view.model_dump(mode="json", include={"image_size", "mean", "std"}),
            **DecodingOptions.of(weights.run.data if weights.run else DataConfig()).as_settings(),
            "note": weights.note,
        }
        return cls(weights.encoder, settings, _prototypes_at(weights.path), torch.device(device))

    @property
    def has_head(self) -> bool:
        return self.settings.get("has_head", True)

    @property
    def note(self) -> str:
        """What the weights were recognised as, in one line."""
        return self.settings.get("note") or f"momentum encoder after {self.settings['epoch']} epochs"

    @classmethod
    def of_checkpoint(
        cls, path: Path, augment: AugmentConfig, options: DecodingOptions = AS_THEY_ARE
    ) -> Embedder:
        """The embedder of a checkpoint of ours; torch's random state stays as it is. options: how the run
        decodes its pictures. Raises RunFailed.
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
            **options.as_settings(),
        }
        encoder = _encoder(state.encoder, state.channels, weights)
        return cls(encoder, settings, _prototypes_of(state.clusters), torch.device("cpu"))

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

    def to(self, device: torch.device | str) -> None:
        """Moves the encoder and the prototypes."""
        self.device = torch.device(device)
        self.encoder.to(self.device)
        self.clusterings = tuple(
            Prototypes(*(part.to(self.device) for part in (c.prototypes, c.concentration, c.valid)))
            for c in self.clusterings
        )

    def digest(self) -> str:
        """32 hexadecimal digits that are the same for the same weights, views and prototypes."""
        digest = hashlib.blake2b(digest_size=16)
        tensors = [*self.encoder.state_dict().items()]
        tensors += [(f"prototypes {m}", c.prototypes) for m, c in enumerate(self.clusterings)]
        for name, value in tensors:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        digest.update(json.dumps([self.settings["view"], *self._options.as_settings().values()]).encode())
        return digest.hexdigest()

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Embedder:
        """What `save` wrote. Raises DataError where it is damaged or of a later version."""
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text())
            if settings["version"] > _HEADLESS:
                raise DataError(
                    f"the embedder in {folder} has format {settings['version']}, this version reads up to"
                    f" {_HEADLESS}: upgrade pcl_ray"
                )
            tensors = load_file(folder / WEIGHTS_FILE)
            weights = {
                name.removeprefix("encoder."): value
                for name, value in tensors.items()
                if name.startswith("encoder.")
            }
            encoder = _encoder(
                EncoderConfig(**settings["encoder"]),
                settings["channels"],
                weights,
                settings.get("activation", "relu"),
            )
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
        batch, count = as_batch(images), self.batch_size
        starts = range(0, len(batch), count)
        return self.embedded([self.features(self._views(batch, start, start + count)) for start in starts])

    @torch.no_grad()
    def embed_readable(self, images: np.ndarray | Sequence[Picture] | Picture) -> Embedded:
        """What `embed` gives of the images that can be read; `broken` are the positions of the others."""
        batch, views, broken = as_batch(images), [], []
        with self._reading, decoding.quiet():
            for number in range(len(batch)):
                try:
                    views.append(self.view(batch[number], number))
                except DataError:
                    broken.append(number)
        parts = [
            torch.stack(views[at : at + self.batch_size]) for at in range(0, len(views), self.batch_size)
        ]
        return replace(self.embedded([self.features(part) for part in parts]), broken=tuple(broken))

    def embedded(self, parts: Sequence[Features]) -> Embedded:
        """The features of all parts one after the other, with their nearest prototypes."""
        if not parts:
            size = self.augment.image_size
            view = torch.zeros(1, self.channels, size, size, dtype=torch.uint8)
            parts = [Features(each.backbone[:0], each.head[:0]) for each in [self.features(view)]]
        features = torch.cat([part.head for part in parts])
        nearest = [_nearest(features, clustering) for clustering in self.clusterings]
        return Embedded(
            features.cpu().numpy(),
            tuple(ids.cpu().numpy() for ids, _ in nearest),
            tuple(far.cpu().numpy() for _, far in nearest),
            torch.cat([part.backbone for part in parts]).cpu().numpy(),
        )

    @property
    def batch_size(self) -> int:
        """How many images go through the encoder at a time."""
        return max(1, min(_BATCH, _PIECE // (self.channels * self.augment.image_size**2)))

    @torch.no_grad()
    def features(self, views: Tensor) -> Features:
        """Both features of evaluation views [b, channels, S, S] uint8, from one pass."""
        backbone = self.encoder.get_submodule("backbone")(to_floats(views.to(self.device), self.augment))
        head = F.normalize(self.encoder.get_submodule("head")(backbone), dim=1)
        return Features(backbone.float(), head.float())

    def view(self, image: Picture, number: int = 0) -> Tensor:
        """The evaluation view [channels, S, S] uint8 of one image, read from any thread within
        `decoding.quiet`. number: what it is called in errors, which are those of `embed`.
        """
        if isinstance(image, torch.Tensor):
            image = of_tensor(image, f"image {number}")
        if isinstance(image, np.ndarray):
            return self._view(
                as_tensor(of_array(image, self.channels, f"image {number}", self._options.background))
            )
        with self._named(image, number):
            if isinstance(image, Image.Image):
                return self._view(as_tensor(decoding.pixels_of(image, self.channels, self._options)))
            return self._of_file(BytesIO(image) if isinstance(image, bytes) else Path(image).expanduser())

    def _views(self, batch: np.ndarray | Sequence[Picture], start: int, end: int) -> Tensor:
        """The evaluation views [b, channels, S, S] uint8 of the images start … end − 1."""
        # of one size: resized as one batch
        if isinstance(batch, np.ndarray) and batch.ndim == 4 and batch.shape[3] in (1, 3):
            pixels = torch.from_numpy(to_channels(batch[start:end], self.channels).copy())
            return self._view(pixels.permute(0, 3, 1, 2))
        with self._reading, decoding.quiet():
            return torch.stack(
                [self.view(image, number) for number, image in enumerate(batch[start:end], start)]
            )

    def _of_file(self, file: Path | BytesIO) -> Tensor:
        """The evaluation view as the E-step reads it: a JPEG is decoded no larger than the view needs."""

        def decode(scale: decoding.Scale) -> np.ndarray:
            # pyrefly: ignore[bad-argument-type]  # Pillow opens both
            return decoding.decode(file, self.channels, scale=scale, options=self._options)

        return view_of_file(decode, self.augment, self._view, reduced=self._options.reduced)

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


def _prototypes_at(path: Path) -> list[Prototypes]:
    """The clusterings in a checkpoint of ours; none in a file of others."""
    from pcl_ray.checkpoints import run_state  # not at the top: whoever serves needs no k-means
    from pcl_ray.errors import RunFailed

    try:
        return _prototypes_of(run_state.load(path).clusters)
    except RunFailed:
        return []


def _prototypes_of(clusters: ClusterSet | None) -> list[Prototypes]:
    made = []
    for clustering in [] if clusters is None else clusters.clusterings:
        valid = clustering.valid
        if valid is None:
            valid = torch.ones(len(clustering.prototypes), dtype=torch.bool)
        made.append(Prototypes(clustering.prototypes.float(), clustering.concentration.float(), valid))
    return made


def _encoder(
    config: EncoderConfig, channels: int, weights: dict[str, Tensor], activation: str = "relu"
) -> nn.Module:
    """An encoder with these weights, without a draw from torch's generator: a training may be using it."""

    shapes = {name: value.shape for name, value in weights.items()}

    def built() -> nn.Module:
        model = encoders.build(config, channels)
        if shapes != {name: value.shape for name, value in model.state_dict().items()}:
            from pcl_ray.model.weights import fit_head  # for heads of others alone: it brings k-means along

            fit_head(model, weights, activation)
        return model

    try:
        with torch.device("meta"):
            model = built()
        model.load_state_dict(weights, assign=True)
        if not any(part.is_meta for part in [*model.parameters(), *model.buffers()]):
            return model
    except (NotImplementedError, RuntimeError):  # some of timm's models compute while they are built
        pass
    with torch.random.fork_rng(devices=[]):
        model = built()
    model.load_state_dict(weights)
    return model
