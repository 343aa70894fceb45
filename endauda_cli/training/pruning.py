"""Store: who uses which cache of decoded rows, so that one that nobody can use any more does not lie there for ever.

Beside each cache lies a record of what its rows are made of and which runs use it. A cache is superseded when a newer
one holds the same kind of rows of the same files, for then their content has changed and no run can find the old one;
or of another choice of files of that folder, once no other run that is still there uses the old one. A cache that a
process holds is left alone, and so is every file that is not one of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from endauda_cli.errors import WorkspaceError
from endauda_cli.files import is_file_of, lock_file, size_text
from endauda_cli.progress import Note, Reporter
from endauda_cli.workspace import read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROWS, SUMS, RECORD = ".bin", ".sums", ".json"
_SUFFIXES = (ROWS, SUMS, ".filled", RECORD)
"""Of a cache's files, the record last: what a killed process leaves is found by it; one is of an earlier version."""
_NAME = re.compile(r"[0-9a-f]{24}")


class Use(NamedTuple):
    """What a cache is for."""

    kind: str
    """What its rows are, apart from the files: of one kind and one choice of files only one cache is right."""
    run: Path
    stream: str


def supersede(path: Path, names: Sequence[str], use: Use, report: Reporter) -> None:
    """Note who uses the cache at ``path``, and remove those that it takes the place of, which is told.

    Where nothing can be written nothing happens.

    Args:
        path: of the cache, which need not be there yet.
        names: resolved paths of what its rows are made of.
        use: what for.
        report: told of what was removed.
    """
    record = _Record.of(names, use)
    before = _Record.read(path)
    if before is not None and before.about == record.about:
        record = before.with_use(use)
    with suppress(WorkspaceError):
        if record != before:
            write_text(path.with_suffix(RECORD), record.text)
        removed = [size for size in _superseded(path, record, use) if size is not None]
        if removed:
            what = "a cache" if len(removed) == 1 else f"{len(removed)} caches"
            report(
                Note(
                    f"{path.parent}: {what} of files that have changed since removed, {size_text(sum(removed))} freed"
                )
            )


def _superseded(path: Path, record: _Record, use: Use) -> Iterator[int | None]:
    """Bytes freed by each cache that is removed."""
    for other in sorted(path.parent.glob(f"*{RECORD}")):
        old = _Record.read(other)
        if other.stem == path.stem or old is None or (old.kind, old.folder) != (record.kind, record.folder):
            continue
        left = old.without(use)
        if left.files == record.files or not left.uses:
            yield remove(other)
        elif left != old:
            write_text(other, left.text)


def remove(path: Path) -> int | None:
    """Remove a cache, one of whose files ``path`` is; its bytes, or ``None`` if a process holds it or may do so."""
    if _NAME.fullmatch(path.stem) is None:
        return None
    rows, size = path.with_suffix(ROWS), 0
    try:
        descriptor = os.open(rows, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        descriptor = None
    except OSError:
        return None
    try:
        if descriptor is not None:
            if not lock_file(descriptor) or not is_file_of(descriptor, rows):
                return None
            size = os.fstat(descriptor).st_size
        unlink(path)
    except OSError:  # BlockingIOError: held
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return size


def unlink(path: Path) -> None:
    """Remove all files of a cache, one of which ``path`` is."""
    for suffix in _SUFFIXES:
        path.with_suffix(suffix).unlink(missing_ok=True)


class _Record(NamedTuple):
    """What lies beside a cache."""

    kind: str
    folder: str
    """Under which all its files lie."""
    files: str
    """Digest of their names."""
    uses: frozenset[tuple[str, str]]
    """Folders of runs, and the stream in each."""

    @property
    def about(self) -> tuple[str, str, str]:
        return self.kind, self.folder, self.files

    @staticmethod
    def of(names: Sequence[str], use: Use) -> _Record:
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        return _Record(use.kind, folder, digest.hexdigest()[:32], frozenset({_key(use)}))

    @staticmethod
    def read(path: Path) -> _Record | None:
        """``None`` if there is none that is one of ours."""
        if _NAME.fullmatch(path.stem) is None:
            return None
        found: dict[str, Any] = read_json(path.with_suffix(RECORD)) or {}
        if found.keys() != set(_Record._fields):
            return None
        kind, folder, files, uses = (found[name] for name in _Record._fields)
        if not all(isinstance(text, str) for text in (kind, folder, files)) or not isinstance(uses, list):
            return None
        pairs = [tuple(pair) for pair in uses if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) < len(uses) or not all(isinstance(text, str) for pair in pairs for text in pair):
            return None
        return _Record(kind, folder, files, frozenset(pairs))

    @property
    def text(self) -> str:
        return json.dumps(self._asdict() | {"uses": sorted(self.uses)}, indent=1) + "\n"

    def with_use(self, use: Use) -> _Record:
        return self._replace(uses=self.uses | {_key(use)})

    def without(self, use: Use) -> _Record:
        """Without a use, and those by runs that are no more."""
        gone = {(run, stream) for run, stream in self.uses if not Path(run).is_dir()}
        return self._replace(uses=self.uses - gone - {_key(use)})


def _key(use: Use) -> tuple[str, str]:
    return str(use.run.absolute()), use.stream
