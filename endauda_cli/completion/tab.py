"""What TAB offers: a half-typed line in, an answer for its shell out.

The scripts in ``data/completions`` call ``endauda`` with ``_ENDAUDA_COMPLETE`` (the shell), ``_ENDAUDA_LINE`` (the line
up to the cursor, as typed) and, where the shell breaks words in its own way, ``_ENDAUDA_WORD`` (what it will replace).
The first line of the answer says what may stand there: ``values`` and nothing else, or, if no value fits, ``files`` or
``folders``, which the shell completes itself. The values follow in the shell's own form.

Whatever happens, TAB is silent, ends well, and ends soon.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from endauda_cli.completion import values
from endauda_cli.terminal.multivalue import is_option, open_option, spread
from endauda_cli.terminal.parsing import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

VARIABLE, LINE, REPLACED = "_ENDAUDA_COMPLETE", "_ENDAUDA_LINE", "_ENDAUDA_WORD"
LIMIT_S = 3.0
"""A folder that does not answer (a dead network share) must not hold the prompt for longer."""


@dataclass(frozen=True)
class Word:
    """A word as typed and as meant; an open quote with where it stands.

    Attributes:
        raw: with quotes and escapes.
        text: without.
        ends: length of ``raw`` after each character of ``text``.
        quote: ``'`` or ``"`` if it is still open.
    """

    raw: str
    text: str
    ends: tuple[int, ...] = ()
    quote: str = ""


@dataclass(frozen=True)
class Line:
    """The finished words of a command. Typer's own parser would check them, which takes longer than all the rest.

    Attributes:
        given: the words of each parameter that was given.
        unfinished: the option whose value the next word may be.
        ended: whether ``--`` was among them.
    """

    given: dict[str, list[str]]
    unfinished: Any
    ended: bool


@dataclass(frozen=True)
class Answer:
    """What fits at the cursor.

    Attributes:
        kind: ``values``, ``files`` or ``folders``: what else may stand there.
        items: (value, description), without what ``prefix`` holds.
        prefix: the part of the word that stays, such as ``--teachers=dacs,``.
    """

    kind: str = "values"
    items: tuple[tuple[str, str], ...] = ()
    prefix: str = ""


def answer_tab(load: Callable[[], Any], environment: Mapping[str, str] = os.environ) -> None:
    """Print what a shell's script asks for. Never raises, never complains.

    Args:
        load: gives the program's group of commands.
    """
    watchdog = Timer(LIMIT_S, os._exit, (0,))
    watchdog.daemon = True
    with suppress(BaseException):
        watchdog.start()
        shell = environment[VARIABLE]
        form = FORMS[shell]
        words = split_line(environment[LINE], "`" if shell == "powershell" else "\\")
        lines = form(complete(load(), words), words[-1], environment.get(REPLACED, words[-1].raw))
        sys.stdout.buffer.write(os.fsencode("".join(f"{line}\n" for line in lines)))
        sys.stdout.flush()
    watchdog.cancel()


def split_line(line: str, escape: str = "\\") -> list[Word]:
    """The words of a half-typed line; the last one is at the cursor, and may be empty."""
    words: list[Word] = []
    start, text, ends, quote, escaped = 0, "", list[int](), "", False
    for position, char in enumerate(line):
        if not (quote or escaped) and char.isspace():
            if position > start:
                words.append(Word(line[start:position], text))
            start, text, ends = position + 1, "", []
        elif not escaped and char == escape and quote != "'":
            escaped = True
        elif not escaped and char == quote:
            quote = ""
        elif not escaped and not quote and char in "'\"":
            quote = char
        else:
            if escaped and quote and char not in f'{escape}"$`':  # there, it escapes nothing else
                text += escape
                ends.append(position - start)
            text, escaped = text + char, False
            ends.append(position + 1 - start)
    return [*words, Word(line[start:], text, tuple(ends), quote)]


def complete(root: Any, words: Sequence[Word]) -> Answer:
    """What fits at the last of the words."""
    args = [_expanded(word) for word in words[:-1]]
    while args and re.match(r"[A-Za-z_]\w*=", args[0]):  # VARIABLE=value endauda ...
        del args[0]
    del args[:1]
    ctx = typer.Context(root, info_name="endauda", resilient_parsing=True)
    while isinstance(ctx.command, TyperGroup):
        named = next((i for i, word in enumerate(args) if not is_option(word)), None)
        if named is None:
            break
        name, command, args = ctx.command.resolve_command(ctx, args[named:])
        if command is None:
            return Answer()
        ctx = typer.Context(command, info_name=name, parent=ctx, resilient_parsing=True)
    return _at_cursor(ctx, args, words[-1].text)


def _expanded(word: Word) -> str:
    """As the shell will hand it over: with the home folder and variables that are exported, and nothing run."""
    text = os.path.expanduser(word.text) if word.raw.startswith("~") else word.text
    return os.path.expandvars(text) if "$" in word.raw and not set("'\\`") & set(word.raw) else text


def _at_cursor(ctx: Any, args: list[str], current: str) -> Answer:
    params = ctx.command.get_params(ctx)
    valued = {flag: param for param in params if _takes_value(param) for flag in param.opts}
    line = _read(params, valued, args)
    ctx.params = _values_of(ctx, params, args, line)
    option, equals, text = current.partition("=")
    if not line.ended:
        if equals and option in valued:
            return _values(valued[option], ctx, text, f"{option}=")
        if current.startswith("-"):
            return _options(params, line, current)
        if line.unfinished is not None:
            return _values(line.unfinished, ctx, current, "")
    for param in params:
        if param.param_type_name == "argument" and (param.nargs == -1 or param.name not in line.given):
            return _values(param, ctx, current, "")
    if isinstance(ctx.command, TyperGroup):
        return _commands(ctx, current)
    return Answer() if current or line.ended else _options(params, line, "")


def _read(params: Sequence[Any], valued: Mapping[str, Any], args: Sequence[str]) -> Line:
    several = [flag for flag, param in valued.items() if param.multiple]
    flags = {flag: param for param in params for flag in (*param.opts, *param.secondary_opts)}
    arguments = [param for param in params if param.param_type_name == "argument"]
    given: dict[str, list[str]] = {}
    again = open_option(args, several)
    unfinished = valued[again] if again is not None else None
    words = iter(spread(args, several))
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            return Line(given, None, True)
        if name in valued and not equals:
            following = next(words, None)
            if following is None:
                unfinished = valued[name]
                break
            value = following
        if is_option(word):
            if param := flags.get(name):
                given.setdefault(param.name, []).append(value)
        elif arguments:
            given.setdefault(arguments[0].name, []).append(word)
            del arguments[: arguments[0].nargs != -1]
    return Line(given, unfinished, False)


def _values_of(ctx: Any, params: Sequence[Any], args: Sequence[str], line: Line) -> dict[str, Any]:
    """What each parameter would be, as text; a single value that is not typed comes from where it would come."""
    if isinstance(ctx.command, Command):
        ctx.command.find_settings(ctx, args)
    found: dict[str, Any] = {}
    for param in params:
        words = line.given.get(param.name, [])
        if param.multiple or param.nargs == -1:
            found[param.name] = words
        else:
            found[param.name] = words[-1] if words else (ctx.default_map or {}).get(param.name, param.default)
    return found


def _takes_value(param: Any) -> bool:
    return param.param_type_name == "option" and not param.is_flag


def _commands(ctx: Any, current: str) -> Answer:
    commands = ((name, ctx.command.get_command(ctx, name)) for name in ctx.command.list_commands(ctx))
    return Answer(
        items=tuple(
            (name, command.get_short_help_str(limit=200))
            for name, command in commands
            if not command.hidden and name.startswith(current)
        )
    )


def _options(params: Sequence[Any], line: Line, current: str) -> Answer:
    """Options that may still be given."""
    items = [
        (flag, _first_sentence(param.help or ""))
        for param in params
        if param.param_type_name == "option" and not param.hidden
        if param.multiple or param.name not in line.given
        for flag in (*param.opts, *param.secondary_opts)
        if flag.startswith(current)
    ]
    return Answer(items=tuple(items))


def _values(param: Any, ctx: Any, text: str, prefix: str) -> Answer:
    """Values of an option or argument; after a comma, of its next part."""
    taken: set[str] = set()
    kind = values.PATHS.get(param.name, "values")
    if param.multiple:
        head, comma, text = text.rpartition(",")
        prefix, taken = f"{prefix}{head}{comma}", set(head.split(","))
    name, equals, path = text.partition("=")
    if equals and param.name in values.AFTER_EQUALS:
        items, kind = values.AFTER_EQUALS[param.name](ctx, path), "files"
        return Answer(kind, _printable(items), f"{prefix}{name}=")
    offered = (
        (item.value, item.help or "") for item in param.shell_complete(ctx, text) if item.type == "plain"
    )
    return Answer(kind, _printable(item for item in offered if item[0] not in taken), prefix)


def _printable(items: Any) -> tuple[tuple[str, str], ...]:
    """Without names that would tear the answer apart."""
    pairs = ((item, "") if isinstance(item, str) else item for item in items)
    return tuple((value, text) for value, text in pairs if value.isprintable())


def _first_sentence(text: str) -> str:
    text = re.sub(r"\s*\[default:.*", "", " ".join(text.split()))
    return re.split(r"[.;:] ", text, maxsplit=1)[0].rstrip("., ")


# ---------------------------------------------------------------------------- the shells' forms


def _inserted(answer: Answer, word: Word, replaced: str, escape: Callable[[str, str], str]) -> list[str]:
    """Each value as it follows what is typed, from where the shell will replace."""
    cut = len(word.raw) - len(replaced) if word.raw.endswith(replaced) else 0
    typed = len(word.text)
    return [
        (word.raw + escape((answer.prefix + value)[typed:], word.quote))[cut:] for value, _ in answer.items
    ]


def _for_bash(answer: Answer, word: Word, replaced: str) -> list[str]:
    def escape(text: str, quote: str) -> str:
        if quote == "'":
            return text.replace("'", r"'\''")
        return re.sub(r'(["\\$`])' if quote else r"([^\w@%+=:,./-])", r"\\\1", text)

    return [answer.kind, *_inserted(answer, word, replaced, escape)]


def _for_zsh(answer: Answer, word: Word, replaced: str) -> list[str]:
    kept = word.ends[len(answer.prefix) - 1] if answer.prefix else 0
    kept -= kept > 0 and word.raw[0] == word.quote  # zsh has set the opening quote apart
    lines = []
    for value, text in answer.items:
        value = value.replace("\\", "\\\\").replace(":", r"\:")
        lines.append(f"{value}:{text}" if text else value)
    return [answer.kind, str(kept), *lines]


def _for_fish(answer: Answer, word: Word, replaced: str) -> list[str]:
    return [answer.kind, *(f"{answer.prefix}{value}\t{text}".rstrip("\t") for value, text in answer.items)]


def _for_powershell(answer: Answer, word: Word, replaced: str) -> list[str]:
    def escape(text: str, quote: str) -> str:
        if quote == "'":
            return text.replace("'", "''") + quote
        return re.sub(r'(["$`])' if quote else r"([^\w%+=:,./\\-])", r"`\1", text) + quote

    inserted = _inserted(answer, word, replaced, escape)
    return [
        answer.kind,
        *(f"{i}\t{value}\t{text}" for i, (value, text) in zip(inserted, answer.items, strict=True)),
    ]


FORMS: dict[str, Callable[[Answer, Word, str], list[str]]] = {
    "bash": _for_bash,
    "zsh": _for_zsh,
    "fish": _for_fish,
    "powershell": _for_powershell,
}
