"""Kernels: how the label maps and certainties of several teachers become one label map.

``RULES`` is the table of rules. Each is written twice from the semantics below: in ``cpu`` for the CPU
(numba, one pass per pixel) and in ``cuda`` for CUDA (torch, which also runs on the CPU, where tests hold the
two equal). Neither is imported before it is asked for.

Legend of shapes: T teacher, C class, H, W. Labels are uint8 train ids, 255 = none; certainties are percent,
uint8 0..100 (or float32 once renormalised). All ties go to the lowest class. Source of the rules: EnD-UDA
(arXiv 2104.14203), the follow-up project, and their published code, whose results these kernels reproduce.

``plf``
    Pixel-wise label fusion: every class is taken from the teacher that owns it. A pixel claimed by exactly one
    class gets it. Where several claim it, or none, the class with the largest share of claims in the window
    around it wins (class 0 if there are none). Its certainty is the owner's, averaged over the window in the
    second case.
``certainty``
    The class with the highest mean certainty over the teachers.
``majority``
    The class that most teachers give; class 0 without a vote. Knows no certainty and no threshold.
``soft-label``
    Rank calibrated: each teacher's certainties of a pixel are replaced by those that are typical of their ranks
    (``delta``), then averaged as in ``certainty``. Equal certainties are ranked by class, ascending.
``consensus``
    What all teachers together believe, every word weighed by what it meant where the others spoke too; fitted
    without labels, or to a few. Nobody owns a class. Its certainty is the belief in the label. See
    :mod:`endauda_cli.fusion.rules.consensus`; this rule is compiled for the CPU alone.

A label is kept where its certainty reaches the threshold, else the pixel becomes 255. A pixel is *unclaimed* if
no class is claimed there: by its owner (plf), or by any teacher's label (the other rules).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from endauda_cli.types import Border, FusionRule, Unclaimed

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


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        function: its name in ``cpu`` and in ``cuda``.
        options: what the labels depend on beside the teachers: names of ``Recipe`` and ``FuseConfig``.
        holds_all: whether it holds all certainties of an image at once.
    """

    function: str
    options: frozenset[str]
    holds_all: bool = False


RULES: dict[str, Rule] = {
    FusionRule.PLF: Rule(
        "plf", frozenset({"owners", "window", "border", "threshold", "unclaimed", "renormalise"})
    ),
    FusionRule.CERTAINTY: Rule("certainty", frozenset({"threshold", "unclaimed", "renormalise"})),
    FusionRule.MAJORITY: Rule("majority", frozenset({"unclaimed"})),
    FusionRule.SOFT_LABEL: Rule(
        "soft_label", frozenset({"delta", "threshold", "unclaimed", "renormalise"}), holds_all=True
    ),
    FusionRule.CONSENSUS: Rule("consensus", frozenset({"model", "threshold", "unclaimed"}), holds_all=True),
}


def fuse_image(rule: str, labels: Any, planes: Planes, recipe: Recipe) -> Fused:
    """Fuse one image where its data lies: NumPy arrays by the compiled kernels, tensors by torch on their device.

    Args:
        rule: key of ``RULES``.
        labels: (T, H, W) uint8, C-contiguous.
        planes: certainties, of the same kind as ``labels``.
        recipe: what the rule is told.
    """
    backend = "cpu" if type(labels).__module__ == "numpy" else "cuda"
    function: Callable[[Any, Planes, Recipe], Fused] = getattr(
        import_module(f"{__name__}.{backend}"), RULES[rule].function
    )
    return function(labels, planes, recipe)
