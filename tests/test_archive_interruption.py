"""Writers that are killed, run out of disk, or share a folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from endauda_cli.archive import CertaintyReader, CertaintyWriter, verify
from endauda_cli.errors import ArchiveError
from tests.archive_samples import ATTRIBUTES, CLASSES, assert_holds, assert_true_so_far, samples, write

PROGRAM = Path(__file__).with_name("archive_samples.py")


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", PROGRAM, folder, *arguments]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, str]:
    with CertaintyReader(folder) as reader:
        return {id: reader.digest(id) for id in reader.ids}


def write_what_is_missing(folder: Path, count: int) -> None:
    with CertaintyWriter(folder, classes=CLASSES, attributes=ATTRIBUTES, shard_size=3) as writer:
        done = writer.done
        for id, image in samples(count).items():
            if id not in done:
                writer.write(id, *image)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Kill -9, again and again: no image that the writer called stored is lost, none is ever wrong."""
    images, moments = samples(400), random.Random(0)
    stored: set[str] = set()
    for _ in range(10):
        process = start(tmp_path / "a", len(images), "0-of-1")
        assert process.stdout is not None
        with process, process.stdout:
            stored |= {process.stdout.readline().strip() for _ in range(moments.randrange(1, 20))}
            time.sleep(moments.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            stored |= {line.strip() for line in process.stdout if line.endswith("\n")}
        with CertaintyReader(tmp_path / "a") as reader:
            assert stored <= set(reader.ids) <= stored | images.keys()
            assert len(reader) <= len(stored) + 10  # at most one per kill was not printed any more
        assert_true_so_far(tmp_path / "a", images)
    assert 10 <= len(stored) < len(images)

    process = start(tmp_path / "a", len(images), "0-of-1")
    process.communicate()
    assert process.returncode == 0
    assert_holds(tmp_path / "a", images)
    assert contents(tmp_path / "a") == contents(write(tmp_path / "b", images))
    assert verify(tmp_path / "a").intact
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".h5", ".json"}


class Killed(BaseException):
    """Stands for a kill where a test says."""


def test_killed_between_any_two_changes_of_the_folder(tmp_path: Path, monkeypatch: Any) -> None:
    images = samples(7)

    def die_at(change: int) -> bool:
        """Whether the writer was done before its change number ``change`` to the folder."""
        folder, changes = tmp_path / f"at {change}", 0

        def counted(function: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal changes
                if changes == change:  # the dead change nothing more, in no ``finally`` either
                    raise Killed
                changes += 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in (
                (os, "replace"),
                (os, "link"),
                (os, "fsync"),
                (Path, "unlink"),
                (Path, "write_bytes"),
                (Path, "mkdir"),
                (Path, "rmdir"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            # The process lives on, so a lock that it keeps would stop the next writer, unlike one of the dead.
            patch.setattr("endauda_cli.archive.lock._lock", lambda _descriptor: True)
            try:
                write_what_is_missing(folder, 7)
                finished = True
            except Killed:
                finished = False
        if (folder / "archive.json").exists():
            assert_true_so_far(folder, images)
        write_what_is_missing(folder, 7)
        assert_holds(folder, images)
        assert verify(folder).intact
        assert not list(folder.glob("*.part"))
        return finished

    changes = 0
    while not die_at(changes):
        changes += 1
    assert changes > 40


def test_the_next_writer_finishes_what_others_left(tmp_path: Path) -> None:
    images = samples(6)
    for tag, half in (("0-of-2", list(images)[:3]), ("1-of-2", list(images)[3:])):
        with (
            pytest.raises(KeyboardInterrupt),
            CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES, tag=tag) as writer,
        ):
            for id in half:
                writer.write(id, *images[id])
            raise KeyboardInterrupt
    with CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES) as writer:
        assert writer.done == set(images)
    assert not list((tmp_path / "a").glob("*.part"))
    assert_holds(tmp_path / "a", images)


def test_several_writers_at_once(tmp_path: Path) -> None:
    """Three processes make one archive together while a fourth reads it."""
    images = samples(90)
    processes = [start(tmp_path / "a", 30, f"{i}-of-3", 30 * i) for i in range(3)]
    while any(process.poll() is None for process in processes):
        if (tmp_path / "a" / "archive.json").exists():
            assert_true_so_far(tmp_path / "a", images)
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert_holds(tmp_path / "a", images)
    assert verify(tmp_path / "a").intact


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize(("limit", "least"), [(1000, 0), (9_000, 1), (25_000, 5)])
def test_full_disk(tmp_path: Path, limit: int, least: int) -> None:
    """With too little for an image, for a shard, and for neither of the first."""
    program = f"""
import resource, sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
from tests.archive_samples import *
from endauda_cli.errors import ArchiveError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
images = samples(12)
images["ulm/0009"] = noise(0, 3, 60, 200)  # 36 kB and more
try:
    write({str(tmp_path / "a")!r}, images, shard_size=5)
except ArchiveError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot write" in done.stdout and "free some space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    images = samples(12)
    assert least <= len(contents(tmp_path / "a")) < 12
    assert_true_so_far(tmp_path / "a", images)
    write_what_is_missing(tmp_path / "a", 12)
    assert_holds(tmp_path / "a", images)
    assert verify(tmp_path / "a").intact


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a", samples(1))
    path.chmod(0o555)
    with pytest.raises(ArchiveError, match="cannot write here"):
        CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES)
