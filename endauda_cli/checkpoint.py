"""Store: checkpoints of a run. One file each, so that a kill leaves the old one or the new one, never half.

``last.pt`` holds ``weights`` (published state-dict keys), ``optimizer``, ``loss`` (class weights) and
``meta``; ``best.pt`` weights and meta. Tensors and plain values only: loading runs no code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.errors import CheckpointError
from endauda_cli.files import replacing
from endauda_cli.models import build_student, load_checkpoint
from endauda_cli.transforms import DEFAULT_SIZE, Preprocessing
from endauda_cli.types import Arch, Backbone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LoadedStudent:
    """A network ready for inference."""

    model: nn.Module
    preprocessing: Preprocessing
    arch: str
    backbone: str
    meta: dict[str, Any]
    """What the checkpoint says of itself; empty for files of other projects."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    try:
        with replacing(path, durable=True) as temporary:
            # By path: through a Python file, an interrupt in the middle would come out as torch's RuntimeError.
            torch.save({"format": FORMAT_VERSION, **content}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(
            f"{path}: cannot be written ({error}); free disk space and run again with --resume"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Everything in one of our own checkpoints.

    Raises:
        CheckpointError: if the file is absent, damaged, or not ours.
    """
    content = _read(path)
    if content is None:
        raise CheckpointError(f"{path}: damaged, cut short or no checkpoint; delete it to start over")
    if not isinstance(content, dict) or "meta" not in content or "weights" not in content:
        raise CheckpointError(
            f"{path}: not a checkpoint of an endauda run; name one with --weights or --init"
        )
    if content.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {content.get('format')}, but this version reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    return content


def read_meta(path: Path) -> dict[str, Any]:
    """What one of our own checkpoints says of itself; its weights are not read, so it takes milliseconds.

    Raises:
        CheckpointError: if the file is absent, damaged, or not ours.
    """
    content = _read(path, mmap=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: damaged, cut short or not a checkpoint of an endauda run")
    return meta


def sha256(path: Path) -> str:
    """Of a file of weights, whatever is in it, in hex.

    Raises:
        CheckpointError: if the file is absent.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: no such file of weights") from error


def load_student(
    path: Path,
    classes: Sequence[str],
    arch: str | None = None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
) -> LoadedStudent:
    """The network of a checkpoint, in eval mode on the CPU.

    Our own checkpoints know their network; for others it is ``arch`` and ``backbone``, by default
    DeepLabv3+ on DRN-D-54.

    Args:
        path: the checkpoint.
        classes: class names that are expected.
        arch, backbone: given by the user, or ``None``.
        size: (width, height) of the network's input, given by the user, or ``None``.

    Raises:
        CheckpointError: if the file is unreadable or belongs to another network or class table.
    """
    content = _read(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    for option, given in (("arch", arch), ("backbone", backbone)):
        if given is not None and meta.get(option, given) != given:
            raise CheckpointError(
                f"{path}: a {meta[option]} network, but --{option} {given} was given; leave it out"
            )
    if "classes" in meta and tuple(meta["classes"]) != tuple(classes):
        raise CheckpointError(
            f"{path}: trained for {len(meta['classes'])} classes ({', '.join(meta['classes'][:3])}, ...), but "
            f"{len(classes)} are expected ({', '.join(classes[:3])}, ...); give the --source it was trained for"
        )
    arch = meta.get("arch") or arch or Arch.DEEPLABV3PLUS
    backbone = meta.get("backbone") or backbone or Backbone.DRN
    model = build_student(arch, backbone, len(classes))
    load_checkpoint(model, path)
    width, height = size or (meta["size"] if "size" in meta else DEFAULT_SIZE)
    return LoadedStudent(model.eval(), Preprocessing(size=(width, height)), str(arch), str(backbone), meta)


def _read(path: Path, mmap: bool = False) -> Any:
    """The content of a file of weights, or ``None`` if it is of a kind that ``load_checkpoint`` will judge."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception:
        return None
