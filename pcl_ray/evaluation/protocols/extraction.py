"""Images to features: the backbone's and the head's from one pass, pixels, and those of random views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray.config import EncoderConfig, RunConfig, with_overrides
from pcl_ray.data.colour import to_pixels
from pcl_ray.data.images import Images
from pcl_ray.data.loaders import EvaluationLoader, TrainingLoader
from pcl_ray.evaluation.augmented import sampled
from pcl_ray.model import encoder as encoders
from pcl_ray.model.learner import precision

_PIXEL_SIDE = 32  # larger views are averaged down to this before their pixels are compared
_LARGE = 2**28  # numbers: more are stored as float16, 512 MiB and more
_LARGEST_HALF = float(torch.finfo(torch.float16).max)
_FIRST_EPOCH = 2**31 - 1  # the views are those of epochs from here on, which no training reaches

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TestedEncoder:
    """An encoder with what it needs to be measured.

    encoder: with `.backbone` and `.head`. config: its view of images (`augment`), and how they are read.
    settings: what an untrained one of its kind is built from.
    """

    __test__ = False  # pytest takes names in Test for tests

    encoder: nn.Module
    settings: EncoderConfig
    config: RunConfig
    has_head: bool
    device: torch.device

    def untrained(self) -> TestedEncoder:
        """One of the same kind with fresh weights, by the configuration's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            fresh = encoders.build(self.settings, self.config.data.channels)
        return TestedEncoder(fresh.eval(), self.settings, self.config, False, self.device)

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """Backbone and head, for evaluation, on the device."""
        encoder = self.encoder.to(self.device).eval()
        backbone, head = encoder.backbone, encoder.head
        assert isinstance(backbone, nn.Module), "an encoder has a backbone"
        assert isinstance(head, nn.Module), "an encoder has a head"
        return backbone, head

    def forward(self, *, head: bool) -> Callable[[Tensor], dict[str, Tensor]]:
        """One pass over views [b, channels, S, S]: the features `backbone` and, on request, `head`."""
        backbone, projection = self.parts()

        def passed(views: Tensor) -> dict[str, Tensor]:
            with precision(self.config, self.device):
                rows = backbone(views.to(self.device))
                parts = {"backbone": rows}
                if head:
                    parts["head"] = F.normalize(projection(rows), dim=1)
            return parts

        return passed


@torch.no_grad()
def features_of(tested: TestedEncoder, images: Images, *, head: bool) -> dict[str, np.ndarray]:
    """The features `backbone` [N, D] and, on request, `head` [N, C] of all images, in their order; float32,
    or float16 where they are many.
    """
    forward = tested.forward(head=head)
    arrays: dict[str, np.ndarray] = {}
    for views, ids in EvaluationLoader(images, tested.config, device=tested.device):
        for name, part in forward(views).items():
            if name not in arrays:
                kind = np.float16 if len(images) * part.shape[1] > _LARGE else np.float32
                arrays[name] = np.empty((len(images), part.shape[1]), dtype=kind)
            limited = part.float()
            if arrays[name].dtype == np.float16:
                limited = limited.clamp(-_LARGEST_HALF, _LARGEST_HALF)
            arrays[name][ids.numpy()] = limited.cpu().numpy()
    return arrays


def pixels_of(images: Images, config: RunConfig) -> np.ndarray:
    """The pixels [N, D] uint8 of the evaluation views, averaged down to 32 × 32 where they are larger."""
    rows: list[Tensor] = []
    for views, _ in EvaluationLoader(images, config):
        pixels = to_pixels(views, config.augment)
        if max(pixels.shape[2:]) > _PIXEL_SIDE:
            pixels = F.adaptive_avg_pool2d(pixels.float(), _PIXEL_SIDE).round().to(torch.uint8)
        rows.append(pixels.flatten(1).cpu())
    return torch.cat(rows).numpy()


@torch.no_grad()
def features_of_views(
    tested: TestedEncoder, images: Images, *, count: int, views: int, head: bool
) -> dict[str, np.ndarray]:
    """The features [n, Q, D] float32 of Q = `views` random views, rounded up to an even number, of at most
    `count` of the images, spread evenly over them: by the name of the features. The same views each time.
    """
    forward = tested.forward(head=head)
    config = with_overrides(tested.config, {"augment.small_crops": 0})
    loader = TrainingLoader(images, config, device=tested.device)
    rows = sampled(len(images), count)
    size = max(64, config.train.batch_size)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    result: dict[str, np.ndarray] = {}
    for number in range(-(-views // 2)):
        for batch in loader.views(_FIRST_EPOCH + number, batches):
            positions = np.searchsorted(rows, batch.indices.numpy())
            for view, pixels in enumerate((batch.query_views, batch.key_views)):
                for name, part in forward(pixels).items():
                    shape = (len(rows), 2 * -(-views // 2), part.shape[1])
                    array = result.setdefault(name, np.empty(shape, dtype=np.float32))
                    array[positions, 2 * number + view] = part.float().cpu().numpy()
    return result
