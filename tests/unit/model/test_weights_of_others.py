"""Files with the names of other projects' checkpoints, made from torchvision's and timm's models."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pcl_ray.embedding.embedder import Embedder
from pcl_ray.errors import DataError
from pcl_ray.model.weights import export, read_weights

State = dict[str, Tensor]


def trained(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights and statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def resnet(seed: int, head: nn.Module | None = None, *, small: bool = False) -> nn.Module:
    model = torchvision.models.resnet18()
    model.fc = nn.Identity() if head is None else head
    if small:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return trained(model, seed)


def vit(seed: int, **options: Any) -> nn.Module:
    options = {"num_classes": 0, "img_size": 32, **options}
    return trained(timm.create_model("vit_tiny_patch16_224", **options), seed)


def mlp(*sizes: int, norm: bool = False, last_norm: bool = False, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for one, two in zip(sizes, sizes[1:], strict=False):
        layers.append(nn.Linear(one, two, bias=bias))
        last = two == sizes[-1]
        if norm and (not last or last_norm):
            layers.append(nn.BatchNorm1d(two, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def named(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def file_of(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def assert_same(path: Path, which: Any, backbone: nn.Module, head: nn.Module | None, side: int = 32) -> Any:
    """The encoder that is read gives the features of these modules."""
    weights = read_weights(path, encoder=which)
    images = torch.randn(3, weights.channels, side, side)
    features = backbone(images).flatten(1)
    assert not weights.encoder.training
    torch.testing.assert_close(weights.encoder.backbone(images), features)
    expected = features if head is None else head(features)
    torch.testing.assert_close(weights.encoder(images), nn.functional.normalize(expected, dim=1))
    assert weights.has_head == (head is not None)
    assert isinstance(weights.encoder.head, nn.Identity) == (head is None)
    assert weights.config.dim == expected.shape[1]
    return weights


def moco(prefixes: tuple[str, str], models: tuple[nn.Module, nn.Module], **others: Tensor) -> State:
    state = named(models[0].state_dict(), prefixes[0]) | named(models[1].state_dict(), prefixes[1])
    return named(state | others, "module.")


@pytest.mark.parametrize("which", ["query", "momentum"])
@pytest.mark.parametrize("head", [lambda: nn.Linear(512, 8), lambda: mlp(512, 512, 8)], ids=["v1", "v2"])
def test_moco_v1_and_v2(tmp_path: Path, which: str, head: Callable[[], nn.Module]) -> None:
    models = resnet(1, head()), resnet(2, head())
    queue = torch.randn(8, 16)
    state = moco(
        ("encoder_q.", "encoder_k."), models, queue=queue, queue_ptr=torch.zeros(1, dtype=torch.long)
    )
    path = file_of(tmp_path, {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {}})
    model = models[which == "momentum"]
    backbone, projection = copy.deepcopy(model), model.fc
    backbone.fc = nn.Identity()
    weights = assert_same(path, which, backbone, projection)
    kind = "linear" if isinstance(projection, nn.Linear) else "mlp"
    assert weights.note == f"{which} encoder of MoCo or PCL: resnet18, a {kind} head"
    assert torch.equal(weights.queue, queue.T)


@pytest.mark.parametrize("which", ["query", "momentum"])
def test_moco_v3_resnet(tmp_path: Path, which: str) -> None:
    models = [
        resnet(seed, trained(mlp(512, 32, 8, norm=True, last_norm=True, bias=False), 3)) for seed in (1, 2)
    ]
    state = moco(("base_encoder.", "momentum_encoder."), tuple(models))
    state |= named(mlp(8, 32, 8, norm=True, last_norm=True, bias=False).state_dict(), "module.predictor.")
    path = file_of(tmp_path, {"arch": "resnet18", "state_dict": state})
    model = models[which == "momentum"]
    backbone, projection = copy.deepcopy(model), model.fc
    backbone.fc = nn.Identity()
    weights = assert_same(path, which, backbone, projection)
    assert weights.note.startswith(f"{which} encoder of MoCo v3: resnet18")
    assert "left out: predictor" in weights.note


@pytest.mark.slow
def test_moco_v3_vit_small_has_twelve_heads(tmp_path: Path) -> None:
    options = {"num_classes": 0, "img_size": 32, "num_heads": 12}
    models = [trained(timm.create_model("vit_small_patch16_224", **options), seed) for seed in (1, 2)]
    head = trained(mlp(384, 32, 32, 8, norm=True, last_norm=True, bias=False), 3)
    state: State = {}
    for prefix, model in zip(("base_encoder.", "momentum_encoder."), models, strict=True):
        state |= named(model.state_dict() | named(head.state_dict(), "head."), f"module.{prefix}")
    weights = assert_same(file_of(tmp_path, {"state_dict": state}), "momentum", models[1], head)
    assert weights.config.backbone == "timm:vit_small_patch16_224,num_heads=12,img_size=32"
    assert weights.view.image_size == 32


def test_swav(tmp_path: Path) -> None:
    backbone, head = resnet(1), trained(mlp(512, 32, 8, norm=True), 2)
    state = backbone.state_dict() | named(head.state_dict(), "projection_head.")
    state["prototypes.weight"] = torch.randn(10, 8)
    weights = assert_same(file_of(tmp_path, named(state, "module.")), "momentum", backbone, head)
    assert weights.note == "its one encoder of SwAV: resnet18, a mlp head; left out: prototypes"
    # its first layer's bias is in the batch norm, so that it is a head of ours
    assert (weights.config.head, weights.config.head_width, weights.config.head_batch_norm) == (
        "mlp",
        32,
        True,
    )
    assert "0.bias" not in weights.encoder.head.state_dict()


@pytest.mark.parametrize("which", ["query", "momentum"])
def test_dino_with_student_and_teacher(tmp_path: Path, which: str) -> None:
    backbones, encoders = [vit(1), vit(2)], {}
    heads = []
    for name, backbone in zip(("student", "teacher"), backbones, strict=True):
        layers = nn.Sequential(nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
        heads.append(layers)
        state = named(backbone.state_dict(), "backbone.") | named(layers.state_dict(), "head.mlp.")
        state |= {
            "head.last_layer.weight_g": torch.ones(16, 1),
            "head.last_layer.weight_v": torch.randn(16, 8),
        }
        encoders[name] = named(state, "module.")
    content = {**encoders, "epoch": 1, "args": argparse.Namespace(arch="vit_tiny", lr=np.float64(0.1))}
    number = int(which == "momentum")
    weights = assert_same(file_of(tmp_path, content), which, backbones[number], heads[number])
    assert weights.note.startswith(f"{which} encoder of DINO: timm:vit_tiny_patch16_224,img_size=32")
    assert "left out: head.last_layer" in weights.note


def test_heads_that_are_none_of_ours_are_kept_and_exported(tmp_path: Path) -> None:
    backbone = vit(1)
    layers = nn.Sequential(nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
    state = named(backbone.state_dict(), "backbone.") | named(layers.state_dict(), "head.mlp.")
    path = file_of(
        tmp_path, {"teacher": named(state, "module."), "args": argparse.Namespace(arch="vit_tiny")}
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    embedder = Embedder.open(path)
    expected = embedder.embed(images)
    embedder.save(tmp_path / "embedder")
    again = Embedder.load(tmp_path / "embedder").embed(images)
    assert np.array_equal(again.embeddings, expected.embeddings)
    export(str(path), "safetensors", tmp_path / "exported", head=True, encoder="momentum")
    exported = Embedder.open(tmp_path / "exported").embed(images)
    np.testing.assert_allclose(exported.embeddings, expected.embeddings, atol=1e-6)
    assert not np.allclose(expected.embeddings[0], expected.embeddings[1])


def test_dino_backbone_alone(tmp_path: Path) -> None:
    model = vit(1, img_size=48, patch_size=8)
    weights = assert_same(file_of(tmp_path, model.state_dict()), "query", model, None, side=48)
    assert weights.config.backbone == "timm:vit_tiny_patch16_224,patch_size=8,img_size=48"
    assert weights.note.startswith("its one encoder of a state dict")


@pytest.mark.parametrize("which", ["query", "momentum"])
@pytest.mark.parametrize("word", ["backbone", "encoder"])
@pytest.mark.parametrize("small", [False, True])
def test_solo_learn(tmp_path: Path, which: str, word: str, small: bool) -> None:
    state: State = {"classifier.weight": torch.randn(10, 512), "queue": torch.randn(2, 8, 16)}
    backbones, heads = [], []
    for seed, prefix in enumerate(("", "momentum_")):
        backbones.append(resnet(seed, small=small))
        heads.append(mlp(512, 32, 8))
        state |= named(backbones[-1].state_dict(), f"{prefix}{word}.")
        state |= named(heads[-1].state_dict(), f"{prefix}projector.")
    path = file_of(tmp_path, {"state_dict": state, "epoch": 5, "pytorch-lightning_version": "2.0"})
    number = int(which == "momentum")
    weights = assert_same(path, which, backbones[number], heads[number])
    assert weights.note == (
        f"{which} encoder of solo-learn: resnet18, a mlp head; left out: classifier, queue"
    )
    assert weights.config.stem == ("small" if small else "imagenet")
    assert weights.view.image_size == (32 if small else 224)
    assert weights.queue is None


def test_solo_learn_with_one_encoder(tmp_path: Path) -> None:
    backbone, head = resnet(1), mlp(512, 32, 8)
    state = named(backbone.state_dict(), "backbone.") | named(head.state_dict(), "projector.")
    assert (
        "its one encoder"
        in assert_same(file_of(tmp_path, {"state_dict": state}), "momentum", backbone, head).note
    )


@pytest.mark.parametrize("which", ["query", "momentum"])
@pytest.mark.parametrize(
    ("prefixes", "heads"),
    [
        (("backbone", "backbone_momentum"), ("projection_head", "projection_head_momentum")),
        (("student_backbone", "teacher_backbone"), ("student_head", "teacher_head")),
        (("query_backbone", "backbone"), ("query_projection_head", "projection_head")),
        (("student_backbone", "backbone"), ("student_projection_head", "projection_head")),
    ],
)
def test_lightly(tmp_path: Path, which: str, prefixes: tuple[str, str], heads: tuple[str, str]) -> None:
    backbones = [nn.Sequential(*list(resnet(seed).children())[:-1]).eval() for seed in (1, 2)]
    projections = [mlp(512, 512, 8), mlp(512, 512, 8)]
    state: State = {"criterion.memory_bank.bank": torch.randn(8, 16)}
    for number in (0, 1):
        state |= named(backbones[number].state_dict(), f"{prefixes[number]}.")
        state |= named(projections[number].state_dict(), f"{heads[number]}.layers.")
    number = int(which == "momentum")
    weights = assert_same(
        file_of(tmp_path, {"state_dict": state}), which, backbones[number], projections[number]
    )
    assert weights.note.startswith(f"{which} encoder of lightly: resnet18, a mlp head; left out: criterion")


def test_lightly_with_its_own_resnet_for_small_images(tmp_path: Path) -> None:
    model = resnet(1, small=True)
    children = dict(model.named_children())
    order = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    renamed = {
        f"{order.index(name.split('.')[0])}.{name.partition('.')[2]}".replace("downsample", "shortcut"): value
        for name, value in model.state_dict().items()
    }
    assert children
    state = named(renamed, "backbone.") | named(
        mlp(512, 32, 8, norm=True).state_dict(), "projection_head.layers."
    )
    weights = read_weights(file_of(tmp_path, {"state_dict": state}))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(weights.encoder.backbone(images), model(images))
    assert weights.config.stem == "small"


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.backbone.", "model.encoder."]
)
@pytest.mark.parametrize("safe", [False, True])
def test_torchvision_state_dict(tmp_path: Path, prefix: str, safe: bool) -> None:
    model = resnet(1)
    state = named(
        {**model.state_dict(), "fc.weight": torch.randn(10, 512), "fc.bias": torch.randn(10)}, prefix
    )
    if safe:
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    else:
        path = file_of(tmp_path, state)
    weights = assert_same(path, "query", model, None)
    assert weights.note == "its one encoder of a state dict: resnet18, no head; left out: fc"
    assert (weights.channels, weights.view.image_size) == (3, 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnet101"])
def test_other_resnets_of_torchvision(tmp_path: Path, name: str) -> None:
    model = getattr(torchvision.models, name)()
    weights = read_weights(file_of(tmp_path, model.state_dict()))
    assert weights.config.backbone == name
    model.fc = nn.Identity()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(weights.encoder.backbone(images), model.eval()(images))


def test_grey_images(tmp_path: Path) -> None:
    model = resnet(1)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    weights = assert_same(file_of(tmp_path, model.state_dict()), "query", model, None)
    assert weights.channels == 1
    assert weights.view.mean == pytest.approx((0.449,))


def test_torchvision_vit(tmp_path: Path) -> None:
    model = torchvision.models.VisionTransformer(32, 16, 12, 12, 768, 3072, num_classes=10)
    path = file_of(tmp_path, trained(model, 1).state_dict())
    model.heads = nn.Identity()
    weights = assert_same(path, "query", model, None)
    assert weights.config.backbone == "timm:vit_base_patch16_224,img_size=32"


@pytest.mark.parametrize(
    "name", ["convnext_atto", "seresnet18", "resnet26", "resnet18d", "mobilenetv3_small_050"]
)
def test_timm_model_that_is_named(tmp_path: Path, name: str) -> None:
    model = trained(timm.create_model(name, num_classes=10), 1)
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    described = {"input_size": [3, 288, 288], "mean": [0.5, 0.5, 0.5], "std": [0.4, 0.4, 0.4]}
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": described}))
    model.reset_classifier(0)
    weights = assert_same(folder, "query", model, None)
    assert weights.config.backbone == f"timm:{name}"
    assert (weights.view.image_size, weights.view.mean) == (288, (0.5, 0.5, 0.5))
    # without it, by the name that timm's training writes, and by that of the file
    model = timm.create_model(name, num_classes=10)
    torch.save({"arch": name, "state_dict": model.state_dict()}, tmp_path / "a.pth.tar")
    torch.save(model.state_dict(), tmp_path / f"{name}.a1_in1k.pth")
    for path in (tmp_path / "a.pth.tar", tmp_path / f"{name}.a1_in1k.pth"):
        assert read_weights(path).config.backbone == f"timm:{name}"


@pytest.mark.parametrize("words", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_timm_with_a_moving_average_beside(tmp_path: Path, words: tuple[str, str]) -> None:
    models = [trained(timm.create_model("resnet18d", num_classes=0), seed) for seed in (1, 2)]
    content = {word: model.state_dict() for word, model in zip(words, models, strict=True)}
    path = file_of(tmp_path, {"arch": "resnet18d", **content})
    for which, model in zip(("query", "momentum"), models, strict=True):
        weights = assert_same(path, which, model, None)
        assert weights.note.startswith(f"{which} encoder of")
    alone = file_of(tmp_path, {"arch": "resnet18d", words[0]: content[words[0]]})
    assert_same(alone, "momentum", models[0], None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit3_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_timm_vit_by_its_shapes(tmp_path: Path, name: str) -> None:
    model = trained(timm.create_model(name, num_classes=0), 1)
    weights = assert_same(file_of(tmp_path, model.state_dict()), "query", model, None, side=224)
    assert weights.config.backbone == f"timm:{name}"


def test_what_is_none_of_these(tmp_path: Path) -> None:
    for content, said in (
        ({"weights": 3}, "nor does it hold weights"),
        ([torch.ones(2)], "nor does it hold weights"),
        ({"a.weight": torch.ones(2, 2)}, r"a\.weight, ….*no torchvision ResNet.*config\.json"),
        ({"state_dict": {"conv1.weight": torch.ones(2)}}, "nor weights that are recognised"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_weights(file_of(tmp_path, content))
        assert "\n" not in str(caught.value)
    wide = torchvision.models.resnet._resnet(
        torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], None, True, width_per_group=64
    ).state_dict()
    wide["conv1.weight"] = torch.randn(128, 3, 7, 7)
    with pytest.raises(DataError, match="first convolution has 128 channels"):
        read_weights(file_of(tmp_path, wide))


def test_what_is_cut(tmp_path: Path) -> None:
    state = resnet(1).state_dict()
    without = {name: value for name, value in state.items() if not name.startswith("layer4.1.conv2")}
    with pytest.raises(
        DataError, match=r"does not fit a resnet18 with no head: it lacks layer4\.1\.conv2\.weight"
    ):
        read_weights(file_of(tmp_path, without))
    for write, name in ((torch.save, "cut.pth"), (save_file, "cut.safetensors")):
        path = tmp_path / name
        write(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match="cut(,| or) damaged") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)


class Foreign:
    """A class of another project, as trainers pickle their settings."""


def test_code_of_others_is_named_and_not_run(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"state_dict": resnet(1).state_dict(), "hyper_parameters": Foreign()})
    with pytest.raises(DataError, match=r"holds code of others \(\S*Foreign\), which is never run"):
        read_weights(path)


def test_old_files_have_no_count_of_batches(tmp_path: Path) -> None:
    model = resnet(1)
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    assert_same(file_of(tmp_path, state), "query", model, None)
