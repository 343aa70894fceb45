"""Machine code is kept from run to run, and where it cannot be, the work goes on all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import resource, sys
from endauda_cli.jit import jit
sys.path.insert(0, sys.argv[1])
import doubling
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
double = jit(doubling.double)
assert double(21) == 42
print(sum(double.stats.cache_hits.values()))
"""


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    (tmp_path / "doubling.py").write_text("def double(x):\n    return 2 * x\n")
    return tmp_path


def hits(folder: Path, *more: str, cache: str | None = None) -> int:
    """Runs the compiled function in a process of its own: how often the cache had its machine code."""
    environment = os.environ | {"NUMBA_CACHE_DIR": cache or str(folder / "cache")}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), *more]
    return int(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.slow
def test_the_second_run_need_not_compile(folder: Path) -> None:
    assert [hits(folder), hits(folder)] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_files_that_a_power_cut_left_empty_are_made_anew(folder: Path, ending: str) -> None:
    hits(folder)
    (damaged,) = folder.glob(f"cache/**/*.{ending}")
    damaged.write_bytes(b"")
    assert [hits(folder), hits(folder)] == [0, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
def test_a_full_disk(folder: Path) -> None:
    assert hits(folder, "full") == 0


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    assert hits(folder, cache=str(folder / "file" / "cache")) in (0, 1)  # numba has others to choose from
