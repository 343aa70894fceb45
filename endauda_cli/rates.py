"""Store: how fast commands were in this workspace, a line each time one has ended well: what ``--dry-run`` expects by.

Standard library only. The file may be deleted at any time. Only lines of this machine count, and of the newest ones the
one that was measured on the most images: what a command does before the first image is told apart, but not all of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.files import open_regular
from endauda_cli.progress import Tick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endauda_cli.progress import Note, Reporter

RATES_FILE = ".rates.jsonl"
LOOKED_AT = 256 << 10
"""Bytes at the end of the file that are looked at: some thousand lines."""
NEWEST = 20
"""Lines of one kind of work among which one is chosen."""


@dataclass(frozen=True)
class Rate:
    """How long a command took.

    Attributes:
        command: its name.
        what: the teacher, rule, network or kind of maps.
        device: where it was computed.
        machine: on which machine.
        images: that were made.
        setup, setup_cpu: seconds before the first of them, and those of all cores together.
        seconds: for all of them.
        cpu_seconds: of this process meanwhile, in all threads.
        peak_bytes: the most memory that the process ever had; 0 where the system does not say.
    """

    command: str
    what: str
    device: str
    machine: str
    images: int
    setup: float
    setup_cpu: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def images_per_second(self) -> float:
        """Without what is done before the first."""
        return self.images / self.seconds

    def time_of(self, images: int) -> float:
        """Seconds for so many."""
        return self.setup + images / self.images_per_second

    def cpu_of(self, images: int) -> float:
        """The same, of all cores together."""
        return self.setup_cpu + images * self.cpu_seconds / self.images


class Stopwatch:
    """Takes the time of a command by what it reports.

    Args:
        task: name of the ticks that tell of images.
        report: is told everything, too.
    """

    def __init__(self, task: str, report: Reporter) -> None:
        self._task, self._report = task, report
        self._began = self._last = time.monotonic(), time.process_time()
        self._first: tuple[float, float] | None = None

    def report(self, event: Tick | Note) -> None:
        """A reporter."""
        if isinstance(event, Tick) and event.task == self._task:
            now = time.monotonic(), time.process_time()
            self._first, self._last = self._first or now, now
        self._report(event)

    def store(self, root: Path, command: str, what: str, device: str, images: int) -> None:
        """Append a line, if images were made; a workspace that cannot be written to is none the worse for it."""
        if self._first is None or images < 1 or self._last[0] <= self._first[0]:
            return
        (began, cpu_began), (first, cpu_first), (last, cpu_last) = self._began, self._first, self._last
        setup, setup_cpu, took, cpu = first - began, cpu_first - cpu_began, last - first, cpu_last - cpu_first
        rate = Rate(command, what, device, _machine(), images, setup, setup_cpu, took, cpu, _peak())
        with suppress(OSError), (root / RATES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(rate)) + "\n")


def spent() -> tuple[float, float]:
    """Seconds since this process began, and those of all cores together."""
    cpu = time.process_time()
    try:
        # The 20th number behind the name, which is in brackets and may hold anything; see proc(5).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), cpu
    except (OSError, ValueError, IndexError, AttributeError):
        return cpu, cpu


def find_rate(root: Path, command: str, what: str, device: str) -> Rate | None:
    """The rate of a command on this machine and device; of the same work, else of other work. ``None`` without any."""
    alike = [rate for rate in _rates(root) if (rate.command, rate.device) == (command, device)]
    same = [rate for rate in alike if rate.what == what]
    return max((same or alike)[-NEWEST:], key=lambda rate: rate.images, default=None)


def _rates(root: Path) -> Iterator[Rate]:
    for line in _lines(root / RATES_FILE):
        with suppress(ValueError, RecursionError, TypeError):
            value = json.loads(line)
            rate = Rate(**value) if isinstance(value, dict) else None
            if rate is not None and rate.machine == _machine() and _is_sound(rate):
                yield rate


def _lines(path: Path) -> list[bytes]:
    try:
        with open_regular(path, None) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOOKED_AT))
            return file.read(LOOKED_AT).split(b"\n")
    except OSError:
        return []


def _is_sound(rate: Rate) -> bool:
    """Whether estimates can be made of a line that somebody may have written."""
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    if not all(isinstance(getattr(rate, f.name), kinds[str(f.type)]) for f in fields(rate)):
        return False
    numbers: tuple[Any, ...] = (rate.setup, rate.setup_cpu, rate.cpu_seconds, rate.peak_bytes)
    return (
        0 < rate.images < 1e12 and 1e-9 < rate.seconds < 1e9 and all(0 <= number < 1e18 for number in numbers)
    )


def _machine() -> str:
    return os.uname().nodename if sys.platform != "win32" else os.environ.get("COMPUTERNAME", "")


def _peak() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
