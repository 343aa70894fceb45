"""A demo so small that nothing is learnt: the full one takes minutes and is for people."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from endauda_cli.demo import full, story, translated

if TYPE_CHECKING:
    import pytest

IMAGES = {"train": 4, "val": 2}
STEPS = 3


def shrink(
    patch: pytest.MonkeyPatch, images: dict[str, int] = IMAGES, scenes: int = 2, **recipe: Any
) -> None:
    """Makes the world, the networks' inputs and all runs small.

    Args:
        patch: undoes it.
        images: of the target's splits.
        scenes: that are pictured.
        recipe: of every run.
    """
    tiny: dict[str, Any] = {
        "size": (64, 32), "crop": (48, 24), "batch_size": 2, "steps": STEPS, "balance_area": 48 * 24 // 32, **recipe
    }  # fmt: skip
    small = {
        story: {
            "SOURCE_IMAGES": 4, "TARGET_IMAGES": images, "SIZE": (64, 32), "PICTURED_SCENES": scenes,
            "STUDENT": replace(story.STUDENT, **tiny),
        },
        translated: {
            "BASE": replace(translated.BASE, **tiny), "TEACHERS": _short(translated.TEACHERS, tiny["steps"])
        },
        full: {"BASE": replace(full.BASE, **tiny), "RUNS": _short(full.RUNS, tiny["steps"])},
    }  # fmt: skip
    for module, values in small.items():
        for name, value in values.items():
            patch.setattr(module, name, value)


def _short(runs: dict[str, Any], steps: int) -> dict[str, Any]:
    return {name: replace(run, changes={**run.changes, "steps": steps}) for name, run in runs.items()}
