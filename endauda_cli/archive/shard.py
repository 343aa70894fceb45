"""The HDF5 half of an archive: images in a file, as bytes to be written at once, and back.

C classes, H rows, W columns of one image.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from endauda_cli.archive.codecs import Bytes, Chunk, PlaneCodec, codec_for, codec_of, label_codec_for
from endauda_cli.archive.manifest import FORMAT, FORMAT_VERSION, ArchiveInfo, ImageEntry
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from endauda_cli.types import Codec

# HDF5 1.10's file layout: every structure but the data is checksummed, HDF5 of 2016 and later reads it.
_LIBRARY = ("v110", "v110")
_GROWTH = 4 << 20  # an HDF5 file in memory grows by so many bytes


def image_key(id: str) -> str:
    """The image's name inside an HDF5 file, where a slash would open a group."""
    return id.replace("%", "%25").replace("/", "%2F")


class CodedImage(NamedTuple):
    """An image, compressed; all that is left to do is to store the bytes."""

    id: str
    entry: ImageEntry
    label_codec: PlaneCodec
    codec: PlaneCodec
    chunks: tuple[Chunk, ...]
    """Of the label map, then of each class plane."""


def code_image(codec: Codec, id: str, label: Bytes, certainty: Bytes) -> CodedImage:
    """Compress one image; for as many threads at once as there are cores.

    label: (H, W) uint8; certainty: (C, H, W) uint8; both contiguous and checked by the caller.
    """
    height, width = label.shape
    entry = ImageEntry(height, width, _content_digest(label, certainty))
    of_label, of_planes = label_codec_for(codec), codec_for(codec, height, width)
    chunks = (of_label.pack(label), *(of_planes.pack(plane) for plane in certainty))
    return CodedImage(id, entry, of_label, of_planes, chunks)


def image_file(info: ArchiveInfo, image: CodedImage) -> bytes:
    """An HDF5 file, as bytes, that holds one image."""
    height, width = image.entry.height, image.entry.width
    label, *planes = image.chunks
    with _file_in_memory(info) as file:
        group = file.create_group(f"images/{image_key(image.id)}")
        _create(group, "certainty", (len(planes), height, width), image.codec, planes)
        _create(group, "label", (height, width), image.label_codec, [label])
        group.attrs["digest"] = np.bytes_(image.entry.digest)
        group.attrs["done"] = np.uint8(1)
        file.flush()
        data: bytes = file.id.get_file_image()
        return data


def _create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    codec: PlaneCodec,
    chunks: Sequence[Chunk],
) -> None:
    plane_shape = shape[-2:]
    dataset = group.create_dataset(
        name, shape, np.uint8, chunks=(1,) * (len(shape) - 2) + plane_shape, **codec.arguments
    )
    for i, chunk in enumerate(chunks):
        place = (i, 0, 0)[3 - len(shape) :]
        dataset.id.write_direct_chunk(place, chunk.data, filter_mask=int(chunk.raw))
    dataset.attrs["crc32"] = np.array([zlib.crc32(chunk.data) for chunk in chunks], np.uint32)
    if codec.delta:
        dataset.attrs["delta"] = np.uint8(1)


def merge_files(info: ArchiveInfo, paths: Iterable[Path]) -> bytes:
    """One HDF5 file, as bytes, with the images of all the files; compressed chunks are copied as they are."""
    with _file_in_memory(info) as file:
        images = file.create_group("images")
        for path in paths:
            with open_file(path) as source:
                for key in source["images"]:
                    source.copy(f"images/{key}", images, key)
        file.flush()
        data: bytes = file.id.get_file_image()
        return data


def open_file(path: Path) -> h5py.File:
    """Opens for reading, without the lock that some network shares refuse: named files never change.

    Raises FileNotFoundError if it is gone, OSError if it is no HDF5 file.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as exc:
        if not path.exists():  # h5py says so only if it was gone before, not during the call
            raise FileNotFoundError(path) from exc
        raise


def list_images(file: h5py.File) -> dict[str, ImageEntry]:
    """The finished images of an open file."""
    entries = {}
    for key, group in file["images"].items():
        if group.attrs["done"] == 1:
            _, height, width = group["certainty"].shape
            id = key.replace("%2F", "/").replace("%25", "%")
            entries[id] = ImageEntry(height, width, group.attrs["digest"].decode())
    return entries


class StoredPlane(NamedTuple):
    """A plane as it lies in a file, and what is needed to decode and to check it."""

    codec: PlaneCodec
    chunk: Chunk
    shape: tuple[int, int]
    crc: int

    def decode(self) -> Bytes:
        """(H, W) uint8. Raises ArchiveError if the bytes are not those stored."""
        # Before decoding: on some damaged bytes a decoder works for seconds.
        _expect(zlib.crc32(self.chunk.data) == self.crc, "a checksum does not match")
        plane = self.codec.unpack(self.chunk, self.shape)
        _expect(plane.shape == self.shape and plane.dtype == np.uint8, "another size")
        return plane


def read_planes(file: h5py.File, id: str, entry: ImageEntry, classes: Sequence[int]) -> list[StoredPlane]:
    """Planes of one image, still coded.

    Raises ArchiveError if the image is not done or of another size; h5py raises many things on damage.
    """
    dataset = _finished(file, id)["certainty"]
    _expect(dataset.shape[1:] == (entry.height, entry.width) and dataset.dtype == np.uint8, "another size")
    codec, crcs = codec_of(dataset), dataset.attrs["crc32"]
    return [_stored(dataset, (int(c), 0, 0), codec, entry, int(crcs[c])) for c in classes]


def read_label(file: h5py.File, id: str, entry: ImageEntry) -> StoredPlane:
    """The label map of one image, still coded. Raises as ``read_planes``."""
    dataset = _finished(file, id)["label"]
    _expect(dataset.shape == (entry.height, entry.width) and dataset.dtype == np.uint8, "another size")
    return _stored(dataset, (0, 0), codec_of(dataset), entry, int(dataset.attrs["crc32"][0]))


def _stored(
    dataset: h5py.Dataset, place: tuple[int, ...], codec: PlaneCodec, entry: ImageEntry, crc: int
) -> StoredPlane:
    mask, data = dataset.id.read_direct_chunk(place)
    return StoredPlane(codec, Chunk(data, mask != 0), (entry.height, entry.width), crc)


def check_image(file: h5py.File, id: str, entry: ImageEntry) -> None:
    """Decodes the whole image. Raises ArchiveError if it is not what was stored; h5py raises many things."""
    planes = read_planes(file, id, entry, range(len(file.attrs["classes"])))
    label, certainty = read_label(file, id, entry).decode(), [plane.decode() for plane in planes]
    _expect(_content_digest(label, certainty) == entry.digest, "the content digest does not match")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(file: h5py.File, id: str) -> h5py.Group:
    group = file[f"images/{image_key(id)}"]
    # Unwritten HDF5 chunks read as zeros, so data count only with this flag, which is written after them.
    _expect(group.attrs.get("done") == 1, "the image was not finished")
    return group


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ArchiveError(otherwise)


def _content_digest(label: Bytes, certainty: Sequence[Bytes] | Bytes) -> str:
    """Tells contents apart, whatever the codec. From CRCs: hashing 40 MB takes as long as packing."""
    crcs = [zlib.crc32(np.ascontiguousarray(plane).data) for plane in (label, *certainty)]
    content = json.dumps([(len(certainty), *label.shape), crcs]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _file_in_memory(info: ArchiveInfo) -> h5py.File:
    file = h5py.File("memory", "w", driver="core", backing_store=False, block_size=_GROWTH, libver=_LIBRARY)
    file.attrs["format"] = FORMAT
    file.attrs["version"] = FORMAT_VERSION
    file.attrs["classes"] = list(info.classes)
    file.attrs["attributes"] = json.dumps(dict(info.attributes), ensure_ascii=False)
    return file
