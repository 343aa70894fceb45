"""What ``test`` would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from endauda_cli.labels import image_size
from endauda_cli.plan_results import Expected, PlannedWork
from endauda_cli.planning import LABEL_BYTES, NOTHING, expected

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endauda_cli.datasets import Sample
    from endauda_cli.plan_results import Plan

NETWORK, MAPS = "networks", "label maps"
"""What rates call the two kinds of rows."""
FILES = 2


@dataclass(frozen=True)
class PlannedRow:
    """A row that would be scored: its name, and of a network where its pictures go (``None`` writes none)."""

    name: str
    network: bool
    pictures: Path | None = None


def plan_test(
    rows: Sequence[PlannedRow], samples: Sequence[Sample], out: Path, root: Path, device: str
) -> Plan:
    """Of rows that could be opened. Scores are never kept: what is scored is counted from the first pixel on."""
    images = len(samples)
    work = [
        PlannedWork(
            f"{'network' if row.network else 'label maps'} {row.name}", "images", 0, images, 0, _why(row)
        )
        for row in rows
    ]
    networks = sum(row.network for row in rows)
    parts = [(NETWORK, networks * images), (MAPS, (len(rows) - networks) * images)]
    return expected(root, "test", out, device, work, _disk(rows, samples), parts)


def _why(row: PlannedRow) -> str:
    if row.pictures is not None and (row.pictures / "eval.json").is_file():
        return "scored before, and is scored anew each time"
    return "is scored anew each time"


def _disk(rows: Sequence[PlannedRow], samples: Sequence[Sample]) -> Expected:
    """Of pictures that are not there yet, at the images' size."""
    wanted = [row.pictures for row in rows if row.pictures is not None]
    new = sum(not (folder / f"{sample.id}.png").exists() for folder in wanted for sample in samples)
    if not new:
        return NOTHING
    there = [path for folder in wanted for path in folder.glob("*.png")]
    if there:
        each = sum(path.stat().st_size for path in there) / len(there)
        return Expected(FILES * new * each, f"{each / 1e3:.3g} kB per picture of {there[0].parent.name}")
    height, width = image_size(samples[0].image)
    each = LABEL_BYTES * height * width
    return Expected(FILES * new * each, f"a guess: {each / 1e3:.3g} kB per picture of this size")
