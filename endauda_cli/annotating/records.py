"""Store: which images of an export are finished, and what its index says of them.

One file of JSON lines beside the images, ``export-train.jsonl``: a head, then a line per finished image; the last line
of an image counts. What is stored of an image is read again when the index is written, so that however many there are,
only their places in the file are held.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError, DataError
from endauda_cli.files import cannot_write, open_regular
from endauda_cli.names import id_fault
from endauda_cli.workspace import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

    from endauda_cli.annotating.kinds import Entry

LINE_BYTES = 256 << 20
"""More than the runs of one image take."""
JOURNALS = "export-*.jsonl"
OUR_FOLDERS = ("images", "masks", "results", "panoptic")
"""Folders of an export in which files of images that are no longer in it are removed."""


class Record:
    """The finished images of an export.

    Args:
        out: its folder.
        about: what all images have in common.
        split: of the images; others may lie beside them.

    Raises:
        ConfigError: if the folder holds anything else.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], split: str) -> None:
        self.out, self.path = out, out / f"export-{split}.jsonl"
        self._about = json.loads(json.dumps(about))
        self._refuse_others()
        self._places: dict[str, tuple[int, str, dict[str, int]]] = {}
        self._end = self._look()

    def done(self, image: str, inputs: str) -> bool:
        """Whether an image is finished, made of the same, and its files are there."""
        place = self._places.get(image)
        if place is None or place[1] != inputs:
            return False
        try:
            return all((self.out / name).stat().st_size == size for name, size in place[2].items())
        except OSError:
            return False

    def begin(self, images: Iterable[str]) -> None:
        """Remove the files of images that are no longer wanted, and the line that a kill has torn."""
        make_folder(self.out)
        wanted, inside = set(images), self.out.resolve()
        for image, (_, _, files) in self._places.items():
            for name in files if image not in wanted else ():
                path = self.out / name
                if name.split("/")[0] in OUR_FOLDERS and path.parent.resolve().is_relative_to(inside):
                    path.unlink(missing_ok=True)
        try:
            self._file = self.path.open("r+b" if self._end else "wb")
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if not self._end:
                self._write(self._about)
        except OSError as error:
            raise ConfigError(f"{self.path}: {cannot_write(error)}") from error

    def add(self, image: str, inputs: str, files: dict[str, int], entry: Entry) -> None:
        """Note that an image is finished.

        Raises:
            ConfigError: if the disk is full.
        """
        self._places[image] = self._end, inputs, files
        try:
            self._write({"id": image, "inputs": inputs, "files": files, "entry": entry})
        except OSError as error:
            raise ConfigError(f"{self.path}: {cannot_write(error)}") from error

    def close(self) -> None:
        self._file.close()

    def entries(self, images: Iterable[str]) -> Iterator[Entry]:
        """What was stored of some images, all of them finished.

        Raises:
            DataError: if another process has changed the file.
        """
        with self.path.open("rb") as file:
            for image in images:
                file.seek(self._places[image][0])
                line = _line(file)
                if line is None or line["id"] != image:
                    raise DataError(
                        f"{self.path}: changed while it was read; see that one process writes here"
                    )
                yield line["entry"]

    def _write(self, value: Any) -> None:
        data = (json.dumps(value) + "\n").encode()
        self._file.write(data)
        self._file.flush()
        self._end += len(data)

    def _refuse_others(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise ConfigError(f"{self.out}: a file stands there; name a folder with --out")
        heads = [head for path in sorted(self.out.glob(JOURNALS)) if (head := _head(path)) is not None]
        visible = (path for path in self.out.iterdir() if not path.name.startswith("."))
        if not heads and any(not path.match(JOURNALS) for path in visible):
            raise ConfigError(f"{self.out}: holds other files; name an empty folder with --out, or a new one")
        for head in heads:
            for key, now in self._about.items():
                if head.get(key) != now:
                    raise ConfigError(
                        f"{self.out}: an export with another {key} lies there; name another folder with --out, or "
                        "delete this one"
                    )

    def _look(self) -> int:
        """Find the lines; returns where the last whole one ends."""
        if not self.path.is_file():
            return 0
        with open_regular(self.path, None) as file:
            if _object(file) != self._about:
                return 0
            end = file.tell()
            while (line := _line(file)) is not None:
                self._places[line["id"]] = end, line["inputs"], line["files"]
                end = file.tell()
            return end


def _head(path: Path) -> dict[str, Any] | None:
    try:
        with open_regular(path, None) as file:
            return _object(file)
    except OSError:
        return None


def _object(file: BufferedReader) -> dict[str, Any] | None:
    """The object on the next line; ``None`` at the end, and for a line that is torn or no object."""
    text = file.readline(LINE_BYTES)
    if not text.endswith(b"\n"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _line(file: BufferedReader) -> dict[str, Any] | None:
    """The next image's; ``None`` where nothing that we wrote comes any more."""
    line = _object(file)
    if line is None or id_fault(line.get("id")) is not None or not isinstance(line.get("inputs"), str):
        return None
    files = line.get("files")
    if not isinstance(line.get("entry"), dict) or not isinstance(files, dict):
        return None
    if any(id_fault(name) is not None or type(size) is not int for name, size in files.items()):
        return None
    return line
