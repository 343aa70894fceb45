"""Names and ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.names import id_fault, name_fault
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_id(data: bytes, folder: Path) -> None:
    """What passes lies in the folder, wherever that is."""
    text = data.decode(errors="surrogateescape")
    for fault, depth in ((name_fault(text), 1), (id_fault(text), 1 + text.count("/"))):
        if fault is None:
            path = (folder / text).resolve()
            assert folder.resolve() in path.parents
            assert len(path.relative_to(folder.resolve()).parts) == depth


def seeds() -> Sequence[bytes]:
    return [
        text.encode()
        for text in ("ulm/0003", "../x", "/etc/x", "a\\b", "c:x", "Zürich 01", ".x", "a//b", "x" * 240)
    ]


TARGETS = (Target("id", read_id, seeds),)
