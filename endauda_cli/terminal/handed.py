"""Labels on their way to people and back, and plans: as tables and lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from endauda_cli.files import size_text
from endauda_cli.label_results import LabelExport, LabelImport
from endauda_cli.plan_results import Expected, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Shown = Callable[[Path], str]

MOST_SHOWN = 50
"""Images that are listed one by one."""


@dataclass(frozen=True)
class Rows:
    """A table whose first ``left`` columns hold words."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@singledispatch
def parts(result: Any, shown: Shown) -> Iterator[str | Rows]:
    """A result in lines and tables; ``shown`` makes a path short."""
    raise TypeError(f"no rendering for {type(result).__name__}")


@parts.register(LabelExport)
def _exported(r: LabelExport, shown: Shown) -> Iterator[str | Rows]:
    if r.disputed:
        rows = tuple((one.image, f"{100 * one.disputed:.1f}") for one in r.disputed[:MOST_SHOWN])
        yield Rows(("image", "teachers disagree on %"), rows)
    if len(r.disputed) > MOST_SHOWN:
        yield f"and {len(r.disputed) - MOST_SHOWN:,} more images"
    there = f", {r.skipped:,} of them were there already" if r.skipped else ""
    yield f"{r.labels} as {r.format}: {r.images:,} {r.split} images{there} -> {shown(r.folder)}"
    for step in r.steps:
        yield f"  {step}"
    if r.commands:
        yield "then:"
    for line in r.commands:
        yield f"  {line}"


@parts.register(LabelImport)
def _imported(r: LabelImport, shown: Shown) -> Iterator[str | Rows]:
    empty = f"; {r.empty:,} without any label left out" if r.empty else ""
    yield f"labels of {r.images:,} images from {r.format} -> {shown(r.folder)}{empty}"
    for line in r.commands:
        yield f"  {line}"


@parts.register(Plan)
def _planned(r: Plan, shown: Shown) -> Iterator[str | Rows]:
    columns = ("to do", "why", "done", "missing", "changed")
    rows = tuple(
        (one.what, one.why, f"{one.done:,}", f"{one.missing:,} {one.unit}", f"{one.changed:,}")
        for one in r.work
    )
    yield Rows(columns, rows, left=2)
    free = "" if r.free is None else f", {size_text(r.free)} free"
    yield _figure("disk", r.disk, size_text, f" -> {shown(r.out)}{free}")
    yield _figure("memory", r.memory, size_text)
    yield _figure("time", r.time, _duration, f" on {r.device}")
    yield _figure("cores", r.cpu, lambda seconds: f"{_duration(seconds)} of one")
    yield "a dry run: nothing was written; the same line without --dry-run does it"


def _figure(name: str, one: Expected, text: Callable[[float], str], more: str = "") -> str:
    if one.value is None:
        return f"{name}: {one.source}"
    return f"{name}: {text(one.value)}{more} ({one.source})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min"
