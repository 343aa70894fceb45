"""What a command line has to say in the end, and to whom: with ``--json`` exactly one document on stdout.

Standard library only: it is needed before anything else is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from endauda_cli.progress import Tick

SCHEMA = 1
"""Version of ``--json``; it grows when a field is renamed or removed, or means something else."""


@dataclass(frozen=True)
class Failure:
    """Why a command did not do all that it was asked to."""

    kind: str
    """A class of ``errors``, or ``UsageError`` (exit 2), ``Interrupted`` (130, 143), ``SystemError`` (memory, disk,
    permissions, device) or ``InternalError`` (a bug of endauda)."""
    message: str
    """What the user reads on stderr."""


@dataclass
class Answer:
    """Gathers, while a command line runs, what is to be said of it."""

    words: Sequence[str] = ()
    """The command line as typed, without the program's name."""
    command: str | None = None
    as_json: bool = False
    result: Any = None
    """What ``--json`` prints."""
    doing: dict[str, Tick] = field(default_factory=dict)
    """The tasks that run, the newest last."""
    keeps: bool = False
    """Whether anything was finished that stays."""

    @property
    def speaks(self) -> bool:
        """Under ``torchrun`` one process speaks for all."""
        return os.environ.get("RANK") in (None, "", "0")

    def note(self, tick: Tick) -> None:
        """Remember what is being done."""
        self.keeps |= bool(tick.kept)
        self.doing.pop(tick.task, None)
        if tick.total is None or tick.done < tick.total:
            self.doing[tick.task] = tick

    def command_line(self) -> str:
        """The line that does it again, as a shell takes it, without secrets."""
        module = Path(sys.argv[0]).parts[-2:] == ("endauda_cli", "__main__.py")
        program = (Path(sys.executable).name, "-m", "endauda_cli") if module else ("endauda",)
        return masked(shlex.join([*program, *self.words]))

    def document(self, failure: Failure | None) -> str:
        """The JSON document: a result, a failure, or what there is and why it is not all."""
        content: dict[str, Any] = {"schema": SCHEMA, "command": self.command}
        if self.result is not None:
            content["result"] = plain(self.result)
        if failure is not None:
            content["error"] = plain(failure)
        return json.dumps(content, indent=1) + "\n"


_current = Answer()


def current() -> Answer:
    """Of the command line that runs."""
    return _current


@contextmanager
def answering(words: Sequence[str]) -> Iterator[Answer]:
    """A command line's answer, until the block ends."""
    global _current
    before = _current
    options = words[: words.index("--")] if "--" in words else words
    # Until the parser has read them; it also knows of endauda.toml and ENDAUDA_*_JSON.
    command = next((word for word in options if not word.startswith("-")), None)
    _current = Answer(words, command, "--json" in options)
    try:
        yield _current
    finally:
        _current = before


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
