"""Results that are told in lines more than in tables: what is planned, written for others, or there."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

from endauda_cli.files import size_text
from endauda_cli.label_results import LabelExport, LabelImport
from endauda_cli.overview_results import WorkspaceReport
from endauda_cli.plan_results import Expected, Plan
from endauda_cli.results import DeployResult
from endauda_cli.terminal.judging import Rows
from endauda_cli.types import Accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Shown = Callable[[Path], str]

MOST_SHOWN = 50
"""Images that are listed one by one."""


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


@parts.register(DeployResult)
def _deployed(r: DeployResult, shown: Shown) -> Iterator[str | Rows]:
    kind = "any size" if r.dynamic else "fixed size"
    size = "" if r.size is None else f", images at {r.size[0]}x{r.size[1]}"
    yield f"{r.format} in {r.precision}, {kind}{size}, {r.bytes / 1e6:.1f} MB -> {shown(r.file)}"
    yield f"classes, pre- and postprocessing: {shown(r.description)}"
    if r.precision == Accuracy.INT8:
        images = r.calibrated_on
        yield f"ranges measured on {images} target images" if images else "ranges found for each image"
    like = f"labels {r.equal:.4g} % of the pixels of {r.images} target images as"
    yield f"{like} {shown(r.checkpoint)} does"
    if r.images_per_second is not None:
        yield (
            f"{r.images_per_second:.3g} images/s on {r.threads} threads, the checkpoint "
            f"{r.checkpoint_images_per_second or 0:.3g}; the network alone, one image at a time"
        )


@parts.register(WorkspaceReport)
def _overview(r: WorkspaceReport, shown: Shown) -> Iterator[str | Rows]:
    there = (
        ("teachers", ", ".join(teacher.name for teacher in r.teachers) or "none"),
        ("label sets", ", ".join(labels.name for labels in r.label_sets) or "none"),
        ("runs", ", ".join(run.name for run in r.runs) or "none"),
        ("scores", f"{len(r.scores)}" if r.scores else "none"),
    )
    yield Rows(("", "what there is"), there, 2)
    for lack in r.missing:
        yield f"missing: {lack.what}: {lack.command}"
    for one in r.unreadable:
        yield f"not read: {shown(one.file)}: {one.reason}"
    yield f"report: {shown(r.report)}"


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
