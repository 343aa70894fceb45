"""Caches of decoded images, and the threads that fill them: interrupted, continued, never stale, never trusted."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli.errors import DataError
from endauda_cli.progress import Note, Reporter, Tick, silent
from endauda_cli.threads import ordered_map
from endauda_cli.training.cache import cached_rows
from endauda_cli.training.data import order_of
from tests.support.command_lines import files_of, without_superpowers

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


# ---------------------------------------------------------------------------- damage

ROW = 6
"""Bytes of a row."""


class Notes(list[str]):
    """The texts that were told."""

    def __call__(self, event: Tick | Note) -> None:
        if isinstance(event, Note):
            self.append(event.text)


def no_map(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def file_of(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("mapped", [True, False])
def test_rows_that_a_power_cut_left_empty_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    """Half of the file is zeros, though all rows are marked: the marks reached the disk before the rows."""
    if not mapped:
        monkeypatch.setattr(np, "memmap", no_map)
    files, notes = Files(tmp_path), Notes()
    files.open()
    overwrite(file_of(files.folder, ".bin"), 3 * ROW, bytes(3 * ROW))
    files.read.clear()
    assert files.open(report=notes) == [1, 2, 3, 4, 5, 6]
    assert files.read == [3, 4, 5]
    assert len(notes) == 1
    assert "damaged, as a power cut or a disk leaves them; they are decoded again" in notes[0]
    files.read.clear()
    assert files.open(report=notes) == [1, 2, 3, 4, 5, 6]
    assert (files.read, len(notes)) == ([], 1), "what was made again is kept"


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    for byte in range(6 * ROW):
        (folder := tmp_path / str(byte)).mkdir()
        files = Files(folder)
        files.open()
        rows = file_of(files.folder, ".bin")
        overwrite(rows, byte, bytes([rows.read_bytes()[byte] ^ 1 << byte % 8]))
        files.read.clear()
        assert files.open() == [1, 2, 3, 4, 5, 6]
        assert files.read == [byte // ROW]


@pytest.mark.parametrize(
    "sums", [b"", bytes(8), bytes(24), bytes(range(24)), b"\xff" * 24, b"\xff" * 1000, None]
)
def test_marks_of_another_content(tmp_path: Path, sums: bytes | None) -> None:
    files = Files(tmp_path)
    files.open()
    path = file_of(files.folder, ".sums")
    if sums is None:
        path.unlink()
    else:
        path.write_bytes(sums)
    files.read.clear()
    assert files.open() == [1, 2, 3, 4, 5, 6]
    assert files.read == [0, 1, 2, 3, 4, 5]
    files.read.clear()
    assert files.open() == [1, 2, 3, 4, 5, 6]
    assert files.read == []


def test_a_row_is_marked_after_it_is_written(tmp_path: Path) -> None:
    """The plug is pulled while a row is made: it counts as missing, without a word of damage."""
    files, notes = Files(tmp_path), Notes()
    files.fails_at = 2
    with pytest.raises(RuntimeError, match="pulled the plug"):
        files.open()
    marked = np.fromfile(file_of(files.folder, ".sums"), "<u4") != 0
    assert np.flatnonzero(marked).tolist() == files.read
    assert 2 not in files.read
    files.fails_at = None
    files.read.clear()
    assert files.open(report=notes) == [1, 2, 3, 4, 5, 6]
    assert (files.read, notes) == (np.flatnonzero(~marked).tolist(), [])


def test_marks_of_an_earlier_version_are_not_trusted(tmp_path: Path) -> None:
    """It marked rows without saying what they hold."""
    files = Files(tmp_path)
    files.open()
    rows = file_of(files.folder, ".bin")
    file_of(files.folder, ".sums").rename(rows.with_suffix(".filled"))
    rows.with_suffix(".filled").write_bytes(b"\1" * 6)
    rows.write_bytes(bytes(6 * ROW))
    assert files.open() == [1, 2, 3, 4, 5, 6]


def test_damage_is_told_once_whatever_thread_sees_it(tmp_path: Path) -> None:
    files, notes = Files(tmp_path, 40), Notes()
    files.open()
    file_of(files.folder, ".bin").write_bytes(bytes(40 * ROW))
    rows = cached_rows(files.folder, "filling", files.files, "2x3", (2, 3), files.row, 1, notes)
    with ThreadPoolExecutor(8) as pool:
        assert [int(row[0, 0]) for row in pool.map(rows.__getitem__, range(40))] == [*range(1, 41)]
    assert len(notes) == 1
    files.read.clear()
    assert files.open() == [*range(1, 41)]
    assert files.read == []


# ---------------------------------------------------------------------------- caches that cannot be written


def only_for_reading(monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    """All disks are so from now on."""
    really = os.open

    def only_reads(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(reason, os.strerror(reason), str(path))
        return really(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", only_reads)


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("mapped", [True, False])
def test_a_complete_cache_on_a_disk_that_can_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int, mapped: bool
) -> None:
    files, notes = Files(tmp_path), Notes()
    files.open()
    overwrite(file_of(files.folder, ".bin"), ROW + 2, b"\x63")
    before = files_of(files.folder)
    files.read.clear()
    only_for_reading(monkeypatch, reason)
    if not mapped:
        monkeypatch.setattr(np, "memmap", no_map)
    rows = cached_rows(files.folder, "filling", files.files, "2x3", (2, 3), files.row, 1, notes)
    for _ in range(2):
        assert [int(row[0, 0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert files.read == [1, 1], "the damaged row alone, and at every use"
    assert len(notes) == 1
    assert "decoded at every use" in notes[0]
    assert files_of(files.folder) == before


@pytest.mark.parametrize("reason", [errno.EROFS, errno.EACCES])
def test_an_incomplete_cache_on_a_disk_that_can_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    files = Files(tmp_path)
    files.fails_at = 5
    with pytest.raises(RuntimeError):
        files.open()
    before = files_of(files.folder)
    only_for_reading(monkeypatch, reason)
    with pytest.raises(
        DataError,
        match=r"\.bin: holds 5 of 6 decoded images and cannot be written .*or name another folder with --cache$",
    ):
        files.open()
    assert files_of(files.folder) == before
    with pytest.raises(DataError, match=r"\.bin: cannot be written .*or name another folder with --cache$"):
        files.open(recipe="another")


CACHE = """
import sys
from pathlib import Path
import numpy as np
from endauda_cli.errors import DataError
from endauda_cli.progress import silent
from endauda_cli.training.cache import cached_rows
from endauda_cli.training.pruning import Use
use = Use("labels", Path(sys.argv[1]) / "run", "main")
folder, files = Path(sys.argv[1]), sorted(Path(sys.argv[1]).glob("*.txt"))
def read(i):
    print("read", flush=True)
    return np.full((2, 3), files[i].read_bytes()[0], np.uint8)
print("ready", flush=True)
sys.stdin.readline()
try:
    rows = cached_rows(folder / "cache", "filling", files, "2x3", (2, 3), read, 2, silent, use)
    print([int(row[0, 0]) for row in rows])
except DataError as error:
    print(error)
"""


def started(folder: Path, *before: str) -> subprocess.Popen[str]:
    """A process that waits, then opens the cache of a folder of ``Files``."""
    words = [*before, sys.executable, "-c", CACHE, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    files, lead = Files(tmp_path), without_superpowers()
    files.open()
    for path in files.folder.iterdir():
        path.chmod(0o444)
    files.folder.chmod(0o555)
    try:
        with started(tmp_path, *lead) as process:
            out, _ = process.communicate("\n", timeout=60)
        assert out.split("\n")[1:-1] == ["[1, 2, 3, 4, 5, 6]"]
        overwrite_as_owner(file_of(files.folder, ".sums"))
        with started(tmp_path, *lead) as process:
            out, _ = process.communicate("\n", timeout=60)
        assert "holds 5 of 6 decoded images and cannot be written" in out
    finally:
        files.folder.chmod(0o755)


def overwrite_as_owner(sums: Path) -> None:
    sums.chmod(0o644)
    overwrite(sums, 8, bytes(4))
    sums.chmod(0o444)


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    files = Files(tmp_path, 9)
    processes = [started(tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert out.splitlines()[-1] == "[1, 2, 3, 4, 5, 6, 7, 8, 9]"
    assert files.open() == [*range(1, 10)]
    assert files.read == []


# ---------------------------------------------------------------------------- sample order


def test_an_order_is_drawn_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    really = np.random.default_rng

    def counted(seed: Any) -> np.random.Generator:
        drawn.append(seed)
        return really(seed)

    order_of.cache_clear()
    monkeypatch.setattr(np.random, "default_rng", counted)
    for position in range(30):
        epoch, place = divmod(position, 10)
        assert order_of(7, epoch, 10)[place] == really([7, epoch]).permutation(10)[place]
    assert drawn == [[7, 0], [7, 1], [7, 2]]
    assert not order_of(7, 0, 10).flags.writeable


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
