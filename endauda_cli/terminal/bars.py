"""Progress on stderr: bars where lines can be drawn anew, a plain line now and then in logs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from endauda_cli import signals
from endauda_cli.files import size_text
from endauda_cli.terminal.screens import say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from endauda_cli.progress import Tick

PATIENCE_S = 0.5
"""A bar for what is over at once only flickers."""

FIRST_LINE_S = 2.0
"""In a log, what is over sooner needs no line."""

LINE_EVERY_S = 30.0
"""Seconds from one line about a task to the next: a log of days stays readable."""

WIDE, MIDDLE = 120, 72
"""Columns of a terminal from which on bars have everything; and a bar, and a rate."""


class Display(Protocol):
    """Shows what is being done."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def tick(self, tick: Tick) -> None: ...

    def say(self, text: Text) -> None:
        """A line among it, which stays."""


class Silence:
    """For ``--quiet``: only what is said."""

    def __init__(self, screen: Console) -> None:
        self.screen = screen

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def tick(self, tick: Tick) -> None:
        pass

    def say(self, text: Text) -> None:
        say(self.screen, text)


# ---------------------------------------------------------------------------- bars


class _Description(ProgressColumn):
    def __init__(self, room: int) -> None:
        super().__init__(Column(no_wrap=True))
        self.room = room

    def render(self, task: Task) -> Text:
        stops = signals.asked() is not None and not task.finished
        text = Text(f"stopping: {task.description}" if stops else task.description)
        text.truncate(self.room, overflow="ellipsis")
        return text


class _Amount(ProgressColumn):
    """``3/19`` of things, ``1.2 MB / 170.0 MB`` of bytes; nothing where nobody knows how much there is."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if task.total is None and unit != "bytes":
            return Text()
        return Text(amount(int(task.completed), None if task.total is None else int(task.total), unit))


class _Percent(ProgressColumn):
    """The amount where there is no room for it."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:.0f}%")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(_speed(task), task.fields["unit"]), "dim")


class _Time(ProgressColumn):
    """Time left; of what is finished or cannot be measured, time taken."""

    def render(self, task: Task) -> Text:
        if task.finished or task.total is None:
            return Text(duration(task.elapsed or 0))
        speed = _speed(task)
        if not speed or task.completed - task.fields["before"] <= 1 < (task.remaining or 0):
            return Text()  # the first of many waits for what is loaded or compiled
        return Text(f"{duration((task.remaining or 0) / speed)} left", "cyan")


def _speed(task: Task) -> float | None:
    """Units per second lately; over the whole time where little is heard of it, or it is finished."""
    if not task.finished and task.speed:
        return task.speed
    done = task.completed - task.fields["before"]
    return done / task.elapsed if done > 0 and task.elapsed else None


class _Grown(Progress):
    """Tasks appear when they have been running for a moment, even if nothing is heard from them meanwhile."""

    patience = PATIENCE_S

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        return super().make_tasks_table(
            task for task in tasks if task.finished or (task.elapsed or 0) >= self.patience
        )


class Bars:
    """For terminals."""

    def __init__(self, screen: Console, patience: float = PATIENCE_S) -> None:
        self.progress = _Grown(*_columns(screen.width), console=screen, transient=True)
        self.progress.patience = patience
        self.running: dict[str, TaskID] = {}

    def start(self) -> None:
        self.progress.start()

    def stop(self) -> None:
        self.progress.stop()

    def say(self, text: Text) -> None:
        say(self.progress.console, text)

    def tick(self, tick: Tick) -> None:
        over = tick.total is not None and tick.done >= tick.total
        bar = self.running.get(tick.task)
        if bar is None:
            if over:
                return
            bar = self.running[tick.task] = self.progress.add_task(
                tick.task,
                total=tick.total,
                completed=tick.done,
                note=tick.note,
                unit=tick.unit,
                before=tick.done,
            )
            return
        measured = self.progress._tasks[bar].total is not None
        note = "" if over else tick.note[-48:]
        self.progress.update(bar, completed=tick.done, total=tick.total, note=note)
        if over:
            task = self.progress._tasks[bar]
            seen = (task.elapsed or 0) >= self.progress.patience
            del self.running[tick.task]
            self.progress.remove_task(bar)
            if seen and measured:  # it stays, above those that run
                self.progress.console.print(self.progress.make_tasks_table([task]))


def _columns(width: int) -> list[ProgressColumn]:
    """As many as there is room for."""
    spinner = SpinnerColumn(finished_text=" ")
    if width < MIDDLE:
        return [spinner, _Description(max(8, width - 22)), _Percent(), _Time()]
    room = 36 if width >= WIDE else width - 56
    bar = BarColumn(bar_width=28 if width >= WIDE else 10)
    columns: list[ProgressColumn] = [spinner, _Description(room), bar, _Amount(), _Rate(), _Time()]
    if width >= WIDE:
        note = Column(no_wrap=True, overflow="ellipsis")
        columns.append(TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=note))
    return columns


# ---------------------------------------------------------------------------- lines


@dataclass
class _Running:
    tick: Tick
    began: float
    before: int
    """How much was done when it was first heard of."""
    told: float | None = None


class Lines:
    """For logs of batch jobs: a line when a task has taken two seconds, then one every half minute, whether or not
    anything is heard of it meanwhile."""

    def __init__(self, screen: Console) -> None:
        self.screen = screen
        self.running: dict[str, _Running] = {}
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        if self.thread is None:
            self.over.clear()
            self.thread = threading.Thread(target=self._watch, name="progress", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        self.over.set()
        if self.thread is not None:
            self.thread.join(1)
            self.thread = None

    def say(self, text: Text) -> None:
        say(self.screen, text)

    def tick(self, tick: Tick) -> None:
        with self.lock:
            if tick.total is not None and tick.done >= tick.total:
                self.running.pop(tick.task, None)
            elif tick.task in self.running:
                self.running[tick.task].tick = tick
            else:
                self.running[tick.task] = _Running(tick, time.monotonic(), tick.done)

    def _watch(self) -> None:
        while not self.over.wait(FIRST_LINE_S / 8):
            try:
                self._tell()
            except (OSError, ValueError):  # nobody reads stderr any more
                return

    def _tell(self) -> None:
        with self.lock:
            for task in self.running.values():
                now = time.monotonic()
                since = now - (task.began if task.told is None else task.told)
                if since >= (FIRST_LINE_S if task.told is None else LINE_EVERY_S):
                    task.told = now
                    self.say(Text(_line(task, now)))


def _line(task: _Running, now: float) -> str:
    """``exporting 12/367  3.1 images/s  1m 54s left  aachen_000012``."""
    tick, passed = task.tick, now - task.began
    parts = [tick.task]
    if tick.total is not None or tick.unit == "bytes":
        parts[0] += f" {amount(tick.done, tick.total, tick.unit)}"
        if tick.done > task.before:
            speed = (tick.done - task.before) / passed
            parts.append(rate(speed, tick.unit))
            if tick.total is not None:
                parts.append(f"{duration((tick.total - tick.done) / speed)} left")
    else:
        parts.append(duration(passed))
    return "  ".join([*parts, *([tick.note] if tick.note else [])])


# ---------------------------------------------------------------------------- words


def duration(seconds: float) -> str:
    """In the two largest units: ``3h 20m``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}h"
    if hours:
        return f"{hours}h {m}m"
    return f"{minutes}m {s}s" if minutes else f"{s}s"


def amount(done: int, total: int | None, unit: str) -> str:
    """How much of how much."""
    if unit == "bytes":
        return size_text(done) if total is None else f"{size_text(done)} / {size_text(total)}"
    return f"{done}/{'?' if total is None else total}"


def rate(speed: float | None, unit: str) -> str:
    """``3.1 images/s``, ``12 s/step``."""
    if not speed:
        return ""
    if unit == "bytes":
        return f"{size_text(int(speed))}/s"
    if speed < 0.1:
        return f"{1 / speed:.0f} s/{unit.removesuffix('s')}"
    return f"{speed:.{0 if speed >= 100 else 1 if speed >= 1 else 2}f} {unit}/s"
