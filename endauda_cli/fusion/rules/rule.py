"""What a rule is told, what it answers, and a row of the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from endauda_cli.types import Border, Unclaimed

if TYPE_CHECKING:
    from endauda_cli.fusion.rules.consensus import Consensus

Planes = Callable[[int, Sequence[int]], Any]
"""``planes(t, classes)``: teacher t's certainties of these classes, (len(classes), H, W). A rule asks for what it
needs and no more: PLF for one plane per class that wins a pixel, from the class's owner."""


class Fused(NamedTuple):
    """A fused image, of NumPy arrays or tensors."""

    label: Any
    """(H, W) uint8 train ids, 255 where no label was kept."""
    candidate: Any
    """(H, W) uint8, the label before the threshold."""
    claims: Any
    """(H, W) uint8, how many classes (PLF: by their owners; else: by any teacher) claim the pixel."""


@dataclass(frozen=True)
class Recipe:
    """What a rule is told, beside the data. A rule looks at its own part of it.

    Attributes:
        num_classes: C.
        owners: the teacher of each class (plf).
        window: (height, width), both odd (plf).
        border: ``reference`` divides a window's sum by its whole size, as published, so that labels near the
            border are kept less often; ``inside`` by the number of its pixels inside the image (plf).
        threshold: percent; 0 keeps every pixel.
        unclaimed: ``vote`` lets the rule decide, as published; ``ignore`` leaves such pixels unlabelled.
        delta: (C,) ascending, percent: the typical certainty of each rank (soft-label).
        model: the fitted weights (consensus).
    """

    num_classes: int
    owners: tuple[int, ...] = ()
    window: tuple[int, int] = (5, 5)
    border: str = Border.REFERENCE
    threshold: float = 90
    unclaimed: str = Unclaimed.VOTE
    delta: tuple[float, ...] = ()
    model: Consensus | None = None


Kernel = Callable[[Any, Planes, Recipe], Fused]
"""``kernel(labels, planes, recipe)``: labels (T, H, W) uint8 train ids, 255 = none, C-contiguous; planes are percent,
uint8 0..100 (float32 once renormalised); all of NumPy or all on one device."""


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        cpu: its kernel on NumPy arrays.
        options: what the labels depend on beside the teachers: names of ``Recipe`` and ``FuseConfig``.
        needs: what has to be found out from all images first: who owns which class, a fitted ``model``, ``delta``.
        holds_all: whether it holds all certainties of an image at once.
    """

    cpu: Kernel
    options: frozenset[str]
    needs: frozenset[Literal["owners", "model", "delta"]] = frozenset()
    holds_all: bool = False

    @property
    def owned(self) -> bool:
        """Whether each class is taken from one teacher."""
        return "owners" in self.needs

    @property
    def knows_threshold(self) -> bool:
        """Whether labels have a certainty."""
        return "threshold" in self.options
