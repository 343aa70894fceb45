"""Averaged weights: a student that follows the trained one slowly, and is usually the better of the two."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from endauda_cli.models import Student


class Average:
    """An exponential moving average of a student's weights and statistics.

    Args:
        student: what is averaged; the average begins there.
        decay: 0..1, of the average at each step; less in the first steps, which would weigh for ever.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self.student = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay = decay
        state, own = student.state_dict(), self.student.state_dict()
        pairs = [(own[key], value) for key, value in state.items()]
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the student as it is after so many steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, theirs = _columns(self._floats)
        torch._foreach_lerp_(own, theirs, 1 - decay)
        for mine, counted in self._others:
            mine.copy_(counted)


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    own, theirs = zip(*pairs, strict=True)
    return list(own), list(theirs)
