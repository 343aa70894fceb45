"""The network that a run begins with: built, filled with what it starts from, and tried on one crop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import load_checkpoint
from endauda_cli.models.compat import IGNORED_PREFIXES, fill, peeled, state_dict_in
from endauda_cli.models.grouping import run_once
from endauda_cli.models.reading import read_content
from endauda_cli.models.unfilled import Unfilled
from endauda_cli.segmenter import Windows
from endauda_cli.students import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

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
    content = read_content(path)
    if network is not None and student.network is not student:
        if isinstance(content, dict) and isinstance(content.get("meta"), dict) and "weights" in content:
            fill(student, path, content["weights"])
            return None
    state = state_dict_in(path, content)
    if len(student.encoder_parts) > 1 and (new := _beside_the_encoder(student, state)):
        return _from_encoder(student, path, content, new, network.title if network else "the student")
    prefix = f"{student.encoder_parts[0]}." if len(student.encoder_parts) == 1 else None
    whole = set(student.state_dict())
    encoder = {key.removeprefix(prefix) for key in whole if key.startswith(prefix)} if prefix else set()
    alone = prefix is not None and state.keys() & encoder and not state.keys() & whole
    module = student.network.get_submodule(student.encoder_parts[0]) if alone else student
    return load_checkpoint(module, path, content)


CLASSIFIER = "layer5.conv2d_list."
"""How the classifier of published DeepLabv2 files is named, whatever its classes are: COCO's, say."""


def _beside_the_encoder(student: Student, state: Mapping[str, Tensor]) -> list[str]:
    """The modules that a file leaves as they are, if it is one of the encoder; none otherwise.

    The encoder is several modules beside each other, as in the published ResNet-101 networks. The file may have a
    classifier too, if that is not the student's, but for other classes or of another kind.
    """
    whole = student.state_dict()
    prefixes = tuple(f"{part}." for part in student.encoder_parts)
    heads = [key for key in whole if not key.startswith(prefixes)]
    beside = [key for key in state if not key.startswith((*prefixes, *IGNORED_PREFIXES))]
    taken = any(key in state and state[key].shape == whole[key].shape for key in heads)
    if taken or len(beside) == len(state) or not all(key.startswith(CLASSIFIER) for key in beside):
        return []
    return sorted({key.partition(".")[0] for key in heads})


def _from_encoder(student: Student, path: Path, content: object, new: list[str], title: str) -> str:
    """Fill the encoder; says what begins at random."""
    state = state_dict_in(path, content)
    classifier = {key: tensor for key, tensor in state.items() if key.startswith(CLASSIFIER)}
    encoder = {key: tensor for key, tensor in state.items() if key not in classifier}
    prefixes = tuple(f"{part}." for part in student.encoder_parts)
    fill(student, path, encoder, (f"the encoder of {title}", prefixes))
    classes = max((len(tensor) for tensor in classifier.values() if tensor.ndim), default=0)
    why = f"its classifier, of {classes} classes, is left out" if classifier else "it has no classifier"
    begin = f"{new[0]} of {title} begins" if len(new) == 1 else f"{' and '.join(new)} of {title} begin"
    told = f"{path}: fills the encoder; {why}, so {begin} at random"
    wrapped = peeled(path, content)
    return told if wrapped is None else f"{wrapped}; {told.removeprefix(f'{path}: ')}"


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
    found = _run(student, (width, height))
    if isinstance(found, str):
        raise ConfigError(
            f"{network.title} does not take crops of {width}x{height} ({found}); say others with --crop, and --size "
            "for whole images"
        )
    logits, layers = found
    if logits.ndim != 4 or logits.shape[1] != num_classes:
        raise ConfigError(
            f"{network.title} returns {tuple(logits.shape)}, but (batch, {num_classes} classes, height, width) were "
            "expected"
        )
    return layers


def fitting(network: Network, config: TrainConfig, num_classes: int) -> Network:
    """The network as it is run over whole images: in windows of the crop, where it takes images of one size alone.

    Raises:
        ConfigError: if it takes neither.
    """
    if config.crop == config.size or network.procedure.windows is not None:
        return network
    with Unfilled():
        student = build(network, num_classes)
    try_out(student, network, config, num_classes)
    padded = [
        -(-side // network.preprocessing.multiple_of) * network.preprocessing.multiple_of
        for side in config.size
    ]
    found = _run(student, (padded[0], padded[1]))
    if not isinstance(found, str):
        return network
    side = config.crop[0]
    if config.crop[1] != side:
        raise ConfigError(
            f"{network.title} takes crops of {side}x{config.crop[1]}, but no images of "
            f"{config.size[0]}x{config.size[1]} ({found}); with a square --crop these are run in windows of it"
        )
    procedure = replace(network.procedure, windows=Windows(side, -(-side * 3 // 4)))
    return replace(network, procedure=procedure, tested=procedure)


def _run(student: Student, size: tuple[int, int]) -> tuple[Tensor, Layers] | str:
    """``run_once`` on an image of that (width, height), or why not."""
    try:
        return run_once(student, torch.zeros(1, 3, size[1], size[0]))
    except MemoryError:
        raise
    except Exception as error:  # a network of any library can fail in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
