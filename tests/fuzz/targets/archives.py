"""Certainty archives: each of their files with every checksum made to fit, and each decoder."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.archive import CODECS, CertaintyReader, grids, layout, shard, verify
from endauda_cli.archive.codecs import DECODER_ERRORS, Chunk, crc32
from endauda_cli.archive.grids import GridForm
from endauda_cli.archive.manifest import ArchiveInfo
from endauda_cli.errors import ArchiveError
from endauda_cli.types import Codec
from tests.fuzz.target import Target
from tests.support.archive_samples import CLASSES, derived, own_grids, samples, smooth, write
from tests.support.forged import fit, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHARD = "shard-0-of-1-00000.h5"


@cache
def _sample() -> Path:
    """An archive that is whole, written once."""
    return write(Path(tempfile.mkdtemp(prefix="fuzz-archive-")) / "a", samples(4))


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(_sample(), folder / "a"))


def _read_all(archive: Path) -> None:
    verify(archive)
    layout.image_ids(archive)
    with CertaintyReader(archive) as reader:
        for id in reader.ids[:3]:
            assert (archive / f"{id}.png").resolve().is_relative_to(archive.resolve())
            reader.size(id)
            reader.labels(id)
            reader.certainty(id)


def _read_json(name: str) -> Callable[[bytes, Path], None]:
    """The bytes are the file; or, if they are a JSON object, its content under a checksum that fits."""

    def read(data: bytes, folder: Path) -> None:
        archive = _copy(folder)
        (archive / name).write_bytes(data)
        try:
            rewrite(archive / name)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            (archive / name).write_bytes(data)
        _read_all(archive)

    return read


def _json_seeds(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [(_sample() / name).read_bytes(), b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}"]


def read_shard(data: bytes, folder: Path) -> None:
    archive = _copy(folder)
    fit(archive / SHARD, data)
    _read_all(archive)


def read_waiting(data: bytes, folder: Path) -> None:
    archive = _copy(folder)
    part = layout.part(archive, "1-of-2")
    part.mkdir()
    layout.waiting_image(part, shard.sha256(data)).write_bytes(data)
    _read_all(archive)


def _waiting_seeds() -> Sequence[bytes]:
    return [
        *(
            shard.image_file(shard.code_image(codec, "x", *smooth(1, len(CLASSES), 20, 30)))
            for codec in CODECS
        ),
        shard.image_file(_of_grids("x")),
    ]


def _of_grids(id: str) -> shard.CodedImage:
    said = own_grids(1, len(CLASSES), [(2, 3), (3, 2)])
    return shard.code_grids(id, smooth(1, len(CLASSES), 20, 30)[0], said)


def read_grid(data: bytes, folder: Path) -> None:
    """A stream of a grid, and what it means at the size of an image."""
    form = GridForm(((4, 5),), (1.0,), "last", True)
    try:
        derived(grids.unpack(form, len(CLASSES), [Chunk(data, False, crc32(data))]), 40, 50)
    except (ValueError, *DECODER_ERRORS) as error:
        raise ArchiveError("damage") from error


def _grid_seeds() -> Sequence[bytes]:
    return [bytes(chunk.data) for chunk in grids.pack(own_grids(1, len(CLASSES), [(4, 5)]))]


def _shard_seeds() -> Sequence[bytes]:
    groups = [shard.code_image(Codec.GZIP, f"x{i}", *smooth(i, len(CLASSES), 4, 5 + i)) for i in range(12)]
    return [
        (_sample() / SHARD).read_bytes(),
        shard.shard_file(ArchiveInfo(CLASSES, {}), [*groups, _of_grids("y")]),
    ]


def _decoder(codec: Codec) -> Target:
    plane = smooth(1, 1, 20, 30)[1]

    def read(data: bytes, folder: Path) -> None:
        """Model, if the codec has one, then the stream."""
        size = CODECS[codec].model_bytes
        model, stream = np.frombuffer(data[:size].ljust(size, b"\0"), np.uint8), data[size:]
        out = np.empty(plane.shape[1:], np.uint8)
        try:
            CODECS[codec].unpacker(model)(Chunk(stream, False, crc32(stream)), out)
        except (ValueError, *DECODER_ERRORS) as error:
            raise ArchiveError("damage") from error

    def seeds() -> Sequence[bytes]:
        packed = CODECS[codec].pack(plane)
        return [packed.model.tobytes() + bytes(packed.chunks[0].data)]

    return Target(f"codec-{codec}", read, seeds, tries=500)


TARGETS = (
    Target("archive-info", _read_json("archive.json"), _json_seeds("archive.json"), tries=150),
    Target(
        "archive-manifest",
        _read_json(SHARD.replace(".h5", ".json")),
        _json_seeds(SHARD.replace(".h5", ".json")),
        tries=150,
    ),
    Target("archive-waiting", read_waiting, _waiting_seeds, tries=150),
    Target("archive-shard", read_shard, _shard_seeds, tries=150),
    *map(_decoder, CODECS),
    Target("grid", read_grid, _grid_seeds, tries=500),
)
