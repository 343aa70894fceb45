"""What a user may set, said once: options as fields of frozen dataclasses.

An engine's configuration (``config``) and a command (``commands``) are dataclasses whose fields carry what the command
line shows of them: default, help, panel, how TAB completes them. ``commands.signature`` makes a command line of such
a class; ``endauda.toml``, the environment, ``--help``, TAB and ``docs/commands.md`` all read that.

Classes that are only inherited from are declared without what they do not need (``init=False``, ``repr=False``,
``eq=False``): each method takes time to make, and every TAB waits for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from endauda_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

PASSES, DATA, COMMON = "How the network is run", "Data", "Common"
SHARED = (
    "--scales", "--flip/--no-flip", "--tile", "--temperature", "--size", "--batch-size", "--amp",
    "--source-data", "--target-data", "--workspace", "--source", "--target",
    "--workers", "--device", "--dry-run", "--json", "--quiet", "--verbose",
)  # fmt: skip
"""Options of the three panels that commands have in common, in the order in which help shows them, after all others."""


@dataclass(frozen=True)
class Option:
    """What the command line needs to know of a field.

    Attributes:
        flags: as typed, such as ``("--teachers", "-t")``; none for an argument.
        default: as typed; what the field has where nothing is typed is made of it.
        help: one or two sentences; ``[default: ...]`` at their end says what no value can.
        panel: heading under which help shows it.
        complete: name of a completer in ``completion.values``.
        typed: type of the typed value, where it is not the field's own.
        parse: makes the field's value of the typed one.
        between: what stands between the parts of a value that has several, but is typed as one word.
        more: further arguments of Typer's own option.
    """

    flags: tuple[str, ...]
    default: Any
    help: str
    panel: str | None = None
    complete: str | None = None
    typed: Any = None
    parse: Callable[[Any], Any] | None = None
    between: str = "x"
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """On the command line and in ``endauda.toml``: ``class-balance``."""
        return self.flags[0].partition("/")[0].removeprefix("--")

    def value(self, typed: Any) -> Any:
        """The field's value of a typed one; ``None`` stays ``None``.

        Raises:
            ConfigError: if it makes no sense.
        """
        return typed if self.parse is None or typed is None else self.parse(typed)

    def words(self, value: Any) -> Any:
        """What one would type, or write in ``endauda.toml``, for a value of the field: :meth:`value` backwards."""
        if isinstance(value, tuple | list):
            words = [str(part) for part in value]
            return words if self.typed == list[str] else self.between.join(words)
        return str(value) if isinstance(value, str | Path) else value

    def line(self, value: Any) -> list[str]:
        """What one would type on the command line for a value of the field, flag and all."""
        flag, _, off = self.flags[0].partition("/")
        if isinstance(value, bool):
            return [flag if value else off]
        words = self.words(value)
        return [flag, *words] if isinstance(words, list) else [flag, str(words)]


def option(
    default: Any,
    *flags: str,
    help: str,
    panel: str | None = None,
    complete: str | None = None,
    typed: Any = None,
    parse: Callable[[Any], Any] | None = None,
    unset: bool = False,
    between: str = "x",
    **more: Any,
) -> Any:
    """A field that is an option (an argument, without flags); see :class:`Option`.

    Args:
        default: as typed; ``...`` is none, so that something has to be typed. With ``unset`` it is the field's own.
    """
    told = Option(
        flags, None if unset else default, help, panel, complete, typed, parse, between, tuple(more.items())
    )
    if default is ...:
        return field(metadata={"option": told})
    return field(default=default if unset else told.value(default), metadata={"option": told})


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options of a class by field: those of its bases as these are listed, its own, what is shared."""
    found = {f.name: f.metadata["option"] for f in fields(kind) if "option" in f.metadata}
    order = [name for name in dict.fromkeys(_names(kind)) if name in found]
    shared = {
        name: SHARED.index(o.flags[0]) for name, o in found.items() if o.panel in (PASSES, DATA, COMMON)
    }
    return {name: found[name] for name in sorted(order, key=lambda name: shared.get(name, -1))}


def _names(kind: type[Any]) -> Iterator[str]:
    for base in kind.__bases__:
        yield from _names(base)
    yield from vars(kind).get("__annotations__", {})


def chosen(kind: type[T], options: Any, **other: Any) -> T:
    """A configuration from a command's options: fields of the same names, but for those given.

    Raises:
        ConfigError: if a value makes no sense.
    """
    same = {f.name: getattr(options, f.name) for f in fields(cast("Any", kind)) if hasattr(options, f.name)}
    return kind(**{**same, **other})


# ---------------------------------------------------------------------------- typed values


MAX_SIDE = 65_535
MOST_WORKERS = 16
"""More threads than this wait for each other."""


def parse_size(flag: str) -> Callable[[str], tuple[int, int]]:
    """For an option: ``"1024x512"`` as (1024, 512), width and height."""

    def parse(text: str) -> tuple[int, int]:
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(_is_whole(part) and int(part) > 0 for part in parts):
            raise ConfigError(f"{flag} {text:.80}: expected WIDTHxHEIGHT, such as 1024x512")
        if max(map(int, parts)) > MAX_SIDE:
            raise ConfigError(f"{flag} {text}: a side is above {MAX_SIDE:,}, more than any image has")
        return int(parts[0]), int(parts[1])

    return parse


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_workers(number: int) -> int:
    """Threads: for 0 one per core that this process may use, if it need not share them with others of its run."""
    if number != 0:
        return number
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(MOST_WORKERS, cores() // max(1, int(processes) if processes.isdecimal() else 1)))


def parse_batch_size(text: str) -> int | None:
    """``"4"`` as 4; ``"auto"`` as ``None``: ``inference.images_at_once`` decides.

    Raises:
        ConfigError: if it is of another form.
    """
    if text.lower() == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"--batch-size {text:.80}: expected auto or a number of images") from error


def parse_tile(text: str) -> tuple[int, int]:
    """``"1024x512"`` as (512, 1024): height, width.

    Raises:
        ConfigError: if it is of another form.
    """
    width, height = parse_size("--tile")(text)
    return height, width


def parse_scales(words: list[str]) -> tuple[float, ...] | None:
    """``["0.75", "1"]`` as (0.75, 1.0).

    Raises:
        ConfigError: if it is of another form.
    """
    try:
        return tuple(float(word) for word in words) or None
    except ValueError as error:
        raise ConfigError(f"--scales {' '.join(words)}: expected numbers, such as 0.75 1 1.25") from error


def parse_temperature(text: str, words: Sequence[str] = ("auto", "val", "source")) -> float:
    """``"1.5"`` as 1.5; ``words`` are what else is understood elsewhere.

    Raises:
        ConfigError: if it is no number from 0.01 to 100.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        others = f"{', '.join(words)} or " if words else ""
        raise ConfigError(f"--temperature {text}: expected {others}a number from 0.01 to 100")
    return value


def parse_jitter(text: str) -> tuple[float, float]:
    """``"0.5-2"`` as (0.5, 2.0).

    Raises:
        ConfigError: if it is of another form.
    """
    try:
        least, most = map(float, text.split("-"))
    except ValueError as error:
        raise ConfigError(f"--scale-jitter {text:.80}: expected LEAST-MOST, such as 0.5-2") from error
    return least, most


def parse_window(text: str) -> tuple[int, int]:
    """``"5"`` as (5, 5), ``"3x7"`` as (3, 7): height, width.

    Raises:
        ConfigError: if it is of another form.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(_is_whole(part) and len(part) < 10 for part in parts):
        raise ConfigError(f"--window {text:.80}: expected one odd number, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8).

    Raises:
        ConfigError: if it is of another form.
    """
    number, slash, of = text.partition("/")
    if not (slash and _is_whole(number) and _is_whole(of)):
        raise ConfigError(f"--shard {text:.80}: expected NUMBER/OF, such as 2/8")
    return int(number), int(of)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19  # isdigit() takes "²", which int() does not
