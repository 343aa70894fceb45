"""Real shells in a pseudo-terminal: keys go in, and what a person would see comes out."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pyte

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PATIENCE_S = 120.0
"""Busy machines are slow; a test that passes does not wait for it."""
REST_S = 0.4
"""A screen that has not moved for so long is taken for finished."""
ROWS, COLUMNS = 50, 120

_OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class _Screen(pyte.Screen):
    """Answers what programs ask a terminal: where is the cursor, and the like."""

    def __init__(self, file: int) -> None:
        super().__init__(COLUMNS, ROWS)
        self._file = file

    def write_process_input(self, data: str) -> None:
        os.write(self._file, data.encode())


class Terminal:
    """A program that believes to be typed at by a person."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self._file, theirs = pty.openpty()
        self._screen = _Screen(self._file)
        self._stream = pyte.ByteStream(self._screen)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _OWN_TERMINAL, *command], cwd=cwd, env=dict(environment),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def text(self) -> str:
        """The screen, without what is empty."""
        return "\n".join(line.rstrip() for line in self._screen.display if line.strip())

    def wait_for(self, *texts: str) -> str:
        """The screen once it shows all of the texts and has come to rest."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if not self._read() and all(text in self.text() for text in texts):
                return self.text()
        raise AssertionError(f"not all of {texts} in {PATIENCE_S:.0f} s; the screen shows\n{self.text()}")

    def _read(self) -> bool:
        """Let what the program has written appear; whether there was anything."""
        if not select.select([self._file], [], [], REST_S)[0]:
            return False
        data = b""
        with suppress(OSError):  # the program has ended
            data = os.read(self._file, 65536)
        self._stream.feed(data)
        return bool(data)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._file)
