"""How engines tell of their progress without knowing that a terminal exists.

An engine takes ``report: Reporter`` and calls it with a :class:`Tick` (a bar moves) or a :class:`Note`
(a sentence the user should see). ``terminal`` turns them into bars and lines; tests collect or drop them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tick:
    """``done`` of ``total`` units of ``task`` are finished; ``note`` is shown beside the bar.

    ``total`` is ``None`` where nobody knows it. ``kept`` of ``done`` are there still if the process is stopped now;
    ``None`` where a stop means to do this task again.
    """

    task: str
    done: int
    total: int | None
    note: str = ""
    unit: Literal["images", "steps", "files", "bytes", "packages", "codecs", "archives", "checks"] = "images"
    kept: int | None = None


@dataclass(frozen=True)
class Note:
    """One sentence for the user. ``warning`` stays visible even with ``--quiet``."""

    text: str
    level: Literal["info", "warning"] = "info"


Reporter = Callable[[Tick | Note], None]


def silent(_event: Tick | Note) -> None:
    """The reporter of whoever does not want to hear."""


def counted(items: Iterable[Item], total: int, task: str, report: Reporter) -> Iterator[Item]:
    """The items, each told as done when the next one is asked for."""
    report(Tick(task, 0, total))
    for done, item in enumerate(items, 1):
        yield item
        report(Tick(task, done, total))


@contextmanager
def phase(report: Reporter, task: str) -> Iterator[None]:
    """Tell of work that nobody can measure, such as loading a network."""
    report(Tick(task, 0, None))
    try:
        yield
    except Exception:  # not an interrupt: what was being done then is told
        report(Tick(task, 1, 1))
        raise
    report(Tick(task, 1, 1))
