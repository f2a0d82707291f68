"""A run as one works with it: its figures, its encoder, its clusters, what it makes of other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcl_ray import config as configs
from pcl_ray.api import run_clusters
from pcl_ray.api.run_clusters import RunClustering
from pcl_ray.config import RunConfig, figures
from pcl_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from pcl_ray.embedding.conversion import Picture
    from pcl_ray.embedding.embedder import Embedded, Embedder
    from pcl_ray.runs.final_artifacts import RunResult


class Run:
    """Made by `pcl_ray.train` and `pcl_ray.open_run`. Everything is read from the run's folder when it is
    asked for, so that a run under way can be looked at; nothing is locked.
    """

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.state}, {self.epochs} epochs)"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> RunConfig:
        """The configuration it is trained with."""
        from pcl_ray.support.paths import CONFIG_FILE

        return configs.load_stored(self.path / CONFIG_FILE)

    @property
    def state(self) -> str:
        """running, finished, failed, stopped, or stopped early by its sweep."""
        from pcl_ray.runs.folder import read_state_at

        return read_state_at(self.path).get("state", "running")

    @property
    def epochs(self) -> int:
        """How many epochs its newest checkpoint has."""
        from pcl_ray.checkpoints import epoch_files

        newest = self.checkpoint
        return 0 if newest is None else epoch_files.epochs_done(newest)

    @property
    def checkpoint(self) -> Path | None:
        """Its newest checkpoint that is there; None before the first epoch has ended."""
        from pcl_ray.checkpoints import epoch_files

        return epoch_files.latest(epoch_files.folder_of(self.path))

    @property
    def figures(self) -> pd.DataFrame:
        """What was measured: a row for each epoch, its number from 1 as the index, a column for each figure
        by its name in MLflow, NaN where it was not measured. `metrics` are those of the last epoch.
        """
        import pandas as pd

        from pcl_ray.runs.folder import read_history_at

        entries = read_history_at(self.path)
        rows = [figures.with_present_names(entry["metrics"]) for entry in entries]
        index = pd.Index([entry["epoch"] + 1 for entry in entries], name="epoch", dtype="int64")
        return pd.DataFrame(rows, index=index)

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every figure."""
        from pcl_ray.runs.folder import read_history_at

        newest: dict[str, float] = {}
        for entry in read_history_at(self.path):
            newest |= figures.with_present_names(entry["metrics"])
        return newest

    @property
    def result(self) -> RunResult:
        """How it ended, as `--result` writes it."""
        from pcl_ray.runs import final_artifacts

        return final_artifacts.stored_result(self.path)

    def encoder(self, which: Literal["query", "momentum"] = "momentum") -> nn.Module:
        """Its encoder, in evaluation mode on the CPU: normalised images [B, channels, S, S] to unit vectors
        [B, C]; `.backbone(images)` gives the features that one transfers.

        which: the momentum encoder, in whose space the prototypes are, or the query encoder, which is
        trained. `embed` spares one the views and their normalisation. Raises DataError before the first
        checkpoint.
        """
        from pcl_ray.model.weights import load_encoder

        return load_encoder(self._newest(), encoder=which)

    def clusters(self) -> tuple[RunClustering, ...]:
        """Its clusterings, in the order of e_step.num_clusters: prototypes, concentration, and which images
        are in which cluster; () where no E-step has been.

        Raises DataError where its images are no longer there, or are others.
        """
        return run_clusters.read(self._newest(), self.config, self.name, self._fingerprint())

    def embed(
        self,
        images: np.ndarray | Tensor | Sequence[Picture | Tensor] | Picture,
        *,
        device: str | None = None,
        on_bad_image: Literal["fail", "skip"] = "fail",
    ) -> Embedded:
        """The features of pictures, and the prototypes that are nearest to them.

        images: uint8 arrays [n, H, W, channels], [n, H, W] or [H, W, channels]; tensors [n, channels, H, W]
        or [channels, H, W], uint8 or floats in 0 … 1; paths, Pillow images, bytes of encoded files; lists of
        these; or a folder or a list of paths, whose images are named in `names`. They are resized and
        normalised as in training. device: where; None: a GPU where there is one. on_bad_image: skip leaves
        out pictures that cannot be read, whose positions are `broken`.

        All features are held in memory: for very many pictures there is `pcl-ray embed`. Raises ValueError
        for arrays of another shape or type, DataError for pictures that cannot be read.
        """
        from pcl_ray.api.image_names import with_names

        if on_bad_image not in ("fail", "skip"):
            raise ConfigError(f"on_bad_image = {on_bad_image!r}: fail or skip")
        skips = on_bad_image == "skip"
        pictures, names = with_names(images, missing_ok=skips)
        embedder = self._embedder(device)
        embedded = embedder.embed_readable(pictures) if skips else embedder.embed(pictures)
        left = set(range(len(names))).difference(embedded.broken)
        return replace(embedded, names=tuple(names[number] for number in sorted(left)))

    def report(self, file: Path | None = None) -> Path:
        """Writes its report, one HTML page, and gives back where it is. file: None: in the run's folder."""
        from pcl_ray.report import page
        from pcl_ray.runs import record_reader
        from pcl_ray.runs.folder import REPORT_FILE

        return page.write(record_reader.read(str(self.path)), Path(file or self.path / REPORT_FILE))

    def _newest(self) -> Path:
        newest = self.checkpoint
        if newest is None:
            raise DataError(f"run {self.name!r} has no checkpoint yet: its first epoch has not ended")
        return newest

    def _fingerprint(self) -> str:
        from pcl_ray.runs.folder import read_state_at

        return read_state_at(self.path).get("fingerprint", "")

    def _embedder(self, device: str | None) -> Embedder:
        import torch

        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        newest, embedder = self._newest(), self._embedders.get(where)
        if embedder is None or embedder[0] != newest:
            from pcl_ray.embedding.embedder import Embedder

            embedder = self._embedders[where] = (newest, Embedder.open(newest, device=where))
        return embedder[1]

    @cached_property
    def _embedders(self) -> dict[str, tuple[Path, Any]]:
        """Embedders that have been loaded: device → their checkpoint, and themselves."""
        return {}
