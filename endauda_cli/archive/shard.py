"""The HDF5 half of an archive: images in a file, as bytes to be written at once, and back.

C classes, H rows, W columns of one image.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from endauda_cli.archive.codecs import codec_for
from endauda_cli.archive.manifest import FORMAT, FORMAT_VERSION, ArchiveInfo, ImageEntry
from endauda_cli.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from endauda_cli.types import Codec

Bytes = NDArray[np.uint8]

# HDF5 1.10's file layout: every structure but the data is checksummed, HDF5 of 2016 and later reads it.
_LIBRARY = ("v110", "v110")
_GROWTH = 4 << 20  # an HDF5 file in memory grows by so many bytes


def image_key(id: str) -> str:
    """The image's name inside an HDF5 file, where a slash would open a group."""
    return id.replace("%", "%25").replace("/", "%2F")


def encode_image(
    info: ArchiveInfo, codec: Codec, id: str, label: Bytes, certainty: Bytes
) -> tuple[bytes, ImageEntry]:
    """An HDF5 file, as bytes, that holds one image; and its manifest entry.

    label: (H, W) uint8; certainty: (C, H, W) uint8; both checked by the caller.
    """
    height, width = label.shape
    label_crc, plane_crcs = zlib.crc32(label.data), [zlib.crc32(plane.data) for plane in certainty]
    entry = ImageEntry(height, width, _content_digest(certainty.shape, [label_crc, *plane_crcs]))
    compression = codec_for(codec, height, width).arguments
    with _file_in_memory(info) as file:
        group = file.create_group(f"images/{image_key(id)}")
        planes = group.create_dataset("certainty", data=certainty, chunks=(1, height, width), **compression)
        planes.attrs["crc32"] = np.array(plane_crcs, np.uint32)
        labels = group.create_dataset("label", data=label, chunks=(height, width), **compression)
        labels.attrs["crc32"] = np.uint32(label_crc)
        group.attrs["id"] = id
        group.attrs["digest"] = entry.digest
        group.attrs["done"] = np.uint8(1)
        file.flush()
        return file.id.get_file_image(), entry


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
    for group in file["images"].values():
        if group.attrs["done"] == 1:
            _, height, width = group["certainty"].shape
            entries[str(group.attrs["id"])] = ImageEntry(height, width, str(group.attrs["digest"]))
    return entries


def read_planes(
    file: h5py.File, id: str, entry: ImageEntry, classes: Sequence[int]
) -> tuple[Bytes, list[int]]:
    """Planes (len(classes), H, W) of one image and the CRC-32 that each should have.

    Raises ArchiveError if the image is not done or of another size; h5py raises many things on damage.
    """
    dataset = _finished(file, id)["certainty"]
    _expect(dataset.shape[1:] == (entry.height, entry.width) and dataset.dtype == np.uint8, "another size")
    planes = np.empty((len(classes), entry.height, entry.width), np.uint8)
    for plane, c in zip(planes, classes, strict=True):
        dataset.read_direct(plane, np.s_[c])
    crcs = dataset.attrs["crc32"]
    return planes, [int(crcs[c]) for c in classes]


def read_label(file: h5py.File, id: str, entry: ImageEntry) -> tuple[Bytes, int]:
    """The label map (H, W) of one image and the CRC-32 that it should have. Raises as ``read_planes``."""
    dataset = _finished(file, id)["label"]
    _expect(dataset.shape == (entry.height, entry.width) and dataset.dtype == np.uint8, "another size")
    label: Bytes = dataset[()]
    return label, int(dataset.attrs["crc32"])


def check_crc(data: Bytes, expected: int) -> None:
    """Raises ArchiveError if the data are not what was stored."""
    _expect(zlib.crc32(data.data) == expected, "a checksum does not match")


def check_image(file: h5py.File, id: str, entry: ImageEntry) -> None:
    """Decodes the whole image. Raises ArchiveError if it is not what was stored; h5py raises many things."""
    planes, crcs = read_planes(file, id, entry, range(len(file.attrs["classes"])))
    label, label_crc = read_label(file, id, entry)
    for plane, crc in zip((label, *planes), (label_crc, *crcs), strict=True):
        check_crc(plane, crc)
    _expect(
        _content_digest(planes.shape, [label_crc, *crcs]) == entry.digest, "the content digest does not match"
    )


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


def _content_digest(shape: tuple[int, ...], crcs: Sequence[int]) -> str:
    """Tells contents apart, whatever the codec. From the CRCs: hashing 40 MB takes as long as packing."""
    content = json.dumps([shape, crcs]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _file_in_memory(info: ArchiveInfo) -> h5py.File:
    file = h5py.File("memory", "w", driver="core", backing_store=False, block_size=_GROWTH, libver=_LIBRARY)
    file.attrs["format"] = FORMAT
    file.attrs["version"] = FORMAT_VERSION
    file.attrs["classes"] = list(info.classes)
    file.attrs["attributes"] = json.dumps(dict(info.attributes), ensure_ascii=False)
    return file
