"""Where text goes: stdout and stderr as rich's consoles, plain where they are no terminal.

Colour follows ``NO_COLOR``, ``FORCE_COLOR`` and ``TERM``. Names of classes and teachers are the user's: no
[markup], no :emoji: in what is shown.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console
from rich.text import Text

__all__ = ["PIPED_WIDTH", "Screen", "Text", "error_screen", "moves", "output_screen"]

PIPED_WIDTH = 160
"""Columns where there is no terminal to ask: enough that no table needs to wrap."""


class Screen(Console):
    """A console that leaves a reader who is gone to ``ending``."""

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
