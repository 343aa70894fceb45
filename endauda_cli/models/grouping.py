"""What the optimiser sees: every trained parameter in one group, by where it stands in the network; and which learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from endauda_cli.models.deeplab import parameter_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from endauda_cli.models.deeplab import Student

_CONTAINERS = (nn.ModuleList, nn.Sequential)
_DECAYED = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear, nn.MultiheadAttention)
"""Modules whose matrices and kernels are pulled towards 0 where norms, biases and embeddings are not."""


class Group(NamedTuple):
    """Parameters that learn alike."""

    parameters: list[nn.Parameter]
    rate: float
    """In multiples of the base learning rate."""
    decays: bool
    """Whether weight decay pulls at them."""


@dataclass(frozen=True)
class Layers:
    """Where an encoder's parameters stand, in the order in which an image passes them."""

    count: int
    of: Mapping[nn.Parameter, int]
    """0 before the first block, then the number of the block, from 1; what is never used is in none."""


def groups_of(
    student: Student,
    head_rate: float,
    *,
    matrices_alone: bool = False,
    layer_decay: float = 1.0,
    layers: Layers | None = None,
) -> list[Group]:
    """All parameters that are trained, each in one group; groups come in a fixed order and none is empty.

    Args:
        student: whose encoder learns at the base rate.
        head_rate: of all else.
        matrices_alone: weight decay is of matrices and kernels; else of everything.
        layer_decay: each block of the encoder learns at that much of the next one's rate.
        layers: of the encoder, where that is not 1.
    """
    base, rest = parameter_groups(student)
    matrices = {id(p) for p in _matrices(student)} if matrices_alone else None
    rates: dict[tuple[float, bool], list[nn.Parameter]] = {}

    def put(parameter: nn.Parameter, rate: float) -> None:
        decays = matrices is None or id(parameter) in matrices
        rates.setdefault((rate, decays), []).append(parameter)

    for parameter in base:
        depth = 0 if layers is None else layers.count - layers.of.get(parameter, layers.count)
        put(parameter, layer_decay**depth)
    for parameter in rest:
        put(parameter, head_rate)
    return [Group(parameters, rate, decays) for (rate, decays), parameters in sorted(rates.items(), key=_key)]


def _key(item: tuple[tuple[float, bool], list[nn.Parameter]]) -> tuple[float, bool]:
    return item[0]


def _matrices(network: nn.Module) -> Iterator[nn.Parameter]:
    for module in network.modules():
        if isinstance(module, _DECAYED):
            yield from (p for p in module.parameters(recurse=False) if p.ndim > 1)


def blocks_of(network: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """The repeated blocks of an encoder: elements of lists and sequences that have several layers and come in several,
    the innermost such."""
    found: dict[nn.Module, None] = {}
    for part in parts or ("",):
        for container in network.get_submodule(part).modules():
            if isinstance(container, _CONTAINERS):
                found |= {
                    item: None for item in container if not isinstance(item, _CONTAINERS) and _is_deep(item)
                }
    kinds = [type(module) for module in found]
    several = {module for module in found if kinds.count(type(module)) > 1}
    return [
        module
        for module in found
        if module in several and not any(other in several for other in list(module.modules())[1:])
    ]


def _is_deep(module: nn.Module) -> bool:
    layers = (1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)
    return sum(layers) > 1


@torch.no_grad()
def run_once(student: Student, images: Tensor) -> tuple[Tensor, Layers]:
    """The logits of some images, (B, C, h, w), and what they passed on their way; the student is left as it was."""
    network, training = student.network, student.training
    blocks = blocks_of(network, student.encoder_parts)
    inside = {part: block for block in blocks for part in block.modules()}
    begun: dict[nn.Module, int] = {}
    of: dict[nn.Parameter, int] = {}

    def passed(module: nn.Module, _: object, _named: object) -> None:
        block = inside.get(module)
        place = len(begun) if block is None else begun.setdefault(block, len(begun) + 1)
        for parameter in (module if block is None else block).parameters(recurse=block is not None):
            of.setdefault(parameter, place)

    watched = [m for part in student.encoder_parts or ("",) for m in network.get_submodule(part).modules()]
    hooks = [module.register_forward_pre_hook(passed, with_kwargs=True) for module in dict.fromkeys(watched)]
    try:
        logits: Tensor = student.eval()(images)
    finally:
        student.train(training)
        for hook in hooks:
            hook.remove()
    return logits, Layers(len(begun), of)


def unreached(student: Student, images: Tensor) -> list[nn.Parameter]:
    """Trained parameters that the logits of some images (B, 3, H, W), B of 2 or more, do not depend on in train mode.

    Generators of random numbers go on; all else of the student is left as it was.
    """
    training, before = student.training, [(buffer, buffer.clone()) for buffer in student.buffers()]
    with torch.enable_grad():
        logits: Tensor = student.train()(images)
    student.train(training)
    for buffer, value in before:
        buffer.copy_(value)
    waiting, seen, reached = [logits.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (parameter := getattr(node, "variable", None)) is not None:
            reached.add(id(parameter))
        waiting += [one for one, _ in node.next_functions]
    return [p for p in student.parameters() if p.requires_grad and id(p) not in reached]
