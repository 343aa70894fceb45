"""Tools: patterns of files, as a data set's description has them. Standard library only.

As ``Path.glob`` but for four things: ``**`` follows links to folders, as ``*`` does; a name in brackets (``data [v2]``)
that lies there is found although brackets mean a choice of letters; names are equal if they are in some Unicode form;
and ``{split}`` stands for the split's name.
"""

from __future__ import annotations

import fnmatch
import os
import re
import string
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LONGEST = 4096
_EVERYWHERE = "**"


def pattern_fault(pattern: str) -> str | None:
    """Why something is no pattern of files, in a few words; ``None`` if it is one."""
    if len(pattern) > LONGEST:
        return f"longer than {LONGEST} letters"
    if "\0" in pattern:
        return "it holds a NUL"
    try:
        fields = [(name, spec, how) for _, name, spec, how in string.Formatter().parse(pattern)]
    except ValueError as error:
        return str(error)
    if any(name is not None and (name, spec, how) != ("split", "", None) for name, spec, how in fields):
        return "only {split} may stand in braces; {{ and }} are braces"
    parts = Path(filled(pattern, "train")).parts
    if not parts or Path(filled(pattern, "train")).anchor == str(Path(*parts)):
        return "it names no file"
    if any(_EVERYWHERE in part and part != _EVERYWHERE for part in parts):
        return "** can only stand alone between slashes"
    return None


def filled(pattern: str, split: str) -> str:
    """A pattern without a fault, for a split."""
    return pattern.format(split=split)


def matching(root: Path, pattern: str) -> Iterator[Path]:
    """What is no folder and matches a filled pattern below ``root`` (or where it says, if absolute); some twice."""
    path = Path(pattern)
    parts = path.parts
    if path.anchor:
        root, parts = Path(path.anchor), parts[1:]
    if root.is_dir():
        yield from _expand(root, parts)


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders, linked ones too, except hidden ones."""
    return (path for path in _expand(folder, (_EVERYWHERE, "*")) if not path.name.startswith("."))


def plain_name(name: str) -> str:
    """The form of a name that is compared: composed, whatever system wrote it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    part, rest = parts[0], parts[1:]
    if part == _EVERYWHERE:
        while rest and rest[0] == _EVERYWHERE:
            rest = rest[1:]
        if rest:  # as for Path.glob, ** alone means folders
            for below in _tree(folder):
                yield from _expand(below, rest)
        return
    if part == ".." or (part.isascii() and not re.search(r"[*?[]", part)):
        child = folder / part
        if rest and child.is_dir():
            yield from _expand(child, rest)
        elif not rest and os.path.lexists(child) and not child.is_dir():
            yield child
        return
    matches = _matcher(part)
    for entry in _entries(folder):
        if not matches(plain_name(entry.name)):
            continue
        if rest and _is_folder(entry):
            yield from _expand(folder / entry.name, rest)
        elif not rest and not _is_folder(entry):
            yield folder / entry.name


@cache
def _matcher(part: str) -> Callable[[str], object]:
    part = plain_name(part)
    choices = {fnmatch.translate(part), fnmatch.translate(part.replace("[", "[[]"))}
    return re.compile("|".join(sorted(choices))).match


def _tree(top: Path) -> Iterator[Path]:
    """A folder and all folders in it, each once: linked ones last, and none that leads back up."""
    folders, seen = [(top, os.path.realpath(top))], set()
    links: list[tuple[Path, str]] = []
    while folders or links:
        folder, real = (folders or links).pop()
        if real in seen:
            continue
        seen.add(real)
        yield folder
        for entry in _entries(folder):
            if not _is_folder(entry):
                continue
            path = folder / entry.name
            if not entry.is_symlink():
                folders.append((path, os.path.join(real, entry.name)))
            elif os.path.commonpath([there := os.path.realpath(path), real]) != there:
                links.append((path, there))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # as for Path.glob: what cannot be looked into holds nothing
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
