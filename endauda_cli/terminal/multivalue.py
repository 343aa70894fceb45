"""``--teachers dacs crst cbst``: options that take several values, as people type them.

Typer's options take one value each and are repeated. ``spread`` turns ``--teachers a b c`` into
``--teachers a --teachers b --teachers c`` before Typer sees it, and stops at the next option or ``--``. Commas are
split later, by ``split_commas``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence  # noqa: TC003  Typer reads a callback's annotations


def spread(words: Sequence[str], several: Collection[str]) -> list[str]:
    """``--teachers a b c`` as ``--teachers a --teachers b --teachers c``; everything else as it is.

    Args:
        words: what follows the command's name.
        several: the options, by all their names, that take several values.
    """
    result: list[str] = []
    option, first = None, False
    for position, word in enumerate(words):
        if word == "--":
            return result + list(words[position:])
        if is_option(word):
            name, equals, _ = word.partition("=")
            option = name if name in several else None
            first = not equals
            result.append(word)
        elif option is not None and not first:
            result += [option, word]
        else:
            first = False
            result.append(word)
    return result


def open_option(words: Sequence[str], several: Collection[str]) -> str | None:
    """The option of which one more value may follow ``words``, if one has been given already."""
    marked = spread([*words, "value"], several)
    return marked[-2] if len(marked) == len(spread(words, several)) + 2 else None


def is_option(word: str) -> bool:
    """Whether a word is an option; ``-`` alone and negative numbers are values."""
    return len(word) > 1 and word[0] == "-" and not _is_number(word)


def split_commas(values: Sequence[str] | None) -> list[str]:
    """``["a,b", "c"]`` as ``["a", "b", "c"]``."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
