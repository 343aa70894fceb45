"""What a target is, and changes of its seeds that need no fuzzer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent


def no_seeds() -> Sequence[bytes]:
    return ()


@dataclass(frozen=True)
class Target:
    """Something that reads bytes of a stranger.

    Attributes:
        name: as ``python -m tests.fuzz NAME`` takes it.
        read: takes the bytes and an empty folder of its own; may raise ``EndaudaError`` and nothing else. What it
            leaves in the folder is removed.
        seeds: makes inputs to begin from, beside the files in ``seeds/NAME``.
        tries: changed seeds that ``pytest`` tries.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], Sequence[bytes]] = no_seeds
    tries: int = 200

    def inputs(self) -> list[bytes]:
        """All seeds and findings."""
        files = [
            path for kind in ("seeds", "findings") for path in sorted((HERE / kind / self.name).glob("*"))
        ]
        return [*self.seeds(), *(path.read_bytes() for path in files)]


def changed(inputs: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """So many changes of some inputs, the same ones each time: bits, bytes, words, pieces cut, doubled, swapped."""
    rng = random.Random(seed)
    inputs = inputs or [b""]
    for _ in range(count):
        data = bytearray(rng.choice(inputs))
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            _change(data, inputs, rng)
        yield bytes(data)


_WORDS = (
    b"\0",
    b"\xff" * 4,
    b"\xff" * 8,
    b"-1",
    b"9" * 400,
    b"../",
    b"/",
    b"{",
    b"[" * 200,
    b"null",
    b'"',
    b"1e999",
    b"\x1b[2J",
)


def _change(data: bytearray, inputs: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64, 1024)))
    match rng.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.randrange(256)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end]
        case 4:
            data[at:at] = rng.choice(_WORDS)
        case 5:
            data[at:end] = rng.choice(_WORDS)
        case _:
            other = rng.choice(inputs)
            first = rng.randrange(len(other) + 1)
            data[at:end] = other[first : first + (end - at)]
