"""The page of a workspace; what was found stands in the result."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from markupsafe import Markup

from endauda_cli.files import size_text
from endauda_cli.report import (
    BarRow,
    Bars,
    Drawing,
    Drawings,
    Report,
    Row,
    Section,
    Table,
    number,
    percent,
    provenance,
    write_report,
)
from endauda_cli.report.components import file_link, link, range_mark
from endauda_cli.report.diagrams import curve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from endauda_cli.domains import Domain
    from endauda_cli.overview_results import (
        StoredLabels,
        StoredRun,
        StoredScore,
        StoredTeacher,
        WorkspaceReport,
    )

    _Stored = StoredTeacher | StoredLabels | StoredRun

CURVED_RUNS = 12
"""The newest; others have a page of their own."""


def write_page(found: WorkspaceReport, target: Domain) -> None:
    """Write ``found.report``.

    Raises:
        WorkspaceError: if it cannot be written.
    """
    sections: list[Section] = []
    if found.missing:
        rows = [Row([lack.what, lack.command]) for lack in found.missing]
        sections.append(Table("What is missing", ["", ""], rows, ["With the line that makes it."], left=True))
    if found.scores:
        sections += [*_score_tables(found), *_bars(found, target)]
    sections += [_teachers(found), _label_sets(found), _runs(found)]
    if drawings := _curves(found):
        sections.append(Drawings("Curves", drawings, ["Over the steps of each run, the newest first."]))
    if found.unreadable:
        lost = [Row([_short(one.file, found), one.reason]) for one in found.unreadable]
        sections.append(Table("What could not be read", ["", ""], lost, ["The rest is shown."], left=True))
    sections.append(provenance({"workspace": str(found.workspace)}))
    counts = [
        (name, str(len(items)))
        for name, items in (
            ("teachers", found.teachers),
            ("label sets", found.label_sets),
            ("runs", found.runs),
        )
    ]
    best = max((s for s in found.scores if s.miou is not None), key=lambda s: s.miou or 0, default=None)
    if best is not None:
        counts.append((f"best mIoU, {best.kind} {best.name}", f"{number(best.miou)} %"))
    intro = [f"Target {found.target}. All figures are what the commands left; nothing was computed again."]
    write_report(found.report, Report(f"Workspace {found.workspace.name}", intro, sections, headline=counts))


def _score_tables(found: WorkspaceReport) -> Iterable[Table]:
    for (target, split), group in groupby(found.scores, key=lambda score: (score.target, score.split)):
        rows = list(group)
        ends = [end for s in rows for end in (s.low, s.miou, s.high) if end is not None]
        axis = (min(ends, default=0), max(ends, default=1))
        lines = [
            Row(
                [
                    _anchored(score.kind, score.name, found),
                    number(score.miou),
                    _interval(score),
                    range_mark(score.low, score.miou, score.high, axis),
                    f"{score.images:,}",
                ]
            )
            for score in rows
        ]
        page = rows[0].page
        text = [] if page is None else [file_link("The whole page of these scores", page, found.report)]
        yield Table(
            f"Scores on {target} {split}", ["scored", "mIoU", "95 % interval", "", "images"], lines, text
        )


def _bars(found: WorkspaceReport, target: Domain) -> Iterable[Bars]:
    """Of the first table whose classes are the target's."""
    classes = list(target.classes)
    rows = [score for score in found.scores if list(score.iou) == classes and score.target == target.name]
    if rows:
        rows = [score for score in rows if score.split == rows[0].split]
        bars = [BarRow(f"{score.kind} {score.name}", [score.iou[c] for c in classes]) for score in rows]
        yield Bars(f"IoU per class, {target.name} {rows[0].split}", classes, target.palette, bars)


def _teachers(found: WorkspaceReport) -> Table:
    rows = [
        Row(
            [
                teacher.name,
                _scored(teacher.scores, found),
                teacher.source,
                f"{teacher.images:,}",
                size_text(teacher.bytes),
                str(teacher.classes),
                teacher.made_from,
                (teacher.weights_sha256 or "")[:12],
            ],
            name=_place("teacher", teacher),
        )
        for teacher in found.teachers
    ]
    columns = ["teacher", "mIoU", "source", "images", "on disk", "classes", "made from", "weights"]
    return Table("Teachers", columns, rows, words=frozenset([2, 6, 7]))


def _label_sets(found: WorkspaceReport) -> Table:
    rows = []
    for labels in reversed(found.label_sets):
        policy = f", policy {'/'.join(labels.policy.split('/')[-2:])}" if labels.policy else ""
        seen = " (saw labels)" if labels.used_labels else ""
        rows.append(
            Row(
                [
                    labels.name if labels.page is None else file_link(labels.name, labels.page, found.report),
                    number(labels.miou) if labels.miou is not None else _scored(labels.scores, found),
                    labels.split,
                    f"{labels.rule}{policy}{seen}",
                    _joined([_anchored("teacher", name, found, labels.source) for name in labels.teachers]),
                    f"{labels.images:,}",
                    "" if labels.threshold is None else f"{labels.threshold:g}",
                    percent(labels.coverage),
                    percent(labels.disputed),
                ],
                name=_place("labels", labels),
            )
        )
    columns = [
        "labels",
        "mIoU",
        "split",
        "rule",
        "teachers",
        "images",
        "threshold",
        "coverage %",
        "disputed %",
    ]
    return Table("Fused labels", columns, rows, ["Newest first."] if rows else [], words=frozenset([2, 3, 4]))


def _runs(found: WorkspaceReport) -> Table:
    rows = []
    for run in reversed(found.runs):
        learnt = [_anchored("labels", run.labels, found, run.source)] if run.labels else []
        learnt += [f"average of {', '.join(run.merged)}"] if run.merged else []
        learnt += [f"from {run.init.rpartition('/')[2]}"] if run.init else []
        of = [_anchored("teacher", name, found, run.source) for name in run.teachers]
        far = "" if run.step is None else f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
        rows.append(
            Row(
                [
                    run.name if run.page is None else file_link(run.name, run.page, found.report),
                    _scored(run.scores, found),
                    run.network,
                    run.method,
                    _joined(learnt),
                    _joined(of),
                    far,
                    number(run.last_loss, 3) if run.last_loss is not None else "",
                    "" if run.best_miou is None else f"{number(run.best_miou)} at {run.best_step:,}",
                ],
                name=_place("run", run),
            )
        )
    columns = [
        "run",
        "mIoU",
        "network",
        "method",
        "learnt from",
        "of the teachers",
        "step",
        "last loss",
        "best seen",
    ]
    text = ["Newest first. mIoU is of test; best seen is of the images that were looked at while it trained."]
    return Table("Runs", columns, rows, text if rows else [], words=frozenset([2, 3, 4, 5]))


def _curves(found: WorkspaceReport) -> list[Drawing]:
    drawings = []
    for run in [run for run in reversed(found.runs) if run.loss or run.val_miou][:CURVED_RUNS]:
        for what, points in (("loss", run.loss), ("mIoU, %", run.val_miou)):
            if points:
                drawings.append(
                    Drawing(f"{run.name}: {what}", curve(f"{what} of {run.name} over steps", points))
                )
    return drawings


def _scored(scores: Sequence[StoredScore], found: WorkspaceReport) -> Markup | str:
    """The newest known score on each split, with a link to its page."""
    by_split = {(score.target, score.split): score for score in reversed(scores)}
    parts = []
    for score in by_split.values():
        told = f"{number(score.miou)} {score.split}" if len(by_split) > 1 else number(score.miou)
        parts.append(told if score.page is None else file_link(told, score.page, found.report))
    return _joined(parts)


def _interval(score: StoredScore) -> str:
    return "n/a" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}"


def _anchored(kind: str, name: str, found: WorkspaceReport, source: str | None = None) -> Markup | str:
    """A name that leads to its line on this page, if it has one; without a source it says what it is, too."""
    lists: dict[str, Sequence[_Stored]] = {
        "teacher": found.teachers, "labels": found.label_sets, "run": found.runs
    }  # fmt: skip
    own = name.removeprefix(f"{kind}/")
    fitting = [one for one in lists.get(kind, ()) if one.name == own and source in (None, one.source)]
    told = f"{kind} {own}" if source is None else name
    return link(told, f"#{_place(kind, fitting[-1])}") if fitting else told


def _place(kind: str, one: _Stored) -> str:
    """Of its line, another for every source and name."""
    return "-".join(
        [kind, *(re.sub(r"[^\w.]", lambda m: f"-{ord(m[0]):x}.", part) for part in (one.source, one.name))]
    )


def _joined(parts: Sequence[Markup | str]) -> Markup:
    return Markup(", ").join(parts)


def _short(path: Path, found: WorkspaceReport) -> str:
    inside = path.is_relative_to(found.workspace)
    return str(path.relative_to(found.workspace)) if inside else str(path)
