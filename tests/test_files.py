"""Locks, with and without the system's help, and what disks cannot do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from endauda_cli import files
from endauda_cli.files import WriterLock

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from endauda_cli import files
if sys.argv[2] == "lease":
    files.lock_file = lambda descriptor: False
lock = files.WriterLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["system", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """``lease``: as on a share where flock raises."""
    if request.param == "lease":

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("endauda_cli.files.fcntl.flock", flock)
    return str(request.param)


def holding(path: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_says_who_holds_it_and_ends_with_its_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder/lock"
    process = holding(path, kind)
    try:
        lock = WriterLock(path)
        assert not lock.acquire()
        assert lock.holder == f"process {process.pid} on {os.uname().nodename}"
        assert not lock.acquire(0.2), "asking twice changes nothing"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert lock.acquire(), "a killed process blocks nobody"
    assert lock.enforced == (kind == "system")
    assert lock.holder.startswith(f"process {os.getpid()} ")
    assert not WriterLock(path).acquire()
    lock.release()
    assert not list(path.parent.iterdir())
    assert WriterLock(path).holder == "another process"


@pytest.mark.parametrize("kind", ["lease"], indirect=True)
def test_a_lease_of_another_machine_counts_while_it_is_renewed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    held = tmp_path / "lock.held"
    held.write_text("4711@elsewhere\nelsewhere 1 2\n5\n")
    lock = WriterLock(path)
    assert not lock.acquire()
    assert lock.holder == "process 4711 on elsewhere"
    long_ago = time.time() - files.DEAD_AFTER_S - 5
    os.utime(held, (long_ago, long_ago))
    monkeypatch.setattr(files, "_BEAT_S", 0.02)
    assert lock.acquire(), "nobody has renewed it"
    os.utime(held, (long_ago, long_ago))
    deadline = time.monotonic() + 5
    while held.stat().st_mtime < long_ago + 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not WriterLock(path).acquire(), "this one has"
    lock.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["lease"], indirect=True)
def test_a_lease_that_another_took_over_is_not_removed(tmp_path: Path, kind: str) -> None:
    lock = WriterLock(tmp_path / "lock")
    assert lock.acquire()
    held = tmp_path / "lock.held"
    held.write_text("4711@elsewhere\nelsewhere 1 2\n5\n")
    lock.release()
    assert held.exists()


@pytest.mark.parametrize("content", ["", "\0\0", "x" * 9000, "-1@a\n", "9" * 400 + "@here", "1@\x1b[2J"])
def test_a_lock_file_that_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    lock = WriterLock(tmp_path / "lock")
    assert lock.holder == "another process"
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("cause", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_cannot_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: int
) -> None:
    """fsync that answers EINVAL, as some FUSE do, says nothing of the content; EIO does."""

    def fsync(descriptor: int) -> None:
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr(os, "fsync", fsync)
    file = tmp_path / "file"
    if cause == errno.EIO:
        with pytest.raises(OSError, match="Input/output"), files.replacing(file, durable=True) as temporary:
            temporary.write_text("new")
        return
    with files.replacing(file, durable=True) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "new"
