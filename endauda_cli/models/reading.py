"""The door for files of weights: whatever is in one, only tensors and plain values come out, and nothing is run.

What a file declares is compared with its size before torch sees it: a zip of 3 MB may claim to unpack to gigabytes.
"""

from __future__ import annotations

import json
import mmap
import pickle
import re
import struct
import warnings
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli.errors import CheckpointError
from endauda_cli.files import open_regular, size_text
from endauda_cli.models.mxnet import is_params, read_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from pathlib import Path

MOST_BYTES = 1 << 40
"""More than any file of weights has."""
_MOST_MEMBERS = 20_000
"""Of a zip: torch writes one per tensor, an optimizer has two or three more for each."""
_MOST_GROWTH, _FREE_GROWTH = 10, 64 << 20
"""Floats hardly get smaller by packing; what is said to become more than so many times the file is no weights."""

# NumPy's scalars and arrays are data, but torch does not know them; projects keep their best mIoU as one.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_ARRAY: Any = np.zeros(0).__reduce__()[0]
_HARMLESS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # NumPy 1 and 2
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"},
]

_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"7z\xbc\xaf": ("7-Zip", "7z x"),
}
"""How a packed file begins: by what it was packed, and what unpacks it."""
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What a file in PyTorch's old format holds right after two bytes that say how it is pickled."""
_TORCH_BEGINS = (b"PK", b"\x80")
"""How its files begin: a zip since 1.6, before that a pickle. It also reads safetensors: a length, then JSON."""
_SAVE_PLAIN = "ask its author for the plain state dict, torch.save(model.state_dict(), path)"


def read_content(path: Path, in_memory: bool = True) -> object:
    """Everything in a file of weights, unpickled without running code.

    Args:
        path: the file.
        in_memory: read the tensors; else they stay in the file until they are looked at.

    Raises:
        CheckpointError: if it is absent, no regular file, damaged, could run code, or is no file of weights.
    """
    head = _head(path)
    if is_params(head):
        try:
            with open_regular(path, MOST_BYTES) as file:
                return read_params(file.read())
        except (ValueError, OSError, MemoryError) as error:
            raise CheckpointError(
                f"{path}: MXNet parameters that cannot be read ({error}); copy or download the file again"
            ) from error
    members = _zip_members(path, head)
    _refuse_other_kinds(path, head, members)
    if members and all(name.endswith(".npy") for name in members):
        return _read_npz(path)
    # At once: gigabytes need not be read for that.
    if not head.startswith(_TORCH_BEGINS) and head[8:9] != b"{":
        raise _refusal(path, head, ValueError("no format that torch writes"))
    _refuse_allocation(path, members)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # remarks on old formats, which the user cannot change
            content: object = torch.load(
                path, map_location="cpu", weights_only=True, mmap=not in_memory and members is not None
            )
    except Exception as error:  # a damaged pickle or archive can end in an error of almost any type
        raise _refusal(path, head, error) from error
    meta = _said_in_safetensors(path) if head[8:9] == b"{" else None
    return content if meta is None else {"weights": content, "meta": meta}


SAID = "endauda"
"""Under which ``deploy`` keeps a checkpoint's ``meta``, as JSON, in the metadata of safetensors."""
_MOST_HEADER = 100 << 20


def _said_in_safetensors(path: Path) -> object:
    """What a deployed checkpoint says of itself; ``None`` of others' files."""
    with open_regular(path, MOST_BYTES) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            return None
        try:
            return json.loads(json.loads(file.read(length))["__metadata__"][SAID])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def refuse_unreadable(path: Path) -> None:
    """The same looks at a file that another library is going to read, with ``weights_only``; raises as above."""
    head = _head(path)
    members = _zip_members(path, head)
    _refuse_other_kinds(path, head, members)
    _refuse_allocation(path, members)


@contextmanager
def opened(path: Path, absent: str, most: int | None = MOST_BYTES) -> Iterator[BufferedReader]:
    """A file that a network is in, open within the block.

    Args:
        path: the file.
        absent: the end of the sentence if it is not there.
        most: bytes that it may have.

    Raises:
        CheckpointError: if it is absent, or cannot be read.
    """
    try:
        with open_regular(path, most) as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file{absent}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); check path and permissions") from error


def _head(path: Path) -> bytes:
    """How the file begins, if it is one that can be weights."""
    with opened(path, ", but a checkpoint was expected; check the path") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path}: is empty, but a checkpoint was expected; copy or download it again")
    return head


def _refuse_other_kinds(path: Path, head: bytes, members: list[str] | None) -> None:
    """Files that hold no weights as they are, each with what it is and what helps."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: is a web page, but a checkpoint was expected; "
            "open the link in a browser and download the file behind that page"
        )
    packed = next((words for begin, words in _PACKED.items() if head.startswith(begin)), None)
    if packed is not None:
        raise CheckpointError(
            f"{path}: is packed with {packed[0]}; unpack it with {packed[1]} and name the file that comes out"
        )
    if path.suffix.lower() == ".onnx":
        raise no_weights(path, "ONNX")
    if not members:
        return
    inner = [name.partition("/")[2] or name for name in members]
    if any(name.startswith("code/") for name in inner):
        raise no_weights(path, "TorchScript")
    if "archive_format" in inner or any(name.endswith("serialized_exported_program.json") for name in inner):
        raise no_weights(path, "torch.export")
    if "data.pkl" not in inner and not all(name.endswith(".npy") for name in members):
        some = ", ".join(f"{name!r:.80}" for name in members[:3])
        raise CheckpointError(
            f"{path}: is a zip archive of {some}{' and more' if len(members) > 3 else ''}, not a checkpoint; unpack it "
            "with unzip and name the checkpoint that is in it"
        )


# ---------------------------------------------------------------------------- what is declared, before it is read


def _zip_members(path: Path, head: bytes) -> list[str] | None:
    """Names in a zip; ``None`` if the file is none, or a damaged one, which torch is going to judge.

    Raises:
        CheckpointError: if it has more members, or larger ones, than a checkpoint of its size can have.
    """
    if not head.startswith(b"PK"):
        return None
    try:
        with open_regular(path, MOST_BYTES) as file:
            count, size = _directory(file), file.seek(0, 2)
            if count > _MOST_MEMBERS:
                raise CheckpointError(
                    f"{path}: a zip of {count:,} members, but a checkpoint has at most {_MOST_MEMBERS:,}; it is no "
                    "checkpoint, or a forged one"
                )
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, struct.error, NotImplementedError):
        return None
    declared = sum(member.file_size for member in members)
    if len(members) > _MOST_MEMBERS or declared > _MOST_GROWTH * size + _FREE_GROWTH:
        raise CheckpointError(
            f"{path}: {size_text(size)} that claim to hold {size_text(declared)} in {len(members):,} parts; torch "
            "packs nothing, so it was packed anew or is forged; ask its author for the file as torch.save wrote it"
        )
    return [member.filename for member in members]


def _directory(file: Any) -> int:
    """How many members a zip has, by the size of its directory: nothing is read of them."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 42))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise zipfile.BadZipFile("no directory")
    length, offset = struct.unpack_from("<II", tail, at + 12)
    if 0xFFFFFFFF in (length, offset) or tail[max(0, at - 20) :].startswith(b"PK\x06\x07"):
        large = tail.rfind(b"PK\x06\x06", 0, at)
        if large >= 0:
            (length,) = struct.unpack_from("<Q", tail, large + 40)
    declared = int(struct.unpack_from("<H", tail, at + 10)[0])
    # The least that a member takes there is 46 bytes and a name; torch's names have 20 and more.
    return max(int(min(length, size)) // 128, 0 if declared == 0xFFFF else declared)


def _refuse_allocation(path: Path, members: list[str] | None) -> None:
    """The one harmless type that makes a few bytes of a pickle into gigabytes: ``bytearray(10**11)``."""
    try:
        if members is None:
            with open_regular(path, MOST_BYTES) as file:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                    found = whole.find(b"bytearray\n") >= 0
        else:
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
                found = any(b"bytearray\n" in archive.read(name) for name in pickles)
    except Exception:  # a damaged archive, which torch is going to judge
        return
    if found:
        raise CheckpointError(f"{path}: holds a bytearray beside tensors and was not opened; {_SAVE_PLAIN}")


def _read_npz(path: Path) -> dict[str, object]:
    """NumPy's arrays by name, as tensors; the directory was looked at before."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {
                name: torch.from_numpy(np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape))
                for name in arrays.files
            }
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path}: NumPy arrays that cannot be read as tensors ({reason}); save the state dict with "
            "torch.save(model.state_dict(), path)"
        ) from error


# ---------------------------------------------------------------------------- refusals


def no_weights(path: Path, kind: str) -> CheckpointError:
    """For a program of that kind, which is never run where weights are named."""
    article = "an" if kind == "ONNX" else "a"
    return CheckpointError(
        f"{path}: is {article} {kind} program, not weights; run it with --program {path} of export-teacher, if you "
        "would run its author's code: such a file can run any"
    )


def _refusal(path: Path, head: bytes, error: Exception) -> CheckpointError:
    if isinstance(error, pickle.UnpicklingError) and (name := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return CheckpointError(
            f"{path}: holds {name[1][:80]} beside tensors and was not opened, because such a file can run code; "
            f"{_SAVE_PLAIN}"
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and _ends_as_pickle(path, head):
        return CheckpointError(
            f"{path}: is a bare pickle, not what torch.save writes, and was not opened, because such a file can run "
            f"code; {_SAVE_PLAIN}"
        )
    if head[257:262] == b"ustar":
        return CheckpointError(
            f"{path}: is a tar archive, not a checkpoint; unpack it with tar xf and name the checkpoint in it"
        )
    size = path.stat().st_size
    return CheckpointError(
        f"{path}: is damaged, cut short or no PyTorch checkpoint ({size:,} bytes); copy or download it again"
    )


def _ends_as_pickle(path: Path, head: bytes) -> bool:
    if head[2:].startswith(_TORCH_MAGIC):
        return False
    with open_regular(path, MOST_BYTES) as file:
        file.seek(-1, 2)
        return file.read(1) == b"."
