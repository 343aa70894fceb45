"""Store: what a program gives back, and whether that is what its description says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from endauda_cli.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

_NEAR = 1e-2
"""How far sums of probabilities may be from 1: half precision."""
_NOISE, _HALF_NOISE = 0.02, 0.2
"""By how much of the outputs' deviation a pixel may differ between two runs: float32, and half precision."""
_MOST_UNSTABLE = 0.002
"""Share of the pixels whose label may change between two runs."""


class Output(NamedTuple):
    """A tensor that a program gives back, with what it calls it or its place."""

    name: str
    values: Tensor

    def __str__(self) -> str:
        return f"{self.name:.80} {'x'.join(map(str, self.values.shape)) or 'of one number'}"


def outputs_in(result: Any) -> list[Output]:
    """All tensors, whatever they are wrapped in; those that lie deeper come last."""
    found: list[Output] = []
    level: list[tuple[str, Any]] = [("", result)]
    for _ in range(4):
        deeper: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, Tensor):
                found.append(Output(name or "1", value))
            elif isinstance(value, Mapping) or hasattr(value, "items"):
                deeper += [(f"{name}.{key}".lstrip("."), one) for key, one in value.items()]
            elif isinstance(value, Sequence) and not isinstance(value, str):
                deeper += [(f"{name}.{i}".lstrip("."), one) for i, one in enumerate(value, 1)]
        level = deeper
    return found


@dataclass(frozen=True)
class Wanted:
    """What is expected of a program's outputs.

    Attributes:
        path: the program, for messages.
        classes: how many; ``None`` takes what comes.
        heads: weights of the outputs in their sum; ``None`` if nobody said which outputs count.
        says: what they are said to be: ``logits``, ``probabilities``, or ``scores`` (``segmenter.Softmax``).
        pair: one output may stand for two classes: the second's probability, or its logit.
        last: classes are the last axis where that fits.
    """

    path: Path
    classes: int | None = None
    heads: tuple[float, ...] | None = None
    says: str = "logits"
    pair: bool = False
    last: bool = False

    def choose(self, result: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """The outputs that count, each (B, K, h, w).

        Args:
            result: what the program gave back.
            size: (height, width) of its input.

        Raises:
            CheckpointError: if it is not clear which these are, or if they are not what is expected.
        """
        found = outputs_in(result)
        if self.heads is not None:
            if len(found) < len(self.heads):
                raise CheckpointError(
                    f"{self.path}: the program has {len(found)} outputs, but [output] heads weighs {len(self.heads)}"
                )
            chosen = found[: len(self.heads)]
            return tuple(
                self._planes(output, size) if weight else output.values
                for output, weight in zip(chosen, self.heads, strict=True)
            )
        maps = [output for output in found if self._classes_first(output.values, size) is not None]
        if len(maps) > 1:
            raise CheckpointError(
                f"{self.path}: the program has {len(maps)} outputs that may be the labels' ("
                f"{', '.join(map(str, maps[:8]))}); say which under [output] of its description, by a weight for each "
                f"of its outputs in order ({', '.join(output.name[:40] for output in found[:8])}): "
                f"heads = {[int(output is maps[-1]) for output in found]} takes {maps[-1].name:.40} alone"
            )
        if not found:
            raise CheckpointError(
                f"{self.path}: the program gives back no tensor; export logits or probabilities"
            )
        return (self._planes((maps or found)[0], size),)

    def _planes(self, output: Output, size: tuple[int, int]) -> Tensor:
        planes = self._classes_first(output.values, size)
        if planes is not None:
            return planes
        values = output.values
        if values.ndim != 4 or not values.is_floating_point():
            raise CheckpointError(
                f"{self.path}: the program's output has shape {tuple(values.shape)} and type {values.dtype}, but "
                "floats (batch, classes, height, width) were expected; export logits or probabilities"
            )
        if values.shape[1] == 1:
            raise CheckpointError(
                f"{self.path}: the program has one output; if it tells one class from another (a sigmoid), list these "
                "two as classes in its description: first the one that it is near 0 for, then the one near 1"
            )
        raise CheckpointError(
            f"{self.path}: the program has {values.shape[1]} outputs, but {self.classes} class names; list the names "
            "of its outputs, in order, as classes in its description"
        )

    def _classes_first(self, values: Tensor, size: tuple[int, int]) -> Tensor | None:
        """(B, K, h, w), if it can be that."""
        if values.ndim != 4 or not values.is_floating_point():
            return None
        ways = [values, values.permute(0, 3, 1, 2)]
        for way in reversed(ways) if self.last else ways:
            if self.classes is None or way.shape[1] == self.classes:
                # Of the axes in the order that was not asked for, sides that are no sides of the image are no match.
                if way is ways[self.last] or _like(way.shape[2:], size):
                    return way
            elif self.pair and way.shape[1] == 1 and _like(way.shape[2:], size):
                return torch.cat([1 - way if self.says == "probabilities" else torch.zeros_like(way), way], 1)
        return None

    def check(self, output: Tensor) -> None:
        """Refuse logits that are called probabilities, and the other way round: either would pass unnoticed.

        Raises:
            CheckpointError: says what the values look like, and what to do about that.
        """
        if not bool(output.isfinite().all()):
            return  # told image by image
        low, high = output.min().item(), output.max().item()
        about = f"{self.path}: [output] kind is "
        values = f"values go from {low:.3g} to {high:.3g}"
        whole = next((s for s in (1.0, 100.0, 255.0) if _sum_to(output, s, low, high)), None)
        if self.says == "scores":
            if low < 0:
                raise CheckpointError(f"{about}'scores', but {values}; say 'logits'")
            return
        if self.says == "probabilities":
            if whole == 1:
                return
            if whole is not None:
                raise CheckpointError(
                    f"{about}'probabilities', but {values} and sum to {whole:g} over the classes; divide by {whole:g} "
                    "at the end of the network and export it again"
                )
            if low >= -1e-3 and high <= 1.001:
                raise CheckpointError(
                    f"{about}'probabilities', but {values} and do not sum to 1 over the classes: a sigmoid of each "
                    "class is no softmax; export the network with a softmax over the classes in its place"
                )
            if low >= -0.1 and high <= 100.1:
                raise CheckpointError(
                    f"{about}'probabilities', but {values} and sum to neither 1 nor 100 over the classes; export the "
                    "network with a softmax over the classes at its end"
                )
            raise CheckpointError(f"{about}'probabilities', but {values}; say 'logits'")
        if output.shape[1] == 1:
            return
        if whole == 1:
            raise CheckpointError(
                f"{self.path}: the outputs are probabilities (they sum to 1), not logits; say kind = 'probabilities' "
                "under [output] of its description"
            )
        if whole is not None:
            raise CheckpointError(
                f"{self.path}: the outputs are probabilities (they sum to {whole:g}), not logits; divide by {whole:g} "
                "at the end of the network, export it again, and say kind = 'probabilities' under [output]"
            )
        if low >= 0 and 0.5 < high <= 1:
            raise CheckpointError(
                f"{about}'logits', but {values}, as a sigmoid's do: that is no softmax and no logit; export the "
                "network with a softmax over the classes in its place and say kind = 'probabilities', or without it"
            )

    def refuse_unstable(self, first: Tensor, second: Tensor, what: str, half: bool) -> None:
        """Refuse a program that labels the same images (B, K, h, w) in two ways.

        Raises:
            CheckpointError: says on how many pixels.
        """
        if first.shape != second.shape or not bool(first.isfinite().all() and second.isfinite().all()):
            return
        noise = (_HALF_NOISE if half else _NOISE) * float(first.std()) + 1e-6
        difference = (first - second).abs().amax(1)
        changed = float(((first.argmax(1) != second.argmax(1)) & (difference > noise)).float().mean())
        if changed > _MOST_UNSTABLE:
            raise CheckpointError(
                f"{self.path}: the program labels {100 * changed:.3g} % of the pixels differently when {what}; it was "
                "exported in training mode (dropout or the statistics of the batch are live): export it again after "
                "model.eval()"
            )


def _like(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether a map may show an input of this (height, width): about the same ratio of its sides."""
    return abs(shape[0] * size[1] - shape[1] * size[0]) <= size[0] + size[1]


def _sum_to(output: Tensor, whole: float, low: float, high: float) -> bool:
    within = low >= -1e-3 * whole and high <= 1.001 * whole
    return within and bool(((output.sum(1) / whole - 1).abs() < _NEAR).all())
