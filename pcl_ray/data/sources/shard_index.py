"""What is known of a shard without decoding an image: where the bytes of each are, its name, its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

LabelKind = Literal["none", "numbers", "texts"]
MISSING = -1  # the length of an image that is not there
FORMAT = 1  # raised when what stands in a file changes


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The n images of one shard, in its order. Labels are as they are written there, texts and numbers alike:
    which numbers classes have follows from all shards.
    """

    names: np.ndarray  # [n] utf-8 bytes
    offsets: np.ndarray  # [n] int64, of the first byte
    lengths: np.ndarray  # [n] int64, bytes; MISSING where there are none
    label_kind: LabelKind = "none"
    label_texts: tuple[str, ...] = ()  # the distinct labels
    label_numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [L], which of them
    label_starts: np.ndarray = field(
        default_factory=lambda: np.zeros(1, np.int64)
    )  # [n + 1], as in LabelSets
    class_names: tuple[str, ...] = ()  # what numbers mean, where the shard itself says so
    reasons: dict[int, str] = field(default_factory=dict)  # why an image is not there
    damage: str = ""  # what is wrong with the shard as a whole

    def __len__(self) -> int:
        return len(self.names)

    def write(self, path: Path) -> None:
        """Raises OSError."""
        about = {
            "format": FORMAT,
            "label_kind": self.label_kind,
            "label_texts": self.label_texts,
            "class_names": self.class_names,
            "reasons": {str(row): reason for row, reason in self.reasons.items()},
            "damage": self.damage,
        }
        with path.open("wb") as file:
            np.savez(
                file,
                names=self.names,
                offsets=self.offsets,
                lengths=self.lengths,
                label_numbers=self.label_numbers,
                label_starts=self.label_starts,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            )

    @classmethod
    def read(cls, path: Path) -> ShardIndex | None:
        """What `write` has written; None where the file is damaged or another version's."""
        try:
            with np.load(path, allow_pickle=False) as content:
                about = json.loads(content["about"].tobytes())
                if about["format"] != FORMAT:
                    return None
                return cls(
                    content["names"],
                    content["offsets"],
                    content["lengths"],
                    about["label_kind"],
                    tuple(about["label_texts"]),
                    content["label_numbers"],
                    content["label_starts"],
                    tuple(about["class_names"]),
                    {int(row): reason for row, reason in about["reasons"].items()},
                    about["damage"],
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
            return None


class IndexBuilder:
    """Takes the images of a shard one by one."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._labels: list[list[object]] = []
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, offset: int, length: int, labels: Sequence[object], reason: str = "") -> None:
        """The next image. labels: none, one or several, texts or numbers. reason: why it is not there."""
        if reason:
            self._reasons[len(self._names)] = reason
        self._names.append(name.encode("utf-8", "surrogateescape"))
        self._offsets.append(offset)
        self._lengths.append(MISSING if reason else length)
        self._labels.append(list(labels))

    def index(self, class_names: Sequence[str] = (), damage: str = "") -> ShardIndex:
        """All that was added."""
        flat = [label for labels in self._labels for label in labels]
        numeric = all(isinstance(label, int) for label in flat)
        kind: LabelKind = "none"
        if flat:
            kind = "numbers" if numeric else "texts"
        texts = [str(int(label)) if isinstance(label, bool) else str(label) for label in flat]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return ShardIndex(
            np.array(self._names, dtype=np.bytes_) if self._names else np.empty(0, "S1"),
            np.array(self._offsets, dtype=np.int64),
            np.array(self._lengths, dtype=np.int64),
            kind,
            tuple(distinct),
            np.array([distinct[text] for text in texts], dtype=np.int64),
            np.cumsum([0, *map(len, self._labels)]).astype(np.int64),
            tuple(class_names),
            self._reasons,
            damage,
        )
