"""Kernels: how the label maps and certainties of several teachers become one label map.

``RULES`` is the table of rules. Each is written twice from the semantics below: in ``cpu`` for the CPU
(numba, one pass per pixel) and in ``cuda`` for CUDA (torch, which also runs on the CPU, where tests hold the
two equal); torch is not imported before tensors are there.

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
    :mod:`endauda_cli.fusion.rules.consensus`.

A label is kept where its certainty reaches the threshold, else the pixel becomes 255. A pixel is *unclaimed* if
no class is claimed there: by its owner (plf), or by any teacher's label (the other rules).
"""

from __future__ import annotations

from typing import Any

from endauda_cli.fusion.rules import cpu
from endauda_cli.fusion.rules.rule import Fused, Planes, Recipe, Rule
from endauda_cli.types import FusionRule

__all__ = ["RULES", "Fused", "Planes", "Recipe", "Rule", "fuse_image"]

_OF_CERTAINTY = frozenset({"threshold", "unclaimed", "renormalise"})

RULES: dict[str, Rule] = {
    FusionRule.PLF: Rule(
        cpu.plf, _OF_CERTAINTY | {"owners", "window", "border"}, needs=frozenset({"owners"})
    ),
    FusionRule.CERTAINTY: Rule(cpu.certainty, _OF_CERTAINTY),
    FusionRule.MAJORITY: Rule(cpu.majority, frozenset({"unclaimed"})),
    FusionRule.SOFT_LABEL: Rule(
        cpu.soft_label, _OF_CERTAINTY | {"delta"}, needs=frozenset({"delta"}), holds_all=True
    ),
    FusionRule.CONSENSUS: Rule(
        cpu.consensus,
        frozenset({"model", "threshold", "unclaimed"}),
        needs=frozenset({"model"}),
        holds_all=True,
    ),
}


def fuse_image(rule: str, labels: Any, planes: Planes, recipe: Recipe) -> Fused:
    """Fuse one image where its data lies: NumPy arrays by the compiled kernels, tensors by torch on their device.

    Args:
        rule: key of ``RULES``.
        labels: (T, H, W) uint8, C-contiguous.
        planes: certainties, of the same kind as ``labels``.
        recipe: what the rule is told.
    """
    if type(labels).__module__ == "numpy":
        return RULES[rule].cpu(labels, planes, recipe)
    from endauda_cli.fusion.rules import cuda

    return cuda.KERNELS[rule](labels, planes, recipe)
