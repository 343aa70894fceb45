"""Store: checkpoints of a run. One file each, so that a kill leaves the old one or the new one, never half.

``last.pt`` holds ``weights`` (published state-dict keys), ``optimizer``, ``loss`` (class weights) and
``meta``; ``best.pt`` weights and meta. Tensors and plain values only: loading runs no code.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.files import replacing
from endauda_cli.models import ARCHS, BACKBONES, load_checkpoint
from endauda_cli.models.compat import fill
from endauda_cli.models.reading import opened, read_content
from endauda_cli.models.unfilled import Unfilled
from endauda_cli.progress import Note, silent
from endauda_cli.students import Network, build, deeplab, from_record
from endauda_cli.transforms import DEFAULT_SIZE, Preprocessing
from endauda_cli.types import Arch, Backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from endauda_cli.progress import Reporter

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
    network: Network
    """How it is run, and what it is built from."""


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
            f"{path}: written in format {content.get('format')!r:.80}, but this version reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    checked_meta(path, content["meta"])
    return content


def read_meta(path: Path) -> dict[str, Any]:
    """What one of our own checkpoints says of itself; its weights are not read, so it takes milliseconds.

    Raises:
        CheckpointError: if the file is absent, damaged, or not ours.
    """
    content = _read(path, in_memory=False)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: damaged, cut short or not a checkpoint of an endauda run")
    return checked_meta(path, meta)


def checked_meta(path: Path, meta: object) -> dict[str, Any]:
    """What a checkpoint says of itself, if every value is of the type that whoever asks for it relies on.

    A key may be absent, as in checkpoints of other projects that happen to have a ``meta``.

    Raises:
        CheckpointError: says which value is not.
    """
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: its 'meta' is a {type(meta).__name__}, but a dict was expected")
    for key, (fits, expected) in _META.items():
        if key in meta and not fits(meta[key]):
            raise CheckpointError(
                f"{path}: 'meta' says {key} = {meta[key]!r:.80}, but {expected} was expected; the file is damaged or "
                "forged: take another copy, or another checkpoint"
            )
    return meta


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in value)
    )


def _is_classes(value: object) -> bool:
    return isinstance(value, list | tuple) and 0 < len(value) < 256 and all(map(_is_name, value))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _is_score(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


_LARGEST_SIDE = 1 << 16
_LONGEST_NAME = 300
_META: dict[str, tuple[Callable[[object], bool], str]] = {
    "arch": (lambda value: isinstance(value, str) and value in ARCHS, f"one of {', '.join(ARCHS)}"),
    "backbone": (
        lambda value: isinstance(value, str) and value in BACKBONES,
        f"one of {', '.join(BACKBONES)}",
    ),
    "classes": (_is_classes, "a list of class names"),
    "size": (_is_size, "a width and a height"),
    "source": (_is_name, "the name of a data set"),
    "target": (_is_name, "the name of a data set"),
    "data": (lambda value: isinstance(value, dict), "a dict"),
    "config": (lambda value: isinstance(value, dict), "a dict"),
    "step": (_is_count, "a whole number"),
    "miou": (_is_score, "a number or None"),
    "best_miou": (_is_score, "a number or None"),
    "best_step": (lambda value: value is None or _is_count(value), "a whole number or None"),
}
"""Key of ``meta`` -> whether a value will do, and what was expected."""


def sha256(path: Path) -> str:
    """Of a file of weights, whatever is in it, in hex; of a folder, of its configuration and weights.

    Raises:
        CheckpointError: if the file is absent.
    """
    if path.is_dir():
        return files_sha256(sorted(file for kind in _OF_A_FOLDER for file in path.glob(kind)))
    with opened(path, " of weights") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_OF_A_FOLDER = ("*.json", "*.safetensors", "*.bin")


def files_sha256(files: Sequence[Path]) -> str:
    """Of one file, or of several with their names."""
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{os.path.relpath(file, files[0].parent)}\0{sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def load_student(
    path: Path,
    classes: Sequence[str],
    arch: str | None = None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
    report: Reporter = silent,
    content: object = None,
) -> LoadedStudent:
    """The network of a checkpoint, in eval mode on the CPU.

    Our own checkpoints know their network; for others it is ``arch`` and ``backbone``, by default
    DeepLabv3+ on DRN-D-54.

    Args:
        path: the checkpoint.
        classes: class names that are expected.
        arch, backbone: given by the user, or ``None``.
        size: (width, height) of the network's input, given by the user, or ``None``.
        report: told where wrappings around the weights were left out.
        content: what ``read_content`` found in the file, if that was called already.

    Raises:
        CheckpointError: if the file is unreadable or belongs to another network or class table.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file of weights")
    content = read_content(path) if content is None else content
    meta = content.get("meta") if isinstance(content, dict) and "weights" in content else None
    meta = checked_meta(path, meta) if isinstance(meta, dict) else {}
    if "classes" in meta and tuple(meta["classes"]) != tuple(classes):
        raise CheckpointError(
            f"{path}: trained for {len(meta['classes'])} classes ({', '.join(meta['classes'][:3])}, ...), but "
            f"{len(classes)} are expected ({', '.join(classes[:3])}, ...); give the --source it was trained for"
        )
    if "network" in meta:
        network = from_record(path, meta["network"])
        model = _foreign(path, network, len(classes), content, arch or backbone)
    else:
        for option, given in (("arch", arch), ("backbone", backbone)):
            if given is not None and meta.get(option, given) != given:
                raise CheckpointError(
                    f"{path}: a {meta[option]} network, but --{option} {given} was given; leave it out"
                )
        arch = meta.get("arch") or arch or Arch.DEEPLABV3PLUS
        network = deeplab(arch, meta.get("backbone") or backbone or Backbone.DRN)
        with Unfilled():
            model = build(network, len(classes))
        if told := load_checkpoint(model, path, content):
            report(Note(told))
    width, height = size or (meta["size"] if "size" in meta else DEFAULT_SIZE)
    preprocessing = replace(network.preprocessing, size=(width, height))
    return LoadedStudent(model.eval(), preprocessing, network.arch, network.backbone, meta, network)


def _foreign(path: Path, network: Network, num_classes: int, content: Any, given: str | None) -> nn.Module:
    """The network of one of our checkpoints that is no DeepLab, filled."""
    if given is not None:
        raise CheckpointError(f"{path}: a {network.title} network, but {given} was given; leave it out")
    state = content["weights"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: its weights are no table of names and tensors; copy the file again")
    try:
        _refuse_larger(path, network, num_classes, sum(tensor.numel() for tensor in state.values()))
        with Unfilled():
            model = build(network, num_classes)
    except CheckpointError as error:
        reason = str(error)
        raise CheckpointError(reason if reason.startswith(str(path)) else f"{path}: {reason}") from error
    fill(model, path, state)
    return model


def _refuse_larger(path: Path, network: Network, num_classes: int, held: int) -> None:
    """A network of more values than the file holds is not built: it is laid out without memory first."""
    try:
        with torch.device("meta"):
            values = sum(parameter.numel() for parameter in build(network, num_classes).parameters())
    except ConfigError:  # some need numbers to be laid out; those are of bounded size
        return
    if values > held + _SLACK:
        raise CheckpointError(
            f"{path}: speaks of a network of {values:,} values, but holds {held:,}; the file is damaged or forged"
        )


_SLACK = 1 << 22


def _read(path: Path, in_memory: bool = True) -> Any:
    """The content of a file of weights, or ``None`` if there is none in it that can be read."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        return read_content(path, in_memory)
    except CheckpointError:
        return None
