"""What a command talks to: progress and notes go to stderr, the result to stdout."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.text import Text

from endauda_cli import signals
from endauda_cli.progress import Note, Tick, phase
from endauda_cli.terminal.answer import current
from endauda_cli.terminal.bars import PATIENCE_S, Bars, Display, Lines, Silence, amount, duration, rate
from endauda_cli.terminal.screens import error_screen, moves, output_screen
from endauda_cli.terminal.showing import Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType


class Terminal:
    """Where a command's progress and result go. Use as a context manager around the engine.

    Args:
        command: its name, for ``--json``.
        as_json: the result is printed as JSON, in the end (see ``ending``).
        quiet: no progress and no notes but warnings.
        verbose: shows each bar at once, and what each part of the work took.
    """

    def __init__(
        self, command: str, as_json: bool = False, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.answer = current()
        self.answer.command, self.answer.as_json = command, as_json
        self.quiet, self.verbose = quiet or not self.answer.speaks, verbose
        self.out = output_screen()
        errors = error_screen()
        self.display: Display
        if self.quiet:
            self.display = Silence(errors)
        elif moves(sys.stderr):
            self.display = Bars(errors, 0 if verbose else PATIENCE_S)
        else:
            self.display = Lines(errors)
        self.began: dict[str, tuple[float, Tick]] = {}
        """Of each task that runs: when it was first heard of, and what."""
        self.open = ExitStack()

    def __enter__(self) -> Terminal:
        self.display.start()
        self.open.enter_context(signals.working())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.close()
        self.display.stop()

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """While the block imports what takes its time; no engine works yet, so Ctrl-C ends it at once."""
        self.display.start()
        try:
            with phase(self.report, f"loading {what}"):
                yield
        finally:
            self.display.stop()

    def report(self, event: Tick | Note) -> None:
        """Show an engine's progress.

        Raises:
            Stopped: if a signal has come that got lost.
        """
        if isinstance(event, Note):
            self._note(event)
        else:
            self.answer.note(event)
            self.display.tick(event)
            self._took(event)
        signals.remind()

    def _note(self, note: Note) -> None:
        if note.level == "warning":
            self.display.say(Text("warning: ", "yellow") + Text(note.text))
        elif not self.quiet:
            self.display.say(Text(note.text, "dim"))

    def _took(self, tick: Tick) -> None:
        """With ``--verbose``, a line when a part of the work is over."""
        began, first = self.began.setdefault(tick.task, (time.monotonic(), tick))
        if tick.total is None or tick.done < tick.total:
            return
        del self.began[tick.task]
        if self.verbose and not self.quiet and not isinstance(self.display, Bars):
            took, done = time.monotonic() - began, tick.done - first.done
            parts = [tick.task]
            if first.total is not None or tick.unit == "bytes":
                parts[0] += f" {amount(tick.done, None if tick.unit == 'bytes' else tick.total, tick.unit)}"
                parts += [rate(done / took, tick.unit)] if took > 0 and done else []
            self.display.say(Text("  ".join([*parts, f"in {duration(took)}"])))

    def show(self, result: Any) -> None:
        """Print a result; with ``--json`` it is kept until the command ends."""
        self.display.stop()
        self.answer.result = result
        if self.answer.speaks and not self.answer.as_json:
            Page(self.out).show(result)
