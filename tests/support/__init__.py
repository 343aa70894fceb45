"""What several test modules need: samples, runs, servers, terminals; and where the project and its test data lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
