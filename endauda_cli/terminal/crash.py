"""A bug of ours: a short message for the user, and a report in a file for whoever mends it. Never raises itself."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli import __version__
from endauda_cli.masking import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEBUG_VARIABLE = "ENDAUDA_DEBUG"
"""Set to 1 it brings the whole traceback to the terminal."""

KEPT_REPORTS = 20
PACKAGE = Path(__file__).parent.parent
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "hdf5plugin",
    "imagecodecs",
    "numba",
    "pillow",
    "typer",
    "rich",
)


def tell(error: BaseException, words: Sequence[str]) -> str:
    """Write the report; returns the message for the user: what, where, and what to do."""
    what = masked(f"{type(error).__name__}: {error}".splitlines()[0])[:300].rstrip(": ")
    file = _write(error, words)
    report = f"the report is in {file}" if file is not None else "no report could be written"
    return (
        f"a bug of endauda, sorry: {what}\n"
        f"  at {innermost(error)}; {report}\n"
        "  please send it with the issue; what was finished is kept, and the same command may go on from there"
    )


def innermost(error: BaseException) -> str:
    """``file:line`` of the last line of ours that ran, else of the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    if not frames:
        return "an unknown place"
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    shown = path.relative_to(PACKAGE.parent) if ours else path
    return f"{shown}:{frame.lineno}"


def whole(error: BaseException) -> str:
    """The traceback, without the values of variables."""
    return masked("".join(traceback.format_exception(error)))


def folder() -> Path:
    """Where reports go: the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "endauda"


def _write(error: BaseException, words: Sequence[str]) -> Path | None:
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    places: tuple[Callable[[], Path], ...] = (folder, lambda: Path(tempfile.gettempdir()))
    for place in places:
        with suppress(Exception):  # no home, no room, no permission; a traceback of odd objects
            path = place() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(_report(error, words))
            _forget_old(path.parent)
            return path
    return None


def _forget_old(place: Path) -> None:
    reports = sorted(place.glob("crash-*-*.txt"), key=lambda path: path.stat().st_mtime)
    for path in reports[:-KEPT_REPORTS]:
        with suppress(OSError):
            path.unlink()


def _report(error: BaseException, words: Sequence[str]) -> str:
    environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith("ENDAUDA_")}
    lines = [
        f"endauda {__version__} crashed on {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
        f"command line: {masked(shlex.join(['endauda', *words]))}",
        *(masked(f"environment: {name}={value}") for name, value in environment.items()),
        f"Python {platform.python_version()} ({platform.python_implementation()}) on {platform.platform()}",
        *_versions(),
        *_devices(),
        "",
        whole(error),
    ]
    return "\n".join(lines)


def _versions() -> list[str]:
    from importlib.metadata import version

    found = []
    for name in LIBRARIES:
        with suppress(Exception):
            found.append(f"{name} {version(name)}")
    return found


def _devices() -> list[str]:
    torch: Any = sys.modules.get("torch")  # not loaded for this
    with suppress(Exception):
        if torch is not None and torch.cuda.is_initialized():
            return [f"CUDA {torch.version.cuda}: {torch.cuda.get_device_properties().name}"]
    return []
