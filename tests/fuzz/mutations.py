"""Damage to files and texts: what a seed does to them is the same everywhere."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

_INTEGERS = (0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_LONG_INTEGERS = (0, 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, rng: random.Random, header: int = 0) -> bytes:
    """The content with one to four faults. header: half of them are within so many first bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = min(header, len(data)) if header and rng.random() < 0.5 else len(data)
        _fault(data, rng.randrange(end) if end else 0, rng)
    return bytes(data)


def _fault(data: bytearray, at: int, rng: random.Random) -> None:
    match rng.randrange(9):
        case 0:  # cut off
            del data[at:]
        case 1 if data:  # one bit
            data[at] ^= 1 << rng.randrange(8)
        case 2:  # some bytes
            data[at : at + 8] = rng.randbytes(min(8, len(data) - at))
        case 3:  # a size that lies
            number = struct.pack(rng.choice("<>") + "I", rng.choice(_INTEGERS))
            data[at : at + 4] = number
        case 4:
            data[at : at + 8] = struct.pack(rng.choice("<>") + "Q", rng.choice(_LONG_INTEGERS))
        case 5:  # taken out
            del data[at : at + rng.choice((1, 4, 64, 512))]
        case 6:  # put in
            data[at:at] = rng.choice((b"\0", b"\xff", rng.randbytes(16))) * rng.choice((1, 16, 256))
        case 7:  # there twice
            data[at:at] = data[at : at + rng.choice((4, 64, 512))]
        case _:  # zeros, as a crash leaves them
            length = rng.choice((4, 64, 4096))
            data[at : at + length] = bytes(min(length, len(data) - at))


def damaged_text(text: str, words: Sequence[str], rng: random.Random) -> str:
    """The text with some words put in, lines swapped or taken out, and now and then a fault of its bytes."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 2, 3, 5))):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines[at] += rng.choice(words)
            case 1:
                column = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:column] + rng.choice(words) + lines[at][column:]
            case 2:
                lines.insert(at, rng.choice(lines))
            case 3 if len(lines) > 1:
                del lines[at]
            case _:
                head, mark, _ = lines[at].partition(rng.choice((":", ",", "=")))
                lines[at] = f"{head}{mark} {rng.choice(words)}"
    changed = "\n".join(lines)
    if rng.random() < 0.1:
        changed = damaged(changed.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "surrogateescape")
    return changed
