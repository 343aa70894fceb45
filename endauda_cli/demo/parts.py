"""What a demo is made of: a world, and an ensemble of teachers in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from endauda_cli.datasets import find_samples
from endauda_cli.demo import street

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    import torch

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.progress import Reporter
    from endauda_cli.types import FusionRule
    from endauda_cli.workspace import Workspace


@dataclass(frozen=True)
class Demo:
    """What every part of the demo needs."""

    workspace: Workspace
    task: Task
    seed: int
    device: torch.device
    report: Reporter

    def samples(self, split: str) -> list[Sample]:
        roots = self.workspace.data_roots(self.task.target)
        return find_samples(self.task.target, roots, split, need_labels=split == "val")


@dataclass(frozen=True)
class Translation:
    """How a teacher was adapted: it learnt source images that were translated towards the target.

    Attributes:
        right: the classes that the translation gets right; all others stay as they are in the source, so what several
            translations miss, their teachers miss alike.
    """

    right: tuple[str, ...]

    def look(self, rng: np.random.Generator) -> street.Look:
        """Of one translated image, by its own degree."""
        return street.translated(street.SOURCE_LOOK, self.right, rng.uniform(0, 1))


@dataclass(frozen=True)
class Ensemble:
    """Who the teachers are, and what becomes of what they say.

    Attributes:
        teachers: their names.
        train: trains them: the checkpoint of each, and of further networks that are scored beside them.
        how: how they are trained, in a few words.
        intro: the same for the page, in a sentence.
        rule: whose labels the student learns.
        start: of the checkpoints that the student begins with; ``None`` is random weights.
        translations: by which the source is drawn too, as if translated towards the target.
        full: it is that of ``--full``.
    """

    teachers: tuple[str, ...]
    train: Callable[[Demo], dict[str, Path]]
    how: str
    intro: str
    rule: FusionRule
    start: str | None = None
    translations: Mapping[str, Translation] = field(default_factory=dict)
    full: bool = False
