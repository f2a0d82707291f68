"""Checks of what is installed: packages that go together, and faiss."""

from __future__ import annotations

import importlib.metadata as metadata
import platform

from pcl_ray.cluster.check import Check

_SHOWN = ("torch", "torchvision", "ray", "faiss-gpu", "faiss-cpu", "mlflow")
_AFTER_TORCH_2 = 15  # torchvision 0.15 went with torch 2.0, and so on


def packages() -> Check:
    """Versions against the package's own lower bounds, and combinations that do not go together."""
    wrong = _unmet_requirements()
    versions = {name: number for name in _SHOWN if (number := version(name))}
    installed = ", ".join(f"{name} {number}" for name, number in versions.items())
    message = f"Python {platform.python_version()}, {installed}"
    if wrong:
        return Check(
            "packages",
            "failed",
            f"{'; '.join(wrong)} ({message})",
            "pip install -U pcl_ray, in an environment of its own",
        )
    if mismatch := torch_pair(versions.get("torch", ""), versions.get("torchvision", "")):
        return Check(
            "packages",
            "failed",
            f"{message}: {mismatch}",
            "install torch and torchvision together, from the same place",
        )
    if {"faiss-gpu", "faiss-cpu"} <= versions.keys():
        return Check(
            "packages",
            "warning",
            f"{message}: faiss-gpu and faiss-cpu overwrite each other's files",
            "uninstall both, then install one",
        )
    return Check("packages", "ok", message)


def _unmet_requirements() -> list[str]:
    from packaging.requirements import Requirement  # only this check needs it

    unmet: list[str] = []
    for text in metadata.requires("pcl_ray") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        number = version(requirement.name)
        if number is None:
            unmet.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(number, prereleases=True):
            unmet.append(f"{requirement.name} {number} is not {requirement.specifier}")
    return unmet


def torch_pair(torch: str, torchvision: str) -> str:
    """What is wrong with the two versions together; "" if nothing is, or it is not known."""
    try:
        (major, minor), (_, second) = (
            [int(part) for part in text.split("+")[0].split(".")[:2]] for text in (torch, torchvision)
        )
    except ValueError:
        return ""
    if major == 2 and second != minor + _AFTER_TORCH_2:
        return f"torchvision {torchvision} is made for torch 2.{second - _AFTER_TORCH_2}"
    return ""


def version(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def faiss() -> Check:
    """Which build of faiss there is, if it can be imported."""
    from pcl_ray.clustering.faiss_state import faiss_state  # loads torch, which takes seconds

    try:
        return Check("faiss", "ok", faiss_state())
    except ImportError as error:
        return Check(
            "faiss",
            "failed",
            f"cannot be imported ({error})",
            "pip install --force-reinstall faiss-gpu, or e_step.backend=torch",
        )
