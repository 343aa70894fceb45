"""Words of a command line before the parser has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.terminal.multivalue import open_option, spread
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SEVERAL = {"--teachers", "-t", "--split"}


def read_words(data: bytes, folder: Path) -> None:
    """No word is made up, nothing behind ``--`` is touched, and TAB finds what is open."""
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\0")]
    once = spread(words, SEVERAL)
    assert all(word in SEVERAL or any(word in typed for typed in words) for word in once)
    if "--" in words:
        behind = words[words.index("--") :]
        assert once[-len(behind) :] == behind
    assert open_option(words, SEVERAL) in {None, *SEVERAL}


def seeds() -> Sequence[bytes]:
    lines = (
        "--teachers a b,c --rule plf",
        "-ta,b c",
        "--teachers=a b -- c,d",
        "--split , ,, -1",
        "- -- --",
        "-t -t= =",
    )
    return [line.replace(" ", "\0").encode() for line in lines]


TARGETS = (Target("command-line", read_words, seeds),)
