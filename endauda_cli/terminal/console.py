"""The only code that prints: progress and notes on stderr, results as rich tables or JSON on stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from endauda_cli.diskspace import size_text
from endauda_cli.events import Note, Tick
from endauda_cli.results import (
    CheckupResult,
    ConfigResult,
    DemoResult,
    DownloadResult,
    EvalResult,
    ExportResult,
    Finding,
    FusionResult,
    InspectResult,
    TrainResult,
    WeightsList,
)

if TYPE_CHECKING:
    from types import TracebackType

SCHEMA = 1
"""Version of ``--json``; it grows when a field is renamed or removed."""

PIPED_WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table needs to wrap."""

PLAIN_EVERY_S = 30.0
"""Seconds from one line of progress to the next where stderr is no terminal: a log of days stays readable."""

NOTED = 3
"""So many published artefacts are described beside the table."""

STATE_STYLES = {"ok": "green", "note": "yellow", "missing": "magenta", "broken": "bold red"}
"""Of a checkup's findings. The words are there too, so nothing is said by colour alone."""
STATE_WIDTH = max(map(len, STATE_STYLES))
NAME_WIDTH = 28
"""Longer names push only their own line to the right."""

# A bar for what is over at once only flickers.
PATIENCE_S = 0.5


class _Amount(ProgressColumn):
    """``3/19`` of things, ``1.2 MB / 170.0 MB`` of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = MofNCompleteColumn()

    def render(self, task: Task) -> Text:
        if task.fields["unit"] != "bytes":
            return self.count.render(task)
        return Text(_amount(int(task.completed), None if task.total is None else int(task.total), "bytes"))


class Terminal:
    """Where a command's progress and result go. Use as a context manager around the engine.

    Args:
        command: its name, for ``--json``.
        as_json: print the result as one JSON object.
        quiet: no progress and no notes but warnings.
        verbose: accepted everywhere; shows each bar at once.
    """

    def __init__(
        self, command: str, as_json: bool = False, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.command, self.as_json, self.verbose = command, as_json, verbose
        self.first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
        self.quiet = quiet or not self.first
        # Names of classes and teachers are the user's: no [markup], no :emoji: in what is shown.
        self.out = Console(highlight=False, markup=False, emoji=False)
        if not self.out.is_terminal and "COLUMNS" not in os.environ:
            self.out.width = PIPED_WIDTH
        self.err = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            _Amount(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self.err,
            disable=self.quiet or not self.err.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.started: dict[str, tuple[float, int]] = {}
        """Of each task that runs: when it was first heard of, and how much was done by then."""
        self.told = time.monotonic()

    def __enter__(self) -> Terminal:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def report(self, event: Tick | Note) -> None:
        """Show an engine's progress."""
        if isinstance(event, Note):
            self._note(event)
        elif not self.progress.disable:
            self._tick(event)
        elif not self.quiet:
            self._plain_tick(event)

    def _note(self, note: Note) -> None:
        if note.level == "warning":
            self.progress.console.print(Text("warning: ", "yellow") + Text(note.text), soft_wrap=True)
        elif not self.quiet:
            self.progress.console.print(Text(note.text, "dim"), soft_wrap=True)

    def _plain_tick(self, tick: Tick) -> None:
        """A line now and then, for logs of batch jobs."""
        now = time.monotonic()
        began, before = self.started.setdefault(tick.task, (now, tick.done))
        if tick.total is not None and tick.done >= tick.total:
            del self.started[tick.task]
        elif now - self.told >= PLAIN_EVERY_S:
            self.told = now
            line = f"{tick.task} {_amount(tick.done, tick.total, tick.unit)}"
            if tick.note:
                line += f"  {tick.note}"
            if tick.done > before and tick.total is not None:
                left = (now - began) / (tick.done - before) * (tick.total - tick.done)
                line += f"  {_duration(left)} left"
            self.err.print(Text(line), soft_wrap=True)

    def _tick(self, tick: Tick) -> None:
        began, _ = self.started.setdefault(tick.task, (time.monotonic(), tick.done))
        bar = self.bars.get(tick.task)
        if bar is None:
            if time.monotonic() - began < PATIENCE_S and not self.verbose:
                return
            bar = self.bars[tick.task] = self.progress.add_task(
                tick.task, total=tick.total, note="", unit=tick.unit
            )
        self.progress.update(bar, completed=tick.done, total=tick.total, note=tick.note[-48:])
        if tick.total is not None and tick.done >= tick.total:
            # The next phase of the same name (another teacher, say) gets a bar of its own.
            self.progress.update(bar, note="")
            del self.bars[tick.task], self.started[tick.task]

    def show(self, result: Any) -> None:
        """Print a result."""
        self.progress.stop()
        if not self.first:
            return
        if self.as_json:
            document = {"schema": SCHEMA, "command": self.command, "result": plain(result)}
            json.dump(document, sys.stdout, indent=1)
            sys.stdout.write("\n")
        else:
            self._render(result)

    @singledispatchmethod
    def _render(self, result: Any) -> None:
        raise TypeError(f"no rendering for {type(result).__name__}")

    @_render.register
    def _(self, r: ExportResult) -> None:
        new = r.images - r.skipped
        self._line(
            f"{r.teacher}: {new} images exported, {r.skipped} were there already -> {_relative(r.archive)}"
        )
        if new:
            self._line(
                f"{_mb(r.raw_bytes)} of labels and certainties; the archive now takes {_mb(r.stored_bytes)}"
            )

    @_render.register
    def _(self, r: FusionResult) -> None:
        owned = (r.leader, "margin", "sure %") if r.policy else ()
        table = _table("class", *owned, "share %", "kept %", "overlap %")
        for c in r.classes:
            margin = "" if c.margin is None else f"{c.margin:+.3f}"
            owner = (c.owner or "", margin, _percent(c.sureness)) if owned else ()
            table.add_row(c.name, *owner, *(_percent(v) for v in (c.share, c.kept, c.overlap)))
        self.out.print(table)
        policy = f", policy {r.policy}{' (used target labels)' if r.used_labels else ''}" if r.policy else ""
        threshold = "" if r.threshold is None else f", threshold {r.threshold:g}"
        self._line(
            f"{r.rule} of {' '.join(r.teachers)}{policy}{threshold}: {r.images} images ({r.skipped} unchanged)"
        )
        self._line(
            f"coverage {_percent(r.coverage)} %, claimed by several classes {_percent(r.overlap)} %, "
            f"by none {_percent(r.unclaimed)} %; teachers disagree on {_percent(r.disputed)} %"
        )
        for s in r.scores:
            kept = "" if s.coverage is None else f", kept pixels {_figure(s.kept_miou)} ({s.coverage:.1f} %)"
            self._line(
                f"scored, not used: {'rule' if s.is_rule else 'teacher'} {s.name} mIoU {_figure(s.miou)}{kept}"
            )
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

    @_render.register
    def _(self, r: EvalResult) -> None:
        table = _table("class", "IoU %")
        for name, iou in r.iou.items():
            table.add_row(name, _figure(iou))
        table.add_section()
        known = sum(v is not None for v in r.iou.values())
        table.add_row(f"mIoU over {known} of {len(r.iou)} classes", _figure(r.miou), style="bold")
        for title, value in r.subset_miou.items():
            table.add_row(title, _figure(value), style="bold")
        self.out.print(table)
        self._line(f"{_relative(Path(r.scored))} on {r.images} images of {r.target} {r.split}")
        self._line(f"coverage {r.coverage:.2f} %")
        if r.pictures is not None:
            self._line(f"predictions: {_relative(r.pictures)}")

    @_render.register
    def _(self, r: TrainResult) -> None:
        speed = "" if r.images_per_second is None else f", {r.images_per_second:.2f} images/s"
        resumed = f" (from step {r.resumed_from} on)" if r.resumed_from else ""
        self._line(
            f"{r.arch} on {r.backbone}: {r.steps} steps{resumed} on {r.images} images in {r.seconds:.0f} s{speed}"
        )
        if r.last_loss is not None:
            self._line(f"last loss {r.last_loss:.4f}")
        if r.best_miou is not None:
            self._line(
                f"mIoU on labelled target images: last {_figure(r.last_miou)}, best {_figure(r.best_miou)} "
                f"at step {r.best_step} (chosen with those labels)"
            )
        self._line(f"checkpoint: {_relative(r.checkpoint)}")

    @_render.register
    def _(self, r: InspectResult) -> None:
        table = _table("", str(_relative(r.archive)), left=2)
        for key, value in r.facts.items():
            table.add_row(key, value)
        self.out.print(table)
        if r.classes:
            per_class = _table("class", "share %", "mean certainty")
            for c in r.classes:
                per_class.add_row(
                    c.name, _percent(c.share), "n/a" if c.certainty is None else f"{c.certainty:.1f}"
                )
            self.out.print(per_class)
        for path in r.pictures:
            self._line(f"picture: {_relative(path)}")
        if r.exported is not None:
            damaged = f", {r.exported.unreadable} damaged ones left out" if r.exported.unreadable else ""
            self._line(
                f"{r.exported.images} images written back as PNG and NPY{damaged}, {_mb(r.exported.bytes)} -> "
                f"{_relative(r.exported.folder)}"
            )
        if r.verified is not None:
            self._line(r.verified)

    @_render.register
    def _(self, r: WeightsList) -> None:
        table = _table("name", "state", "licence", "goes to", "size", "mIoU %", left=4)
        for w in r.artefacts:
            size = "unknown" if w.size is None else size_text(w.size)
            table.add_row(w.name, w.state, w.licence or "unknown", w.path, size, _figure(w.miou))
        self.out.print(table)
        for w in r.artefacts if len(r.artefacts) <= NOTED else ():
            self._line(f"{w.name}: {w.what}{f'. {w.note}' if w.note else ''}")
        for page in dict.fromkeys(w.page for w in r.artefacts):
            self._line(f"from {page}: {', '.join(w.name for w in r.artefacts if w.page == page)}")

    @_render.register
    def _(self, r: DownloadResult) -> None:
        for w in r.fetched:
            where = f"fetched from {w.url}" if w.fetched else "was there already"
            self._line(f"{w.name}: {where}, verified, {size_text(w.size)} -> {_relative(w.path)}")
            for line in w.checks:
                self._line(f"  {line}")
            for line in w.next_steps:
                self._line(f"  next: {line}")

    @_render.register
    def _(self, r: DemoResult) -> None:
        table = _table("on the target's val images", "mIoU %", "coverage %")
        for row in r.scores:
            table.add_row(
                row.name, _figure(row.miou), f"{row.coverage:.1f}", style="bold" if row.ours else None
            )
        self.out.print(table)
        self._line(f"report with pictures: {_relative(r.report)}   ({r.seconds:.0f} s)")

    @_render.register
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

    @_render.register
    def _(self, r: ConfigResult) -> None:
        self._line(f"workspace {r.workspace}, {r.file.name if r.file else 'without an endauda.toml'}")
        for command in dict.fromkeys(row.command for row in r.rows):
            table = _table(command, "value", "from", left=3)
            for row in (row for row in r.rows if row.command == command):
                changed = row.origin != "built-in"
                table.add_row(row.option, _setting(row.value), row.origin, style="bold" if changed else None)
            self.out.print()
            self.out.print(table)
        if not r.rows:
            self._line("every option is as built in")

    def _line(self, text: str) -> None:
        self.out.print(Text(text), soft_wrap=True)


def plain(value: Any) -> Any:
    """A result as JSON values: paths as strings, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _table(*columns: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns hold words, the others figures."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if i < left else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=i == 0)
    return table


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


def _duration(seconds: float) -> str:
    """In the two largest units: ``3h 20m``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}h"
    if hours:
        return f"{hours}h {m}m"
    return f"{minutes}m {s}s" if minutes else f"{s}s"


def _amount(done: int, total: int | None, unit: str) -> str:
    """How much of how much."""
    if unit == "bytes":
        return size_text(done) if total is None else f"{size_text(done)} / {size_text(total)}"
    return f"{done}/{'?' if total is None else total}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
