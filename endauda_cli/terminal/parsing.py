"""How a command line becomes a call: what ``endauda`` adds to Typer's commands.

A ``Group`` imports a command's module when that command is run, not to list it. A ``Command`` takes several values
after one option, finds what was not typed in the environment and in ``endauda.toml``, and says of a refused word
what is nearest to it, or where it came from.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from endauda_cli.errors import ConfigError, EndaudaError, did_you_mean
from endauda_cli.terminal.multivalue import spread
from endauda_cli.terminal.settings import CONFIG, Option, Setting, resolve
from endauda_cli.workspace import find_workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SETTINGS = "endauda.settings"
"""Key of a context's ``meta``: what was not typed."""

_VALUES = {"int": "N", "float": "X", "path": "PATH"}


@dataclass(frozen=True)
class Entry:
    """A command as the help of the whole program lists it.

    Attributes:
        summary: the first line of its own help.
        panel: the heading it stands under.
        module: where its function ``command`` is, or, for a group of commands, its ``app``.
        tolerant: whether it runs where the settings cannot be read, and tells of that itself.
    """

    summary: str
    panel: str
    module: str
    tolerant: bool = False


class Command(TyperCommand):
    """A command of ``endauda``."""

    allow_extra_args = True  # for a better word about them than "unexpected"

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        several = {flag for param in self.params if _several(param) for flag in param.opts}
        if not any(word in ctx.help_option_names for word in args):  # help is given whatever the file says
            self.find_settings(ctx, args)
        try:
            super().parse_args(ctx, spread(args, several))
        except typer.BadParameter as error:
            error.message = self._value(ctx, args, error) + error.message.removeprefix("Value error, ")
            error.message += self._hint(ctx, error)
            raise
        if ctx.args and not ctx.resilient_parsing:
            words = " ".join(ctx.args)
            ctx.fail(f"Unexpected {words!r}; {self._place_of(ctx, ctx.args)}")
        return ctx.args

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            named = re.match(r"--[a-z-]+(?= )", str(error))
            found = next((param.name for param in self.params if named and named[0] in param.opts), None)
            if found and (origin := self._origin(ctx, found)):
                raise ConfigError(f"{error} (the value is from {origin})") from error
            raise

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        tidy(self, ctx)
        super().format_help(ctx, formatter)

    def find_settings(self, ctx: typer.Context, args: Sequence[str]) -> None:
        """Set the context's defaults to what the environment and ``endauda.toml`` say."""
        if not ctx.resilient_parsing:
            _stand_somewhere()
        root: Any = ctx.find_root()
        name = full_name(ctx)
        try:
            options = self.options()
            workspace = find_workspace(_named(args, "workspace"))
            file = _named(args, CONFIG) if any(option.key == CONFIG for option in options) else None
            settings = resolve(name, options, root.command.commands, workspace, os.environ, file)
        except (EndaudaError, OSError):
            if not (ctx.resilient_parsing or root.command.entries[name.partition(" ")[0]].tolerant):
                raise
            return
        ctx.meta[_SETTINGS] = settings
        ctx.default_map = {name: setting.value for name, setting in settings.items()}

    def options(self) -> list[Option]:
        """What the environment and ``endauda.toml`` may set."""
        options: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        return [Option(_key(one), one.name, one.is_flag, one.multiple) for one in options]

    def _origin(self, ctx: typer.Context, parameter: str) -> str | None:
        """Where a value came from, if nobody typed it."""
        settings: Mapping[str, Setting] = ctx.meta.get(_SETTINGS, {})
        source = ctx.get_parameter_source(parameter)
        if source is None or source.name != "DEFAULT_MAP" or parameter not in settings:
            return None
        return settings[parameter].origin

    def _hint(self, ctx: typer.Context, error: typer.BadParameter) -> str:
        if error.param is None:
            return ""
        if origin := self._origin(ctx, error.param.name):
            return f" (the value is from {origin})"
        refused = re.search(r"'([^']*)' is not one of", error.message)
        if refused is None:
            return ""
        choices = [item.value for item in error.param.shell_complete(ctx, "")]
        return did_you_mean(refused[1], choices).replace("; d", " D")

    def _value(self, ctx: typer.Context, args: Sequence[str], error: typer.BadParameter) -> str:
        """What was refused, where Typer does not say it: ``'many': Input should be a valid integer ...``."""
        if error.param is None or not error.message.startswith("Input should be"):
            return ""
        settings: Mapping[str, Setting] = ctx.meta.get(_SETTINGS, {})
        value = settings[error.param.name].value if error.param.name in settings else None
        for word, following in pairwise([*args, ""]):
            option, equals, text = word.partition("=")
            if option in error.param.opts:
                value = text if equals else following
        return "" if value is None else f"{value!r}: "

    def _place_of(self, ctx: typer.Context, words: Sequence[str]) -> str:
        """Where words that stand alone may belong: the option that completes to the first of them."""
        options: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        for param in (option for option in options if not option.is_flag):
            with suppress(Exception):  # completion never stands in the way of an error message
                if any(item.value == words[0] for item in param.shell_complete(ctx, words[0])):
                    return f"did you mean {param.opts[0]} {' '.join(words if param.multiple else words[:1])}?"
        return f"{self.name} takes no more words"


class Group(TyperGroup):
    """The commands of ``endauda``, listed without importing them."""

    entries: Mapping[str, Entry] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in self.entries.items():
            self.add_command(TyperCommand(name=name, help=entry.summary, rich_help_panel=entry.panel))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        tidy(self, ctx)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:  # ``endauda --json fuse``
            if named := next((word for word in args if word in self.commands), None):
                error.message += f"; options of {named} stand after it"
            raise

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        if args[0] in self.entries:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> TyperCommand:
        """The command itself, imported."""
        command: Any = self.commands[name]
        if type(command) is TyperCommand:
            module = import_module(self.entries[name].module)
            command = typer.main.get_command(getattr(module, "app", None) or _alone(name, module.command))
            command.name = name
            self.add_command(command)
        return command  # type: ignore[no-any-return]

    def loaded(self) -> Iterator[tuple[str, Command]]:
        """All commands by their full names, those of groups as ``config show``."""
        for name in self.entries:
            command: Any = self.load(name)
            if isinstance(command, TyperGroup):
                yield from ((f"{name} {sub}", one) for sub, one in command.commands.items())  # type: ignore[misc]
            else:
                yield name, command


def tidy(command: Any, ctx: Any) -> None:
    """Name the options' values as manuals do, and put choices where there is room for them."""
    options: list[Any] = [param for param in command.get_params(ctx) if param.param_type_name == "option"]
    for option in options:
        kind = option.display_type(ctx).strip("<>")
        if option.is_flag:
            option.metavar = " "  # else Typer shows a value, and there is none
        elif option.metavar is None and "|" in kind:
            option.metavar = _key(option).rpartition("-")[2].upper()
            option.help = _with_choices(option.help or "", kind.split("|"))
        elif option.metavar is None:
            option.metavar = _VALUES.get(kind, "TEXT")
        if "--help" in option.opts and len(options) > 1:
            option.rich_help_panel = options[-2].rich_help_panel


def full_name(ctx: typer.Context) -> str:
    """Of the command that runs, without the program's: ``config show``."""
    return ctx.command_path.removeprefix(ctx.find_root().command_path).strip()


def _alone(name: str, function: Any) -> typer.Typer:
    """A program of one command."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command(name, cls=Command)(function)
    return app


def _with_choices(text: str, choices: Sequence[str]) -> str:
    """``Images to fuse.`` as ``Images to fuse (train, val, test).``, unless the text says them all."""
    if all(choice in text for choice in choices):
        return text
    sentence, default, rest = text.partition(" [default:")
    return f"{sentence.removesuffix('.')} ({', '.join(choices)}).{default}{rest}"


def _several(param: Any) -> bool:
    return bool(param.param_type_name == "option" and param.multiple)


def _key(param: Any) -> str:
    """``few-shot`` of an option that is typed ``--few-shot``."""
    return str(next(flag for flag in param.opts if flag.startswith("--"))[2:])


def _stand_somewhere() -> None:
    """Refuse to work in a folder that is gone: paths mean nothing there, and torch ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder was deleted meanwhile; change into one that exists") from error


def _named(words: Sequence[str], option: str) -> Path | None:
    """The last ``--workspace`` or ``--config``, needed before the words are parsed: the other defaults lie there."""
    flag, named = f"--{option}", None
    for word, following in pairwise([*words, "--"]):
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if name == flag and (equals or following != "--"):
            named = Path(value if equals else following)
    return named
