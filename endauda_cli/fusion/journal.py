"""Store: which images of a label set are finished, and what was counted in them.

One JSON file of lines per process, ``fusion.jsonl`` or, of the third of eight parts, ``fusion-3-of-8.jsonl``: a
head that says what all images have in common (the *fingerprint*), then a line per finished image. A process reads
the journals of all, writes its own, and touches no labels but those of its own images, so any number of them can
work in one folder. Who finds every image finished puts the journals together.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError
from endauda_cli.labels import label_files
from endauda_cli.workspace import JOURNAL_FILE, JOURNALS, RECORD_FILE, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

Line = dict[str, Any]


def refuse_other_set(folder: Path, about: dict[str, str]) -> None:
    """Labels of other images or class tables must not mix; those of other options are replaced.

    Raises:
        ConfigError: if the folder holds labels that ``about`` does not describe.
    """
    heads = [lines[0] for path in sorted(folder.glob(JOURNALS)) if (lines := _read(path))]
    for head in (*heads, read_json(folder / RECORD_FILE) or {}):
        for key, now in about.items():
            if head.get(key, now) != now:
                raise ConfigError(
                    f"{folder}: holds labels of {key} {head[key]}, not {now}; give these another --name, or "
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
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        about: dict[str, str],
        images: Sequence[str],
        mine: Sequence[str],
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        number, of = shard
        self.folder = folder
        self.head: Line = {"fingerprint": fingerprint, **about}
        self.path = folder / (JOURNAL_FILE if of == 1 else f"fusion-{number}-of-{of}.jsonl")
        self.images, self.mine = images, mine
        self.lines = self._found()

    def find(self, image: str, inputs: str) -> Line | None:
        """The counts of an image that is finished, whose inputs have not changed, and whose files are there."""
        line = self.lines.get((image, inputs))
        if line is None:
            return None
        label, colours = label_files(self.folder, image)
        # The size shows what a power cut has cut short.
        whole = label.exists() and label.stat().st_size == line["bytes"] and colours.exists()
        return line if whole else None

    def begin(self) -> None:
        """Make the folder this recipe's: what remains of others is deleted, as far as it is this process's."""
        (self.folder / RECORD_FILE).unlink(missing_ok=True)  # whole again only at the end
        for path in self.folder.glob(JOURNALS):
            lines = _read(path)
            if lines[:1] != [self.head]:
                self._delete_labels({line["id"] for line in lines[1:]} - set(self.images))
                if path != self.path:
                    path.unlink(missing_ok=True)
        known = {image for image, _ in self.lines}
        self._delete_labels(set(self.mine) - known)
        # Rewritten, not appended to: a kill may have left half a line at the end.
        mine = set(self.mine)
        self._write(line for (image, _), line in self.lines.items() if image in mine)

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
        self.lines[line["id"], line["inputs"]] = line
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error}); free disk space and run again"
            ) from error

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
        for path in self.folder.glob(JOURNALS):
            if path != self.path:
                path.unlink(missing_ok=True)

    def _found(self) -> dict[tuple[str, str], Line]:
        """The lines of all journals of this fingerprint, by image and inputs."""
        found: dict[tuple[str, str], Line] = {}
        for path in sorted(self.folder.glob(JOURNALS)):
            lines = _read(path)
            if lines[:1] == [self.head]:
                found |= {(line["id"], line["inputs"]): line for line in lines[1:]}
        return found

    def _delete_labels(self, images: Iterable[str]) -> None:
        for image in images:
            for path in label_files(self.folder, image):
                path.unlink(missing_ok=True)

    def _write(self, lines: Iterable[Line]) -> None:
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in (self.head, *lines)))


def _read(path: Path) -> list[Any]:
    """The lines up to the first that a kill has torn; none if another process has just put it away."""
    lines: list[Any] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return lines
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
