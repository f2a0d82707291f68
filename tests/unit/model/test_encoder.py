from __future__ import annotations

import importlib.util

import pytest
import torch
from small_encoder import SMALL, WIDE_HEAD, built, images
from torch import nn

from pcl_ray.config import EncoderConfig
from pcl_ray.errors import ConfigError
from pcl_ray.model import Encoder
from pcl_ray.model.encoder import SmallResNet, build, with_sync_batch_norm


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "stem", "width"),
    [("small_resnet", "imagenet", 8), ("resnet18", "small", 512), ("resnet18", "imagenet", 512)],
)
def test_features_are_unit_vectors(backbone: str, stem: str, width: int, channels: int, head: str) -> None:
    model = built(
        0, EncoderConfig(backbone=backbone, stem=stem, width=4, blocks=(1, 1), head=head, dim=6), channels
    ).eval()
    with torch.no_grad():
        features, body = model(images(3, channels, 32)), model.backbone(images(3, channels, 32))
    assert features.shape == (3, 6)
    assert body.shape == (3, width)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(features[0], features[1])
    assert isinstance(model.head, nn.Linear if head == "linear" else nn.Sequential)


@pytest.mark.parametrize("blocks", [(1,), (2, 1, 1), (1, 2, 1, 1)])
@pytest.mark.parametrize("width", [4, 6])
def test_small_resnet_takes_any_depth_width_and_size(blocks: tuple[int, ...], width: int) -> None:
    model = built(0, EncoderConfig(backbone="small_resnet", width=width, blocks=blocks, dim=5)).eval()
    assert model.backbone.width == width * 2 ** (len(blocks) - 1)
    for side in (8, 13):
        assert model(images(2, 1, side)).shape == (2, 5)


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("imagenet", 8)])
def test_small_stem_keeps_the_resolution(stem: str, side: int) -> None:
    model, seen = built(0, EncoderConfig(backbone="resnet18", stem=stem, dim=4), 3).eval(), []
    model.backbone.layer1.register_forward_hook(lambda module, given, result: seen.append(result.shape[-2:]))
    model(images(1, 3, 32))
    assert seen == [(side, side)]


HALVED = EncoderConfig(backbone="small_resnet", width=4, blocks=(1, 2), dim=6, stem_stride=2)


@pytest.mark.parametrize("side", [8, 13, 28])
def test_a_stem_of_stride_two_is_a_convolution_by_four_pixels_at_every_second(side: int) -> None:
    stem, given = built(0, HALVED).backbone.stem[0], images(1, 1, side)
    kernel, padded = stem.weight.detach()[1, 0], nn.functional.pad(given[0, 0], (1, 1, 1, 1))
    found = stem(given).detach()[0, 1]
    assert found.shape == (side // 2, side // 2)
    for row in range(side // 2):
        for column in range(side // 2):
            window = padded[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            assert float((window * kernel).sum()) == pytest.approx(float(found[row, column]), abs=1e-5)


def times_covered(stem: nn.Module, side: int) -> torch.Tensor:
    """How often each pixel [side, side] is part of what the stem's convolution looks at."""
    nn.init.ones_(stem.weight)
    pixels = torch.zeros(1, 1, side, side, requires_grad=True)
    stem(pixels)[:, 0].sum().backward()
    return pixels.grad[0, 0]


def test_strides_of_two_look_at_every_pixel_equally_often() -> None:
    covered = times_covered(built(0, HALVED).backbone.stem[0], 28)
    assert covered[1:-1, 1:-1].unique().tolist() == [4]
    uneven = times_covered(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), 28)
    assert len(uneven[1:-1, 1:-1].unique()) > 1  # which is why the kernel is an even one


def test_stages_after_the_stem_see_half_the_sides_and_the_features_are_as_many() -> None:
    seen = []
    for config in (HALVED, HALVED.model_copy(update={"stem_stride": 1})):
        model = built(0, config).eval()
        model.backbone.blocks.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
        assert model.backbone(images(2, 1, 28)).shape == (2, 8)
    assert seen == [(2, 4, 14, 14), (2, 4, 28, 28)]


@pytest.mark.parametrize(
    ("width", "batch_norm", "shapes"),
    [
        (None, False, {"0.weight": (8, 8), "0.bias": (8,), "2.weight": (6, 8), "2.bias": (6,)}),
        (20, False, {"0.weight": (20, 8), "0.bias": (20,), "2.weight": (6, 20), "2.bias": (6,)}),
        (
            None,
            True,
            {"0.weight": (8, 8), "1.weight": (8,), "1.bias": (8,), "3.weight": (6, 8), "3.bias": (6,)},
        ),
        (
            20,
            True,
            {"0.weight": (20, 8), "1.weight": (20,), "1.bias": (20,), "3.weight": (6, 20), "3.bias": (6,)},
        ),
    ],
)
def test_the_hidden_layer_of_the_head(width: int | None, batch_norm: bool, shapes: dict[str, tuple]) -> None:
    config = EncoderConfig(
        backbone="small_resnet", width=4, blocks=(1, 1), dim=6, head_width=width, head_batch_norm=batch_norm
    )
    head = built(0, config).head
    found = {name: tuple(weight.shape) for name, weight in head.named_parameters()}
    assert found == shapes | {f"{3 if batch_norm else 2}.bias": (6,)}


def test_the_head_normalises_its_hidden_units_over_the_batch_before_the_relu() -> None:
    config = EncoderConfig(
        backbone="small_resnet", width=4, blocks=(1, 1), dim=6, head_width=5, head_batch_norm=True
    )
    head, rows = built(0, config).head.train(), torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    first, norm, last = head[0].weight.detach(), head[1], head[3]
    with torch.no_grad():
        norm.weight[:], norm.bias[:] = torch.linspace(0.5, 2, 5), torch.linspace(-1, 1, 5)
    hidden = [[float(row @ first[unit]) for row in rows] for unit in range(5)]
    expected = []
    for b in range(7):
        units = []
        for unit, values in enumerate(hidden):
            mean = sum(values) / 7
            variance = sum((value - mean) ** 2 for value in values) / 7
            scaled = (values[b] - mean) / (variance + norm.eps) ** 0.5
            units.append(max(norm.weight[unit].item() * scaled + norm.bias[unit].item(), 0.0))
        expected.append((last.weight @ torch.tensor(units) + last.bias).tolist())
    assert torch.allclose(head(rows), torch.tensor(expected), atol=1e-5)


def test_a_head_at_its_defaults_is_drawn_as_ever() -> None:
    # Spelled out as it was before its width could be chosen: the same draws in the same order.
    torch.manual_seed(0)
    backbone = SmallResNet(4, (1, 1), 1)
    head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 6))
    found = built(0).state_dict()
    expected = Encoder(backbone, head).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("config", [SMALL, WIDE_HEAD], ids=["", "batch norm in the head"])
def test_synchronised_batch_norm_is_that_of_every_layer(config: EncoderConfig) -> None:
    model = built(0, config)
    count = sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in model.modules())
    weights = model.state_dict()
    synchronised = with_sync_batch_norm(model, config)
    layers = [part for part in synchronised.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert len(layers) == count
    assert isinstance(synchronised.head[1], nn.SyncBatchNorm) is config.head_batch_norm
    assert list(synchronised.state_dict()) == list(weights)


@pytest.mark.parametrize("value", ["!!timestamp 2-3", "[[1", "*x", "[" * 3000])
def test_options_of_timm_that_are_no_values(value: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"encoder\.backbone.*drop_rate has no value that can be read"):
        build(EncoderConfig(backbone=f"timm:resnet18,drop_rate={value}"), 3)


def test_timm_absent_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"encoder\.backbone = 'timm:vit_tiny'.*pip install timm") as caught:
        build(EncoderConfig(backbone="timm:vit_tiny"), 3)
    assert [problem.name for problem in caught.value.problems] == ["encoder.backbone"]


def test_same_seed_same_weights() -> None:
    first, again, other = (built(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])


def test_small_resnets_are_made_of_torchvisions_blocks() -> None:
    """Names, draws and sums are those that checkpoints and seeds of earlier versions know."""
    from torchvision.models.resnet import BasicBlock, conv1x1

    torch.manual_seed(0)
    ours = SmallResNet(4, (1, 1), 3)
    torch.manual_seed(0)
    stem = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    )
    first = BasicBlock(4, 4)
    second = BasicBlock(4, 8, 2, torch.nn.Sequential(conv1x1(4, 8, 2), torch.nn.BatchNorm2d(8)))
    theirs = torch.nn.ModuleDict({"stem": stem, "blocks": torch.nn.Sequential(first, second)})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    pictures = torch.randn(2, 3, 9, 9)
    assert torch.equal(ours(pictures), theirs["blocks"](theirs["stem"](pictures)).mean(dim=(2, 3)))
