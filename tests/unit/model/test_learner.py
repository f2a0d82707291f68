"""What the M-step changes: the same on every worker, compiled if asked for, and going on if that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from equal_learners import assert_same
from small import DIGITS_RUN, GREY_ENCODER
from small_encoder import really_compiling, smallest
from torch import Tensor, nn

from pcl_ray import cli
from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.m_step import run_epoch
from pcl_ray.model import encoder, learner
from pcl_ray.model.learner import Learner, build_learner, views_for
from pcl_ray.model.partwise import PartwiseEncoder

CPU = torch.device("cpu")
BATCH, SIDE = 8, 6
KNOBS = GREY_ENCODER | {
    "augment.image_size": SIDE,
    "encoder.dim": 4,
    "loss.queue_size": 16,
    "e_step.num_clusters": [2],
    "optimizer.lr": 0.1,
    "optimizer.schedule": "constant",
    "train.batch_size": BATCH,
    "train.epochs": 2,
}


@dataclass
class Batch:
    query_views: Tensor
    key_views: Tensor
    indices: Tensor
    small_views: tuple[Tensor, ...] = ()


def config_of(knobs: dict[str, Any]) -> RunConfig:
    return configs.with_overrides(RunConfig(), KNOBS | knobs)


def built(knobs: dict[str, Any] | None = None) -> tuple[Learner, list[str]]:
    """And what it warns of."""
    said: list[str] = []
    return build_learner(config_of(knobs or {}), CPU, said.append), said


def trained(made: Learner, knobs: dict[str, Any] | None = None) -> dict[str, float]:
    """Figures of three steps."""
    config, draw = config_of(knobs or {}), torch.Generator().manual_seed(1)
    views = [torch.randn(2, BATCH, 1, SIDE, SIDE, generator=draw) for _ in range(3)]
    side, count = SIDE // 2, config.augment.small_crops
    batches = [
        Batch(
            *pair, torch.arange(step * BATCH, (step + 1) * BATCH), tuple(pair[:1, ..., :side, :side]) * count
        )
        for step, pair in enumerate(views)
    ]
    return run_epoch(made, batches, None, config, plans.make(config, 3 * BATCH), 0).values


def test_the_seed_decides_weights_and_queue_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = built()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(first, built()[0])
    other, _ = built({"seed": 1})
    assert not torch.equal(first.queue.keys, other.queue.keys)
    assert not torch.equal(first.pair.query.head[0].weight, other.pair.query.head[0].weight)


def test_one_process_trains_the_encoders_as_they_are() -> None:
    made, said = built()
    assert made.query is made.pair.query
    assert made.key is made.pair.key
    assert said == []
    for query, key in zip(made.pair.query.parameters(), made.pair.key.parameters(), strict=True):
        assert torch.equal(query, key)
        assert query is not key


@pytest.mark.parametrize(
    ("layout", "format"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_views_come_in_the_memory_format_with_the_same_values(
    layout: str, format: torch.memory_format
) -> None:
    made, _ = built({"train.memory_format": layout})
    assert made.memory_format is format
    for views in (
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 4, 5, 3).permute(0, 3, 1, 2),
        torch.randn(4, 3, 4, 5)[::2],
    ):
        found = views_for(made, views)
        assert torch.equal(found, views)
        assert found.is_contiguous(memory_format=format)


def test_a_checkpoint_of_one_memory_format_is_read_in_the_other() -> None:
    source, _ = built({"train.memory_format": "contiguous"})
    trained(source)
    target, _ = built({"train.memory_format": "channels_last", "seed": 5})
    target.load_state_dict(source.state_dict())
    assert_same(source, target)
    kernels = [parameter for parameter in target.pair.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("decay_biases", [True, False])
def test_a_state_from_other_momentum_and_decay_is_gone_on_with_by_ones_own(decay_biases: bool) -> None:
    knobs = {"optimizer.decay_biases": decay_biases}
    source, _ = built(knobs)
    trained(source, knobs)
    target, _ = built(knobs | {"optimizer.momentum": 0.5, "optimizer.weight_decay": 0.25})
    target.load_state_dict(source.state_dict())
    decays = [0.25] if decay_biases else [0.25, 0.0]
    assert [group["weight_decay"] for group in target.optimizer.param_groups] == decays
    assert {group["momentum"] for group in target.optimizer.param_groups} == {0.5}
    for one, other in zip(source.pair.query.parameters(), target.pair.query.parameters(), strict=True):
        states = (made.optimizer.state[weight] for made, weight in ((source, one), (target, other)))
        assert torch.equal(*(state["momentum_buffer"] for state in states))


# Compiling. `aot_eager` traces and takes the graphs apart as the real thing does, but makes no C++ of them:
# that would take minutes for all of these.


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """What was compiled."""
    compile_really, asked = torch.compile, list[nn.Module]()
    monkeypatch.setattr(
        torch,
        "compile",
        lambda module: (asked.append(module), compile_really(module, backend="aot_eager"))[1],
    )
    yield asked
    torch._dynamo.reset()


def test_nothing_is_compiled_unless_asked_for(traced: list[nn.Module]) -> None:
    built()
    assert traced == []


@pytest.mark.slow
def test_both_encoders_are_compiled_and_a_checkpoint_does_not_show_it(traced: list[nn.Module]) -> None:
    plain, _ = built()
    made, said = built({"train.compile": True})
    assert said == []
    assert traced == [made.pair.query, made.pair.key]
    assert made.query is not made.pair.query
    assert made.key is not made.pair.key
    assert list(made.state_dict()["model"]) == list(plain.state_dict()["model"])
    trained(plain)
    made.load_state_dict(plain.state_dict())
    assert_same(made, plain)
    probe = torch.randn(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    # what is compiled has taken the loaded weights
    for parts in ((made.query, plain.query), (made.key, plain.key)):
        one, other = (part.eval()(probe) for part in parts)
        assert torch.allclose(one, other, atol=1e-6)


def test_with_batch_norm_over_parts_encoders_train_in_parts_and_a_checkpoint_does_not_show_it() -> None:
    plain, _ = built()
    made, _ = built({"encoder.batch_norm_parts": 2})
    for part, whole in ((made.query, made.pair.query), (made.key, made.pair.key)):
        assert isinstance(part, PartwiseEncoder)
        assert (part.encoder, part.parts) == (whole, 2)
    assert list(made.state_dict()["model"]) == list(plain.state_dict()["model"])
    assert_same(made, plain)


@pytest.mark.parametrize("batch_norm", ["shuffle", "plain"])
def test_compiled_parts_are_those_that_are_not(traced: list[nn.Module], batch_norm: str) -> None:
    knobs = {"encoder.batch_norm_parts": 3, "encoder.batch_norm": batch_norm, "encoder.head_batch_norm": True}
    plain, _ = built(knobs)
    made, said = built(knobs | {"train.compile": True})
    assert said == []
    assert traced == [made.pair.query, made.pair.key]
    assert_same(made, plain)
    assert trained(made, knobs) == pytest.approx(trained(plain, knobs), rel=1e-4, abs=1e-5)
    assert_same(made, plain, tolerance=1e-4)


@pytest.mark.parametrize("small", [0, 2])
@pytest.mark.parametrize("size", [None, 4])
def test_the_first_pass_leaves_no_trace(traced: list[nn.Module], size: int | None, small: int) -> None:
    knobs = {"train.micro_batch": size, "augment.small_crops": small}
    plain, _ = built(knobs)
    before = torch.get_rng_state()
    made, _ = built(knobs | {"train.compile": True})
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(made, plain)  # batch-norm statistics and the count of batches among it
    assert all(parameter.grad is None for parameter in made.pair.parameters())
    assert not made.optimizer.state
    assert [parameter.requires_grad for parameter in made.pair.parameters()] == [
        parameter.requires_grad for parameter in plain.pair.parameters()
    ]
    assert trained(made, knobs) == pytest.approx(trained(plain, knobs), rel=1e-4, abs=1e-5)
    assert_same(made, plain, tolerance=1e-4)


def test_the_first_pass_has_the_shape_and_the_format_of_a_step(
    traced: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], bool]] = []

    class Watched(encoder.Encoder):
        def forward(self, images: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                seen.append((tuple(images.shape), images.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(images)

    original = encoder.build

    def watched(*arguments: Any) -> encoder.Encoder:
        model = original(*arguments)
        return Watched(model.backbone, model.head)

    monkeypatch.setattr(encoder, "build", watched)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    build_learner(
        config_of(
            {
                "train.compile": True,
                "train.micro_batch": 5,
                "data.channels": 3,
                "augment.mean": [0.5] * 3,
                "augment.std": [0.5] * 3,
            }
        ),
        CPU,
    )
    assert seen == [((5, 3, SIDE, SIDE), True)] * 2


class Refuses(nn.Module):
    """Compiled code that fails once the pass is through the backbone: by then the statistics have moved."""

    def __init__(self, module: encoder.Encoder, error: Exception):
        super().__init__()
        self.module, self.error = module, error

    def forward(self, views: Tensor) -> Tensor:
        self.module.backbone(views)
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no C++ compiler\nand a long\ntrace"), "no C++ compiler"),
        (ValueError("\n\n  indented  \n"), "indented"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
@pytest.mark.parametrize("which", ["query", "key"])
def test_where_compiling_fails_one_plain_warning_and_training_without(
    error: Exception, said: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def compiled(module: encoder.Encoder) -> nn.Module:
        asked.append("key" if asked else "query")
        return Refuses(module, error) if asked[-1] == which else module

    monkeypatch.setattr(torch, "compile", compiled)
    plain, _ = built()
    fallen, warned = built({"train.compile": True})
    assert warned == [f"train.compile: {said}; going on without"]
    assert fallen.query is fallen.pair.query
    assert fallen.key is fallen.pair.key
    assert_same(fallen, plain)
    assert all(parameter.grad is None for parameter in fallen.pair.parameters())
    assert trained(fallen) == trained(plain)
    assert_same(fallen, plain)


def test_all_go_on_without_where_another_worker_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(learner, "any_worker", lambda flag, device: True)
    fallen, warned = built({"train.compile": True})
    assert warned == ["train.compile: it failed on another worker; going on without"]
    assert fallen.query is fallen.pair.query


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_what_is_really_compiled_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "build", lambda *_: smallest(SIDE, dim=4))
    before = torch.get_rng_state()
    with really_compiling(tmp_path):
        made, said = built({"train.compile": True})
        assert said == []
        assert torch.equal(torch.get_rng_state(), before)
        assert list(tmp_path.rglob("*.so"))  # there is machine code
        plain, _ = built()
        assert_same(made, plain)
        assert all(parameter.grad is None for parameter in made.pair.parameters())
        assert trained(made) == pytest.approx(trained(plain), rel=1e-4, abs=1e-5)
    assert_same(made, plain, tolerance=1e-4)
    assert list(made.state_dict()["model"]) == list(plain.state_dict()["model"])


@pytest.mark.slow
def test_a_machine_without_a_compiler_trains_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    words = [
        "resources.workers=0",
        *DIGITS_RUN,
        "train.epochs=1",
        "e_step.warmup_epochs=5",
        "optimizer.warmup_epochs=0",
        "train.compile=true",
    ]
    # what CXX=/nowhere/g++ does to a new process
    with inductor.patch({"compile_threads": 1, "cpp.cxx": (None, "/nowhere/g++")}):
        assert cli.main(["train", "digits", *words]) == 0
    said = capsys.readouterr()
    (warning,) = [line for line in said.err.splitlines() if "train.compile" in line]
    assert warning.startswith("warning: train.compile: ")
    assert "compiler" in warning
    assert warning.endswith("; going on without")
    assert "Traceback" not in said.err
    assert "(finished)" in said.out


def learner_of(seed: int) -> Learner:
    knobs = {"seed": seed, "data.channels": 1, "loss.queue_size": 8, "encoder.dim": 6}
    knobs |= {"encoder.backbone": "small_resnet", "encoder.width": 8, "encoder.blocks": [1, 1]}
    return build_learner(configs.with_overrides(configs.RunConfig(), knobs), torch.device("cpu"))


def test_learners_of_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = learner_of(1), learner_of(1), learner_of(2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.queue.keys, again.queue.keys)
    assert not torch.equal(first.queue.keys, other.queue.keys)
    weights = first.pair.state_dict()
    assert all(torch.equal(value, again.pair.state_dict()[name]) for name, value in weights.items())
    assert not torch.equal(weights["query.head.0.weight"], other.pair.state_dict()["query.head.0.weight"])
