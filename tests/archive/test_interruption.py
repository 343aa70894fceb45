"""Writers that are killed, run out of disk, or share a folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from endauda_cli.archive import CertaintyReader, CertaintyWriter, manifest, verify
from endauda_cli.errors import ArchiveError
from tests import support
from tests.support.archive_samples import (
    ATTRIBUTES,
    CLASSES,
    Writers,
    assert_holds,
    assert_true_so_far,
    digests,
    put,
    samples,
    write,
)
from tests.support.disks import NAMESPACE, may_mount

PROGRAM = support.ROOT / "tests/support/archive_samples.py"


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", PROGRAM, folder, *arguments]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def write_what_is_missing(folder: Path, count: int) -> None:
    with CertaintyWriter(folder, classes=CLASSES, attributes=ATTRIBUTES, shard_size=3) as writer:
        done = writer.done
        for id, image in samples(count).items():
            if id not in done:
                put(writer, id, image)


@pytest.mark.slow
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
    assert digests(tmp_path / "a") == digests(write(tmp_path / "b", images))
    assert verify(tmp_path / "a").intact
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".h5", ".json"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_a_hundred_moments(tmp_path: Path) -> None:
    """Of exports by one writer or three at once, from their start to their end; also of reruns."""
    images, moments = samples(24), random.Random(1)
    whole = write(tmp_path / "whole", images)
    kills = 0
    with Writers(tmp_path / "log") as writers:
        lasts = {writer_count: _seconds(writers, tmp_path, writer_count) for writer_count in (1, 3)}
        for number in range(300):
            if kills >= 100:
                break
            folder, count = tmp_path / f"{number}", moments.choice((1, 1, 3))
            stored: set[str] = set()
            before = kills
            for _ in range(moments.choice((1, 2))):
                kills += _start_and_kill(writers, folder, len(images), count, lasts[count], moments)
                stored |= writers.stored()
                if (folder / "archive.json").exists():
                    assert_true_so_far(folder, images)
                    assert stored <= digests(folder).keys()
                    # At most the one in flight was stored without having been printed.
                    assert len(digests(folder)) <= len(stored) + kills - before
                else:
                    assert not stored and kills > before
            assert _run(writers, folder, len(images), count) == [0] * count
            writers.stored()
            assert digests(folder) == digests(whole)
            assert_holds(folder, images)
            assert verify(folder).intact
            # A kill while archive.json is made may leave its temporary file, which nobody reads.
            rest = [path for path in folder.iterdir() if not path.name.startswith("archive.json")]
            assert {path.suffix for path in rest} == {".h5", ".json"}
            shutil.rmtree(folder)
    assert kills >= 100


def _run(writers: Writers, folder: Path, images: int, count: int) -> list[int]:
    return [writers.wait(process) for process in _start(writers, folder, images, count)]


def _start(writers: Writers, folder: Path, images: int, count: int) -> list[int]:
    """``count`` writers that share the images."""
    share = images // count
    return [writers.start(folder, share, f"{i}-of-{count}", i * share) for i in range(count)]


def _seconds(writers: Writers, folder: Path, count: int) -> float:
    """How long an export takes here at best, so that nearly all kills come in time."""
    times = []
    for attempt in range(3):
        begin = time.monotonic()
        assert _run(writers, folder / f"timed-{count}-{attempt}", 24, count) == [0] * count
        times.append(time.monotonic() - begin)
    writers.stored()
    return min(times)


def _start_and_kill(
    writers: Writers, folder: Path, images: int, count: int, lasts: float, moments: random.Random
) -> int:
    """Starts writers and kills each at a moment of its own; how many were not done before."""
    processes = _start(writers, folder, images, count)
    begin = time.monotonic()
    for moment, process in sorted((moments.uniform(0, lasts), process) for process in processes):
        time.sleep(max(0.0, begin + moment - time.monotonic()))
        os.kill(process, signal.SIGKILL)
    ends = [writers.wait(process) for process in processes]
    assert set(ends) <= {0, -signal.SIGKILL}
    return ends.count(-signal.SIGKILL)


def test_folder_of_another_writer_goes_between_two_looks(tmp_path: Path, monkeypatch: Any) -> None:
    """``Path.mkdir`` finds a folder, then finds none, because the writer that it belonged to removed it."""
    write(tmp_path / "a", samples(1))
    part = tmp_path / "a" / "1-of-2.part"
    make = os.mkdir

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path) == part:
            part.rmdir()
            raise FileExistsError(17, "File exists", str(path))
        make(path, *arguments, **options)

    part.mkdir()
    monkeypatch.setattr(os, "mkdir", mkdir)
    write_what_is_missing(tmp_path / "a", 3)
    assert_holds(tmp_path / "a", samples(3))


class Killed(BaseException):
    """Stands for a kill where a test says."""


@pytest.mark.slow
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
            patch.setattr("endauda_cli.files.lock_file", lambda _descriptor: True)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize(("limit", "least"), [(1000, 0), (9_000, 1), (25_000, 5)])
def test_full_disk(tmp_path: Path, limit: int, least: int) -> None:
    """With too little for an image, for a shard, and for neither of the first."""
    program = f"""
import resource, sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
from tests.support.archive_samples import *
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
    assert least <= len(digests(tmp_path / "a")) < 12
    assert_true_so_far(tmp_path / "a", images)
    write_what_is_missing(tmp_path / "a", 12)
    assert_holds(tmp_path / "a", images)
    assert verify(tmp_path / "a").intact


# In a mount namespace of its own: nothing of it is seen outside, and nothing is left.
_SMALL_DISK = """
import random, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from endauda_cli.archive import verify
from endauda_cli.errors import ArchiveError
from tests.support.archive_samples import *

root, sizes = Path(sys.argv[2]), random.Random(2)
images, full = samples(24), 0
whole = write(root / "whole", images)
disk = root / "disk"
disk.mkdir()

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)

def write_missing():
    with CertaintyWriter(disk / "a", classes=CLASSES, attributes=ATTRIBUTES, shard_size=5) as writer:
        for id in sorted(images.keys() - writer.done):
            put(writer, id, images[id])

for _ in range(25):
    mount(f"size={4 * sizes.randrange(1, 40)}k")
    for _ in range(2):  # the second run finds no more room than the first
        try:
            write_missing()
        except ArchiveError as error:
            full += 1
            assert "No space left on device" in str(error) and "\\n" not in str(error), error
        if (disk / "a/archive.json").exists():
            assert_true_so_far(disk / "a", images)
            assert not verify(disk / "a").missing
    mount("remount,size=8m")
    write_missing()
    assert_holds(disk / "a", images)
    assert digests(disk / "a") == digests(whole)
    assert verify(disk / "a").intact
    subprocess.run(["umount", disk], check=True)
print(full)
"""


@pytest.mark.slow
def test_full_disk_of_any_size(tmp_path: Path) -> None:
    """A real disk that is full, in the middle of an image, a shard or a manifest; with room, a rerun ends well."""
    if not may_mount(tmp_path):
        pytest.skip("may not mount a small disk here")
    line = (*NAMESPACE, sys.executable, "-W", "error", "-c", _SMALL_DISK, support.ROOT, tmp_path)
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert 25 <= int(done.stdout) < 50


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a", samples(1))
    path.chmod(0o555)
    with pytest.raises(ArchiveError, match="cannot write here"):
        CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES)


def test_ctrl_c_while_the_sealing_thread_starts(tmp_path: Path, monkeypatch: Any) -> None:
    """The pool then does not know its thread, which must not work on once the tag is free for others."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("seal"):
            raise KeyboardInterrupt

    def slow(path: Path, data: bytes, **options: Any) -> None:
        if path.suffix == ".h5":
            time.sleep(0.3)
        manifest.replace_file(path, data, **options)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr("endauda_cli.archive.writer.replace_file", slow)
    images = samples(2)
    with (
        pytest.raises(KeyboardInterrupt),
        CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES, shard_size=2) as writer,
    ):
        for id, image in images.items():
            writer.write(id, *image)
    left = sorted(tmp_path.rglob("*"))
    time.sleep(0.5)
    assert sorted(tmp_path.rglob("*")) == left
    assert_holds(tmp_path / "a", images)
