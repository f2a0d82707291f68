"""What is fuzzed: who reads the input, and the sound input that is damaged.

A target is made once, with a folder for what it needs; `try_input` makes one input in an empty folder and
gives it to whom a request would give it. It ends in a result or in one of the errors that are sentences.
"""

from __future__ import annotations

import abc
import gzip
import importlib
import io
import json
import random
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
from fuzz.mutations import damaged, damaged_text
from PIL import Image
from shard_files import encoded, samples, write_folder, write_tar

from pcl_ray import cli, config
from pcl_ray.config import DataConfig, recipe_names
from pcl_ray.config.loading import recipe_text
from pcl_ray.data import datasets

SCALARS = (
    *("null", "~", "", "true", "yes", "nan", ".inf", "-.inf", "1e999", "-1", "0", "1", "1.5", "1e-400"),
    *("9" * 400, "2147483648", "0x1f", "1_000", "007", "12:30:45", "2024-13-45", "auto", "[]", "{}", "[1, 2"),
    *("[" * 200, "{" * 200, "- " * 100, "!!python/object:os.system x", "!!timestamp 202-01-01", "!!binary ="),
    *("&a [*a, *a]", "*a", "<<: {a: 1}", "'", '"', '"\\uD800"', '"\\0"', "|", ">", "\t", "\u2028", "\x85"),
    *("%YAML 9.9", "---", "...", "? ", "0.1,0.2", "[0.1, a]", "a: b", "# x", "\ufeff", "\N{FOX FACE}" * 50),
    *("../../..", "/dev/zero", "/proc/self/mem", "s3://", "file:///", "mlflow://a:b@c", "x" * 5000),
)


class Target(abc.ABC):
    """Makes inputs and gives them to what reads them."""

    def __init__(self, folder: Path):
        self.folder = folder

    @abc.abstractmethod
    def try_input(self, rng: random.Random, place: Path) -> None:
        """Raises ConfigError, DataError or RunFailed where the input is refused."""


class Overrides(Target):
    """KEY=VALUE words, at most six."""

    def try_input(self, rng: random.Random, place: Path) -> None:
        names = [*config.knobs.names(), "data", "seed.x", "", "loss.temprature", ".", "a.b.c", "\N{FOX FACE}"]
        words = []
        for _ in range(rng.randrange(1, 7)):
            value = rng.choice(SCALARS) if rng.random() < 0.7 else str(rng.choice((1, 0.1, -3, 64)))
            if rng.random() < 0.2:
                value = damaged(value.encode("utf-8", "surrogatepass"), rng).decode(
                    "utf-8", "surrogateescape"
                )
            words.append(f"{rng.choice(names)}={value}")
        loaded = config.load(rng.choice(recipe_names()), words)
        text = loaded.to_yaml()
        text.encode("utf-8")
        (place / "stored.yaml").write_text(text, encoding="utf-8")
        if config.load(place / "stored.yaml") != loaded:
            raise AssertionError("the stored configuration is another one")


class Recipes(Target):
    """Configuration files."""

    def try_input(self, rng: random.Random, place: Path) -> None:
        text = damaged_text(recipe_text(rng.choice(recipe_names())), SCALARS, rng)
        (place / "mine.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
        config.load(place / "mine.yaml")


class DryRuns(Target):
    """The whole way of a request through the command, up to the plan."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        # imports what children need
        cli.main(["train", "digits", "--dry-run", "resources.workers=0", "encoder.backbone=timm:resnet18"])
        for name in ("timm", "pcl_ray.model.encoder"):
            importlib.import_module(name)

    def try_input(self, rng: random.Random, place: Path) -> None:
        words = []
        for name, field in rng.sample(sorted(config.knobs.fields_of(config.RunConfig).items()), 3):
            if name.startswith("tracking.") or name in ("data.path", "data.list", "data.labels"):
                continue
            default = field.get_default()
            options = [
                default,
                *(SCALARS if rng.random() < 0.1 else ()),
                "auto",
                "null",
                "0",
                "1",
                "2",
                "1000000",
            ]
            options += [f"{default * 3}", f"{default / 7}"] if isinstance(default, float) else []
            words.append(f"{name}={rng.choice(options)}")
        cli.main(["train", "digits", "--dry-run", "resources.workers=0", *words])


class Images(Target):
    """Picture files of every kind that is read, some with another kind's suffix."""

    KINDS = {
        "jpg": "JPEG",
        "png": "PNG",
        "bmp": "BMP",
        "gif": "GIF",
        "tif": "TIFF",
        "webp": "WEBP",
        "ppm": "PPM",
        "jp2": "JPEG2000",
    }
    # of which the content tells, whatever the suffix
    OTHERS = ("AVIF", "DIB", "ICO", "TGA", "PCX", "SGI")

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.sound: list[bytes] = []
        modes = ("RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "LA", "F", "I", "YCbCr")
        picture = Image.open(io.BytesIO(encoded(3, side=24)))
        for kind in (*self.KINDS.values(), *self.OTHERS):
            for mode in modes:
                for options in ({}, {"compression": "tiff_lzw"}, {"progressive": True}):
                    file = io.BytesIO()
                    try:
                        picture.convert(mode).save(
                            file, kind, **(options if kind in ("TIFF", "JPEG") else {})
                        )
                    except (OSError, ValueError, KeyError):
                        continue  # this kind has no such pictures
                    self.sound.append(file.getvalue())
        self.sound = list(dict.fromkeys(self.sound))
        self.config = DataConfig(source="folder", path="unset")

    def try_input(self, rng: random.Random, place: Path) -> None:
        root = place / "pictures"
        root.mkdir()
        for number in range(3):
            content = rng.choice(self.sound)
            if rng.random() < 0.05:
                content = rng.choice((b"", b"GIF89a", b"%PDF-1.4", bytes(64), content[:7]))
            elif rng.random() < 0.05:
                content = bomb(rng)
            else:
                content = damaged(content, rng, header=64)
            (root / f"{number}.{rng.choice(tuple(self.KINDS))}").write_bytes(content)
        (root / "sound.png").write_bytes(encoded(1))
        skips = self.config.model_copy(update={"path": str(root), "on_bad_image": "skip"})
        splits = datasets.load(skips, cache_dir=place / "checked")
        read = datasets.in_memory(splits, 32)
        assert read.train.read(0).dtype == np.uint8
        if rng.random() < 0.3:  # nobody has checked them
            unchecked = datasets.load(skips.model_copy(update={"check_images": False}), cache_dir=place)
            unchecked.train.read(rng.randrange(len(unchecked.train)))


def bomb(rng: random.Random) -> bytes:
    """A small file that says that it is a very large picture."""
    width, height = rng.choice(((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (20_000, 20_000)))
    content = bytearray(encoded(1))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    ppm = b"P6\n%d %d\n255\n" % (width, height)
    bmp = bytearray(54)
    bmp[:2], bmp[10:14], bmp[14:18] = b"BM", (54).to_bytes(4, "little"), (40).to_bytes(4, "little")
    bmp[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    bmp[26:30] = b"\1\0\x18\0"
    return rng.choice((bytes(content), ppm, bytes(bmp)))


class Arrays(Target):
    """.npy and .npz files."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        pixels, labels = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3), np.arange(6) % 2
        self.sound: list[tuple[str, bytes]] = []
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            save(file, images=pixels, labels=labels, test_images=pixels[:2], test_labels=labels[:2])
            self.sound.append(("npz", file.getvalue()))
        for array in (
            pixels,
            labels,
            labels.astype(str),
            np.array([None, {}], dtype=object),
            pixels.astype(float),
        ):
            file = io.BytesIO()
            np.save(file, array)
            self.sound.append(("npy", file.getvalue()))

    def try_input(self, rng: random.Random, place: Path) -> None:
        suffix, content = rng.choice(self.sound)
        (place / f"a.{suffix}").write_bytes(damaged(content, rng, header=128))
        if suffix == "npy" and rng.random() < 0.3:
            (place / "a_labels.npy").write_bytes(damaged(self.sound[3][1], rng, header=128))
        made = DataConfig(source="arrays", path=str(place / f"a.{suffix}"))
        datasets.sizes(made)
        datasets.load(made, cache_dir=place)


class Idx(Target):
    """MNIST's files, gzipped or not."""

    def try_input(self, rng: random.Random, place: Path) -> None:
        for part, count in (("train", 6), ("t10k", 3)):
            images = (
                b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 4, 4)) + bytes(count * 16)
            )
            labels = b"\0\0\x08\x01" + count.to_bytes(4, "big") + bytes(count)
            for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
                if rng.random() < 0.4:
                    content = damaged(content, rng, header=16)
                suffix = ""
                if rng.random() < 0.4:
                    content, suffix = gzip.compress(content, 1), ".gz"
                    if rng.random() < 0.4:
                        content = damaged(content, rng, header=12)
                (place / f"{part}-{kind}-ubyte{suffix}").write_bytes(content)
        if rng.random() < 0.02:  # 2 GB of nothing
            with gzip.open(place / "train-images-idx3-ubyte.gz", "wb", 1) as file:
                file.write(images[:16])
                for _ in range(64):
                    file.write(bytes(1 << 20))
            (place / "train-images-idx3-ubyte").unlink(missing_ok=True)
        made = DataConfig(source="idx", path=str(place), channels=1)
        datasets.sizes(made)
        datasets.load(made, cache_dir=place)


class Parquet(Target):
    """Shards in Parquet."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        import pyarrow as pa
        from pyarrow import parquet

        pictures = [encoded(i) for i in range(8)]
        structs = [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)]
        tables = [
            {"image": structs, "label": [i % 2 for i in range(8)]},
            {"image": pictures, "label": ["a", "b"] * 4},
            {"file_name": [f"{i}.png" for i in range(8)], "label": [[1, 2], []] * 4},
        ]
        self.sound = []
        for columns in tables:
            for compression in ("snappy", "none", "zstd", "gzip"):
                path = folder / "sound.parquet"
                parquet.write_table(pa.table(columns), path, compression=compression, row_group_size=4)
                self.sound.append(path.read_bytes())

    def try_input(self, rng: random.Random, place: Path) -> None:
        content = rng.choice(self.sound)
        for number in range(2):
            (place / f"{number}.parquet").write_bytes(content if number else _footer_damaged(content, rng))
        _read_shards("parquet", place, rng)


def _footer_damaged(content: bytes, rng: random.Random) -> bytes:
    """Damaged anywhere, or in the footer, where the sizes are."""
    if rng.random() < 0.5:
        return damaged(content, rng)
    length = int.from_bytes(content[-8:-4], "little")
    start = len(content) - 8 - length
    footer = damaged(content[start:-8], rng)
    if rng.random() < 0.5:
        footer = footer.ljust(length, b"\0")[:length]
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _read_shards(source: str, place: Path, rng: random.Random) -> None:
    skips = "skip" if rng.random() < 0.7 else "fail"
    made = DataConfig(source=source, path=str(place), on_bad_image=skips, check_images=rng.random() < 0.7)
    datasets.sizes(made)
    splits = datasets.load(made, cache_dir=place / "checked")
    datasets.fetch(splits)
    splits.train.read(rng.randrange(len(splits.train)))


class Tar(Target):
    """Shards in tar files."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        plain = write_tar(folder / "plain.tar", samples(range(4)))
        long = write_tar(folder / "long.tar", samples(range(2)), ["x" * 300, "\N{FOX FACE}\udcff" * 40])
        zipped = write_tar(folder / "zipped.tar.gz", samples(range(4)))
        self.sound = [(path.name, path.read_bytes()) for path in (plain, long, zipped)]

    def try_input(self, rng: random.Random, place: Path) -> None:
        name, content = rng.choice(self.sound)
        header = 512 * rng.randrange(len(content) // 512)  # of any member
        (place / name).write_bytes(content[:header] + damaged(content[header:], rng, header=512))
        write_tar(place / "other.tar", samples(range(4, 6)))
        _read_shards("webdataset", place, rng)


class Labels(Target):
    """Files of labels and lists of images."""

    WORDS = (
        *(",", ";", "\t", '"', '""', "'", "\\", "\r", "\0", "\N{FOX FACE}", "\udcff", "path,label", "#", "/"),
        *("../", "~root/", "~nobody-there/", "cat/0000.png", "dog/0001", "s3://a/b", "x" * 200_000, "\\x00"),
        *("label", "path", "-1", "nan", "1", "a;b", "\u2028", "\ufeff", "//", "*.png", "[", "**/", "(?:"),
    )

    def __init__(self, folder: Path):
        super().__init__(folder)
        write_folder(folder / "pictures", range(9))
        names = sorted(path.relative_to(folder / "pictures") for path in folder.glob("pictures/*/*"))
        self.tables = ["path,label\n" + "\n".join(f"{name},{i % 3}" for i, name in enumerate(names))]
        self.tables += ["\n".join(map(str, names)), "\n".join(f"{name}\ta;b" for name in names)]

    def try_input(self, rng: random.Random, place: Path) -> None:
        (place / "table.csv").write_bytes(
            damaged_text(rng.choice(self.tables), self.WORDS, rng).encode("utf-8", "surrogateescape")
        )
        knob = rng.choice(("labels", "list", "exclude", "@"))
        values: dict[str, object] = {"path": str(self.folder / "pictures"), "on_bad_image": "skip"}
        if knob == "exclude":
            values["exclude"] = tuple(rng.choices(self.WORDS, k=3))
        elif knob == "@":
            values = {"source": "parquet", "path": f"@{place / 'table.csv'}"}
        else:
            values[knob] = str(place / "table.csv")
        made = DataConfig(**({"source": "folder"} | values))  # type: ignore[arg-type]
        datasets.sizes(made)
        datasets.load(made, cache_dir=place / "checked")


class Spaces(Target):
    """Search spaces in YAML, through the command."""

    SOUND = (
        "base: digits\nobjective: eval/knn_top1\nmode: max\nnum_samples: 4\nspace:\n"
        "  loss.temperature: {type: loguniform, low: 0.05, high: 0.5}\n"
        "  e_step.alpha: {type: choice, values: [1, 10, 100]}\n"
        "  e_step.num_clusters: {type: grid, values: [[10], [20, 40]]}\n"
        "  train.batch_size: {type: randint, low: 32, high: 64}\n"
        "  optimizer.lr: {type: quniform, low: 0.1, high: 0.5, q: 0.1}\n  train.epochs: 4\n"
    )
    WORDS = (*SCALARS, "type: grid", "low: 1", "high: -1", "q: 0", "values:", "{type: choice, values: [{}]}")

    def __init__(self, folder: Path):
        super().__init__(folder)
        from pcl_ray.sweep.space import files  # imports Ray, once

        self.read = files.read
        (folder / "sound.yaml").write_text(self.SOUND)
        cli.main(["sweep", str(folder / "sound.yaml"), "--dry-run"])  # imports the rest

    def try_input(self, rng: random.Random, place: Path) -> None:
        text = damaged_text(self.SOUND, self.WORDS, rng)
        path = place / "space.yaml"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        if rng.random() < 0.8:
            self.read(str(path))
        else:
            cli.main(["sweep", str(path), "--dry-run"])


class Checkpoints(Target):
    """Checkpoints of ours, weights of others, snapshots."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        import torch
        from safetensors.torch import save_file
        from small_training import SmallTraining

        from pcl_ray.checkpoints import run_state
        from pcl_ray.config import EncoderConfig
        from pcl_ray.model import weights

        torch.set_num_threads(1)
        training = SmallTraining.of("encoder.width=4", "loss.queue_size=16")
        learner = training.learner()
        state = run_state.RunState(
            1,
            learner.state_dict(),
            None,
            [torch.get_rng_state()],
            [{"epoch": 1, "step": 3, "metrics": {}}],
            EncoderConfig(**training.config.encoder.model_dump()),
            training.config.data.channels,
        )
        ours = run_state.save(state, folder / "checkpoints", 1)
        plain = {
            name: value for name, value in learner.state_dict()["model"].items() if name.startswith("query")
        }
        torch.save({"state_dict": plain, "arch": "resnet18"}, folder / "foreign.pth")
        torch.save(plain, folder / "legacy.pth", _use_new_zipfile_serialization=False)
        save_file({name: value.contiguous() for name, value in plain.items()}, folder / "a.safetensors")
        files = (ours, folder / "foreign.pth", folder / "legacy.pth", folder / "a.safetensors")
        self.sound = [(path.name, path.read_bytes()) for path in files]
        self.load, self.read = run_state.load, weights.read_weights

    def try_input(self, rng: random.Random, place: Path) -> None:
        from pcl_ray.snapshot import load_snapshot

        name, content = rng.choice(self.sound)
        path = place / rng.choice((name, "epoch_00001.pt", "x.safetensors", "x.pth"))
        path.write_bytes(damaged(content, rng, header=256))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if rng.random() < 0.2:
                load_snapshot(path)
            try:
                self.load(path)
            finally:
                self.read(path)


class Collections(Target):
    """Collections of embeddings, and the tables of labels for them."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        import pyarrow as pa

        from pcl_ray.cli.collection import label_file
        from pcl_ray.embedding import collection

        manifest = collection.Manifest("run", "", "0" * 32, "head", 4, (2,), 3, {"image_size": 8})
        manifest.write(folder)
        columns = {
            "path": [f"/pictures/{i}.png" for i in range(6)],
            "digest": ["0"] * 6,
            "bytes": [1] * 6,
            "embedding": [[0.5] * 4] * 6,
            "prototype_0": [0, 1] * 3,
            "distance_0": [0.1] * 6,
        }
        table = pa.table(columns, schema=collection.schema_of(manifest))
        collection.write_part(collection.part_path(folder, 0), table, [("/pictures/x.png", "empty")])
        self.module, self.labels = collection, label_file

    def try_input(self, rng: random.Random, place: Path) -> None:
        whole = place / "collection"
        shutil.copytree(self.folder, whole, ignore=shutil.ignore_patterns("input"))
        part = next((whole / "parts").glob("*.parquet"))
        if rng.random() < 0.7:
            part.write_bytes(_footer_damaged(part.read_bytes(), rng))
        if rng.random() < 0.4:
            manifest = whole / "manifest.json"
            words = (*SCALARS, json.dumps("x"), "NaN", "1e999", "[" * 5000)
            text = damaged_text(manifest.read_text(), words, rng)
            manifest.write_bytes(text.encode("utf-8", "surrogateescape"))
        opened = self.module.Collection(whole)
        len(opened), opened.broken(), opened.state
        table = place / rng.choice(("labels.csv", "labels.parquet"))
        text = damaged_text("path,label\n/pictures/1.png,a\n/pictures/2.png,b\n", Labels.WORDS, rng)
        table.write_bytes(text.encode("utf-8", "surrogateescape"))
        self.labels.read(table, opened.paths)
        for _, block in opened.embeddings():
            assert block.shape[1] == opened.manifest.dim


TARGETS: dict[str, type[Target]] = {
    "overrides": Overrides,
    "recipes": Recipes,
    "dry_runs": DryRuns,
    "images": Images,
    "arrays": Arrays,
    "idx": Idx,
    "parquet": Parquet,
    "tar": Tar,
    "labels": Labels,
    "spaces": Spaces,
    "checkpoints": Checkpoints,
    "collections": Collections,
}
