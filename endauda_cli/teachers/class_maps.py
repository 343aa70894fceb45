"""Store: maps from the classes of public data sets to Cityscapes' 19, known by name (``data/classes``).

Each is a description (``descriptions``) of classes alone, with the public source of its list. A class of Cityscapes
that a data set has no honest counterpart of stays empty (``absent``); what a data set has beyond these has no class.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError, did_you_mean
from endauda_cli.files import parse_toml
from endauda_cli.types import ClassMapName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def content_of(name: str) -> dict[str, Any]:
    """The tables of a map that is known by name.

    Raises:
        ConfigError: if none has that name.
    """
    if name not in tuple(ClassMapName):
        raise ConfigError(
            f"classes {name!r:.80}: known are {', '.join(ClassMapName)}, or a TOML file with classes, absent and [map]"
            f"{did_you_mean(name, list(ClassMapName))}"
        )
    return parse_toml(files("endauda_cli").joinpath(f"data/classes/{name}.toml").read_text(encoding="utf-8"))


def in_order(
    name: str, classes: Sequence[str], further: Sequence[str], outputs: Sequence[str], where: Path
) -> tuple[str, ...]:
    """A map's classes in the order of a network that names them, in whatever spelling.

    By name where all names are known. Else by position, as data sets number them, unless a name says otherwise.

    Args:
        name: of the map.
        classes, further: its outputs, and what some networks have behind them.
        outputs: what the network calls its own.
        where: the network's file, for messages.

    Raises:
        ConfigError: if these are not the map's.
    """
    listed = (*classes, *further)
    by_word = {_word(output): output for output in listed}
    told = [by_word.get(_word(output)) for output in outputs]
    if None not in told and len(set(told)) == len(told):
        return tuple(output for output in told if output is not None)
    if len(outputs) in (len(classes), len(listed)):
        at = listed[: len(outputs)]
        agree = sum(known == here for known, here in zip(told, at, strict=True))
        if agree == len(told) - told.count(None) and 2 * agree >= len(outputs):
            return at
    shown = ", ".join(f"{output:.40}" for output in outputs[:4])
    raise ConfigError(
        f"{where}: its {len(outputs)} outputs ({shown}, ...) are not those of {name} ({len(classes)}: "
        f"{', '.join(classes[:4])}, ...); name the data set that it was trained on, or a TOML of your own"
    )


def _word(name: str) -> str:
    """The first of a class's names, in one spelling."""
    return " ".join(name.replace(";", ",").partition(",")[0].replace("_", " ").casefold().split())
