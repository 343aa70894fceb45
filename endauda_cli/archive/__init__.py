"""Certainty archives: what one teacher said about one set of images, in few files.

An archive is a folder that any number of processes write to at once and that explains itself::

    archive.json                   format, class names, attributes (teacher, weights, ...): written once
    shard-<tag>-<number>.h5        up to 64 finished images; never changed after it got this name
    shard-<tag>-<number>.json      its manifest: image id -> [height, width, content digest], SHA-256 of the file
    <tag>.part/<sha256>.image      finished images that do not fill a shard yet, one file each
    <tag>.part/lock                held by the one live writer of that tag
    *.tmp                          a file that is being written; never read
    *.damaged                      a shard without a manifest that could not be read back; never read

``tag`` names a writer (``0-of-1``, a rank), so no two processes write to the same file, and there is no
central list that a race could lose: the reader joins the manifests. Every file is made in memory, written
under a temporary name and renamed, so HDF5 never leaves a half-written file: wherever a writer is killed,
only the image in flight is lost. A full disk is an error of one plain write, not of an HDF5 file kept open.

A shard has a group per size and codec of its N images, with C classes::

    /<H>x<W>-<codec>/certainty     (N * C, H, W) uint8, percent 0..100, a chunk per plane: image i, class c at i * C + c
    /<H>x<W>-<codec>/label         (N, H, W) uint8 train ids, 255 = ignore, a chunk per image
    /<H>x<W>-<codec>/id, digest    (N,) names of the images, and digests of their contents, whatever the codec
    /<H>x<W>-<codec>/model         (N, 1, M) uint8, what the codec needs to know of an image; only of ``softmax``
    /<H>x<W>-<codec>/crc32         (N, C + 2) of the stored chunks: model, label, planes

Where a network's own grids of logits are kept (``grids``), a group has these instead of ``certainty``, an attribute
``grids`` that says what they are, and (N, S + 2) checksums; S is the number of sizes that the network was run at::

    /<H>x<W>-grid/grid0, grid1, .. (N, C * h, w) uint16 numbers of depth, a chunk per image

Plain h5py (plus hdf5plugin for the filters) reads all of it but the planes of the codec ``softmax``, and numbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from endauda_cli.archive.codecs import CODECS, PlaneCodec
    from endauda_cli.archive.index import stored_bytes
    from endauda_cli.archive.joined import join_classes
    from endauda_cli.archive.manifest import FORMAT_VERSION
    from endauda_cli.archive.outputs import TeacherOutputs
    from endauda_cli.archive.reader import CertaintyReader
    from endauda_cli.archive.shard import CodedImage
    from endauda_cli.archive.surveying import Survey, survey
    from endauda_cli.archive.verification import DamagedShard, VerifyResult, verify
    from endauda_cli.archive.writer import CertaintyWriter, refuse_other_archive

_HOMES = {
    "CODECS": "codecs",
    "PlaneCodec": "codecs",
    "stored_bytes": "index",
    "refuse_other_archive": "writer",
    "join_classes": "joined",
    "FORMAT_VERSION": "manifest",
    "CertaintyReader": "reader",
    "TeacherOutputs": "outputs",
    "CodedImage": "shard",
    "Survey": "surveying",
    "survey": "surveying",
    "DamagedShard": "verification",
    "VerifyResult": "verification",
    "verify": "verification",
    "CertaintyWriter": "writer",
}


def __getattr__(name: str) -> Any:
    """What is above, when it is asked for: ``layout`` has to be at hand without HDF5."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "CertaintyReader",
    "CertaintyWriter",
    "TeacherOutputs",
    "CodedImage",
    "join_classes",
    "verify",
    "refuse_other_archive",
    "stored_bytes",
    "survey",
    "Survey",
    "VerifyResult",
    "DamagedShard",
    "CODECS",
    "PlaneCodec",
    "FORMAT_VERSION",
]
