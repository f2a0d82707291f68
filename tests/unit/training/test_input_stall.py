from __future__ import annotations

from typing import Any

import pytest
import torch

from pcl_ray import config as configs
from pcl_ray import plan as plans
from pcl_ray.config import RunConfig
from pcl_ray.support import machine
from pcl_ray.training.input_stall import InputStall

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KNOBS = {
    "loss.queue_size": 64,
    "e_step.num_clusters": [4],
    "train.batch_size": 50,
    "train.epochs": 5,
    "optimizer.warmup_epochs": 0,
}
FILES = {"data.source": "folder", "data.path": "/pictures", "data.in_memory": False}


def watch(device: torch.device = CPU, **changed: Any) -> InputStall:
    config = configs.with_overrides(
        RunConfig(), KNOBS | {name.replace("__", "."): value for name, value in changed.items()}
    )
    return InputStall(config, plans.make(config, 1000, 200), device, config.train.epochs)


def said(device: torch.device, knobs: dict[str, Any]) -> str:
    return watch(device, **{name.replace(".", "__"): value for name, value in knobs.items()}).advice_after(
        1, 0.5
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
def test_silent_while_images_keep_up(share: float) -> None:
    waiting = watch()
    assert [waiting.advice_after(number, share) for number in range(5)] == [""] * 5


def test_the_share_is_said_in_per_cent() -> None:
    assert watch(CUDA).advice_after(1, 0.101).startswith("training waits for images 10% of the time: ")
    assert watch(CUDA).advice_after(1, 0.996).startswith("training waits for images 100% of the time: ")


def test_making_views_between_two_steps_is_not_called_waiting() -> None:
    assert watch().advice_after(1, 0.101).startswith("making the views takes 10% of a step")
    assert watch().advice_after(1, 0.996).startswith("making the views takes 100% of a step")


def test_the_first_of_several_epochs_does_not_count() -> None:
    waiting = watch()
    assert waiting.advice_after(0, 0.9) == ""
    assert waiting.advice_after(1, 0.9) != ""


def test_an_only_epoch_counts() -> None:
    assert watch(train__epochs=1, loss__queue_size=50).advice_after(0, 0.9) != ""


def test_it_speaks_once() -> None:
    waiting = watch()
    spoken = [waiting.advice_after(number, share) for number, share in enumerate([0.9, 0.05, 0.2, 0.9, 0.9])]
    assert [bool(text) for text in spoken] == [False, False, True, False, False]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("source", [{}, FILES], ids=["memory", "files"])
def test_the_slow_reference_engine_is_named_first(device: torch.device, source: dict[str, Any]) -> None:
    text = said(device, source | {"augment.engine": "torchvision"})
    assert "augment.engine=batch" in text
    assert "loader_workers" not in text


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize(
    ("knobs", "parts"),
    [
        (
            {"data.loader_workers": 3, "resources.cpus_per_worker": 4},
            ["data.loader_workers (now 3 a worker)", "resources.cpus_per_worker (now 4)"],
        ),
        ({"data.loader_workers": 0, "resources.cpus_per_worker": 0.5}, ["(now 0 a worker)", "(now 0.5)"]),
        (
            {"resources.cpus_per_worker": 8},
            ["data.loader_workers (now 2 a worker)", "resources.cpus_per_worker (now 8)"],
        ),
        ({"resources.cpus_per_worker": 8, "resources.gpus_per_worker": 1}, ["(now 7 a worker)"]),
    ],
)
def test_for_files_more_processes_or_memory(
    device: torch.device, knobs: dict[str, Any], parts: list[str]
) -> None:
    text = said(device, FILES | knobs)
    # 1,200 pictures of 579 × 579 pixels of 3 bytes
    for part in [*parts, "data.in_memory=true", "takes 1.2 GB"]:
        assert part in text


def test_the_gigabytes_are_those_by_which_auto_decides() -> None:
    text = said(
        CPU,
        FILES
        | {
            "augment.image_size": 64,
            "data.channels": 1,
            "augment.mean": [0.5],
            "augment.std": [0.5],
            "augment.min_crop": 0.0005,
        },
    )
    side = plans.memory_side(
        configs.with_overrides(RunConfig(), {"augment.image_size": 64, "augment.min_crop": 0.0005})
    )
    assert f"takes {1200 * side**2 / 1e9:.1f} GB" in text


@pytest.mark.parametrize(("prefetch", "now"), [(None, 2), (5, 5), (0, 0)])
@pytest.mark.parametrize("source", [{}, FILES | {"data.in_memory": True}], ids=["arrays", "decoded files"])
def test_for_images_in_memory_and_a_gpu_prefetch(
    source: dict[str, Any], prefetch: int | None, now: int
) -> None:
    text = said(CUDA, source | {"data.prefetch": prefetch, "resources.gpus_per_worker": 1})
    assert f"raise data.prefetch (now {now}) and resources.cpus_per_worker (now 1)" in text
    assert "in_memory" not in text


def test_on_a_cpu_with_images_in_memory_the_views_are_the_work() -> None:
    text = said(CPU, {})
    assert "augment.hue=0" in text
    assert "augment.blur=0" in text
    for elsewhere in ("prefetch", "loader_workers", "in_memory"):
        assert elsewhere not in text


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"augment.blur": 0}, ["augment.hue=0 would"]),
        ({"augment.version": "v1"}, ["augment.hue=0 would"]),
        ({"augment.hue": 0}, ["augment.blur=0 would"]),
    ],
)
def test_what_is_off_already_is_not_named(knobs: dict[str, Any], named: list[str]) -> None:
    text = said(CPU, knobs)
    assert all(part in text for part in named)
    for off in (name for name, value in knobs.items() if value == 0):
        assert off not in text


@pytest.mark.parametrize(
    "knobs", [{"augment.hue": 0}, {"data.channels": 1, "augment.mean": [0.5], "augment.std": [0.5]}]
)
def test_silent_where_no_knob_helps(knobs: dict[str, Any]) -> None:
    assert said(CPU, knobs | {"augment.blur": 0}) == ""


def test_an_only_epoch_after_a_resume_counts() -> None:
    config = configs.with_overrides(RunConfig(), KNOBS)
    assert InputStall(config, plans.make(config, 1000, 200), CPU, 1).advice_after(0, 0.9) != ""


def test_one_process_tells_what_it_takes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 12)
    text = said(CPU, FILES | {"resources.workers": 0})
    assert "data.loader_workers (now 3 a worker)" in text
    assert "cpus_per_worker" not in text
