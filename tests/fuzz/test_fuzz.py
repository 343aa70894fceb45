"""A bounded share of the fuzzing: all seeds and findings, and some changes of them."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from endauda_cli.errors import EndaudaError
from tests.fuzz.target import changed
from tests.fuzz.targets import all_targets

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = all_targets()
LONGEST_S = 10.0
"""Of one input; 2 s by themselves, but these machines are shared, and compiled code is compiled once."""
GROWTH_KB = 600_000


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_the_bytes_are(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    inputs = target.inputs()
    assert inputs, f"{name} has nothing to begin from"
    grown = None
    for number, data in enumerate([b"", *inputs, *changed(inputs, target.tries, seed=1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        began = time.monotonic()
        try:
            with contextlib.suppress(EndaudaError):
                target.read(data, folder)
        except BaseException as error:
            kept = tmp_path / "finding"
            kept.write_bytes(data)
            raise AssertionError(f"{name}: {error!r} for the bytes in {kept}") from error
        assert time.monotonic() - began < LONGEST_S, f"{name}: input {number} took too long: {data[:200]!r}"
        shutil.rmtree(folder)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = grown or used
    assert grown is not None and used - grown < GROWTH_KB
