"""Files of images: shards, which are HDF5, and single images that wait for one. ``stored`` reads them.

C classes, H rows, W columns of one image, N images of one size and codec in a shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import defaultdict
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from endauda_cli.archive import grids
from endauda_cli.archive.codecs import (
    CODECS,
    DECODER_ERRORS,
    JPEGLS,
    MODEL_CODEC,
    Bytes,
    Chunk,
    PlaneCodec,
    codec_for,
    crc32,
    label_codec_for,
)
from endauda_cli.archive.grids import GridForm, Grids
from endauda_cli.archive.layout import MAX_HEADER
from endauda_cli.archive.manifest import (
    FORMAT,
    FORMAT_VERSION,
    READABLE,
    ArchiveInfo,
    ForeignIdError,
    ImageEntry,
)
from endauda_cli.errors import ArchiveError
from endauda_cli.files import open_regular
from endauda_cli.names import checked_id
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


# HDF5 1.10's file layout: every structure but the data is checksummed, HDF5 of 2016 and later reads it.
_LIBRARY = ("v110", "v110")
_GROWTH = 4 << 20  # an HDF5 file in memory grows by so many bytes


class CodedImage(NamedTuple):
    """An image, compressed; all that is left to do is to store the bytes."""

    id: str
    entry: ImageEntry
    codec: Codec
    chunks: tuple[Chunk, ...]
    """Of the model (empty if the codec has none), of the label map, of each class plane or each grid."""
    form: GridForm | None = None
    """Of its grids, if the codec is ``grid``."""


def grid_name(i: int) -> str:
    """Of the data set of the ``i``-th grid of an image."""
    return f"grid{i}"


def code_image(codec: Codec, id: str, label: Bytes, certainty: Bytes) -> CodedImage:
    """Compress one image; for as many threads at once as there are cores.

    label: (H, W) uint8; certainty: (C, H, W) uint8; both contiguous and checked by the caller.
    """
    height, width = label.shape
    entry = ImageEntry(height, width, content_digest(label, certainty))
    codec = codec_for(codec, height, width)
    packed = CODECS[codec].pack(certainty)
    models = MODEL_CODEC.pack(packed.model[None, None]).chunks if packed.model.size else (_NO_MODEL,)
    return CodedImage(
        id, entry, codec, (*models, *label_codec_for(codec).pack(label[None]).chunks, *packed.chunks)
    )


def code_grids(id: str, label: Bytes, said: Grids) -> CodedImage:
    """The same of an image of which the network's own grids are kept.

    label: (H, W) uint8; said: all checked by the caller.
    """
    height, width = label.shape
    entry = ImageEntry(height, width, grids.digest(label, said))
    labels = label_codec_for(Codec.GRID).pack(label[None]).chunks
    return CodedImage(id, entry, Codec.GRID, (_NO_MODEL, *labels, *grids.pack(said)), said.form)


_NO_MODEL = Chunk(b"", True, crc32(b""))


def content_digest(label: Bytes, certainty: Sequence[Bytes] | Bytes) -> str:
    """Tells contents apart, whatever the codec. From CRCs: hashing 40 MB takes as long as packing."""
    crcs = [crc32(np.ascontiguousarray(plane)) for plane in (label, *certainty)]
    content = json.dumps([(len(certainty), *label.shape), crcs]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# Single images: a line of JSON, then the chunks


def image_file(image: CodedImage) -> bytes:
    """A file, as bytes, of one image."""
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "id": image.id,
        "image": astuple(image.entry),
        "codec": str(image.codec),
        "chunks": [[len(chunk.data), chunk.raw, chunk.crc] for chunk in image.chunks],
    }
    if image.form is not None:
        header["grids"] = image.form.to_text()
    return b"".join([json.dumps(header).encode(), b"\n", *(chunk.data for chunk in image.chunks)])


def read_image_file(path: Path) -> CodedImage:
    """Raises FileNotFoundError if it is gone, ArchiveError if it is not what ``image_file`` made."""
    with open_regular(path, None) as file:
        try:
            header = json.loads(file.readline(MAX_HEADER))
            expect(header["format"] == FORMAT and header["version"] in READABLE, "of another format")
            entry, codec = ImageEntry(*header["image"]), Codec(header["codec"])
            form = GridForm.from_text(header["grids"]) if codec == Codec.GRID else None
            sizes = [size for size, _, _ in header["chunks"]]
            rest = os.fstat(file.fileno()).st_size - file.tell()
            expect(all(type(size) is int and size >= 0 for size in sizes), "of chunks that have no size")
            expect(sum(sizes) == rest, "of another length than its header says")
            chunks = [Chunk(file.read(size), bool(raw), crc) for size, raw, crc in header["chunks"]]
            expect(all(crc32(chunk.data) == chunk.crc for chunk in chunks), "a checksum does not match")
            id = checked_id(header["id"], path, ForeignIdError)
            return CodedImage(id, entry, codec, tuple(chunks), form)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ArchiveError(f"not the file of an image ({exc!r:.80})") from exc


# Shards


def shard_file(info: ArchiveInfo, images: Iterable[CodedImage]) -> bytes:
    """An HDF5 file, as bytes, with these images."""
    groups: dict[tuple[str, GridForm | None], list[CodedImage]] = defaultdict(list)
    for image in images:
        groups[f"{image.entry.height}x{image.entry.width}-{image.codec}", image.form].append(image)
    with h5py.File(
        "memory", "w", driver="core", backing_store=False, block_size=_GROWTH, libver=_LIBRARY
    ) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["classes"] = list(info.classes)
        file.attrs["attributes"] = json.dumps(dict(info.attributes), ensure_ascii=False)
        for (name, _), members in groups.items():
            name = name if name not in file else f"{name}-{len(file)}"  # of other passes
            _write_group(file.create_group(name), len(info.classes), members)
        file.flush()
        data: bytes = file.id.get_file_image()
        return data


def _write_group(group: h5py.Group, classes: int, images: Sequence[CodedImage]) -> None:
    codec, form = images[0].codec, images[0].form
    group.attrs["codec"] = str(codec)
    count, planes = len(images), len(images[0].chunks) - 2
    height, width = images[0].entry.height, images[0].entry.width
    datasets = [(_create(group, "label", (count, height, width), label_codec_for(codec)), 1, 2)]
    if form is not None:
        group.attrs["grids"] = form.to_text()
        for i, (h, w) in enumerate(form.sizes):
            shape = (count, classes * h, w)
            datasets.append((_create(group, grid_name(i), shape, JPEGLS, h5py.h5t.STD_U16LE), 2 + i, 3 + i))
    else:
        coder = CODECS[codec]
        datasets.append((_create(group, "certainty", (count * planes, height, width), coder), 2, 2 + planes))
        if coder.model_bytes:
            datasets.insert(0, (_create(group, "model", (count, 1, coder.model_bytes), MODEL_CODEC), 0, 1))
    # In the order in which they are read: what belongs to an image lies side by side.
    for i, image in enumerate(images):
        for dataset, first, last in datasets:
            for row, chunk in enumerate(image.chunks[first:last], i * (last - first)):
                dataset.write_direct_chunk((row, 0, 0), chunk.data, filter_mask=int(chunk.raw))
    group["id"] = np.array([image.id.encode() for image in images])
    group["digest"] = np.array([image.entry.digest.encode() for image in images])
    group["crc32"] = np.array([[chunk.crc for chunk in image.chunks] for image in images], np.uint32)


def _create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, int, int],
    codec: PlaneCodec,
    type: Any = h5py.h5t.STD_U8LE,
) -> Any:
    """An empty data set of one chunk per plane. HDF5 need not know the filter to be handed its chunks.

    Three dimensions, because the filter for JPEG-LS takes no more.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *shape[1:]))
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    filter_id, arguments = codec.filter
    properties.set_filter(filter_id, h5py.h5z.FLAG_OPTIONAL, arguments)
    space = h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(group.id, name.encode(), type, space, properties)
    if codec.delta:
        h5py.Dataset(dataset).attrs["delta"] = np.uint8(1)
    return dataset


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reason(error: Exception) -> str:
    """In a few words, what keeps a file from being read."""
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return str(error) or type(error).__name__


def is_damage(error: Exception) -> bool:
    """Whether it lies in the file's bytes. If not, the file may be whole, and nobody should delete it.

    A compiler or a library that fails says nothing of the file.
    """
    if isinstance(error, OSError):
        return error.errno == errno.EIO
    return isinstance(error, (ArchiveError, ValueError, *DECODER_ERRORS))


def unreadable(path: Path, error: Exception) -> ArchiveError:
    """For a file that may be whole."""
    return ArchiveError(
        f"{path}: cannot be read: {reason(error)}; the file may be whole, so mend that and try again"
    )


def expect(condition: bool, otherwise: str) -> None:
    """Raises ArchiveError, which says ``otherwise``, unless the condition holds."""
    if not condition:
        raise ArchiveError(otherwise)
