"""The packages that an image installs: `python dependencies.py cpu|gpu` prints pyproject.toml's dependencies,
each as requirements.lock has it.

They are the packages of a run without the tests' tools. `cpu` takes faiss's CPU build on x86-64 too.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def wanted(target: str, pyproject: str, lock: str) -> list[str]:
    """The requirements with exact versions. Raises KeyError for a dependency that the lock does not have."""
    pins = {
        name.lower().replace("_", "-"): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, flags=re.MULTILINE)
    }
    pinned: list[str] = []
    for requirement in tomllib.loads(pyproject)["project"]["dependencies"]:
        bare, _, marker = requirement.partition(";")
        match = re.match(r"([\w.-]+)(\[[^]]*\])?", bare)
        assert match is not None, requirement
        name, extras = match[1], match[2] or ""
        if target == "cpu" and name == "faiss-gpu":
            continue
        if target == "cpu" and name == "faiss-cpu":
            marker = ""
        line = f"{name}{extras}=={pins[name.lower().replace('_', '-')]}"
        pinned.append(f"{line}; {marker.strip()}" if marker else line)
    build_tools = f"setuptools=={pins['setuptools']}"
    return [*pinned, build_tools]


if __name__ == "__main__":
    if sys.argv[1:] not in (["cpu"], ["gpu"]):
        sys.exit("usage: dependencies.py cpu|gpu, in the folder of pyproject.toml and requirements.lock")
    pyproject, lock = Path("pyproject.toml").read_text(), Path("requirements.lock").read_text()
    print("\n".join(wanted(sys.argv[1], pyproject, lock)))
