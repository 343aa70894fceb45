"""Free disk space, to be looked at before hours of work instead of after them. Standard library only."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def free_bytes(folder: Path) -> int | None:
    """What the disk of a folder, which need not be there yet, has room for; ``None`` if nobody can tell."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return None
    # Some network shares say that they have no size at all.
    return usage.free if usage.total > 0 else None


def size_text(size: float) -> str:
    """``12.3 GB``, ``0.4 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
