"""A disk of a test's own, where the system lets one mount it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
"""Before a command that is to mount something."""


def may_mount(folder: Path) -> bool:
    try:
        line = (*NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder))
        return subprocess.run(line, capture_output=True).returncode == 0
    except OSError:
        return False
