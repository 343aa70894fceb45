"""The benchmarks start; what they measure is theirs to say, on a quiet machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_starts(script: str) -> None:
    """All that it imports is there."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), "--help"], env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
