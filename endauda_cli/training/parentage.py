"""What a run comes from: its label set, the checkpoint it starts from, what these come from; and what it runs on.

What other files say is taken as it is, for people to read; nothing is decided by it.
"""

from __future__ import annotations

import json
import platform
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli import __version__, checkpoint
from endauda_cli.distributed import world_size
from endauda_cli.errors import CheckpointError
from endauda_cli.training.data import MAIN
from endauda_cli.workspace import RECORD_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from endauda_cli.training.run import Run

OF_A_FUSION = (
    "source", "target", "split", "endauda", "rule", "policy", "threshold", "teachers", "copies", "archives",
    "used_labels", "images", "coverage",
)  # fmt: skip
"""What is kept of a label set's ``fusion.json``,"""
OPTIONS_OF_A_FUSION = ("few_shot", "window", "border", "unclaimed", "delta", "renormalise")
"""and of the options in it."""
OF_A_RUN = ("endauda", "arch", "backbone", "source", "target", "step", "miou")
"""What is kept of the checkpoint that a run starts from, if it is one of ours."""
GENERATIONS = 5
"""So far back it is told what a run comes from."""
_LETTERS = 20_000
"""The longest value that is kept: a checkpoint is no place for a book, whatever a file says."""


def origin(run: Run, data: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's records and checkpoints say of where it comes from: plain values.

    Args:
        run: what it learns from.
        data: the run's own record of that, with the digest of the checkpoint it starts from.
        earlier: what its last checkpoint says of itself; empty for a fresh run.

    Returns:
        ``parents``: the digest of all images and labels, and ``labels`` and ``init`` as far as there are any;
        ``made_by``: versions, device and host.
    """
    parents: dict[str, Any] = {"content": data.get("content")}
    if (folder := run.streams[MAIN].labels) is not None:
        record = read_json(folder / RECORD_FILE) or {}
        options = _kept(_dict(record.get("config")), OPTIONS_OF_A_FUSION)
        parents["labels"] = {"folder": str(folder)} | _kept(record, OF_A_FUSION) | options
    if "init_sha256" in data:
        init = {"file": data["init"], "sha256": data["init_sha256"]}
        known = _kept(_dict(earlier.get("parents")), ("init",))  # the file may be gone since
        parents |= known or {"init": init | (_of_checkpoint(run.init) if run.init is not None else {})}
    return {"parents": parents, "made_by": surroundings(run.device)}


def surroundings(device: torch.device) -> dict[str, str | int | None]:
    """Versions, device and host of this process."""
    on_card = device.type == "cuda"
    return {
        "endauda": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda if on_card else None,
        "cudnn": torch.backends.cudnn.version() if on_card else None,  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name(device) if on_card else str(device),
        "processes": world_size(),
        "host": socket.gethostname(),
        "system": platform.platform(),
    }


def _of_checkpoint(path: Path) -> dict[str, Any]:
    """What the checkpoint says of its run; nothing if it is not of a run of ours."""
    try:
        return {"run": path.resolve().parent.name} | _of_meta(checkpoint.read_meta(path), GENERATIONS)
    except CheckpointError:
        return {}


def _of_meta(meta: Mapping[str, Any], generations: int) -> dict[str, Any]:
    parents, told = _dict(meta.get("parents")), _kept(meta, OF_A_RUN)
    if labels := _kept(_dict(parents.get("labels")), ("folder", *OF_A_FUSION, *OPTIONS_OF_A_FUSION)):
        told["labels"] = labels
    if generations > 1 and (init := _dict(parents.get("init"))):
        # Told in the same words as a checkpoint, but for the parents' place.
        told["init"] = _kept(init, ("file", "sha256", "run")) | _of_meta(
            init | {"parents": init}, generations - 1
        )
    return told


def _kept(record: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the values that are there, plain and of reasonable length."""
    kept = {}
    for key in keys:
        value = record.get(key)
        try:
            text = json.dumps(value, default=str)
        except (ValueError, RecursionError):
            continue
        if value is not None and len(text) <= _LETTERS:
            kept[key] = json.loads(text)
    return kept


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
