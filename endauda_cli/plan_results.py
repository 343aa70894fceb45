"""What ``--dry-run`` returns. Standard library only, as ``results``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations


@dataclass(frozen=True)
class PlannedWork:
    """One thing that the command would make."""

    what: str
    unit: str
    """Of the three numbers: images, steps."""
    done: int
    """There already, and would be kept."""
    missing: int
    changed: int
    """There, but made of something else, and would be made again."""
    why: str
    """Why there is something to do, or nothing."""


@dataclass(frozen=True)
class Expected:
    """A figure that is expected, and what it was made of."""

    value: float | None
    """``None`` if nothing is known to make it of."""
    source: str


@dataclass(frozen=True)
class Plan:
    """What a command would do. Nothing was written."""

    command: str
    out: Path
    """Where to."""
    device: str
    work: tuple[PlannedWork, ...]
    disk: Expected
    """Bytes that would be written."""
    free: int | None
    """Bytes free on that disk, if it says so."""
    memory: Expected
    """Bytes of the process; those of a card are not among them."""
    time: Expected
    """Seconds."""
    cpu: Expected
    """Seconds of all cores together."""

    def with_(self, **changes: Expected) -> Plan:
        """The plan with other figures."""
        return replace(self, **changes)  # type: ignore[arg-type]
