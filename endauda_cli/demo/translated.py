"""The demo's teachers, unless ``--full`` is said: each learnt noon as a simulated image translation made dusk of it.

They are as real teachers of one target are to each other (``benchmarks/likeness.py`` has both side by side): unlike in
strength and in how sure they are, wrong in the same places, one almost a copy of another. ``TEACHERS`` says all that
makes them so; it was chosen by that likeness, not by what any rule makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.demo.parts import Demo, Ensemble, Translation
from endauda_cli.demo.story import RECIPE, train_run
from endauda_cli.labels import read_truth
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.methods import MAIN
from endauda_cli.types import FusionRule, Method

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BASE = replace(RECIPE, method=Method.SOURCE, steps=280)

TRANSLATIONS = {
    "places": Translation(
        (
            "road",
            "sidewalk",
            "building",
            "wall",
            "fence",
            "vegetation",
            "terrain",
            "sky",
            "car",
            "truck",
            "bus",
            "train",
        )
    ),
    "traffic": Translation(
        (
            "road",
            "sidewalk",
            "building",
            "vegetation",
            "sky",
            "traffic sign",
            "person",
            "car",
            "truck",
            "bus",
            "train",
            "motorcycle",
            "bicycle",
        )
    ),
    "people": Translation(
        ("road", "sidewalk", "sky", "pole", "traffic light", "traffic sign", "person", "rider")
    ),
}


@dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        translation: that made its images.
        changes: of the recipe.
        after: the teacher whose weights it begins with; ``None`` is random ones.
    """

    translation: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None


_UNSURE = {"hard_percentile": 65}
"""Who learns from hard pixels alone doubts the easy ones."""
_TOO_SURE = {"hard_percentile": 0, "class_balance": False, "often_balance": False}
TEACHERS = {
    "places": Teacher("places", {"hard_percentile": 50}),
    "traffic": Teacher("traffic", _UNSURE),
    "people": Teacher("people", _TOO_SURE),
    "traffic-later": Teacher("traffic", {**_UNSURE, "steps": 60, "learning_rate": 0.02}, after="traffic"),
}
"""In the order in which they are trained."""


def train_translated(demo: Demo) -> dict[str, Path]:
    """The teachers' checkpoints."""
    made: dict[str, Path] = {}
    for name, teacher in TEACHERS.items():
        domain = load_domain(str(demo.workspace.root / f"noon-{teacher.translation}.toml"))
        samples = find_samples(domain, demo.workspace.data_roots(domain), "train", need_labels=True)
        examples = [Example(s.id, s.image, s.label) for s in samples if s.label is not None]
        init = None if teacher.after is None else made[teacher.after]
        config = replace(BASE, **teacher.changes)
        made[name] = train_run(
            demo, f"teacher-{name}", config, {MAIN: Stream(examples, domain, read_truth)}, init
        )
    return made


TRANSLATED = Ensemble(
    tuple(TEACHERS),
    train_translated,
    "each on noon translated to dusk in its own way",
    "Each teacher learnt from source images translated towards the target. A translation gets some classes right and "
    "leaves the others as they are at noon; traffic-later is traffic after 60 steps more.",
    FusionRule.CONSENSUS,
    translations=TRANSLATIONS,
)
