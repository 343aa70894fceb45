"""Where text goes: stdout and stderr as rich's consoles, plain where they are no terminal.

Colour follows ``NO_COLOR``, ``FORCE_COLOR`` and ``TERM``. Names of classes and teachers are the user's: no
[markup], no :emoji: in what is shown.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from endauda_cli.masking import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType

__all__ = ["PIPED_WIDTH", "Screen", "Text", "error_screen", "moves", "output_screen", "say"]

PIPED_WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table needs to wrap."""

INDENT = "  "
"""Before what does not fit into a line."""


class Screen(Console):
    """A console that shows control characters instead of sending them, whatever they are part of, and leaves a reader
    who is gone to ``ending``."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


def output_screen() -> Screen:
    """Stdout."""
    return _screen(sys.stdout, False)


def error_screen() -> Screen:
    """Stderr."""
    return _screen(sys.stderr, True)


def moves(stream: TextIO) -> bool:
    """Whether lines can be drawn anew there: a terminal, and not a dumb one. ``FORCE_COLOR`` makes no terminal."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _screen(stream: TextIO, errors: bool) -> Screen:
    screen = Screen(stderr=errors, highlight=False, markup=False, emoji=False)
    if not stream.isatty() and "COLUMNS" not in os.environ:
        screen.width = PIPED_WIDTH
    return screen


def say(screen: Console, text: Text) -> None:
    """Print lines of words. On a terminal they break between words, and never in a path; elsewhere not at all."""
    lines = text.split("\n")
    if screen.file.isatty():
        lines = Text("\n").join(_wrapped(line, screen.width) for line in lines).split("\n")
    for line in lines:
        screen.print(line, soft_wrap=True)


def _wrapped(line: Text, width: int) -> Text:
    """The line with breaks between words, and later lines indented."""
    pieces, start, room = [], 0, width
    for gap in [*re.finditer(r"(?<=[^ ]) +(?=[^ ])", line.plain), None]:
        end = len(line) if gap is None else gap.start()
        following = re.match(r" *[^ ]*", line.plain[end:])
        ahead = end if following is None else end + following.end()
        if gap is not None and cell_len(line.plain[start:ahead]) > room:
            pieces.append(line[start:end])
            start, room = gap.end(), width - len(INDENT)
    return Text(f"\n{INDENT}").join([*pieces, line[start:]])
