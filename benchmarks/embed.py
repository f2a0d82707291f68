"""Collections of embeddings: what `embed` costs beside the bare forward pass, and how long a query takes.

embed   `Embedder.embed` of uint8 images in memory against the encoder's forward pass over views that are
        ready, of the same images in the same batches: what is added is views, floats, copies and the nearest
        prototypes. By the clock, and by processor time, which other work on the machine disturbs less.
search  exact search in a million embeddings of 128 numbers, one query at a time, once the index is open;
        beside it faiss' flat index in single precision, whose answers must be the same
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import DIM, Mixture, Report, Timed, exit_code, interleaved, parser

from pcl_ray.config import AugmentConfig, EncoderConfig
from pcl_ray.data.colour import to_floats
from pcl_ray.embedding import index as indices
from pcl_ray.embedding.embedder import Embedder, Prototypes
from pcl_ray.model import encoder as encoders
from pcl_ray.plan import resolve_num_clusters

SMALL = {
    "backbone": "small_resnet",
    "width": 16,
    "blocks": (1, 1, 1, 1),
    "stem_stride": 2,
    "head_width": 512,
    "head_batch_norm": True,
}
# name: encoder, side of the view, side of the images, how many, how many with --quick
CASES: dict[str, tuple[dict, int, int, int, int]] = {
    "the recipe folder's encoder, 32 px": (SMALL, 32, 32, 1024, 256),
    "ResNet-18, small stem, 32 px": ({"backbone": "resnet18", "stem": "small"}, 32, 32, 48, 16),
    "ResNet-50, 224 px of 256 px": ({"backbone": "resnet50"}, 224, 256, 8, 2),
}


def embedder_of(encoder: dict, side: int, count: int, device: torch.device) -> Embedder:
    """A random encoder with the clusterings that so many images would have."""
    torch.manual_seed(0)
    config = EncoderConfig(**encoder)
    view = AugmentConfig(image_size=side)
    settings = {
        "epoch": 0,
        "encoder": config.model_dump(mode="json"),
        "channels": 3,
        "view": view.model_dump(mode="json", include={"image_size", "mean", "std"}),
        "reduced_decoding": True,
    }
    clusterings = [
        Prototypes(
            F.normalize(torch.randn(k, config.dim), dim=1).to(device),
            torch.full((k,), 0.2, device=device),
            torch.ones(k, dtype=torch.bool, device=device),
        )
        for k in resolve_num_clusters("auto", count)
    ]
    return Embedder(encoders.build(config, 3), settings, clusterings, device)


def embed(report: Report, repeats: int, device: torch.device) -> None:
    report.section("embed: images in memory against the bare forward pass")
    for name, (encoder, side, given, most, few) in CASES.items():
        count = few if report.quick else most
        embedder = embedder_of(encoder, side, count, device)
        images = np.random.default_rng(0).integers(0, 256, (count, given, given, 3), dtype=np.uint8)
        # channels last, as they lie in memory: torch computes faster so
        views = torch.from_numpy(images[:, :side, :side].copy()).permute(0, 3, 1, 2)
        ready = [to_floats(part, embedder.augment).to(device) for part in views.split(embedder.batch_size)]

        def bare(_: int, embedder: Embedder = embedder, ready: list[torch.Tensor] = ready) -> float:
            start = time.process_time()
            with torch.no_grad():
                torch.cat([embedder.encoder(part) for part in ready]).cpu().numpy()
            return time.process_time() - start

        def whole(_: int, embedder: Embedder = embedder, images: np.ndarray = images) -> float:
            start = time.process_time()
            embedder.embed(images)
            return time.process_time() - start

        timed = interleaved({"bare": bare, "embed": whole}, repeats)
        report.timing(f"{name}: bare forward pass", timed["bare"], images=count)
        report.timing(f"{name}: embed", timed["embed"], images=count)
        ratio = report.ratio(f"{name}: embed / bare", timed["embed"], timed["bare"])
        report.ratio(
            f"{name}: the same, processor time", Timed(timed["embed"].results), Timed(timed["bare"].results)
        )
        report.claim(f"embed / bare forward pass, {name}", ratio, at_most=1.1, full_size=True)


def search(report: Report, repeats: int) -> None:
    import faiss

    size = 20_000 if report.quick else 1_000_000
    report.section(f"search: {size:,} × {DIM}, ten nearest, one query at a time")
    mixture = Mixture(1000)
    rows, queries = mixture.draw(size, 1).numpy(), mixture.draw(32, 2).numpy()
    with tempfile.TemporaryDirectory(prefix="pcl_ray_search_") as folder:
        index = indices.SearchIndex(indices.written(Path(folder), [(0, rows)], size, DIM))
        flat = faiss.IndexFlatIP(DIM)
        flat.add(rows)
        index.search(queries, 10)  # the pages of the files are in memory

        def ours(number: int) -> list[np.ndarray]:
            return [index.search(query[None], 10)[1] for query in queries]

        def single(number: int) -> list[np.ndarray]:
            return [flat.search(query[None], 10)[0] for query in queries]

        timed = interleaved({"ours": ours, "flat": single}, repeats)
    each = [seconds / len(queries) for seconds in timed["ours"].seconds]
    same = all(
        np.allclose(one, other, atol=1e-6)
        for one, other in zip(timed["ours"].results[0], timed["flat"].results[0], strict=True)
    )
    report.timing(f"{len(queries)} queries, the index of a collection", timed["ours"])
    report.timing(f"{len(queries)} queries, faiss.IndexFlatIP", timed["flat"])
    milliseconds = 1e3 * float(np.median(each))
    report.row("a query, ms", median=milliseconds, least=1e3 * min(each), most=1e3 * max(each))
    report.ratio("index of a collection / faiss.IndexFlatIP", timed["ours"], timed["flat"])
    report.claim("ms a query in 1,000,000 × 128", milliseconds, at_most=50, full_size=True)
    report.claim("the nearest are those of the flat index (1: yes)", float(same), at_least=1)


def main() -> int:
    made = parser(__doc__, repeats=7)
    made.add_argument("--only", choices=("embed", "search"), help="one part alone")
    made.add_argument("--device", default="cpu", help="of the encoder (default: %(default)s)")
    arguments = made.parse_args()
    repeats = 2 if arguments.quick else arguments.repeats
    report = Report("embed", arguments.quick)
    if arguments.only != "search":
        embed(report, repeats, torch.device(arguments.device))
    if arguments.only != "embed":
        search(report, repeats)
    return report.end(arguments.json)


if __name__ == "__main__":
    sys.exit(exit_code(main))
