"""Labels on their way to people and back, in lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endauda_cli.label_results import LabelExport, LabelImport


def exported(r: LabelExport, folder: str, shown: int) -> Iterator[str]:
    """What lies where, and what to do with it."""
    if len(r.disputed) > shown:
        yield f"and {len(r.disputed) - shown:,} more images"
    there = f", {r.skipped:,} of them were there already" if r.skipped else ""
    yield f"{r.labels} as {r.format}: {r.images:,} {r.split} images{there} -> {folder}"
    for step in r.steps:
        yield f"  {step}"
    if r.commands:
        yield "then:"
    for line in r.commands:
        yield f"  {line}"


def imported(r: LabelImport, folder: str) -> Iterator[str]:
    """How many came back, and how to learn from them."""
    empty = f"; {r.empty:,} without any label left out" if r.empty else ""
    yield f"labels of {r.images:,} images from {r.format} -> {folder}{empty}"
    for line in r.commands:
        yield f"  {line}"
