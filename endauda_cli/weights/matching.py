"""A downloaded checkpoint, opened without running code and laid against the network it should be of.

The one seam to the networks: which one is meant is data in the manifest, and built here. A network that this version
cannot build is said to be unmatched, never taken as fitting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import CheckpointError
from endauda_cli.types import Arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from endauda_cli.weights.manifest import Network


@dataclass(frozen=True)
class Match:
    """What became of laying a checkpoint against its network."""

    sentence: str
    fits: bool
    """False also where the network is not known or cannot be built."""
    arch: str | None = None
    """Of a student: which of the architectures fits."""


def match(path: Path, network: Network | None, shown: Path) -> Match:
    """Open a checkpoint and load it into the network of the manifest.

    Args:
        path: of the file, which need not have its final name.
        network: what it should fit, or ``None`` if the manifest does not know.
        shown: the final path, for messages.

    Raises:
        CheckpointError: if the file is damaged, could run code, or is of another network.
    """
    from endauda_cli.models import load_checkpoint, read_state_dict

    try:
        state = read_state_dict(path)
        opened = f"{len(state):,} tensors"
        if network is None:
            return Match(f"{opened}; which network they are of is not known", False)
        candidates = _candidates(path, network, state)
        if not candidates:
            return Match(
                f"{opened}, not matched: this version cannot build the network of {network.teacher}", False
            )
        for number, (arch, words, build) in enumerate(candidates, 1):
            try:
                load_checkpoint(build(), path)
            except CheckpointError:
                if number == len(candidates):
                    raise
            else:
                return Match(f"{opened}, fits {words}", True, arch)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(path), str(shown))) from error
    raise AssertionError("the last candidate fits or raises")


def _candidates(
    path: Path, network: Network, state: Mapping[str, Tensor]
) -> list[tuple[str | None, str, Callable[[], nn.Module]]]:
    """Networks that would do: architecture, words, and how to build each. Empty if this version has none."""
    from endauda_cli import models
    from endauda_cli.models.mmseg import NETWORKS, options_of

    classes = network.classes
    if network.teacher is not None:
        build_teacher = getattr(models, "build_teacher", None)
        if build_teacher is None:
            return []
        teacher = network.teacher
        options: dict[str, Any] = {}
        if teacher in NETWORKS:  # the file tells the encoder's size
            try:
                options = options_of(teacher, state, classes or 0)
            except ValueError as error:
                raise CheckpointError(f"{path}: {error}; it is damaged or of another network") from error
        outputs = options.pop("num_classes", classes)
        build = partial(build_teacher, teacher, outputs, **options)
        return [(None, f"the {teacher} teacher of {classes} classes", build)]
    backbone = network.backbone
    assert backbone is not None
    if classes is None:
        bare = lambda: models.build_student(Arch.DEEPLABV3PLUS, backbone, 2).backbone  # noqa: E731
        return [(None, f"the {backbone} backbone", bare)]
    archs = (network.arch,) if network.arch is not None else tuple(Arch)
    return [
        (
            str(arch),
            f"{arch} on {backbone} with {classes} classes",
            partial(models.build_student, str(arch), backbone, classes),
        )
        for arch in archs
    ]
