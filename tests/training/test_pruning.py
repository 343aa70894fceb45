"""Caches that nobody can use any more are removed; all others, and all other files, stay."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from endauda_cli.files import lock_file
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training import cache
from endauda_cli.training.cache import RowFile, cached_rows
from endauda_cli.training.pruning import Use, remove
from tests.support.command_lines import files_of
from tests.support.training_runs import TinySet, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SHORT: dict[str, Any] = {"steps": 1, "validate_every": 0, "save_every": 1}


class Notes(list[str]):
    """The texts that were told."""

    def __call__(self, event: Tick | Note) -> None:
        if isinstance(event, Note):
            self.append(event.text)


class World:
    """Files of one byte each, runs, and caches of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.told = root, root / "cache", Notes()
        (root / "labels").mkdir()
        self.files = [root / "labels" / f"{i}.png" for i in range(4)]
        self.correct()

    def correct(self, value: int = 1) -> None:
        """Other content under the same names."""
        for i, file in enumerate(self.files):
            file.write_bytes(bytes([value + i]))
            os.utime(file, ns=(0, value))

    def rows(
        self, name: str, which: Sequence[int] = (0, 1, 2, 3), kind: str = "labels", stream: str = "main"
    ) -> RowFile:
        """As a run opens them."""
        out = self.root / "runs" / name
        out.mkdir(parents=True, exist_ok=True)
        chosen = [self.files[i] for i in which]

        def read(i: int) -> Any:
            return np.full(1000, chosen[i].read_bytes()[0], np.uint8)

        use = Use(kind, out, stream)
        return cached_rows(self.cache, "filling", chosen, kind, (1000,), read, 1, self.told, use)

    def open(self, name: str, *args: Any, **kwargs: Any) -> str:
        """Open and let go of them; the cache's name."""
        before = self.caches
        path = self.rows(name, *args, **kwargs)._path
        assert path.stem in self.caches
        assert self.caches - before <= {path.stem}
        return path.stem

    @property
    def caches(self) -> set[str]:
        return {path.stem for path in self.cache.glob("*.bin")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_cache_of_former_content_is_removed(world: World) -> None:
    """Whichever run used it: nobody can find it any more."""
    world.open("a")
    world.open("b")
    assert world.told == []
    world.correct(50)
    new = world.open("c")
    assert world.caches == {new}
    assert {path.stem for path in world.cache.iterdir()} == {new}, "nor any file that was beside it"
    assert world.told == [f"{world.cache}: a cache of files that have changed since removed, 0.0 MB freed"]


def test_what_is_something_else_stays(world: World) -> None:
    stay = {world.open("a", kind="labels of another domain"), world.open("a", (0, 1), stream="labelled")}
    world.open("a")
    world.correct(50)
    new = world.open("a")
    assert world.caches == {new, *stay}
    (world.root / "elsewhere").mkdir()
    world.files = [world.root / "elsewhere" / file.name for file in world.files]
    world.correct()
    assert world.caches | {world.open("a")} == world.caches
    assert len(world.caches) == 4


def test_another_choice_of_files_stays_while_another_run_uses_it(world: World) -> None:
    whole, both = world.open("a"), world.open("b", (0, 1))
    assert world.caches == {whole, both}
    some = world.open("a", (0, 1, 2))
    assert world.caches == {some, both}, "the same run now wants others"
    (world.root / "runs" / "b").rmdir()
    assert world.open("c", (3,)) in world.caches
    assert both not in world.caches, "its only run was deleted"
    assert some in world.caches
    world.correct(50)
    last = world.open("a", (0, 1, 2))
    assert some not in world.caches
    assert last in world.caches


HOLDER = """
import sys
from pathlib import Path
import numpy as np
from endauda_cli.progress import silent
from endauda_cli.training.cache import RowFile
rows = RowFile(Path(sys.argv[1]), (4, 1000), lambda i: np.zeros(1000, np.uint8), silent)
rows.map()
print("held", flush=True)
sys.stdin.readline()
print([int(row[0]) for row in rows])
"""


@pytest.fixture
def holder(world: World) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains on the first content."""
    path = world.cache / f"{world.open('a')}.bin"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_what_a_process_trains_on_stays(world: World, holder: subprocess.Popen[str]) -> None:
    (old,) = world.caches
    world.correct(50)
    new = world.open("b")
    assert world.caches == {old, new}
    assert world.told == []
    out, _ = holder.communicate("\n", timeout=60)
    assert out == "[1, 2, 3, 4]\n"
    world.open("b")
    assert world.caches == {new}, "once it has ended"


def test_nothing_is_removed_where_the_system_has_no_locks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.open("a")
    monkeypatch.setattr(fcntl, "flock", no_lock)
    world.correct(50)
    world.open("a")
    assert len(world.caches) == 2


def no_lock(*args: Any) -> None:
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_who_comes_while_a_cache_is_removed_makes_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the file that is gone before it could lock it."""
    name = world.open("a")
    gone: list[int | None] = []

    def removed_first(descriptor: int, shared: bool) -> bool:
        if not gone:
            gone.append(remove(world.cache / f"{name}.bin"))
        return lock_file(descriptor, shared)

    monkeypatch.setattr(cache, "lock_file", removed_first)
    rows = world.rows("a")
    assert gone == [4000]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4]
    assert (world.cache / f"{name}.bin").stat().st_size == 4000


def test_no_other_file_is_touched(world: World) -> None:
    old = world.open("a")
    record = (world.cache / f"{old}.json").read_text()
    (world.root / "precious.bin").write_bytes(b"x")
    names = {
        "photos.bin": b"x", "photos.json": record.encode(), f"{'0' * 23}.bin": b"x",
        f"{'0' * 23}.json": record.encode(), f"{'1' * 24}.bin": b"without a record",
        f"{'2' * 24}.bin": b"x", f"{'2' * 24}.json": b"[" * 100_000, f"{'3' * 24}.bin": b"x",
        f"{'3' * 24}.json": json.dumps(json.loads(record) | {"uses": [3]}).encode(),
        f"{'4' * 24}.json": record.encode(), "notes.txt": b"x",
    }  # fmt: skip
    for name, content in names.items():
        (world.cache / name).write_bytes(content)
    link = world.cache / f"{'4' * 24}.bin"
    link.symlink_to(world.root / "precious.bin")
    before = files_of(world.cache)
    world.correct(50)
    new = world.open("b")
    after = {name: content for name, content in files_of(world.cache).items() if not name.startswith(new)}
    assert after == {name: content for name, content in before.items() if not name.startswith(old)}
    assert link.is_symlink()
    assert (world.root / "precious.bin").exists()


def test_who_uses_it_is_written_down(world: World) -> None:
    name = world.open("a")
    world.open("b", stream="other")
    record = json.loads((world.cache / f"{name}.json").read_text())
    runs = world.root.resolve() / "runs"
    assert record["folder"] == str(world.root.resolve() / "labels")
    assert record["uses"] == [[str(runs / "a"), "main"], [str(runs / "b"), "other"]]


def test_labels_that_change_leave_no_cache_behind(tiny_set: TinySet, tmp_path: Path) -> None:
    """Images are decoded once; of the labels the last ones stay."""
    notes = Notes()
    for turn in range(3):
        run(tiny_set, tmp_path / f"run{turn}", notes, **SHORT)
        names = {path.stem for path in (tmp_path / "cache").glob("*.bin")}
        assert len(names) == 2
        for i in range(4):
            path = tiny_set.root / "fused" / f"{i}.png"
            with Image.open(path) as image:
                label = np.roll(np.asarray(image), 1 + turn, 1)
            Image.fromarray(label).save(path)
    assert len([note for note in notes if "freed" in note]) == 2
    assert {path.stem for path in (tmp_path / "cache").iterdir()} == names


def test_a_damaged_cache_teaches_nothing(tiny_set: TinySet, tmp_path: Path) -> None:
    """A power cut left half of each file empty: the run is the same."""
    expected = run(tiny_set, tmp_path / "one", silent, **SHORT | {"steps": 6})
    for path in (tmp_path / "cache").glob("*.bin"):
        half = path.stat().st_size // 2
        with path.open("rb+") as file:
            file.seek(half)
            file.write(bytes(half))
    notes = Notes()
    assert run(tiny_set, tmp_path / "two", notes, **SHORT | {"steps": 6}).last_loss == expected.last_loss
    assert len([note for note in notes if "damaged" in note]) == 2, "images and labels"
