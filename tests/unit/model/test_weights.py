"""Encoders out of files: our checkpoints, and synthetic ones in the published layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pcl_ray import config as configs
from pcl_ray.checkpoints import remote, run_state
from pcl_ray.errors import DataError
from pcl_ray.m_step import Learner, build_learner
from pcl_ray.model.weights import load_encoder, read_weights
from pcl_ray.support import storage


def trained_learner(head: str, **more: Any) -> tuple[configs.RunConfig, Learner]:
    """Not trained, but with weights and statistics that differ between query and momentum encoder."""
    knobs = {"data.channels": 1, "loss.queue_size": 8, "encoder.dim": 6, "encoder.head": head, **more}
    knobs |= {"encoder.backbone": "small_resnet", "encoder.width": 8, "encoder.blocks": [1, 1]}
    config = configs.with_overrides(configs.RunConfig(), knobs)
    learner = build_learner(config, torch.device("cpu"))
    torch.manual_seed(1)
    for parameter in learner.pair.query.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    learner.pair.query(torch.randn(4, 1, 8, 8))
    return config, learner


@pytest.mark.parametrize(
    ("head", "more"),
    [
        ("linear", {}),
        ("mlp", {}),
        ("linear", {"encoder.stem_stride": 2}),
        ("mlp", {"encoder.head_width": 20}),
        ("mlp", {"encoder.stem_stride": 2, "encoder.head_width": 20, "encoder.head_batch_norm": True}),
    ],
)
def test_roundtrip_of_our_checkpoint(tmp_path: Path, head: str, more: dict[str, Any]) -> None:
    config, learner = trained_learner(head, **more)
    path = run_state.save(
        run_state.RunState(3, learner.state_dict(), None, [], [], config.encoder, 1), tmp_path, keep=1
    )
    images = torch.randn(5, 1, 8, 8)
    learner.pair.eval()
    query, momentum = load_encoder(path), load_encoder(str(path), encoder="momentum")
    assert not query.training
    # as loaded encoders are: the sums are the same, in another order
    learner.pair.to(memory_format=torch.contiguous_format)
    assert torch.equal(query(images), learner.pair.query(images))
    assert torch.equal(momentum(images), learner.pair.key(images))
    assert not torch.allclose(query(images), momentum(images))
    assert query.backbone(images).shape[1] == learner.pair.query.backbone.width
    assert query.head(query.backbone(images)).shape == (5, 6)


@pytest.mark.parametrize("gone", ["epoch", "model", "queue", "channels", "encoder"])
def test_a_checkpoint_that_lacks_something_is_damaged(tmp_path: Path, gone: str) -> None:
    config, learner = trained_learner("linear")
    path = run_state.save(
        run_state.RunState(3, learner.state_dict(), None, [], [], config.encoder, 1), tmp_path, keep=1
    )
    content = torch.load(path, weights_only=True)
    del content[gone]
    torch.save(content, path)
    with pytest.raises(DataError, match=rf"is damaged \(KeyError: '{gone}'\)"):
        load_encoder(path)
    torch.save(content | {gone: "?"}, path)
    with pytest.raises(DataError, match="is damaged|does not fit"):
        load_encoder(path)


def test_a_checkpoint_from_before_the_knobs_of_stem_and_head(tmp_path: Path) -> None:
    config, learner = trained_learner("mlp")
    path = run_state.save(
        run_state.RunState(3, learner.state_dict(), None, [], [], config.encoder, 1), tmp_path, keep=1
    )
    content = torch.load(path, weights_only=True)
    for name in ("stem_stride", "head_width", "head_batch_norm"):
        del content["encoder"][name]
    torch.save(content, path)
    expected = learner.pair.query.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_encoder(path).state_dict().items())
    assert run_state.load(path).encoder == config.encoder


class Published(nn.Module):
    """The reference's layout: two torchvision ResNets, `fc` as projection head, inside DataParallel."""

    def __init__(self, head: str, dim: int = 16):
        super().__init__()
        self.encoder_q, self.encoder_k = (torchvision.models.resnet18(num_classes=dim) for _ in range(2))
        if head == "mlp":
            for encoder in (self.encoder_q, self.encoder_k):
                encoder.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), encoder.fc)
        self.register_buffer("queue", torch.randn(dim, 8))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


def write_published(path: Path, model: nn.Module, **changed: Any) -> Path:
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {
            "epoch": 200,
            "arch": "resnet18",
            "state_dict": state,
            "optimizer": {"state": {}, "param_groups": []},
            **changed,
        },
        path,
    )
    return path


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize(("which", "attribute"), [("query", "encoder_q"), ("momentum", "encoder_k")])
def test_published_checkpoint(tmp_path: Path, head: str, which: str, attribute: str) -> None:
    torch.manual_seed(0)
    model = Published(head).eval()
    path = write_published(tmp_path / "PCL.pth.tar", model)
    images = torch.randn(2, 3, 64, 64)
    found = load_encoder(path, encoder=which)
    assert not found.training
    with torch.no_grad():
        expected = nn.functional.normalize(getattr(model, attribute)(images), dim=1)
        assert torch.allclose(found(images), expected, atol=1e-6)
        assert found.backbone(images).shape == (2, 512)


def without(model: nn.Module, part: str) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in model.state_dict().items() if part not in name}


def test_published_checkpoint_of_one_process_has_no_module_prefix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Published("linear")
    path = write_published(tmp_path / "one.pth.tar", model, state_dict=model.state_dict())
    assert torch.equal(load_encoder(path).head.weight, model.encoder_q.fc.weight)


@pytest.mark.parametrize("text", [b"", b"not a checkpoint", b"PK\x03\x04 cut zip"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"weights\.pt.*(cannot be read as a checkpoint|is empty)"):
        load_encoder(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.pt.*does not exist"):
        load_encoder(tmp_path / "nowhere.pt")


def test_a_cut_checkpoint(tmp_path: Path) -> None:
    path = write_published(tmp_path / "cut.pth.tar", Published("linear"))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(path)


class Exploit:
    """What a hostile file does when it is unpickled without care."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Exploit(tmp_path / "ran")}, tmp_path / "hostile.pth.tar")
    with pytest.raises(DataError, match="cannot be read"):
        load_encoder(tmp_path / "hostile.pth.tar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [{"weights": torch.ones(2)}, torch.ones(3), {"state_dict": torch.ones(2)}]
)
def test_neither_layout(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(DataError, match="neither a pcl_ray checkpoint nor"):
        load_encoder(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"state_dict": {"module.encoder_q.conv1.weight": torch.ones(2)}}, "does not fit a resnet18"),
        ({"state_dict": {"module.queue": torch.ones(2, 2)}}, "does not fit a resnet18"),
    ],
    ids=["no shapes", "no encoder"],
)
def test_published_checkpoint_that_does_not_fit(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = write_published(tmp_path / "PCL.pth.tar", Published("linear"), **changed)
    with pytest.raises(DataError, match=said):
        load_encoder(path)


def test_a_wrong_word_for_the_architecture_does_not_count(tmp_path: Path) -> None:
    path = write_published(tmp_path / "PCL.pth.tar", Published("linear"), arch="resnet34")
    assert read_weights(path).config.backbone == "resnet18"


@pytest.mark.parametrize("part", ["encoder_q.bn1.weight", "encoder_q.layer3.0.conv1"])
def test_published_checkpoint_with_a_hole(tmp_path: Path, part: str) -> None:
    model = Published("mlp")
    path = write_published(tmp_path / "PCL.pth.tar", model, state_dict=without(model, part))
    with pytest.raises(DataError, match="does not fit a resnet18 with a mlp head"):
        load_encoder(path)


def test_published_checkpoint_without_momentum_encoder(tmp_path: Path) -> None:
    model = Published("linear")
    path = write_published(tmp_path / "PCL.pth.tar", model, state_dict=without(model, "encoder_k"))
    assert load_encoder(path).head.weight.shape == (16, 512)
    with pytest.raises(DataError, match=r"encoder_k\."):
        load_encoder(path, encoder="momentum")


def test_our_checkpoint_with_a_hole(tmp_path: Path) -> None:
    config, learner = trained_learner("linear")
    state = learner.state_dict()
    del state["model"]["query.head.weight"]
    path = run_state.save(run_state.RunState(1, state, None, [], [], config.encoder, 1), tmp_path, keep=1)
    with pytest.raises(DataError, match="head.weight"):
        load_encoder(path)


def test_only_two_encoders_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'query' or 'momentum', not 'key'"):
        load_encoder(tmp_path / "any.pt", encoder="key")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path))
    return tmp_path


def write_run(home: Path, name: str) -> Path:
    """A run of which two checkpoints are left; the path of the newest."""
    config, learner = trained_learner("mlp", **{"augment.mean": [0.3], "augment.std": [0.4]})
    run_dir = home / "runs" / name
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(config.to_yaml())
    for epoch in (2, 3):
        learner.pair.query.head[0].weight.data.fill_(epoch)
        state = run_state.RunState(epoch, learner.state_dict(), None, [], [], config.encoder, 1)
        path = run_state.save(state, run_dir / "checkpoints", keep=2)
    return path


def test_a_run_by_name_folder_and_checkpoint(home: Path) -> None:
    newest = write_run(home, "mine")
    for source in ("mine", home / "runs/mine", f"{home}/runs/mine/", newest, newest.parent):
        weights = read_weights(source)
        assert weights.path == newest
        assert (weights.encoder.head[0].weight == 3).all()
        assert (weights.config.dim, weights.channels, weights.has_head) == (6, 1, True)
        assert (weights.view.mean, weights.view.std) == ((0.3,), (0.4,))
        assert weights.run is not None
        assert weights.note == "query encoder of a pcl_ray checkpoint after 3 epochs"
    earlier = read_weights(newest.with_name("epoch_00002.pt"), encoder="momentum")
    assert earlier.note.startswith("momentum encoder of")
    assert not (earlier.encoder.head[0].weight == 2).any()


def test_a_checkpoint_that_was_copied_away_has_the_usual_view(home: Path) -> None:
    copy = home / "copy.pt"
    copy.write_bytes(write_run(home, "mine").read_bytes())
    weights = read_weights(copy)
    assert weights.run is None
    assert weights.view.mean == pytest.approx((0.449,))
    assert "ImageNet's" in weights.note


def test_names_that_are_none(home: Path) -> None:
    write_run(home, "mine")
    (home / "runs/new").mkdir()
    (home / "runs/new/config.yaml").write_text("")
    (home / "empty").mkdir()
    for source, said in (
        ("mina", "neither a run under .*runs nor a file; did you mean 'mine'"),
        ("new", "run 'new' has no checkpoint yet"),
        (home / "empty", "holds no weights"),
        ("", "no weights are named"),
        ("./mine", "does not exist"),
    ):
        with pytest.raises(DataError, match=said):
            read_weights(source)


def test_a_checkpoint_that_only_the_storage_has_is_fetched(home: Path, tmp_path: Path) -> None:
    newest = write_run(home, "mine")
    settings = configs.with_overrides(
        configs.load(home / "runs/mine/config.yaml"), {"resources.storage": f"file://{tmp_path}/store"}
    )
    (home / "runs/mine/config.yaml").write_text(settings.to_yaml())
    stored = storage.of_run(f"file://{tmp_path}/store", "mine")
    remote.upload(stored, newest, keep=2)
    shutil.rmtree(newest.parent)
    weights = read_weights("mine")
    assert (weights.path, weights.epochs) == (newest, 3)
    shutil.rmtree(newest.parent)
    stored.remove("checkpoints/epoch_00003.pt")
    with pytest.raises(DataError, match="run 'mine' has no checkpoint yet"):
        read_weights("mine")


def test_reading_draws_no_random_numbers(home: Path) -> None:
    write_run(home, "mine")
    before = torch.get_rng_state()
    read_weights("mine")
    assert torch.equal(torch.get_rng_state(), before)
