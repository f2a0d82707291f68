"""Exported weights, loaded again by those whom they are for: the same features."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray.checkpoints import run_state
from pcl_ray.config import RunConfig
from pcl_ray.data.evaluation_view import evaluation_view
from pcl_ray.model.learner import build_learner
from pcl_ray.model.weights import load_encoder, read_weights

BACKBONES = {
    "small_resnet": {"encoder.width": 8, "encoder.blocks": [1, 1], "data.channels": 1},
    "resnet18": {},
    "timm:vit_tiny_patch16_224,depth=2": {},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    return tmp_path


def write_run(home: Path, backbone: str, name: str = "mine", **knobs: Any) -> RunConfig:
    """A run whose encoders have weights and statistics of their own."""
    knobs = {"encoder.backbone": backbone, "encoder.dim": 8, "loss.queue_size": 16, **knobs}
    knobs |= {"augment.image_size": 64, **BACKBONES[backbone]} | knobs
    channels = knobs.get("data.channels", 3)
    knobs |= {"data.channels": channels, "augment.mean": [0.3] * channels, "augment.std": [0.4] * channels}
    config = configs.with_overrides(RunConfig(), knobs)
    learner = build_learner(config, torch.device("cpu"))
    torch.manual_seed(1)
    learner.pair.train()
    for encoder in (learner.pair.query, learner.pair.key):
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            encoder(torch.randn(8, channels, 64, 64))
    folder = home / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    state = run_state.RunState(3, learner.state_dict(), None, [], [], config.encoder, channels)
    run_state.save(state, folder / "checkpoints", keep=1)
    return config


def export(home: Path, target: str, *words: str, source: str = "mine") -> Path:
    assert cli.main(["export", source, "--to", target, *words]) == 0
    return home / "exports" / f"{source}-{target}"


def expected(head: bool, which: Any = "query") -> tuple[Tensor, Tensor]:
    """Images and their features, by the run's own encoder."""
    weights = read_weights("mine", encoder=which)
    images = torch.randn(5, weights.channels, 64, 64)
    with torch.no_grad():
        return images, weights.encoder(images) if head else weights.encoder.backbone(images)


def shown_code(folder: Path) -> str:
    match = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert match
    return match[1]


def by_readme(folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The features that the README's lines give."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"images": images}
    exec(shown_code(folder), names)
    return names


def assert_same(features: Any, wanted: Tensor) -> None:
    features = torch.as_tensor(features).detach()
    torch.testing.assert_close(features, wanted, atol=1e-4 * wanted.detach().abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("target", ["safetensors", "onnx", "torch-export"])
def test_formats_for_every_backbone(
    home: Path, target: str, backbone: str, head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(home, backbone)
    folder = export(home, target, *(["--head"] if head else []))
    images, wanted = expected(head)
    given: Any = images.numpy() if target == "onnx" else images
    assert_same(by_readme(folder, given, monkeypatch)["features"], wanted)
    one = images[:1]  # any number of images
    if target == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        (features,) = session.run(None, {"images": one.numpy()})
        assert_same(features, wanted[:1])
    if target == "safetensors":
        again = read_weights(folder)
        assert again.has_head is head
        assert (again.view.image_size, again.view.mean) == (64, (0.3,) * again.channels)
    described = json.loads((folder / "config.json").read_text())["pcl_ray"]
    assert (described["target"], described["head"]) == (target, head)
    assert described["num_features"] == wanted.shape[1]
    assert described["encoder"]["backbone"] == backbone


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mlp", "wide"])
@pytest.mark.parametrize("knobs", [{}, {"data.channels": 1}, {"encoder.stem": "small"}])
def test_torchvision(home: Path, head: str, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"encoder.head": "mlp", "encoder.head_width": 20, "encoder.head_batch_norm": True}
    write_run(home, "resnet18", **knobs, **(wide if head == "wide" else {"encoder.head": head}))
    folder = export(home, "torchvision")
    images, wanted = expected(False)
    assert_same(by_readme(folder, images, monkeypatch)["features"], wanted)
    state = torch.load(folder / "model.pth", weights_only=True)
    own = torchvision.models.resnet18().state_dict()
    assert {*own} - {*state} == {"fc.weight", "fc.bias"}
    folder = export(home, "torchvision", "--head")
    images, wanted = expected(True)
    assert_same(by_readme(folder, images, monkeypatch)["features"], wanted)
    # and read by ourselves, as any file of torchvision's
    images, wanted = expected(False)
    assert_same(read_weights(folder / "model.pth").encoder.backbone(images), wanted)


@pytest.mark.parametrize("backbone", ["resnet18", "timm:vit_tiny_patch16_224,depth=2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_timm(home: Path, backbone: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(home, backbone, **{"data.channels": channels})
    folder = export(home, "timm", "--encoder", "momentum")
    images, wanted = expected(False, "momentum")
    names = by_readme(folder, images, monkeypatch)
    assert_same(names["features"], wanted)
    # its preprocessing is that of our evaluation view
    data = timm.data.resolve_model_data_config(names["model"])
    assert (tuple(data["input_size"]), tuple(data["mean"])) == ((channels, 64, 64), (0.3,) * channels)
    picture = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    if channels == 3:
        transform = timm.data.create_transform(**data, is_training=False)
        theirs = transform(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        ours = evaluation_view(configs.load(home / "runs/mine/config.yaml").augment)(picture)
        ours = (ours.float() / 255 - 0.3) / 0.4
        assert (theirs - ours).abs().mean() < 0.02
    again = read_weights(folder)
    assert_same(again.encoder.backbone(images), wanted)
    assert again.view.image_size == 64


class Reference(nn.Module):
    """The names of the authors' model: two torchvision ResNets, `fc` as head, a queue of columns."""

    def __init__(self, head: str):
        super().__init__()
        self.encoder_q, self.encoder_k = (torchvision.models.resnet18(num_classes=8) for _ in range(2))
        if head == "mlp":
            for encoder in (self.encoder_q, self.encoder_k):
                encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
        self.register_buffer("queue", torch.zeros(8, 16))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_reference(home: Path, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(home, "resnet18", **{"encoder.head": head})
    path = export(home, "reference") / "model.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["arch"], checkpoint["epoch"]) == ("resnet18", 3)
    model = nn.DataParallel(Reference(head))
    model.load_state_dict(checkpoint["state_dict"])  # strictly
    for which, encoder in (("query", model.module.encoder_q), ("momentum", model.module.encoder_k)):
        images, wanted = expected(True, which)
        assert_same(nn.functional.normalize(encoder.eval()(images), dim=1), wanted)
        assert_same(load_encoder(path, encoder=which)(images), wanted)
    assert torch.equal(model.module.queue.T, read_weights("mine").queue)
    images, wanted = expected(True)
    assert_same(by_readme(path.parent, images, monkeypatch)["features"], wanted)


@pytest.mark.parametrize("words", [["--head"], ["--encoder", "query"]])
def test_what_mlflow_cannot_be_told(home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "mine", "--to", "mlflow", *words]) == 2
    assert f"leave out {' '.join(words)}" in capsys.readouterr().err


@pytest.mark.slow
def test_mlflow(home: Path, tmp_path: Path) -> None:
    import mlflow

    write_run(home, "resnet18")
    folder = export(home, "mlflow")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 80, 70, 3), dtype=np.uint8)
    table = mlflow.pyfunc.load_model(str(folder)).predict(pictures)
    view = evaluation_view(configs.load(home / "runs/mine/config.yaml").augment)
    views = (view(torch.from_numpy(pictures).permute(0, 3, 1, 2)).float() / 255 - 0.3) / 0.4
    assert_same(
        np.array(table["embedding"].tolist(), np.float32), load_encoder("mine", encoder="momentum")(views)
    )
    readme = (folder / "README.md").read_text()
    assert "mlflow.pyfunc.load_model" in readme
    assert "takes paths or pictures" in readme
    assert "float32" not in readme


def test_weights_of_others_are_exported_too(home: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), home / "theirs.pth")
    folder = home / "out"
    assert cli.main(["export", str(home / "theirs.pth"), "--to", "safetensors", "--out", str(folder)]) == 0
    images = torch.randn(2, 3, 64, 64)
    assert_same(load_encoder(folder).backbone(images), load_encoder(home / "theirs.pth").backbone(images))


def test_preprocessing_is_what_the_evaluation_view_does(home: Path) -> None:
    write_run(home, "resnet18")
    steps = json.loads((export(home, "safetensors") / "preprocessing.json").read_text())
    assert steps["resize"] == {"shorter_side": 73}
    assert steps["center_crop"] == 64
    picture = torch.randint(0, 256, (3, 100, 150), dtype=torch.uint8)
    resize = torchvision.transforms.v2.functional.resize(picture, [73], antialias=True)
    ours = torchvision.transforms.v2.functional.center_crop(resize, [64])
    view = evaluation_view(configs.load(home / "runs/mine/config.yaml").augment)
    assert torch.equal(ours, view(picture))


@pytest.mark.parametrize(
    ("backbone", "words", "said"),
    [
        ("small_resnet", ["--to", "torchvision"], "torchvision has no small_resnet; --to safetensors"),
        ("small_resnet", ["--to", "timm"], "timm has no small_resnet"),
        ("small_resnet", ["--to", "reference"], "reference has no small_resnet"),
        ("resnet18", ["--to", "timm", "--head"], "timm's models have no projection head"),
    ],
)
def test_what_a_format_cannot_hold(
    home: Path, backbone: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(home, backbone)
    assert cli.main(["export", "mine", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list((home / "exports").glob("*"))


def test_an_export_replaces_an_earlier_one_and_nothing_else(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(home, "resnet18")
    folder = export(home, "torchvision")
    (folder / "left over").write_text("")
    assert not (export(home, "torchvision") / "left over").exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "model.pth", "preprocessing.json")
    ]
    (home / "pictures").mkdir()
    (home / "pictures/one.png").write_text("")
    for words in (["mine", "--to", "onnx", "--out", str(home / "pictures")], ["nobody", "--to", "onnx"]):
        assert cli.main(["export", *words]) == 2
    assert "holds something else than an export" in capsys.readouterr().err
    assert (home / "pictures/one.png").exists()
