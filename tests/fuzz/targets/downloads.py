"""Archives that were fetched."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from typing import TYPE_CHECKING

from endauda_cli.weights.unpacking import is_archive, unpack
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILES = {"models/a.bin": b"weights", "readme.txt": b"read me"}


def unpack_archive(data: bytes, folder: Path) -> None:
    """Whatever comes out lies in the folder, as plain files."""
    path = folder / "download"
    path.write_bytes(data)
    if is_archive(path):
        unpack(path, folder / "out", lambda name: True, "archive")
    for place, _, names in os.walk(folder):
        assert not any(os.path.islink(os.path.join(place, name)) for name in names)
    assert {path.name for path in folder.iterdir()} <= {"download", "out"}


def archives() -> Sequence[bytes]:
    made = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file := io.BytesIO(), "w", kind) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
        made.append(file.getvalue())
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode) as tar:
            for name, content in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        made.append(file.getvalue())
    return made


TARGETS = (Target("unpack", unpack_archive, archives),)
