"""How engines tell of their progress without knowing that a terminal exists.

An engine takes ``report: Reporter`` and calls it with a :class:`Tick` (a bar moves) or a :class:`Note`
(a sentence the user should see). ``console`` turns them into bars and lines; tests collect or drop them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tick:
    """``done`` of ``total`` units of ``task`` are finished; ``note`` is shown beside the bar.

    ``total`` is ``None`` where nobody knows it.
    """

    task: str
    done: int
    total: int | None
    note: str = ""
    unit: Literal["", "bytes"] = ""


@dataclass(frozen=True)
class Note:
    """One sentence for the user. ``warning`` stays visible even with ``--quiet``."""

    text: str
    level: Literal["info", "warning"] = "info"


Reporter = Callable[[Tick | Note], None]


def silent(_event: Tick | Note) -> None:
    """The reporter of whoever does not want to hear."""
