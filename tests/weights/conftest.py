"""What tests of downloads share."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from endauda_cli.weights import transport


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts; nobody waits."""
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=waited.append)
    monkeypatch.setattr(transport, "time", clock)
    return waited
