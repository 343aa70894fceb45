"""Results as people read them: tables and lines on stdout."""

from __future__ import annotations

import shlex
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from endauda_cli.files import size_text
from endauda_cli.label_results import LabelExport, LabelImport
from endauda_cli.overview_results import WorkspaceReport
from endauda_cli.plan_results import Plan
from endauda_cli.results import (
    Advice,
    CheckupResult,
    ConfigResult,
    DemoResult,
    DeployResult,
    DownloadResult,
    ExportResult,
    Finding,
    FusionResult,
    InspectResult,
    MergeResult,
    TrainResult,
    WeightsList,
)
from endauda_cli.score_results import Calibration, EvalResult, ScoreTable
from endauda_cli.terminal import handed, judging
from endauda_cli.terminal.screens import say
from endauda_cli.types import BestBy

if TYPE_CHECKING:
    from endauda_cli.terminal.screens import Screen

STATE_STYLES = {"ok": "green", "note": "yellow", "missing": "magenta", "broken": "bold red"}
"""Of a checkup's findings. The words are there too, so nothing is said by colour alone."""
STATE_WIDTH = max(map(len, STATE_STYLES))
NAME_WIDTH = 18
"""Longer names push only their own line to the right."""
NOTED = 3
"""So many published artefacts are described beside the table."""


class Page:
    """Prints results of any kind."""

    def __init__(self, out: Screen) -> None:
        self.out = out
        self.ruled = out.file.isatty()
        """Lines between rows are for people; programs read columns."""

    @singledispatchmethod
    def show(self, result: Any) -> None:
        """Print a result."""
        raise TypeError(f"no rendering for {type(result).__name__}")

    @show.register
    def _(self, r: ExportResult) -> None:
        new = r.images - r.skipped
        self._line(
            f"{r.teacher}: {new} images exported, {r.skipped} were there already -> {_relative(r.archive)}"
        )
        if new:
            self._line(
                f"{_mb(r.raw_bytes)} of labels and certainties; the archive now takes {_mb(r.stored_bytes)}"
            )

    @show.register
    def _(self, r: FusionResult) -> None:
        owned = (r.leader, "margin", "sure %") if r.policy else ()
        table = self._table("class", *owned, "share %", "kept %", "overlap %")
        for c in r.classes:
            margin = "" if c.margin is None else f"{c.margin:+.3f}"
            owner = (c.owner or "", margin, _percent(c.sureness)) if owned else ()
            table.add_row(c.name, *owner, *(_percent(v) for v in (c.share, c.kept, c.overlap)))
        self._print(table)
        policy = f", policy {r.policy}{' (used target labels)' if r.used_labels else ''}" if r.policy else ""
        threshold = "" if r.threshold is None else f", threshold {r.threshold:g}"
        self._line(
            f"{r.rule} of {' '.join(r.teachers)}{policy}{threshold}: {r.images} images ({r.skipped} unchanged)"
        )
        self._line(
            f"coverage {_percent(r.coverage)} %, claimed by several classes {_percent(r.overlap)} %, "
            f"by none {_percent(r.unclaimed)} %; teachers disagree on {_percent(r.disputed)} %"
        )
        if r.scores:
            scores = self._table("scored, not used", "mIoU %", "kept mIoU %", "kept %")
            for s in r.scores:
                kept = ("", "") if s.coverage is None else (_figure(s.kept_miou), f"{s.coverage:.1f}")
                scores.add_row(f"{'rule' if s.is_rule else 'teacher'} {s.name}", _figure(s.miou), *kept)
            self._print(scores)
        if r.labelled_images:
            some = ", ".join(r.labelled_images[:8]) + (", ..." if len(r.labelled_images) > 8 else "")
            self._line(
                f"the policy looked at labels of {len(r.labelled_images)} images, do not score on them: {some}"
            )
        if r.waiting_for:
            self._line(
                f"this part is done; {r.waiting_for} images of other parts are not, and who finishes last (or the "
                f"same command again) writes the summary: {_relative(r.labels)}"
            )
        else:
            self._line(f"labels, previews, policy and report: {_relative(r.labels)}")

    @show.register
    def _(self, r: Advice) -> None:
        for rows in judging.advice_tables(r):
            self._rows(rows)
        for line in judging.advice_lines(r):
            self._line(line)

    @show.register
    def _(self, r: EvalResult) -> None:
        table = self._table("class", "IoU %")
        for name, iou in r.iou.items():
            table.add_row(name, _figure(iou))
        table.add_section()
        known = sum(v is not None for v in r.iou.values())
        table.add_row(f"mIoU over {known} of {len(r.iou)} classes", _figure(r.miou), style="bold")
        for title, value in r.subset_miou.items():
            table.add_row(title, _figure(value), style="bold")
        if r.coverage < 100:
            table.add_row("mIoU, 255 counted as wrong", _figure(r.strict_miou), style="bold")
        self._print(table)
        self._line(f"{_relative(Path(r.scored))} on {r.images} images of {r.target} {r.split}")
        self._line(f"coverage {r.coverage:.2f} %")
        if r.coverage < 100:
            self._line(
                "mIoU is over the pixels that have a prediction; cityscapesScripts counts the others (255) as wrong: "
                f"{_figure(r.strict_miou)}"
            )
        self._line(f"truth {r.truth:.2f} % (of all pixels; the others have no class and are not scored)")
        more = [
            f"{mean.title} {_figure(mean.miou)}"
            for mean in r.means
            if len(mean.classes) < len(r.iou) and mean.title not in r.subset_miou
        ]
        more.append(f"pixel accuracy {_figure(r.pixel_accuracy)}")
        more.append(f"frequency-weighted IoU {_figure(r.frequency_weighted_iou)}")
        more += [f"boundary F ({b.tolerance}) {_figure(b.mean)}" for b in r.boundary]
        self._line(", ".join(more))
        for one in r.intervals:
            if one.low is not None:
                self._line(f"95 % interval of the mIoU over {one.units} {one.over}: {judging.between(one)}")
        if r.calibration is not None:
            self._rows(judging.reliability_table(r.calibration))
            self._calibrations({"": r.calibration})
        if r.pictures is not None:
            self._line(f"predictions and report: {_relative(r.pictures)}")

    @show.register
    def _(self, r: ScoreTable) -> None:
        first = r.rows[0].score
        means = [m.title for m in first.means if len(m.classes) < len(first.iou)]
        outlines = [f"boundary F ({b.tolerance}) %" for b in first.boundary[:1]]
        table = self._table(
            "scored", "mIoU %", "95 % interval", *means, "accuracy %", *outlines, "coverage %"
        )
        for row in r.rows:
            s = row.score
            table.add_row(
                f"{row.kind} {_relative(Path(row.name))}",
                _figure(s.miou),
                judging.between(s.intervals[0]),
                *(_figure(m.miou) for m in s.means if m.title in means),
                _figure(s.pixel_accuracy),
                *(_figure(b.mean) for b in s.boundary[:1]),
                f"{s.coverage:.1f}",
            )
        self._print(table)
        self._line(f"on {r.images} images of {r.target} {r.split}")
        self._calibrations({row.name: c for row in r.rows if (c := row.score.calibration) is not None})
        for comparison in r.comparisons:
            self._line(judging.compared(comparison))
        if r.published:
            self._published(r)
        self._line(f"report: {_relative(r.report)}")

    @show.register
    def _(self, r: TrainResult) -> None:
        speed = "" if r.images_per_second is None else f", {r.images_per_second:.2f} images/s"
        resumed = f" (from step {r.resumed_from} on)" if r.resumed_from else ""
        labelled = f" and {r.labelled_images} with true labels" if r.labelled_images else ""
        network = f"{r.arch} on {r.backbone}" if r.backbone else r.arch
        self._line(
            f"{network}: {r.steps} steps{resumed} on {r.images} images{labelled} in {r.seconds:.0f} s{speed}"
        )
        if r.last_loss is not None:
            self._line(f"last loss {r.last_loss:.4f}")
        if r.stopped_early:
            self._line("ended before its last step, for it had stopped getting better")
        if r.best_miou is not None:
            how = "with those labels" if r.best_by == BestBy.MIOU else "without them, by agreement"
            self._line(
                f"mIoU on labelled target images: last {_figure(r.last_miou)}, best {_figure(r.best_miou)} "
                f"at step {r.best_step} (chosen {how})"
            )
        if r.best_agreement is not None:
            self._line(
                f"agreement with the fused labels of {r.held_out_images} images held out: last "
                f"{_figure(r.last_agreement)}, best.pt (step {r.best_step}) {_figure(r.best_agreement)}"
            )
        self._line(f"checkpoint: {_relative(r.checkpoint)}")

    @show.register
    def _(self, r: MergeResult) -> None:
        told = {"agreement": "agreement %", "miou": "mIoU %"}.get(r.by)
        table = self._table("run", "used", *((told,) if told else ()), "as the merge %", left=2)
        for one in r.runs:
            score = (_figure(one.score),) if told else ()
            table.add_row(
                str(_relative(one.checkpoint)), "yes" if one.used else "no", *score, f"{one.alike:.2f}"
            )
        if told:
            table.add_row("the merge", "", _figure(r.score), "", style="bold")
        self._print(table)
        statistics = (
            f"batch statistics from {r.statistics_images} target images"
            if r.statistics_images
            else "averaged"
        )
        used = sum(one.used for one in r.runs)
        self._line(f"{used} of {len(r.runs)} runs averaged by {r.by}, {statistics}")
        if r.by == "miou":
            self._line(
                f"labels of {len(r.scored_images)} images were looked at, do not score on them: "
                f"{', '.join(r.scored_images[:8])}{', ...' if len(r.scored_images) > 8 else ''}"
            )
        self._line(f"checkpoint: {_relative(r.checkpoint)}")

    @show.register
    def _(self, r: InspectResult) -> None:
        table = self._table("", str(_relative(r.archive)), left=2)
        for key, value in r.facts.items():
            table.add_row(key, value)
        self._print(table)
        if r.classes:
            per_class = self._table("class", "share %", "mean certainty")
            for c in r.classes:
                per_class.add_row(
                    c.name, _percent(c.share), "n/a" if c.certainty is None else f"{c.certainty:.1f}"
                )
            self._print(per_class)
        for path in r.pictures:
            self._line(f"picture: {_relative(path)}")
        if r.exported is not None:
            damaged = f", {r.exported.unreadable} damaged ones left out" if r.exported.unreadable else ""
            self._line(
                f"{r.exported.images} images written back as PNG and NPY{damaged}, {_mb(r.exported.bytes)} -> "
                f"{_relative(r.exported.folder)}"
            )
        if r.verified is not None and r.intact:  # else it is told as an error
            self._line(r.verified)

    @show.register
    def _(self, r: WeightsList) -> None:
        table = self._table("name", "state", "licence", "goes to", "size", "mIoU %", left=4)
        for w in r.artefacts:
            size = "" if w.size is None else size_text(w.size)
            miou = "" if w.miou is None else _figure(w.miou)
            table.add_row(w.name, w.state, w.licence or "unknown", w.path, size, miou)
        self._print(table)
        for w in r.artefacts if len(r.artefacts) <= NOTED else ():
            self._line(f"{w.name}: {w.what}{f'. {w.note}' if w.note else ''}")
        for page in dict.fromkeys(w.page for w in r.artefacts):
            self._line(f"from {page}: {', '.join(w.name for w in r.artefacts if w.page == page)}")

    @show.register
    def _(self, r: DownloadResult) -> None:
        for w in r.fetched:
            where = f"fetched from {w.url}" if w.fetched else "was there already"
            self._line(f"{w.name}: {where}, verified, {size_text(w.size)} -> {_relative(w.path)}")
            for line in w.checks:
                self._line(f"  {line}")
            for line in w.next_steps:
                self._line(f"  next: {line}")

    @show.register
    def _(self, r: DemoResult) -> None:
        table = self._table("on the target's val images", "mIoU %", "coverage %")
        for row in r.scores:
            table.add_row(
                row.name, _figure(row.miou), f"{row.coverage:.1f}", style="bold" if row.ours else None
            )
        self._print(table)
        self._line(f"report with pictures: {_relative(r.report)}   ({r.seconds:.0f} s)")
        self._line(
            "the folder is a workspace; try: "
            f"cd {shlex.quote(str(_relative(r.workspace)))} && endauda fuse --rule certainty"
        )

    @show.register(LabelExport)
    @show.register(LabelImport)
    @show.register(Plan)
    @show.register(DeployResult)
    @show.register(WorkspaceReport)
    def _(self, r: Any) -> None:
        for part in handed.parts(r, lambda path: str(_relative(path))):
            if isinstance(part, str):
                self._line(part)
            else:
                self._rows(part)

    def _calibrations(self, found: dict[str, Calibration]) -> None:
        if found:
            self._rows(judging.calibration_table(found))
            for line in judging.calibration_lines(found.values()):
                self._line(line)

    def _published(self, r: ScoreTable) -> None:
        rows = list(r.published[0].differences)
        table = self._table("published", "classes", "mIoU %", *(f"{row} - it" for row in rows))
        for p in r.published:
            far = ["n/a" if (d := p.differences[row]) is None else f"{d:+.2f}" for row in rows]
            table.add_row(p.name, str(p.classes), _figure(p.miou), *far)
        self._print(table)

    def _table(self, *columns: str, left: int = 1) -> Table:
        """A table whose first ``left`` columns hold words, the others figures."""
        table = Table(box=box.SIMPLE_HEAD if self.ruled else None, header_style="bold", pad_edge=False)
        for i, column in enumerate(columns):
            justify: Literal["left", "right"] = "left" if i < left else "right"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=i == 0)
        return table

    def _rows(self, rows: judging.Rows) -> None:
        table = self._table(*rows.columns, left=rows.left)
        for cells in rows.cells:
            table.add_row(*cells)
        self._print(table)

    def _print(self, table: Table) -> None:
        """A table; where the terminal is too narrow, a paragraph per row instead."""
        needed = Measurement.get(self.out, self.out.options.update(max_width=10_000), table).maximum
        if not self.ruled or needed <= self.out.width or len(table.columns) < 3:
            self.out.print(table)
            return
        titles = [str(column.header) for column in table.columns]
        cells = [[str(cell) for cell in column.cells] for column in table.columns]
        for name, *values in zip(*cells, strict=True):
            self.out.print(Text(name, "bold"), soft_wrap=True)
            facts = [_fact(title, value) for title, value in zip(titles[1:], values, strict=True) if value]
            self._line("; ".join(facts), "  ")

    @show.register
    def _(self, r: CheckupResult) -> None:
        for group in r.groups:
            width = min(NAME_WIDTH, max(cell_len(finding.name) for finding in group.findings))
            self.out.print(Text(group.title, "bold"))
            for finding in group.findings:
                self._finding(finding, width)
            self.out.print()
        if r.next is not None:
            self._line("next:" if r.usable else "mend this first:")
            self._line(f"  {r.next}")
        elif any(finding.state in ("missing", "broken") for group in r.groups for finding in group.findings):
            self._line("what has to be mended is told above")
        else:
            self._line("nothing is missing")

    def _finding(self, finding: Finding, width: int) -> None:
        """Its state, name and text in columns; below, unwrapped for copying, the line that mends it."""
        head = Text(finding.state.ljust(STATE_WIDTH + 2), STATE_STYLES[finding.state])
        head.append(set_cell_size(finding.name, max(width, cell_len(finding.name))) + "  ", "default")
        lines = Text(finding.text).wrap(self.out, max(24, self.out.width - head.cell_len), overflow="fold")
        for number, line in enumerate(lines):
            line.rstrip()
            self.out.print((head if number == 0 else Text(" " * head.cell_len)) + line, soft_wrap=True)
        if finding.mend is not None:
            self.out.print(
                Text(" " * (STATE_WIDTH + 2) + "-> ", "dim") + Text(finding.mend, "bold"), soft_wrap=True
            )

    @show.register
    def _(self, r: ConfigResult) -> None:
        self._line(f"workspace {r.workspace}, {r.file.name if r.file else 'without an endauda.toml'}")
        for command in dict.fromkeys(row.command for row in r.rows):
            table = self._table(command, "value", "from", left=3)
            for row in (row for row in r.rows if row.command == command):
                changed = row.origin != "built-in"
                table.add_row(row.option, _setting(row.value), row.origin, style="bold" if changed else None)
            self.out.print()
            self.out.print(table)
        if not r.rows:
            self._line("every option is as built in")

    def _line(self, text: str, indent: str = "") -> None:
        """A line of words; a path in it is never cut."""
        say(self.out, Text(indent + text))


def _fact(title: str, value: str) -> str:
    return f"{title[:-2]} {value}\N{NO-BREAK SPACE}%" if title.endswith(" %") else f"{title} {value}"


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
