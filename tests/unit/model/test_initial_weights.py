"""Weights that a run begins with: what is taken, adapted to its input, new, left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from pcl_ray import config as configs
from pcl_ray.checkpoints import run_state
from pcl_ray.config import RunConfig
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.model.learner import Learner, build_learner
from pcl_ray.model.weights import begin_with, problem_with
from pcl_ray.model.weights.adapting import adapt_input


def run(**knobs: Any) -> RunConfig:
    usual = {"encoder.backbone": "resnet18", "encoder.dim": 8, "loss.queue_size": 16, "data.source": "digits"}
    channels = knobs.get("data.channels", 3)
    usual |= {"data.channels": channels, "augment.mean": [0.5] * channels, "augment.std": [0.5] * channels}
    dotted = {name.replace("__", "."): value for name, value in knobs.items()}
    return configs.with_overrides(RunConfig(), usual | dotted)


def fresh(config: RunConfig) -> Learner:
    return build_learner(config, torch.device("cpu"))


def moco_file(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A MoCo v2 file whose query and momentum encoder differ, and its state dict."""
    torch.manual_seed(3)
    state = {"queue": nn.functional.normalize(torch.randn(8, 16), dim=0), "queue_ptr": torch.tensor([4])}
    for name in ("encoder_q", "encoder_k"):
        model = torchvision.models.resnet18()
        model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
        state |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "moco.pth.tar"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path, state


def test_both_encoders_and_the_queue_of_a_file_that_has_them(tmp_path: Path) -> None:
    path, state = moco_file(tmp_path)
    learner = fresh(run())
    note = begin_with(str(path), learner, run())
    for name, encoder in (("encoder_q", learner.pair.query), ("encoder_k", learner.pair.key)):
        assert torch.equal(encoder.backbone.conv1.weight, state[f"{name}.conv1.weight"])
        assert torch.equal(encoder.head[2].weight, state[f"{name}.fc.2.weight"])
    # the oldest key is the one that is replaced first
    assert torch.equal(learner.queue.keys, torch.cat([state["queue"].T[4:], state["queue"].T[:4]]))
    assert (learner.queue.indices == -1).all()
    assert note.endswith("queue taken over")
    assert all(not parameter.requires_grad for parameter in learner.pair.key.parameters())


@pytest.mark.parametrize("knobs", [{"loss.queue_size": 32}, {"encoder.dim": 6}, {"encoder.head": "linear"}])
def test_a_queue_or_head_that_does_not_fit_stays_new(tmp_path: Path, knobs: dict[str, Any]) -> None:
    path, state = moco_file(tmp_path)
    config = run(**knobs)
    learner, untouched = fresh(config), fresh(config)
    note = begin_with(str(path), learner, config)
    assert "queue of 16 × 8 left out" in note
    assert torch.equal(learner.queue.keys, untouched.queue.keys)
    assert torch.equal(learner.pair.query.backbone.conv1.weight, state["encoder_q.conv1.weight"])
    assert ("the head is new" in note) == ("loss.queue_size" not in knobs)
    if "the head is new" in note:
        expected = untouched.pair.query.head.state_dict()
        for encoder in (learner.pair.query, learner.pair.key):
            assert all(
                torch.equal(value, expected[name]) for name, value in encoder.head.state_dict().items()
            )


def test_one_encoder_gives_both(tmp_path: Path) -> None:
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    learner = fresh(run())
    note = begin_with(str(tmp_path / "resnet18.pth"), learner, run())
    for encoder in (learner.pair.query, learner.pair.key):
        assert torch.equal(encoder.backbone.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert note == "its one encoder of a state dict: resnet18, no head; left out: fc; the head is new"


def test_grey_images_from_weights_for_colours(tmp_path: Path) -> None:
    model = torchvision.models.resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    config = run(**{"data.channels": 1})
    learner = fresh(config)
    note = begin_with(str(tmp_path / "resnet18.pth"), learner, config)
    assert "adapted: conv1.weight (grey from three channels)" in note
    model.fc = nn.Identity()
    grey = torch.randn(2, 1, 64, 64)
    features = learner.pair.query.eval().backbone(grey)
    torch.testing.assert_close(features, model(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_colours_from_weights_for_grey_images() -> None:
    layer, wider = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
    state, notes = adapt_input({"conv1.weight": layer.weight}, {"conv1.weight": wider.weight})
    wider.load_state_dict({"weight": state["conv1.weight"]})
    grey = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(wider(grey.expand(-1, 3, -1, -1)), layer(grey))
    assert notes == ["conv1.weight (three channels from grey)"]


@pytest.mark.parametrize(("one", "two"), [(7, 3), (3, 7), (3, 4)])
def test_another_size_of_the_first_kernel(one: int, two: int) -> None:
    before, after = torch.randn(4, 3, one, one), torch.randn(4, 3, two, two)
    state, notes = adapt_input({"conv1.weight": before}, {"conv1.weight": after})
    weight = state["conv1.weight"]
    assert weight.shape == after.shape
    # an even area gives what it gave
    smooth = nn.functional.avg_pool2d(before, one) * one * one
    if one > two:
        assert (weight.sum((2, 3)) - smooth[..., 0, 0]).abs().mean() < before.sum((2, 3)).abs().mean()
    constant = torch.ones(4, 3, one, one)
    kept, _ = adapt_input({"conv1.weight": constant}, {"conv1.weight": after})
    torch.testing.assert_close(kept["conv1.weight"].sum((2, 3)), constant.sum((2, 3)))
    assert notes == [f"conv1.weight ({one}×{one} resized to {two}×{two})"]


def test_a_small_stem_from_weights_with_the_usual_one(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    config = run(**{"encoder.stem": "small", "data.channels": 1})
    learner = fresh(config)
    note = begin_with(str(tmp_path / "resnet18.pth"), learner, config)
    assert "conv1.weight (grey from three channels), conv1.weight (7×7 resized to 3×3)" in note
    assert learner.pair.query(torch.randn(2, 1, 32, 32)).shape == (2, 8)


def test_position_embeddings_of_another_image_size(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    config = run(**{"encoder.backbone": "timm:vit_tiny_patch16_224", "augment.image_size": 64})
    learner = fresh(config)
    note = begin_with(str(tmp_path / "vit.pth"), learner, config)
    assert "adapted: pos_embed (6×6 to 14×14)" in note
    own = learner.pair.query.backbone.pos_embed
    assert own.shape == (1, 197, 192)
    assert torch.equal(own[:, 0], model.pos_embed[:, 0])
    corner = nn.functional.cosine_similarity(own[0, 1], model.pos_embed[0, 1], dim=0)
    assert corner > 0.9
    assert learner.pair.query(torch.randn(2, 3, 64, 64)).shape == (2, 8)


def test_our_checkpoint_with_its_queue(tmp_path: Path) -> None:
    config = run(**{"encoder.backbone": "small_resnet", "encoder.width": 8, "encoder.blocks": [1, 1]})
    trained = fresh(configs.with_overrides(config, {"seed": 5}))
    trained.queue.enqueue(nn.functional.normalize(torch.randn(4, 8), dim=1), torch.arange(4))
    path = run_state.save(
        run_state.RunState(2, trained.state_dict(), None, [], [], config.encoder, 3), tmp_path, keep=1
    )
    learner = fresh(config)
    note = begin_with(str(path), learner, config)
    for one, two in ((learner.pair.query, trained.pair.query), (learner.pair.key, trained.pair.key)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(learner.queue.keys, trained.queue.keys.roll(-4, 0))
    assert (learner.queue.indices == -1).all()
    assert "queue taken over" in note
    other = configs.with_overrides(config, {"encoder.width": 16})
    with pytest.raises(DataError, match=r"another backbone than the run's.*takes encoder\.width=8"):
        begin_with(str(path), fresh(other), other)


def test_another_backbone_is_one_sentence(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "x.pth")
    config = run(**{"encoder.init_from": str(tmp_path / "x.pth")})
    problem = problem_with(config)
    assert problem is not None
    assert problem.name == "encoder.init_from"
    assert problem.message.endswith(
        "another backbone than the run's (resnet18); it takes encoder.backbone=resnet34"
    )


STAGES = {"resnet18": 5, "small_resnet": 3, "timm:vit_tiny_patch16_224,depth=2": 3, "timm:convnext_atto": 6}


@pytest.mark.parametrize("backbone", STAGES)
def test_frozen_stages_keep_their_weights_and_statistics(backbone: str) -> None:
    knobs = {"encoder.backbone": backbone, "encoder.width": 8, "encoder.blocks": [1, 2]}
    config = run(**knobs, **{"encoder.freeze_stages": 2, "optimizer.weight_decay": 0.1})
    learner = fresh(config)
    before = {name: value.clone() for name, value in learner.pair.state_dict().items()}
    learner.pair.train()
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        learner.optimizer.zero_grad()
        (learner.query(images) * learner.key(images).roll(1, 0)).sum().backward()
        learner.optimizer.step()
        learner.pair.update()
    changed = {
        name for name, value in learner.pair.state_dict().items() if not torch.equal(value, before[name])
    }
    changed = {name.removeprefix("query.backbone.") for name in changed if name.startswith("query.backbone.")}
    first, second, third = {
        "resnet18": ("conv1.", "layer1.", "layer2."),
        "small_resnet": ("stem.", "blocks.0.", "blocks.1."),
        "timm:vit_tiny_patch16_224,depth=2": ("patch_embed.", "blocks.0.", "blocks.1."),
        "timm:convnext_atto": ("stem.", "stages.0.", "stages.1."),
    }[backbone]
    assert not any(name.startswith((first, second, "pos_embed", "cls_token", "bn1")) for name in changed)
    assert any(name.startswith(third) for name in changed)


@pytest.mark.parametrize("backbone", STAGES)
def test_more_stages_than_there_are(backbone: str) -> None:
    knobs = {"encoder.backbone": backbone, "encoder.width": 8, "encoder.blocks": [1, 2]}
    fresh(run(**knobs, **{"encoder.freeze_stages": STAGES[backbone]}))
    with pytest.raises(ConfigError, match=f"has {STAGES[backbone]} stages; at most that"):
        fresh(run(**knobs, **{"encoder.freeze_stages": STAGES[backbone] + 1}))


def test_without_freezing_nothing_is_different() -> None:
    config = run()
    learner = fresh(config)
    assert all(parameter.requires_grad for parameter in learner.pair.query.parameters())
    assert learner.pair.query.frozen == ()
    learner.pair.train()
    assert all(module.training for module in learner.pair.query.modules())
