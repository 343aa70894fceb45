"""Manifests, links and bytes for the tests of ``download-weights``."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_ID = "1aFolderOfThisTest_0123456789"
FILE_ID = "1bFileOfThisTest_0123456789"


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compressor shrinks and no accident repeats."""
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(name: str = "one", **fields: Any) -> dict[str, Any]:
    """An artefact of a manifest: a file that is not opened as a checkpoint."""
    return {
        "name": name, "what": "bytes", "path": f"weights/{name}.bin", "page": "https://example.org/page"
    } | fields  # fmt: skip


def write_manifest(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "list.json"
    path.write_text(json.dumps({"format": 1, "artefacts": list(entries)}))
    return path
