"""Processes that tests start and talk to."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def running(*words: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that what it prints is read from, and that is killed at the end, whatever happens before: ``Popen``
    itself waits for it there, for ever if it hangs, and hides the assertion that failed.

    Args:
        options: those of ``Popen``; ``env`` is what the environment has beside the test's own.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    options["env"] = os.environ | options.get("env", {})
    with subprocess.Popen([str(word) for word in words], **options) as process:
        try:
            yield process
        finally:
            process.kill()
