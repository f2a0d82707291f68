from __future__ import annotations

import importlib.util

import pytest
import torch
from small_encoder import built, images
from torch import nn

from pcl_ray.config import EncoderConfig
from pcl_ray.errors import ConfigError
from pcl_ray.model.encoder import build


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


def test_timm_absent_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"encoder\.backbone = 'timm:vit_tiny'.*pip install timm") as caught:
        build(EncoderConfig(backbone="timm:vit_tiny"), 3)
    assert [problem.name for problem in caught.value.problems] == ["encoder.backbone"]


def test_same_seed_same_weights() -> None:
    first, again, other = (built(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])
