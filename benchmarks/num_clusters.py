"""How many clusters: encoders trained with K from few to many on several data sets, at two sizes each way.

    python benchmarks/num_clusters.py                                   # three seeds: an hour on one core
    python benchmarks/num_clusters.py --folder DIR --minutes 8          # a piece; the next call goes on
    python benchmarks/num_clusters.py --arrays animals=animals.npz      # one set more
    python benchmarks/num_clusters.py --quick                           # two tiny sets: a minute; no quality

What is compared was written down before anything was measured. Each run has three clusterings, K, 2·K, 4·K
as the paper has them, with K = ¼, ½, 1 and 2 times √N, so √N, √N/2, √N/4, √N/8 images in a cluster of the
finest. The rules of which one is to become `e_step.num_clusters: auto`, by their coarsest count:

- share: K = N / 51, as the paper has it on ImageNet (where that is 22·√N; on the digits it is 0.7·√N);
- root: K = c·√N. With c = 1, K is 1,132, 2,263, 4,525 on ImageNet, where HCSC has 1,000, 2,000, 3,000, and
  224, 447, 894 on CIFAR's 50,000 images, where ProPos has 250, 500, 1,000 and PCL's author guesses 100 to
  1,000;
- fixed: the same count at any N.

A rule is right where its count is among the best on all sets, with ten classes and with 151, and at both
sizes of Fashion-MNIST, 1,000 and 4,000 images: from one to the other its K stays (fixed), doubles (root) or
is four times as large (share). Runs of a set and seed go on from one warm-up, which itself goes on as InfoNCE
alone, so that differences are paired.

Figures, all of the backbone's features: knn (weighted, 10 neighbours, held-out images), ami (of k-means at
the true number of classes, training images), few (five labels a class, nearest class mean, held-out images,
50 draws).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_ray import config as configs
from pcl_ray.clustering import kmeans
from pcl_ray.config import AugmentConfig
from pcl_ray.data import datasets
from pcl_ray.data.evaluation_view import evaluation_view
from pcl_ray.evaluation import agreement, knn_accuracy
from pcl_ray.model.weights import load_encoder
from pcl_ray.support import paths

FACTORS = {"√N/4": 0.25, "√N/2": 0.5, "√N": 1.0, "2·√N": 2.0}
ALONE = "InfoNCE"
FIGURES = ("knn", "ami", "few")
_LABELS, _DRAWS = 5, 50
_BASE = "√N"
_T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
_OBLIQUE = ("", "-Bold", "-Oblique", "-BoldOblique")
_STYLES = {"DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic")}
_STIX = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic")
# Characters that all faces have and that differ from each other in more than size.
_GLYPHS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijklmnpqrty23456789ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω"
    "БДЖЗИЙЛЦЧШЩЪЫЬЭЮЯЂЄЉЊЋЏҐѢɓɕɖɘəɛɞɟɠɢɣɤɥɦɨɬɮɯɱɲɳɵɶɸɻɽɾʀʁʂʃʄʈʉʊʋʎʐʒʕʘʛʝʞʡ"
)


@dataclass(frozen=True)
class Case:
    """A data set, how many of its images are learned from, and for how long."""

    name: str
    words: tuple[str, ...]  # the configuration's words that say which images
    images: int
    epochs: int
    warmup: int
    size: int  # px


def main() -> int:
    arguments = _arguments()
    report = common.Report("num_clusters", arguments.quick)
    factors = list(FACTORS)[1:3] if arguments.quick else list(FACTORS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PCL_RAY_HOME"] = str(folder)
        lines = _Lines(folder / "runs.jsonl")
        until = time.monotonic() + 60 * arguments.minutes
        cases = _cases(folder, arguments)
        for seed in range(arguments.repeats):
            for case in cases:
                for arm in (ALONE, *factors):
                    if lines.of(case, arm, seed) is None:
                        if time.monotonic() > until:
                            print("out of --minutes: the same call goes on", file=sys.stderr)
                            return 0
                        lines.add(_run(case, arm, seed))
        _tables(report, cases, (ALONE, *factors), lines, range(arguments.repeats))
    return report.end(arguments.json)


def _arguments() -> Any:
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument(
        "--folder", type=Path, help="keeps the runs and runs.jsonl; runs found there are not made again"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    parser.add_argument(
        "--arrays",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help=".npz with images and labels: one more set",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = 1
    return arguments


def _cases(folder: Path, arguments: Any) -> list[Case]:
    glyphs = folder / "glyphs.npz"
    np.savez(glyphs, **_rendered(4 if arguments.quick else 34))
    digits = ("data.source=digits", "data.path=null")
    of_glyphs = ("data.source=arrays", f"data.path={glyphs}")
    if arguments.quick:
        return [Case("digits", digits, 700, 4, 2, 8), Case("glyphs", of_glyphs, 400, 4, 2, 16)]
    fashion = ("data.source=idx", "data.path=/usr/share/datasets/fashion-mnist", "augment.flip=0.5")
    cases = [
        Case("digits", digits, 1400, 40, 10, 8),
        Case("fashion", fashion, 1000, 48, 12, 16),
        Case("fashion", fashion, 4000, 12, 3, 16),
        Case("glyphs", of_glyphs, 4000, 12, 3, 16),
    ]
    for text in arguments.arrays:
        name, _, file = text.partition("=")
        cases.append(
            Case(name, ("data.source=arrays", f"data.path={Path(file).absolute()}"), 4000, 12, 3, 16)
        )
    return cases


class _Lines:
    """The runs that are done, each a line of a file."""

    def __init__(self, file: Path):
        self._file = file
        self._done: list[dict[str, Any]] = []
        if file.exists():
            self._done = [json.loads(line) for line in file.read_text().splitlines()]

    def of(self, case: Case, arm: str, seed: int) -> dict[str, Any] | None:
        """The line of a run; None where it is missing."""
        key = _key(case, arm, seed)
        return next((line for line in self._done if key.items() <= line.items()), None)

    def add(self, line: dict[str, Any]) -> None:
        self._done.append(line)
        text = json.dumps(line, ensure_ascii=False)
        print(text, file=sys.stderr, flush=True)
        with self._file.open("a") as file:
            file.write(text + "\n")


def _key(case: Case, arm: str, seed: int) -> dict[str, Any]:
    return {"set": case.name, "images": case.images, "arm": arm, "seed": seed}


def _run(case: Case, arm: str, seed: int) -> dict[str, Any]:
    """The line of one run, which is trained now: InfoNCE from the start, all others from its warm-up."""
    start = time.perf_counter()
    line, begin = _key(case, arm, seed), None
    values: dict[str, Any] = {"e_step.warmup_epochs": case.epochs}
    if arm != ALONE:
        line["counts"] = [round(FACTORS[arm] * math.sqrt(case.images)) * times for times in (1, 2, 4)]
        values = {"e_step.warmup_epochs": case.warmup, "e_step.num_clusters": line["counts"]}
        begin = _checkpoint(_name(case, ALONE, seed), case.warmup)
    config = _config(case, seed) | values
    _train(_name(case, arm, seed), config, begin)
    figures = _scores(config, _checkpoint(_name(case, arm, seed), case.epochs))
    return line | figures | {"seconds": round(time.perf_counter() - start, 1)}


def _name(case: Case, arm: str, seed: int) -> str:
    return f"{case.name}-{case.images}-{[ALONE, *FACTORS].index(arm)}-{seed}"


def _checkpoint(run: str, epochs: int) -> Path:
    from pcl_ray.checkpoints import epoch_files

    return epoch_files.path_of(epoch_files.folder_of(paths.home() / "runs" / run), epochs)


def _config(case: Case, seed: int) -> dict[str, Any]:
    return dict(word.split("=", 1) for word in case.words) | {
        "seed": seed,
        "data.limit": case.images,
        "data.channels": 1,
        "augment.image_size": case.size,
        "augment.min_crop": 0.4,
        "augment.jitter": 0.3,
        "encoder.width": 8,
        "encoder.blocks": [1, 1, 1],
        "encoder.head": "mlp",
        "encoder.dim": 64,
        "encoder.momentum": 0.98,
        "loss.temperature": 0.2,
        "loss.queue_size": 256 if case.images < 2000 else 512,
        "e_step.restarts": 1,
        "e_step.threads": 1,
        "optimizer.lr": 0.06,
        "train.batch_size": 64 if case.images < 2000 else 128,
        "train.epochs": case.epochs,
        "train.checkpoint_every_epochs": case.warmup,
        "train.keep_checkpoints": 100,
        "evaluation.every_epochs": 0,
        "resources.workers": 0,
        "tracking.enabled": False,
        "tracking.pictures": 0,
        "tracking.report": False,
    }


def _train(name: str, values: dict[str, Any], begin: Path | None) -> None:
    """Trains the run of this name, from the checkpoint `begin`, if any. What is left of a piece that was
    killed is thrown away.
    """
    from pcl_ray.runs import driver, request
    from pcl_ray.runs.console import Display

    shutil.rmtree(paths.home() / "runs" / name, ignore_errors=True)
    checked = request.check_config(configs.load("fashion_mnist", values))
    origin = driver.Origin(begin, "warm-up", None) if begin is not None else None
    with Path(os.devnull).open("w") as quiet:
        driver.start(checked, name=name, origin=origin, display=Display(quiet))


@torch.inference_mode()
def _scores(values: dict[str, Any], checkpoint: Path) -> dict[str, float]:
    """The figures of a trained encoder."""
    config = configs.load("fashion_mnist", values)
    splits = datasets.load(config.data, cache_dir=checkpoint.parent)
    backbone = load_encoder(checkpoint).get_submodule("backbone")
    features, labels = _features(backbone, splits.train, config.augment)
    queries, query_labels = _features(backbone, splits.holdout, config.augment)
    classes = int(labels.max()) + 1
    groups = kmeans(features, classes, seed=0, iterations=50, restarts=10, threads=1)
    return {
        "knn": 100 * knn_accuracy(features, labels, queries, query_labels, neighbours=10),
        "ami": 100 * agreement(groups.assignments, labels)["ami"],
        "few": 100 * _few_labels(features, labels, queries, query_labels),
    }


def _features(backbone: nn.Module, images: Any, augment: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, width] of the backbone, and labels [n]."""
    views = evaluation_view(augment)(torch.from_numpy(images.pixels).permute(0, 3, 1, 2)).float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (augment.mean, augment.std))
    rows = [backbone((part - mean) / std) for part in views.split(500)]
    return F.normalize(torch.cat(rows), dim=1), torch.from_numpy(images.labels)


def _few_labels(features: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor) -> float:
    """The share of the queries whose class has the nearest mean of five labelled images, over the draws."""
    generator = torch.Generator().manual_seed(0)
    members = [torch.nonzero(labels == number).flatten() for number in range(int(labels.max()) + 1)]
    shares = []
    for _ in range(_DRAWS):
        drawn = [of[torch.randperm(len(of), generator=generator)[:_LABELS]] for of in members]
        means = F.normalize(torch.stack([features[rows].mean(dim=0) for rows in drawn]), dim=1)
        shares.append(float(((queries @ means.T).argmax(dim=1) == query_labels).float().mean()))
    return statistics.mean(shares)


def _rendered(each: int) -> dict[str, np.ndarray]:
    """Characters of sixteen type faces that come with matplotlib, somewhat turned, shifted and scaled: `each`
    images of 28 × 28 of every class.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [f"{face}{style}" for face in _FACES for style in _STYLES.get(face, _OBLIQUE)] + list(_STIX)
    random = np.random.default_rng(0)
    images, labels = [], []
    for label, character in enumerate(_GLYPHS):
        for number in range(each):
            font = ImageFont.truetype(
                fonts / f"{files[number % len(files)]}.ttf", int(random.integers(17, 24))
            )
            canvas = Image.new("L", (28, 28))
            at = tuple(14 + random.uniform(-2, 2, size=2))
            ImageDraw.Draw(canvas).text(at, character, fill=255, font=font, anchor="mm")
            turned = canvas.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
            images.append(np.asarray(turned, dtype=np.uint8))
            labels.append(label)
    return {"images": np.stack(images), "labels": np.array(labels)}


def _tables(
    report: common.Report, cases: list[Case], arms: tuple[str, ...], lines: _Lines, seeds: range
) -> None:
    """For each set and figure what every arm has, and the paired differences to K = √N."""
    for case in cases:
        report.section(f"{case.name}, {case.images} images, {case.epochs} epochs, {len(seeds)} seeds")
        runs = {arm: [line for seed in seeds if (line := lines.of(case, arm, seed))] for arm in arms}
        base = runs[_BASE]
        for arm, of_arm in runs.items():
            figures: dict[str, Any] = {"K": ",".join(map(str, of_arm[0].get("counts", ("none",))))}
            for name in FIGURES:
                differences = [one[name] - other[name] for one, other in zip(of_arm, base, strict=True)]
                figures[name] = round(statistics.mean(line[name] for line in of_arm), 1)
                figures[f"{name} − {_BASE}"] = _interval(differences) if arm != _BASE else ""
            report.row(f"{case.name} {case.images}: {arm}", **figures)


def _interval(differences: list[float]) -> str:
    """The mean of paired differences, ± half of its 95 % interval."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return f"{mean:+.1f}"
    half = _T_95[min(count, 10)] * statistics.stdev(differences) / count**0.5
    return f"{mean:+.1f} ± {half:.1f}"


if __name__ == "__main__":
    sys.exit(common.exit_code(main))
