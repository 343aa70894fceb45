"""``--teachers dacs crst cbst``: options that take several values, as people type them.

Typer's options take one value each and are repeated. This pre-pass turns ``--teachers a b c`` into
``--teachers a --teachers b --teachers c`` before Typer sees it, also in the words that a shell sends for
completion. It knows which options it may spread, and stops at the next option or ``--``. Safe because no
command that has such an option takes positional arguments. Commas are split later, by ``split_commas``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import MutableMapping, Sequence  # noqa: TC003  Typer reads a callback's annotations

MULTIVALUE = frozenset({"--teachers", "-t", "--augment"})
COMPLETE_VARIABLE = "_ENDAUDA_COMPLETE"


def spread(words: Sequence[str]) -> list[str]:
    """``--teachers a b c`` as ``--teachers a --teachers b --teachers c``; everything else as it is."""
    result: list[str] = []
    option, fresh = None, False
    for position, word in enumerate(words):
        if word == "--":
            return result + list(words[position:])
        if word.startswith("-"):
            name = word.partition("=")[0]
            option = name if name in MULTIVALUE else None
            fresh = "=" not in word
            result.append(word)
        elif option is not None and not fresh:
            result += [option, word]
        else:
            fresh = False
            result.append(word)
    return result


def split_commas(values: Sequence[str] | None) -> list[str]:
    """``["a,b", "c"]`` as ``["a", "b", "c"]``."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def spread_completion(environment: MutableMapping[str, str] = os.environ) -> None:
    """Spread the words of a half-typed line that a shell asks completions for, in place. Never raises."""
    try:
        if "COMP_WORDS" in environment:  # bash: all words, and the number of the one at the cursor
            cursor = int(environment["COMP_CWORD"])
            words = shlex.split(environment["COMP_WORDS"])
            before, current = words[1:cursor], (words[cursor] if cursor < len(words) else "")
            line = [words[0], *_before_cursor(before, current)]
            environment["COMP_WORDS"] = shlex.join([*line, *([current] if current else [])])
            environment["COMP_CWORD"] = str(len(line))
        elif "_TYPER_COMPLETE_ARGS" in environment:  # the others: the line up to the cursor
            text = environment["_TYPER_COMPLETE_ARGS"]
            words = shlex.split(text)
            current = "" if text.endswith(" ") or len(words) < 2 else words.pop()
            environment["_TYPER_COMPLETE_ARGS"] = (
                shlex.join([words[0], *_before_cursor(words[1:], current)]) + f" {current}"
            )
    except (ValueError, KeyError, IndexError):
        return  # an open quote and the like: Typer does what it can


def _before_cursor(before: list[str], current: str) -> list[str]:
    """The finished words, spread; with the option repeated if the cursor stands in its second value."""
    if current.startswith("-"):
        return spread(before)
    return spread([*before, "value"])[:-1]
