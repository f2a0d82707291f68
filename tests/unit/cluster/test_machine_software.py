from __future__ import annotations

import pytest

from pcl_ray.cluster import machine_software
from pcl_ray.cluster.check import Check
from pcl_ray.clustering.faiss_state import faiss_state


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_software.packages().level == "ok"
    real = machine_software.version

    def with_versions(**changed: str | None) -> Check:
        names = {name.replace("_", "-"): value for name, value in changed.items()}
        monkeypatch.setattr(
            machine_software, "version", lambda name: names[name] if name in names else real(name)
        )
        return machine_software.packages()

    assert "mlflow 2.9.0 is not >=3.17" in with_versions(mlflow="2.9.0").message
    assert "optuna is missing" in with_versions(optuna=None).message
    assert "overwrite" in with_versions(faiss_cpu="1.12.0").message
    mixed = with_versions(torch="2.14.1", torchvision="0.28.0")
    assert (mixed.level, "made for torch 2.13" in mixed.message) == ("failed", True)


@pytest.mark.parametrize(
    ("torch", "torchvision", "good"),
    [("2.11.0", "0.26.1", True), ("2.14.1+cu130", "0.29.1+cu130", True), ("2.14.1", "0.30.0", False)],
)
def test_torch_and_torchvision_go_together(torch: str, torchvision: str, good: bool) -> None:
    assert (machine_software.torch_pair(torch, torchvision) == "") is good


def test_faiss_is_here() -> None:
    assert faiss_state().startswith("faiss 1.")
    assert machine_software.faiss().level == "ok"
