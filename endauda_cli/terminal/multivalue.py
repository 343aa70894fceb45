"""``--teachers dacs crst cbst``: options that take several values, as people type them.

Typer's options take one value each and are repeated. ``spread`` turns ``--teachers a b,c`` into
``--teachers a --teachers b --teachers c`` before Typer sees it, and stops at the next option or ``--``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def spread(words: Sequence[str], several: Collection[str]) -> list[str]:
    """``--teachers a b,c`` as ``--teachers a --teachers b --teachers c``; everything else as it is.

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
            name, glued = _taken_apart(word)
            option, first = (name if name in several else None), glued is None
            if option is None or glued is None:
                result.append(word)
            else:
                result += [text for part in split_commas(glued) for text in (option, part)]
        elif option is None:
            result.append(word)
        else:
            texts = [text for part in split_commas(word) for text in (option, part)]
            result += texts[1:] if first else texts
            first = False
    return result


def open_option(words: Sequence[str], several: Collection[str]) -> str | None:
    """The option of which one more value may follow ``words``, if one has been given already."""
    marked = spread([*words, "value"], several)
    return marked[-2] if len(marked) == len(spread(words, several)) + 2 else None


def is_option(word: str) -> bool:
    """Whether a word is an option; ``-`` alone and negative numbers are values."""
    return len(word) > 1 and word[0] == "-" and not _is_number(word)


def split_commas(text: str) -> list[str]:
    """``"a,b"`` as ``["a", "b"]``; what holds nothing between its commas stays one value, to be refused by name."""
    return [part.strip() for part in text.split(",") if part.strip()] or [text]


def _taken_apart(word: str) -> tuple[str, str | None]:
    """``--teachers=a``, ``-t=a`` and ``-ta`` as name and value; ``None`` where none is glued to the name."""
    name, equals, value = word.partition("=")
    if not word.startswith("--") and len(name) > 2:
        return word[:2], word[2:]
    return name, value if equals else None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
