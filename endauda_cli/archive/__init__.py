"""Certainty archives: what one teacher said about one set of images, losslessly, in few files.

An archive is a folder that any number of processes write to at once and that explains itself::

    archive.json                   format, class names, attributes (teacher, weights, ...): written once
    shard-<tag>-<number>.h5        up to 64 finished images; never changed after it got this name
    shard-<tag>-<number>.json      its manifest: image id -> [height, width, content digest], SHA-256 of the file
    <tag>.part/<sha256>.h5         finished images that do not fill a shard yet, one file each
    <tag>.part/lock                held by the one live writer of that tag
    *.tmp                          a file that is being written; never read
    *.damaged                      a shard without a manifest that could not be read back; never read

``tag`` names a writer (``0-of-1``, a rank), so no two processes write to the same file, and there is no
central list that a race could lose: the reader joins the manifests. Every file is made in memory, written
under a temporary name and renamed, so HDF5 never leaves a half-written file: wherever a writer is killed,
only the image in flight is lost. A full disk is an error of one plain write, not of an HDF5 file kept open.

The HDF5 files open with plain h5py (plus hdf5plugin for the filters)::

    /images/<id>/certainty         (C, H, W) uint8, percent 0..100, a chunk per class; crc32 (C,)
    /images/<id>/label             (H, W) uint8 train ids, 255 = ignore; crc32 (1,)
    /images/<id>                   attributes digest (of the content, whatever the codec) and, set last, done

``crc32`` are attributes, of each chunk as it is stored.

In ``<id>`` a slash is written ``%2F`` and a percent sign ``%25``. Images may differ in size.
"""

from __future__ import annotations

from endauda_cli.archive.codecs import CODECS, PlaneCodec
from endauda_cli.archive.index import stored_bytes
from endauda_cli.archive.joined import join_classes
from endauda_cli.archive.manifest import FORMAT_VERSION
from endauda_cli.archive.reader import CertaintyReader
from endauda_cli.archive.shard import CodedImage
from endauda_cli.archive.verification import DamagedShard, VerifyResult, verify
from endauda_cli.archive.writer import CertaintyWriter

__all__ = [
    "CertaintyReader",
    "CertaintyWriter",
    "CodedImage",
    "join_classes",
    "verify",
    "stored_bytes",
    "VerifyResult",
    "DamagedShard",
    "CODECS",
    "PlaneCodec",
    "FORMAT_VERSION",
]
