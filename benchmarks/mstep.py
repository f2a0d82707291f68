"""The M-step against what it cannot go below, and a plain per-image pipeline. Needs no Ray, faiss or MLflow.

    python benchmarks/mstep.py                               # all cases on this machine's CPU
    python benchmarks/mstep.py --device cuda --repeats 7     # on a GPU, in bf16
    python benchmarks/mstep.py --only augmentation           # the views alone, beside torchvision and kornia

ours        TrainingLoader (images in memory, batch augmentation) + m_step.run_epoch: ProtoNCE with three
            clusterings, queue, figures, optimizer, EMA
bare        forward and backward of the query encoder, forward of the momentum encoder, optimizer, EMA: in
            channels_last, on views that lie on the device already; the loss is q · k. What ours does beyond
            that is what is to be held below a tenth.
reference   the plain way: views image by image with torchvision from Pillow images in two loader processes,
            normalised floats sent to the training process, contiguous memory, negative prototypes drawn as
            Python sets and gathered, the EMA a loop over tensors, the loss read in every step

kornia is timed where it is installed.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common  # before torch: it sets how OpenMP's threads wait
import numpy as np
import torch
import torch.nn.functional as F
from common import Report, interleaved
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.clustering import Clustering, ClusterSet
from pcl_ray.config import RunConfig
from pcl_ray.data.colour import blur_size
from pcl_ray.data.folders import find_images
from pcl_ray.data.images import ArrayImages
from pcl_ray.data.loaders import TrainingLoader
from pcl_ray.data.reference_views import random_view
from pcl_ray.data.views import Views
from pcl_ray.errors import ConfigError
from pcl_ray.losses import instance_logits, prototype_loss, sample_negatives
from pcl_ray.losses import prototype_logits as logits_of
from pcl_ray.m_step import build_learner, run_epoch
from pcl_ray.model.learner import precision

_DRAWN = 128  # negative prototypes of the reference


@dataclass(frozen=True)
class Case:
    """One kind of images with its encoder; batch and steps of a round on a CPU and on a GPU."""

    name: str
    size: int
    channels: int
    encoder: dict[str, Any]
    cpu: tuple[int, int]
    gpu: tuple[int, int]
    bar: float | None = None  # least share of the bare limit, on a CPU
    gpu_bar: float | None = None
    augment: tuple[str, ...] = ()


_SMALL = {"encoder.backbone": "small_resnet", "encoder.width": 16}
_THREE_STAGES = _SMALL | {"encoder.blocks": [1, 1, 1]}
_FOUR_STAGES = _SMALL | {"encoder.blocks": [2, 2, 2, 2]}
_RESNET18 = {"encoder.backbone": "resnet18", "encoder.stem": "small"}
_RESNET50 = {"encoder.backbone": "resnet50"}
_UNBLURRED = ("augment.blur=0",)
CASES = (
    Case("digits 12 px, small ResNet", 12, 1, _THREE_STAGES, (128, 16), (128, 100), augment=_UNBLURRED),
    Case("28 × 28 grey, small ResNet", 28, 1, _FOUR_STAGES, (256, 8), (512, 100), 0.9, augment=_UNBLURRED),
    Case("32 × 32, small ResNet", 32, 3, _FOUR_STAGES, (256, 6), (512, 100), augment=_UNBLURRED),
    Case("32 × 32, ResNet-18", 32, 3, _RESNET18, (64, 2), (512, 50), 0.9, 0.85, _UNBLURRED),
    Case("224 × 224, ResNet-50", 224, 3, _RESNET50, (8, 1), (256, 20), None, 0.9),
)


def main() -> int:
    options = common.parser(__doc__, repeats=5)
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument(
        "--only", choices=["training", "augmentation", "files", "negatives"], help="one part"
    )
    options.add_argument("--cases", default="", help="only the cases whose names contain this")
    options.add_argument("--compile", action="store_true", help="ours with train.compile")
    arguments = options.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here")
    device = torch.device(arguments.device)
    report = Report("mstep", arguments.quick)
    if device.type == "cuda":
        report.machine += f"; {torch.cuda.get_device_name()}"
    repeats = min(arguments.repeats, 2) if arguments.quick else arguments.repeats
    if arguments.only in (None, "augmentation"):
        augmentation(report, device, repeats)
    if arguments.only in (None, "files"):
        files(report, device, repeats)
    if arguments.only in (None, "negatives"):
        negatives(report, device, repeats)
    if arguments.only in (None, "training"):
        for case in CASES[:2] if arguments.quick else CASES:
            if arguments.cases in case.name:
                training(report, case, device, repeats, compiled=arguments.compile)
                report.write(arguments.json)
    return report.end(arguments.json)


def training(report: Report, case: Case, device: torch.device, repeats: int, *, compiled: bool) -> None:
    batch, steps = case.gpu if device.type == "cuda" else case.cpu
    if report.quick:
        batch, steps = batch // 4, 2
    config = config_of(case, device, batch, steps, compiled=compiled)
    images = ArrayImages(
        np.random.default_rng(0).integers(
            0, 256, (batch * steps, case.size, case.size, case.channels), dtype=np.uint8
        )
    )
    calls: dict[str, Callable[[int], Any]] = {
        "bare": bare(config, device, steps),
        "ours": ours(config, images, device),
        "reference": reference(configs.with_overrides(config, _PLAIN), images, device),
    }
    report.section(f"{case.name}: batches of {batch}, {steps} steps a round, {device.type}")
    # A round of ResNet-50 on a CPU takes half a minute: it is warm after its first step.
    timed = interleaved(calls, repeats, warm_up=device.type == "cuda" or case.size < 200)
    for name, times in timed.items():
        report.timing(f"{case.name}: {name}", times, images_per_second=batch * steps / times.median)
    waited = sorted(result.data_seconds / result.seconds for result in timed["ours"].results)[repeats // 2]
    report.row(f"{case.name}: ours, share of the time in making views", share=waited)
    share = report.ratio(f"{case.name}: bare / ours", timed["bare"], timed["ours"])
    faster = report.ratio(f"{case.name}: reference / ours", timed["reference"], timed["ours"])
    bar = case.gpu_bar if device.type == "cuda" else case.bar
    if bar is not None:
        report.claim(f"{case.name}: share of the bare limit", share, at_least=bar, full_size=True)
        report.claim(f"{case.name}: times the reference pipeline", faster, at_least=2.0, full_size=True)


def config_of(case: Case, device: torch.device, batch: int, steps: int, *, compiled: bool) -> RunConfig:
    knobs: dict[str, Any] = {
        "data.source": "arrays",
        "encoder.dim": 128,
        "loss.queue_size": min(4096, batch * steps),
        "e_step.num_clusters": [max(2, batch * steps // part) for part in (40, 20, 10)],
        "e_step.warmup_epochs": 0,
        "train.epochs": 100,
        "train.batch_size": batch,
        "train.log_every_steps": 50,
        "train.compile": compiled,
        "resources.gpus_per_worker": 1.0 if device.type == "cuda" else 0.0,
    }
    return configs.with_overrides(
        configs.with_overrides(RunConfig(), knobs | pictures(case.size, case.channels) | case.encoder),
        case.augment,
    )


def pictures(size: int, channels: int) -> dict[str, Any]:
    return {
        "data.channels": channels,
        "augment.image_size": size,
        "augment.mean": [0.5] * channels,
        "augment.std": [0.25] * channels,
    }


_PLAIN = {"train.memory_format": "contiguous", "optimizer.fused": False, "train.compile": False}


def ours(config: RunConfig, images: ArrayImages, device: torch.device) -> Callable[[int], Any]:
    plan, learner = plans.make(config, len(images)), build_learner(config, device, warn=print)
    loader, clusters = TrainingLoader(images, config, device=device), clusters_of(plan)

    def epoch(number: int) -> Any:
        return run_epoch(learner, loader.epoch(number + 1), clusters, config, plan, number + 1)

    return epoch


def bare(config: RunConfig, device: torch.device, steps: int) -> Callable[[int], Any]:
    learner = build_learner(configs.with_overrides(config, {"train.compile": False}), device)
    side = config.augment.image_size
    shape = (config.train.batch_size, config.data.channels, side, side)
    views = torch.randn(shape, device=device).contiguous(memory_format=learner.memory_format)
    learner.pair.train()

    def epoch(number: int) -> None:
        for _ in range(steps):
            with precision(config, device):
                query_BC = learner.query(views)
                with torch.no_grad():
                    key_BC = learner.key(views)
            learner.optimizer.zero_grad(set_to_none=True)
            (query_BC * key_BC).sum().backward()
            learner.optimizer.step()
            learner.pair.update()
        finish(device)

    return epoch


def reference(config: RunConfig, images: ArrayImages, device: torch.device) -> Callable[[int], Any]:
    plan, learner = plans.make(config, len(images)), build_learner(config, device)
    options: Any = {
        "num_workers": 2,
        "multiprocessing_context": "forkserver",
        "persistent_workers": True,
        "pin_memory": device.type == "cuda",
    }
    loader = DataLoader(
        PlainPairs(images.pixels, config), config.train.batch_size, shuffle=True, drop_last=True, **options
    )
    clusters = clusters_of(plan)
    prototypes = [
        (c.prototypes.to(device), c.concentration.to(device), c.assignments) for c in clusters.clusterings
    ]
    losses: list[float] = []
    learner.pair.train()

    def epoch(number: int) -> None:
        for query_views, key_views, indices in loader:
            with precision(config, device):
                query_BC = learner.query(query_views.to(device))
                with torch.no_grad():
                    key_BC = learner.key(key_views.to(device))
            query_BC, key_BC = query_BC.float(), key_BC.float()
            logits = instance_logits(query_BC, key_BC, learner.queue.keys, config.loss.temperature)
            loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=device))
            for prototypes_KC, concentration_K, assignments_N in prototypes:
                positives = assignments_N[indices]
                others = sorted(set(range(len(prototypes_KC))) - set(positives.tolist()))
                drawn = torch.tensor(
                    random.sample(others, min(_DRAWN, len(others))), dtype=torch.long, device=device
                )
                columns, target = logits_of(
                    query_BC,
                    prototypes_KC,
                    concentration_K,
                    positives.to(device),
                    drawn,
                    mask_duplicates=False,
                )
                loss = loss + F.cross_entropy(columns, target) / len(prototypes)
            learner.optimizer.zero_grad()
            loss.backward()
            learner.optimizer.step()
            with torch.no_grad():
                for key, query in zip(
                    learner.pair.key.parameters(), learner.pair.query.parameters(), strict=True
                ):
                    key.data = key.data * learner.pair.momentum + query.data * (1 - learner.pair.momentum)
            learner.queue.enqueue(key_BC)
            losses.append(loss.item())
        finish(device)

    return epoch


class PlainPairs(Dataset[Any]):
    """Two views and the position of each image, as a self-supervised data set is written most often."""

    def __init__(self, pixels: np.ndarray, config: RunConfig):
        settings, colour = config.augment, config.data.channels == 3
        self.pixels = pixels
        jitter = transforms.ColorJitter(
            settings.jitter, settings.jitter, settings.jitter * colour, settings.hue * colour
        )
        grey = [transforms.RandomGrayscale(settings.grey)] if colour else []
        blur: list[Any] = []
        if settings.blur:
            gaussian = transforms.GaussianBlur(blur_size(settings.image_size), (0.1, 2.0))
            blur = [transforms.RandomApply([gaussian], settings.blur)]
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(settings.image_size, scale=(settings.min_crop, 1.0)),
                transforms.RandomApply([jitter], p=0.8),
                *grey,
                *blur,
                transforms.RandomHorizontalFlip(settings.flip),
                transforms.ToTensor(),
                transforms.Normalize(settings.mean, settings.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image = Image.fromarray(
            self.pixels[index] if self.pixels.shape[3] == 3 else self.pixels[index, :, :, 0]
        )
        return self.view(image), self.view(image), index


def clusters_of(plan: plans.RunPlan) -> ClusterSet:
    """Random prototypes: what a step costs does not depend on what they are."""
    draw = torch.Generator().manual_seed(0)
    made = [
        Clustering(
            F.normalize(torch.randn(k, 128, generator=draw), dim=1),
            torch.randint(k, (plan.num_images,), generator=draw),
            torch.full((k,), 0.2),
        )
        for k in plan.num_clusters
    ]
    return ClusterSet(0, tuple(made))


_MOVED = {"augment.shift": 0.1, "augment.rotate": 15, "augment.shear": 10}


def augmentation(report: Report, device: torch.device, repeats: int) -> None:
    report.section(f"views of one image, in µs: the recipe v2, {device.type}, one thread")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cases: list[tuple[int, int, float, dict[str, Any]]] = [
        (28, 1, 0.0, {}),
        (28, 1, 0.0, _MOVED),
        (28, 1, 0.0, _MOVED | {"augment.erase": 0.5}),
        (32, 3, 0.0, {}),
        (32, 3, 0.5, {}),
        (96, 3, 0.5, {}),
    ]
    if device.type == "cuda":
        cases.append((224, 3, 0.5, {}))
    for size, channels, blur, more in cases:
        count = 512
        if device.type == "cpu":
            count = 64 if size > 64 else 256
        knobs = pictures(size, channels) | {"augment.blur": blur} | more
        config = configs.with_overrides(RunConfig(), knobs)
        pixels = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8)
        indices, views = torch.arange(count), Views(config, device)
        calls: dict[str, Callable[[int], Any]] = {
            "ours": lambda number, views=views, pixels=pixels, indices=indices: (
                views.of_images(pixels, number + 1, indices),
                finish(device),
            )
        }
        if device.type == "cpu":
            calls["torchvision"] = lambda number, config=config, pixels=pixels: torchvision_views(
                config, pixels[:32]
            )
        if not more and (others := kornia_views(config)) is not None:
            calls["kornia"] = lambda number, others=others, pixels=pixels: (
                others(pixels.to(device)),
                finish(device),
            )
        case = f"{size} px, {channels} channel{'s' * (channels > 1)}, blur {blur:g}"
        case += "".join(f", {name.removeprefix('augment.')} {value:g}" for name, value in more.items())
        timed = interleaved(calls, repeats)
        images = {"ours": 2 * count, "torchvision": 2 * 32, "kornia": count}
        report.row(case, **{name: times.median / images[name] * 1e6 for name, times in timed.items()})
    torch.set_num_threads(threads)


def torchvision_views(config: RunConfig, pixels: Tensor) -> None:
    view = random_view(config.augment, config.data.channels)
    for image in pixels.permute(0, 3, 1, 2):
        view(image), view(image)


def kornia_views(config: RunConfig) -> Callable[[Tensor], Tensor] | None:
    """The same recipe out of kornia, where it is installed; a crop is resized without antialiasing there, and
    the order of jitter is that of the batch.
    """
    try:
        import kornia.augmentation as kornia
    except ImportError:
        return None
    settings, size, colour = config.augment, config.augment.image_size, config.data.channels == 3
    steps = [
        kornia.RandomResizedCrop((size, size), scale=(settings.min_crop, 1.0)),
        kornia.ColorJitter(
            settings.jitter, settings.jitter, settings.jitter * colour, settings.hue * colour, p=0.8
        ),
        *([kornia.RandomGrayscale(p=settings.grey)] if colour else []),
        *([kornia.RandomGaussianBlur((3, 3), (0.1, 2.0), p=settings.blur)] if settings.blur else []),
        kornia.RandomHorizontalFlip(settings.flip),
    ]
    sequence = kornia.AugmentationSequential(*steps, same_on_batch=False)
    return lambda pixels: sequence(pixels.permute(0, 3, 1, 2).float().contiguous() / 255)


def files(report: Report, device: torch.device, repeats: int) -> None:
    """Both views of photographs in files, in this process: ours with and without reduced decoding, and
    torchvision on each picture.
    """
    count, shape = (8, (480, 640)) if report.quick else (32, (1200, 1600))
    report.section(
        f"ms of both views of a JPEG of {shape[1]} × {shape[0]} px, {device.type}, no loader processes"
    )
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        for number in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize(shape[::-1], Image.Resampling.BICUBIC).save(
                Path(folder, f"{number}.jpg"), quality=90
            )
        images = find_images(Path(folder), 3)
        for size in (64, 224):
            config = configs.with_overrides(
                RunConfig(), pictures(size, 3) | {"train.batch_size": count, "data.loader_workers": 0}
            )
            settings = {
                "ours": {},
                "ours, whole pictures": {"data.reduced_decoding": False},
                "torchvision": {"augment.engine": "torchvision"},
            }
            loaders = {
                name: TrainingLoader(images, configs.with_overrides(config, knobs), device=device)
                for name, knobs in settings.items()
            }
            calls = {
                name: lambda number, loader=loader: (next(loader.epoch(number + 1)), finish(device))
                for name, loader in loaders.items()
            }
            timed = interleaved(calls, repeats)
            report.row(
                f"views of {size} px", **{name: times.median / count * 1000 for name, times in timed.items()}
            )
            report.ratio(f"views of {size} px: torchvision / ours", timed["torchvision"], timed["ours"])


def negatives(report: Report, device: torch.device, repeats: int) -> None:
    """ProtoNCE of a batch of 256 forward and backward, against all prototypes and against 16,384 that are
    drawn: what `auto` goes by.
    """
    report.section(f"ms of one prototype term, batch 256, C = 128, {device.type}")
    draw = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(256, 128, generator=draw), dim=1).to(device).requires_grad_()
    for k in (1000, 10_000, 25_000) if report.quick else (1000, 10_000, 25_000, 50_000, 100_000, 300_000):
        prototypes = F.normalize(torch.randn(k, 128, generator=draw), dim=1).to(device)
        phi = torch.full((k,), 0.2, device=device)
        positives = torch.randint(k, (256,), generator=draw).to(device)
        generator = torch.Generator(device=device).manual_seed(0)
        count = min(16_384, k // 2)

        def term(
            drawn: Tensor | None,
            prototypes: Tensor = prototypes,
            phi: Tensor = phi,
            positives: Tensor = positives,
        ) -> None:
            logits, target = logits_of(queries, prototypes, phi, positives, drawn)
            prototype_loss(logits, target, positives).backward()
            finish(device)

        timed = interleaved(
            {
                "dense": lambda number, term=term: term(None),
                "drawn": lambda number, term=term, drawn=(k, positives, count, generator): term(
                    sample_negatives(*drawn)
                ),
            },
            max(repeats, 3),
        )
        dense, drawn = (timed[name].median * 1000 for name in ("dense", "drawn"))
        report.row(f"K = {k}", dense=dense, drawn=drawn, negatives_drawn=count, ratio=dense / drawn)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
