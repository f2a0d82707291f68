"""YAML as configurations need it: plain values. A value needs no tags, no aliases, no deep nesting."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 20  # of lists and mappings within each other


class _PlainLoader(yaml.SafeLoader):
    """Tags can make a constructor raise anything, and a few lines of aliases fill the memory when shown."""

    _depth = 0
    aliases = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and not self.aliases:
            raise yaml.YAMLError(f"aliases are not read here (*{event.anchor})")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not read here ({event.tag})")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.YAMLError(f"more than {_DEEPEST} lists or mappings within each other")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def load(text: str, *, aliases: bool = False) -> Any:
    """The value of a text. Raises ValueError, with the reason in one line, for what is no such YAML.

    aliases: are read, as in what PyYAML has written.
    """
    try:
        loader = _PlainLoader(text)
        loader.aliases = aliases
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    # dates like 2024-13-45 and numbers of thousands of digits are ValueErrors, deep flows RecursionErrors
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
