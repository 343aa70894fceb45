"""Store: which images of a label set are finished, and what was counted in them.

One JSON file of lines per process, ``fusion.jsonl`` or, of the third of eight parts, ``fusion-3-of-8.jsonl``: a
head that says what all images have in common (the *fingerprint*), then a line per finished image. A process reads
the journals of all, writes its own, and touches no labels but those of its own images, so any number of them can
work in one folder. Who finds every image finished puts the journals together.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError
from endauda_cli.files import cannot_write, open_regular
from endauda_cli.labels import label_files
from endauda_cli.names import id_fault
from endauda_cli.workspace import JOURNAL_FILE, JOURNALS, RECORD_FILE, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

Line = dict[str, Any]

LINE_BYTES = 16 << 20
"""More than the counts of one image take, of however many classes and teachers."""
INPUTS_KEPT = 8
"""Of an image whose inputs have changed, so many lines are remembered."""


def refuse_other_set(folder: Path, about: dict[str, str]) -> None:
    """Labels of other images or class tables must not mix; those of other options are replaced.

    Raises:
        ConfigError: if the folder holds labels that ``about`` does not describe.
    """
    for head in (*map(_head, _journals(folder)), read_json(folder / RECORD_FILE)):
        for key, now in about.items():
            if head is not None and head.get(key, now) != now:
                raise ConfigError(
                    f"{folder}: holds labels of {key} {head[key]!s:.80}, not {now}; give these another --name, or "
                    "delete the folder"
                )


class Journal:
    """The finished images of a label set, as one of several processes sees and adds to them.

    Args:
        folder: of the label set.
        fingerprint: of what all images have in common; lines of another one do not count.
        about: what else the head says.
        images: of the whole set.
        mine: those that this process is to make.
        shard: (number, of).
        whole: whether a line holds all counts; where it does not, its image is made again.

    Raises:
        ConfigError: if a journal in the folder has ids that lead out of it.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        about: dict[str, str],
        images: Sequence[str],
        mine: Sequence[str],
        shard: tuple[int, int] = (1, 1),
        whole: Callable[[Line], bool] = lambda _: True,
    ) -> None:
        number, of = shard
        self.folder = folder
        self.head: Line = {"fingerprint": fingerprint, **about}
        self.path = folder / (JOURNAL_FILE if of == 1 else f"fusion-{number}-of-{of}.jsonl")
        self.images, self.mine = images, mine
        self._all, self._whole = frozenset(images), whole
        self.lines = self._found()

    def find(self, image: str, inputs: str) -> Line | None:
        """The counts of an image that is finished, whose inputs have not changed, and whose files are there."""
        line = self.lines.get(image, {}).get(inputs)
        if line is None:
            return None
        label, colours = label_files(self.folder, image)
        # The size shows what a power cut has cut short.
        try:
            there = label.stat().st_size == line["bytes"] and colours.exists()
        except OSError:
            return None
        return line if there else None

    def begin(self) -> None:
        """Make the folder this recipe's: what remains of others is deleted, as far as it is this process's."""
        (self.folder / RECORD_FILE).unlink(missing_ok=True)  # whole again only at the end
        for path in _journals(self.folder):
            if _head(path) != self.head:
                self._delete_labels(line["id"] for line in _lines(path) if line["id"] not in self._all)
                if path != self.path:
                    path.unlink(missing_ok=True)
        self._delete_labels(set(self.mine) - self.lines.keys())
        # Rewritten, not appended to: a kill may have left half a line at the end.
        self._write(line for image in self.mine for line in self.lines.get(image, {}).values())

    def __enter__(self) -> Journal:
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, line: Line) -> None:
        """Note that an image is finished.

        Raises:
            ConfigError: if the disk is full.
        """
        self._remember(self.lines, line)
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise ConfigError(f"{self.path}: {cannot_write(error)}") from error

    def collect(self, inputs: Callable[[str], str]) -> list[Line] | None:
        """The lines of all images of the set, in order; ``None`` if other processes have not finished yet.

        Args:
            inputs: the digest of what goes into an image.
        """
        self.lines = self._found()
        lines = [line for image in self.images if (line := self.find(image, inputs(image))) is not None]
        return lines if len(lines) == len(self.images) else None

    def merge(self, lines: Iterable[Line]) -> None:
        """Put all journals together, once every image is finished. Several processes may do so at once."""
        self.path = self.folder / JOURNAL_FILE
        self._write(lines)
        for path in _journals(self.folder):
            if path != self.path:
                path.unlink(missing_ok=True)

    def _found(self) -> dict[str, dict[str, Line]]:
        """The lines of all journals of this fingerprint, by image and inputs. The ids of all are looked at."""
        found: dict[str, dict[str, Line]] = {}
        for path in _journals(self.folder):
            ours = _head(path) == self.head
            for line in _lines(path):
                if ours and line["id"] in self._all and self._whole(line):
                    self._remember(found, line)
        return found

    @staticmethod
    def _remember(lines: dict[str, dict[str, Line]], line: Line) -> None:
        of_image = lines.setdefault(line["id"], {})
        of_image[line["inputs"]] = line
        if len(of_image) > INPUTS_KEPT:
            del of_image[next(iter(of_image))]

    def _delete_labels(self, images: Iterable[str]) -> None:
        inside = self.folder.resolve()
        for image in images:
            for path in label_files(self.folder, image):
                if "/" not in image or path.parent.resolve().is_relative_to(inside):  # not through a link
                    path.unlink(missing_ok=True)

    def _write(self, lines: Iterable[Line]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in (self.head, *lines)))


def finished(folder: Path) -> dict[str, int]:
    """The images that any journal of the folder tells of, with the bytes of their labels.

    Raises:
        ConfigError: if a journal has ids that lead out of the folder.
    """
    lines = (line for path in _journals(folder) for line in _lines(path))
    return {line["id"]: size for line in lines if type(size := line.get("bytes")) is int}


def disputes(folder: Path) -> dict[str, float]:
    """Share of the pixels of each finished image that teachers give different classes, 0..1; empty without a journal.

    Raises:
        ConfigError: if a journal has ids that lead out of the folder.
    """
    found = {}
    for path in _journals(folder):
        for line in _lines(path):
            pixels, disputed = line.get("pixels"), line.get("disputed")
            if type(pixels) is int and type(disputed) is int and 0 <= disputed <= pixels and pixels:
                found[line["id"]] = disputed / pixels
    return found


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(JOURNALS) if path.is_file())


def _head(path: Path) -> Line | None:
    """The first line; ``None`` if it is torn, or another process has just put the journal away."""
    with closing(_objects(path)) as lines:
        return next(lines, None)


def _lines(path: Path) -> Iterator[Line]:
    """The lines after the head, up to the first that a kill has torn.

    Raises:
        ConfigError: if one has an id that leads out of the folder.
    """
    with closing(_objects(path)) as lines:
        next(lines, None)
        for line in lines:
            fault = id_fault(line.get("id"))
            if isinstance(line.get("id"), str) and fault is not None:
                raise ConfigError(
                    f"{path}: {line['id']!r:.80} is no image id, it {fault}; so this journal is not from 'endauda "
                    "fuse', and nothing is written or deleted by it: delete this file, and fuse again"
                )
            if fault is not None or not isinstance(line.get("inputs"), str):
                return
            yield line


def _objects(path: Path) -> Generator[Line, None, None]:
    """The objects in a journal, one at a time."""
    try:
        with open_regular(path, None) as file:
            while text := file.readline(LINE_BYTES):
                value = json.loads(text)
                if not isinstance(value, dict):
                    return
                yield value
    except (OSError, ValueError, RecursionError):
        return
