"""Caches of decoded images, and the threads that fill them: interrupted, continued, never stale."""

from __future__ import annotations

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.errors import DataError
from endauda_cli.progress import Note, Reporter, Tick, silent
from endauda_cli.threads import ordered_map
from endauda_cli.training.cache import cached_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]


class Files:
    """Files of one byte each, and a reader that remembers what it read."""

    def __init__(self, folder: Path, count: int = 6) -> None:
        self.folder = folder / "cache"
        self.files = [folder / f"{i}.txt" for i in range(count)]
        for i, file in enumerate(self.files):
            file.write_bytes(bytes([i + 1]))
        self.read: list[int] = []
        self.fails_at: int | None = None

    def row(self, i: int) -> UInt8:
        if i == self.fails_at:
            raise RuntimeError("pulled the plug")
        self.read.append(i)
        return np.full((2, 3), self.files[i].read_bytes()[0], np.uint8)

    def open(self, workers: int = 1, recipe: str = "2x3", report: Reporter = silent) -> list[int]:
        """The first byte of each row."""
        rows = cached_rows(self.folder, "filling", self.files, recipe, (2, 3), self.row, workers, report)
        assert rows.shape == (len(self.files), 2, 3)
        assert all((row == row[0, 0]).all() for row in rows)
        return [int(row[0, 0]) for row in rows]


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_are_read_once(tmp_path: Path, workers: int) -> None:
    files = Files(tmp_path)
    events: list[Tick | Note] = []
    assert files.open(workers, report=events.append) == [1, 2, 3, 4, 5, 6]
    assert sorted(files.read) == [0, 1, 2, 3, 4, 5]
    assert events == [Tick("filling", done, 6, kept=done) for done in range(7)]
    files.read.clear()
    assert files.open(workers) == [1, 2, 3, 4, 5, 6]
    assert files.read == []


def test_interrupted_fill_goes_on(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.fails_at = 3
    with pytest.raises(RuntimeError, match="pulled the plug"):
        files.open()
    files.read.clear()
    files.fails_at = None
    assert files.open() == [1, 2, 3, 4, 5, 6]
    assert 3 in files.read
    assert not {0, 1, 2} & set(files.read)


def test_deleted_rows_are_read_again(tmp_path: Path) -> None:
    """Somebody who needs room deletes the large file and leaves the small one that says what is filled."""
    files = Files(tmp_path)
    files.open()
    (large,) = files.folder.glob("*.bin")
    large.unlink()
    assert files.open() == [1, 2, 3, 4, 5, 6]


def test_changed_file_gives_another_cache(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.open()
    files.files[2].write_bytes(b"\x63")
    os.utime(files.files[2], ns=(0, 1))  # same size; the clock of the disk may be coarse
    assert files.open() == [1, 2, 99, 4, 5, 6]
    files.files.reverse()
    assert files.open() == [6, 5, 4, 99, 2, 1]
    files.files.pop()
    assert files.open() == [6, 5, 4, 99, 2]


def test_other_recipe_gives_another_cache(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.open()
    files.read.clear()
    files.open(recipe="2x3 another way")
    assert len(files.read) == 6


def test_absent_file_is_named(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.files[4].unlink()
    with pytest.raises(DataError, match=r"4\.txt: no such file"):
        files.open()
    assert not files.folder.exists()


def test_full_disk_is_said_before_anything_is_decoded(tmp_path: Path) -> None:
    """Files of this process may be 20 bytes long for a moment; the rows need 36."""
    files = Files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(DataError, match=r"no room for .* MiB of decoded images .*folder with --cache"):
            files.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files.read == []
    assert list(files.folder.iterdir()) == []


# ---------------------------------------------------------------------------- ordered_map


def test_results_come_in_order_and_few_are_alive() -> None:
    lock = threading.Lock()
    begun = taken = most = 0

    def work(i: int) -> int:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - taken)
        time.sleep(0.002 * (i % 3))
        return i * i

    with ThreadPoolExecutor(3) as pool:
        found = []
        for result in ordered_map(pool, work, iter(range(40)), ahead=5):
            found.append(result)
            with lock:
                taken += 1
    assert found == [i * i for i in range(40)]
    assert 2 <= most <= 6


def test_error_comes_at_its_turn_and_stops_the_rest() -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError("three")
        return i

    found = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="three"):
        for result in ordered_map(pool, work, range(100), ahead=4):
            found.append(result)
    assert found == [0, 1, 2]
    assert len(begun) <= 8


def test_error_of_the_items_comes_after_what_was_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("the fourth")

    found = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="the fourth"):
        for result in ordered_map(pool, lambda i: 10 * i, items(), 8):
            found.append(result)
    assert found == [10, 20, 30]


def test_whoever_stops_early_waits_for_no_more() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, begun.append, range(1000), ahead=4)
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5


def test_nothing_to_do() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert list(ordered_map(pool, str, [], ahead=3)) == []
        assert list(ordered_map(pool, str, [7], ahead=3)) == ["7"]
