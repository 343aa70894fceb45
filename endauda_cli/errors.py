"""Errors a user can mend. Everything else is a bug of ours and keeps its traceback.

    EndaudaError
    ├── ConfigError       an option, environment variable or ``endauda.toml`` value
    ├── WorkspaceError    something that should lie in the workspace and does not
    ├── DataError         an image, a label map, a teacher's output or a data set's TOML
    ├── ArchiveError      a certainty archive: format, damage, classes
    ├── CheckpointError   a file of weights, or weights of another network
    ├── DownloadError     something that cannot be fetched, or is not what was published
    └── PolicyError       who owns which class

A message is one sentence (or two): which file, what was found, what was expected, what to do.
The command line prints it and exits with 1; usage errors exit with 2, an interrupt with 130.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class EndaudaError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(EndaudaError):
    """A value given by option, environment or configuration file cannot be used."""


class WorkspaceError(EndaudaError):
    """A file or folder that the command needs is not in the workspace."""


class DataError(EndaudaError):
    """An image, label map, teacher output or data set description is not what it should be."""


class NoImagesError(DataError):
    """A split has no images, or the data set no such split."""


class NoLabelsError(DataError):
    """An image has no ground truth, where one is needed."""


class ArchiveError(EndaudaError):
    """A certainty archive cannot be read, or does not fit."""


class CheckpointError(EndaudaError):
    """A file of weights cannot be read, or belongs to another network."""


class DownloadError(EndaudaError):
    """Something cannot be fetched, or what came is not what was published."""


class PolicyError(EndaudaError):
    """A policy cannot be read, or names classes or teachers that are not there."""


def did_you_mean(words: str | Sequence[str], known: Iterable[str]) -> str:
    """The end of a sentence that refuses a word, or several: the known ones nearest to them, if there are such."""
    import difflib  # only what is refused pays for it

    names, refused = list(known), [words] if isinstance(words, str) else words
    close = [near for word in refused for near in difflib.get_close_matches(word, names, n=1)]
    return f"; did you mean {' and '.join(close)}?" if close else ""


def known_are(word: str, known: Iterable[str]) -> str:
    """The same, but where none is near it says which are known."""
    names = list(known)
    return did_you_mean(word, names) or f"; known are {', '.join(names)}"
