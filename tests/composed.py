"""`docker/compose.yaml` with variables filled in, parsed by Docker Compose's rules for `${NAME:-default}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def filled(value: Any, given: Mapping[str, str]) -> Any:
    """The same with every variable replaced. Raises KeyError for one that has no default and is not given."""
    if isinstance(value, str):
        return _VARIABLE.sub(
            lambda found: given.get(found[1]) or (found[2] if found[2] is not None else given[found[1]]),
            value,
        )
    if isinstance(value, dict):
        return {name: filled(entry, given) for name, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, given) for entry in value]
    return value


def compose(**given: str) -> dict[str, Any]:
    """The whole file. Its anchors and `<<` are YAML's own."""
    return filled(yaml.safe_load((DOCKER / "compose.yaml").read_text()), given)
