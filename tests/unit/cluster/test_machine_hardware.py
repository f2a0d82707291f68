from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from pcl_ray.cluster import machine_hardware
from pcl_ray.cluster.check import Check

Space = namedtuple("Space", "total used free")


def test_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_hardware, "gpus_here", lambda: 0)
    assert machine_hardware.gpus().level == "ok"
    monkeypatch.setattr(machine_hardware, "gpus_here", lambda: 2)
    found = machine_hardware.gpus()
    assert (found.level, "2 device files" in found.message, "driver" in found.advice) == (
        "failed",
        True,
        True,
    )


def test_gpus_are_named_with_memory_and_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = namedtuple("card", "name total_memory major")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: [card("H", 80e9, 9), card("V", 16e9, 7)][number]
    )
    monkeypatch.setattr(machine_hardware, "gpus_here", lambda: 2)
    assert machine_hardware.gpus() == Check("GPUs", "ok", "H (80 GB, bf16), V (16 GB, no bf16: fp32)")
    monkeypatch.setattr(machine_hardware, "gpus_here", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine_hardware.gpus().level == "warning"


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(64e6, 0, 64e6))
    found = machine_hardware.shared_memory()
    assert (found.level, "--shm-size" in found.advice) == ("warning", True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(4e9, 0, 4e9))
    assert machine_hardware.shared_memory().level == "ok"


@pytest.mark.parametrize(("free", "level"), [(0.1e9, "failed"), (2e9, "warning"), (50e9, "ok")])
def test_space_under_home(monkeypatch: pytest.MonkeyPatch, free: float, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Space(100e9, 0, free))
    assert machine_hardware.home_folder().level == level


def test_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("PCL_RAY_HOME", str(tmp_path / "a_file"))
    assert (
        machine_hardware.home_folder().level,
        "cannot be written" in machine_hardware.home_folder().message,
    ) == ("failed", True)


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_hardware, "machine_memory", lambda: (64_000_000_000, 32_000_000_000))
    monkeypatch.setattr(machine_hardware, "container_memory", lambda: 2_000_000_000)
    found = machine_hardware.memory()
    assert (found.level, "2.0 GB, the container's limit of 64.0 GB" in found.message) == ("warning", True)
    # what cgroup v1 says where there is none
    monkeypatch.setattr(machine_hardware, "container_memory", lambda: 1 << 62)
    assert machine_hardware.memory().message == "64.0 GB, 32.0 GB of the machine's free"
    monkeypatch.setattr(machine_hardware.machine, "cores", lambda: 8)
    monkeypatch.setattr(machine_hardware, "container_cpus", lambda: 1.5)
    assert (machine_hardware.cores().level, "1.5" in machine_hardware.cores().message) == ("warning", True)
    monkeypatch.setattr(machine_hardware, "container_cpus", lambda: None)
    assert machine_hardware.cores().level == "ok"
