"""The network that a run begins with: built, filled with what it starts from, and tried on one crop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import load_checkpoint, read_state_dict
from endauda_cli.models.compat import fill
from endauda_cli.models.grouping import run_once
from endauda_cli.models.reading import read_content

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endauda_cli.config import TrainConfig
    from endauda_cli.models import Student
    from endauda_cli.models.grouping import Layers
    from endauda_cli.students import Network


def initialise(
    student: Student, path: Path, network: Network | None = None, classes: Sequence[str] = ()
) -> str | None:
    """Start from a checkpoint of the whole network, or of its backbone alone (ImageNet), or from a library's folder.

    Args:
        student: is filled.
        path: of the file or folder.
        network: what the student is, where that is no DeepLab.
        classes: its classes' names.

    Returns:
        What was left out around the weights, or is new beside them, in a sentence.

    Raises:
        CheckpointError: if it is of another network.
    """
    if path.is_dir():
        if network is None:
            raise CheckpointError(f"{path}: a folder, but a file of weights was expected; say --network too")
        return _from_folder(student, path, network, classes)
    if network is not None and student.network is not student:
        content = read_content(path)
        if isinstance(content, dict) and isinstance(content.get("meta"), dict) and "weights" in content:
            fill(student, path, content["weights"])
            return None
    prefix = f"{student.encoder_parts[0]}." if len(student.encoder_parts) == 1 else None
    whole = set(student.state_dict())
    encoder = {key.removeprefix(prefix) for key in whole if key.startswith(prefix)} if prefix else set()
    found = set(read_state_dict(path))
    alone = prefix is not None and found & encoder and not found & whole
    module = student.network.get_submodule(student.encoder_parts[0]) if alone else student
    return load_checkpoint(module, path)


def _from_folder(student: Student, path: Path, network: Network, classes: Sequence[str]) -> str | None:
    from endauda_cli.teachers.starting import folder_weights

    state, lacking = folder_weights(path, network, classes)
    student.network.load_state_dict(state, strict=False)
    if not lacking:
        return None
    return (
        f"{path}: {len(lacking):,} of {len(lacking) + len(state):,} tensors begin at random, the head for these "
        f"classes among them; first {lacking[0]}"
    )


def try_out(student: Student, network: Network, config: TrainConfig, num_classes: int) -> Layers:
    """Run the student once as it will be trained, and return what an image passes in it.

    Raises:
        ConfigError: if it does not take crops of the recipe's size, or returns no logits of these classes.
    """
    width, height = config.crop
    try:
        logits, layers = run_once(student, torch.zeros(1, 3, height, width))
    except MemoryError:
        raise
    except Exception as error:  # a network of any library can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{network.title} does not take crops of {width}x{height} ({type(error).__name__}: {reason}); say others "
            "with --crop, and --size for whole images"
        ) from error
    if logits.ndim != 4 or logits.shape[1] != num_classes:
        raise ConfigError(
            f"{network.title} returns {tuple(logits.shape)}, but (batch, {num_classes} classes, height, width) were "
            "expected"
        )
    return layers
