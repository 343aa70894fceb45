"""Store: maps from the classes of public data sets to Cityscapes' 19, known by name (``data/classes``).

Each is a description (``descriptions``) of classes alone, with the public source of its list. A class of Cityscapes
that a data set has no honest counterpart of stays empty (``absent``); what a data set has beyond these has no class.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError, did_you_mean
from endauda_cli.files import parse_toml
from endauda_cli.types import ClassMapName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endauda_cli.teachers.descriptions import Description


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


def fitted(
    said: Description, outputs: Sequence[str] | None, classes: Sequence[str], where: Path
) -> Description:
    """A map that is known by name, for one network and task.

    Args:
        said: the map; any other description comes back as it is.
        outputs: what the network calls its outputs, or ``None``: then they are in the map's order.
        classes: the task's. What the map has beyond these has no class.
        where: the network's file, for messages.

    Raises:
        ConfigError: if the outputs are not the map's, or the task has a class that the map knows nothing of.
    """
    if said.shipped is None:
        return said
    if outputs is not None:
        said = replace(said, classes=_in_order(said, outputs, where))
    known = {*said.names.values(), *(said.classes or ()), *said.absent}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}: {said.shipped} joins outputs with Cityscapes' classes, and has none for {', '.join(unknown)}; "
            "write a TOML with classes and [map] of your own, and name that instead"
        )
    names = {output: name if name in classes else "" for output, name in said.names.items()}
    return replace(said, names=names, absent=tuple(name for name in said.absent if name in classes))


def _in_order(said: Description, outputs: Sequence[str], where: Path) -> tuple[str, ...]:
    """The map's classes in the order of a network that names them, in whatever spelling.

    By name where all names are known. Else by position, as data sets number them, unless a name says otherwise.
    """
    classes = said.classes or ()
    listed = (*classes, *said.further)
    by_word = {_word(name): name for name in listed}
    told = [by_word.get(_word(output)) for output in outputs]
    if None not in told and len(set(told)) == len(told):
        return tuple(name for name in told if name is not None)
    if len(outputs) in (len(classes), len(listed)):
        at = listed[: len(outputs)]
        agree = sum(name == here for name, here in zip(told, at, strict=True))
        if agree == len(told) - told.count(None) and 2 * agree >= len(outputs):
            return at
    shown = ", ".join(f"{output:.40}" for output in outputs[:4])
    raise ConfigError(
        f"{where}: its {len(outputs)} outputs ({shown}, ...) are not those of {said.shipped} ({len(classes)}: "
        f"{', '.join(classes[:4])}, ...); name the data set that it was trained on, or a TOML of your own"
    )


def _word(name: str) -> str:
    """The first of a class's names, in one spelling."""
    return " ".join(name.replace(";", ",").partition(",")[0].replace("_", " ").casefold().split())
