"""How a command line ends: the one place that catches errors, says what came of it, and gives the exit code.

0, 1 (an error that is told), 2 (usage), 130 (Ctrl-C), 143 (SIGTERM). Whatever happens, ``--json`` prints one
document. Nothing here is heavy.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from endauda_cli import signals
from endauda_cli.errors import EndaudaError, did_you_mean
from endauda_cli.masking import printable
from endauda_cli.signals import Stopped
from endauda_cli.terminal.answer import Answer, Failure, answering
from endauda_cli.terminal.starting import unloadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from endauda_cli.progress import Tick

INTERRUPTED, MENDABLE, BUG, USAGE = "Interrupted", "SystemError", "InternalError", "UsageError"
"""Kinds of a :class:`Failure` that are no class of ``errors``."""
INTERRUPT_CODE = 130


def run(program: Callable[[], object], words: Sequence[str]) -> int:
    """Run a command line to its end, whatever that is; returns the exit code.

    Args:
        program: parses and does it; what it returns is an exit code if it is a number.
        words: the command line as typed.
    """
    with answering(words) as answer, signals.handled(lambda stopped: _leave(answer, stopped)):
        try:
            code, failure = _outcome(program, answer)
            if failure is not None:
                failure = Failure(failure.kind, shortened(failure.message))
                _say(failure.message)
            if answer.as_json and answer.speaks and (answer.result is not None or failure is not None):
                sys.stdout.write(answer.document(failure))
            sys.stdout.flush()
            sys.stderr.flush()
        except BrokenPipeError:  # ``endauda inspect dacs | head``: not an error
            _silence_what_fails()
            return 0
        except OSError as error:  # ``> FILE`` on a disk that is full
            _silence_what_fails()
            _say(mending(error, answer) or f"the result cannot be printed: {error}")
            return 1
        return code


def _outcome(program: Callable[[], object], answer: Answer) -> tuple[int, Failure | None]:
    """The exit code, and what went wrong.

    Raises:
        BrokenPipeError: if nobody reads what is printed.
    """
    try:
        code = program()
        if code == INTERRUPT_CODE:  # what Typer makes of KeyboardInterrupt
            raise signals.asked() or Stopped()
        return (code if isinstance(code, int) else 0), None
    except EndaudaError as error:
        return 1, Failure(type(error).__name__, str(error))
    except typer.TyperException as error:  # of the parser
        helped = type(error).__name__ == "NoArgsIsHelpError"  # the help has been printed
        return error.exit_code, None if helped else Failure(USAGE, _usage(error, answer))
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else signals.asked() or Stopped()
        return stopped.exit_code, Failure(INTERRUPTED, interruption(answer))
    except typer.Abort:  # standard input ended in the midst of a question
        return 1, Failure(USAGE, "nobody answered")
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # as Typer and rich end then
            raise left.__context__ from None
        code = left.code
        return (code if isinstance(code, int) else int(code is not None)), None
    except BrokenPipeError:
        raise
    except Exception as error:
        if (asked := signals.asked()) is not None:  # what an interrupted library makes of it
            return asked.exit_code, Failure(INTERRUPTED, interruption(answer))
        from endauda_cli.terminal import crash  # only who needs it waits for it

        sentence = mending(error, answer)
        if sentence is not None and not os.environ.get(crash.DEBUG_VARIABLE):
            return 1, Failure(MENDABLE, sentence)
        if os.environ.get(crash.DEBUG_VARIABLE, "0") not in ("", "0"):
            return 1, Failure(BUG, crash.whole(error).rstrip())
        return 1, Failure(BUG, crash.tell(error, answer.words))


def shortened(message: str) -> str:
    """The message without the middle of words that are longer than any path: what was typed may be a whole file."""
    return _ENDLESS.sub(lambda word: f"{word[0][:200]}…{word[0][-20:]}", message)


_ENDLESS = re.compile(r"\S{5000,}")


def _usage(error: typer.TyperException, answer: Answer) -> str:
    """As our own errors are told, and where to read more."""
    text = error.format_message().strip()
    sentence = " ".join(text.rstrip(".").split())
    if near := getattr(error, "possibilities", None):  # of an unknown option, in no order of likeness
        sentence = f"{error.message}{did_you_mean(error.option_name, near)}"  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{sentence}\n'endauda {answer.command or ''} --help' tells more"
    lines = context.get_usage().strip().splitlines()
    return f"{sentence}\n{' '.join(lines)}; '{context.command_path} --help' tells more"


def _say(message: str) -> None:
    """An error, on stderr; its first word is red on a terminal."""
    from endauda_cli.terminal.screens import Text, error_screen, say

    say(error_screen(), Text("endauda:", "bold red") + Text(f" {message}", ""))


def _silence_what_fails() -> None:
    """Keep Python's own words about a stream that takes no more from the user."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())


# ---------------------------------------------------------------------------- stopped by a signal


def interruption(answer: Answer) -> str:
    """What is kept, and the command line that goes on, in a line."""
    told = [tick for tick in answer.doing.values() if tick.kept is not None]
    tick = next(reversed(told or list(answer.doing.values())), None)
    if tick is not None and tick.kept is not None:
        where = _kept(tick)
    else:
        where = "interrupted" if tick is None else f"interrupted while {tick.task}"
        where += "; what was finished before is kept" if answer.keeps else "; there is nothing to keep yet"
    again = "go on with" if answer.keeps else "start again with"
    return f"{where}; {again}: {answer.command_line()}"


def _kept(tick: Tick) -> str:
    """``interrupted at step 412 of 1000 (saved)``."""
    from endauda_cli.files import size_text

    if tick.unit == "steps":
        if tick.kept == tick.done:
            saved = "saved"
        else:
            saved = f"step {tick.kept} is saved" if tick.kept else "none is saved"
        return f"interrupted at step {tick.done} of {tick.total} ({saved})"
    if tick.unit == "bytes":
        whole = "" if tick.total is None else f" of {size_text(tick.total)}"
        return f"interrupted while fetching {tick.task}, {size_text(tick.kept or 0)}{whole} are kept"
    return f"interrupted while {tick.task}, {tick.kept} of {tick.total} {tick.unit} are kept"


def _leave(answer: Answer, stopped: Stopped) -> None:
    """End the process now. Runs in a signal's handler, so it writes past all buffers and locks."""
    message = interruption(answer)
    # A bar may stand in this line, and the cursor be hidden.
    clear = "\r\x1b[?25h\x1b[K" if os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb" else ""
    with suppress(OSError):
        if answer.speaks:
            os.write(2, f"{clear}endauda: {printable(message)}\n".encode())
            if answer.as_json:
                os.write(1, answer.document(Failure(INTERRUPTED, message)).encode())
    os._exit(stopped.exit_code)


# ---------------------------------------------------------------------------- what a user can mend

LESS_MEMORY = {
    "export-teacher": "--amp, a smaller --batch-size or --tile, or fewer --workers",
    "fuse": "fewer --workers",
    "train": "--accumulate 2, --recompute, --precision bf16, or a smaller --crop",
    "test": "--amp, a smaller --batch-size or --tile, or fewer --workers",
}
"""By command, the options that save memory."""

DISK = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EMFILE: "too many open files; allow more (ulimit -n 4096), or use fewer --workers",
    errno.ENFILE: "too many open files on this machine; close other programs and run the same command again",
    errno.EACCES: "permission denied; choose another path, or change its permissions",
    errno.EPERM: "not permitted; choose another path, or change its permissions",
    errno.EROFS: "the disk is read-only; choose another path",
    errno.EIO: "the disk or network share failed; check it and run the same command again",
    errno.ESTALE: "the network share was mounted anew meanwhile; run the same command again",
    errno.ENOMEM: "memory ran out; close other programs and run the same command again",
}


def mending(error: Exception, answer: Answer) -> str | None:
    """What a user can do about an error that is none of ours to catch: memory, disk, device, a library, a limit or a
    variable of the environment; ``None`` for a bug."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    if (sentence := _surroundings(error, first)) is not None:
        return sentence
    if isinstance(error, ImportError) or (isinstance(error, OSError) and _NO_LIBRARY in first):
        sentence = unloadable(error)
        return sentence and f"{sentence}; 'endauda doctor' tells more"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in DISK:
            return f"{error.filename}: {DISK[error.errno]}" if error.filename else DISK[error.errno]
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}; choose another path, or mend it"
        return None
    less = LESS_MEMORY.get(answer.command or "", "smaller inputs")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return f"the memory of the graphics card ran out; use {less}, or --device cpu"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in first or first == "std::bad_alloc":
        return f"memory ran out; use {less}, or close other programs"
    if isinstance(error, RuntimeError) and first.startswith(
        ("CUDA error", "CUDA driver", "cuDNN error", "CUBLAS")
    ):
        return f"the graphics card failed ({first}); see what nvidia-smi says, try again, or use --device cpu"
    if isinstance(error, RuntimeError) and first == "can't start new thread":
        return "no more threads may be started; allow more (ulimit -u), or use fewer --workers"
    return None


def _surroundings(error: Exception, first: str) -> str | None:
    """Of a limit on the process's memory."""
    from endauda_cli.limits import address_space

    limit = address_space()
    if limit is not None and (
        isinstance(error, MemoryError)
        or "DefaultCPUAllocator" in first
        or (isinstance(error, ImportError | OSError) and _NOT_LOADED.search(first))
    ):
        return (
            f"memory ran out: the address space of this process is limited to {limit / 1e9:.1f} GB; allow more "
            "(ulimit -v unlimited)"
        )
    return None


_NO_LIBRARY = "cannot open shared object file"
_NOT_LOADED = re.compile(r"failed to map segment|[Cc]annot allocate memory|Could not find/load shared object")
