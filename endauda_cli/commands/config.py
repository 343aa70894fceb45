"""``endauda config``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from endauda_cli.commands.options import AtWorkspace
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ConfigError, did_you_mean, known_are
from endauda_cli.options import option
from endauda_cli.results import ConfigResult, ConfigRow
from endauda_cli.terminal.parsing import Command, Group
from endauda_cli.terminal.settings import COMMON, PREFIX, resolve, variable
from endauda_cli.workspace import CONFIG_FILE, Workspace, find_workspace

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

ELSEWHERE = ("ENDAUDA_WORKSPACE", "ENDAUDA_DEBUG")
"""Variables that are no option."""


@app.callback()
def config() -> None:
    """Show what every option is set to, and where that comes from."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ConfigShow(AtWorkspace):
    """Options of ``config show``."""

    command: str | None = option(None, help="Only this command's options.", complete="commands")
    changed: bool = option(False, "--changed", help="Only what is not as the program has it built in.")


def show(options: ConfigShow) -> None:
    """Print the value of every option when it is not typed, and where it comes from.

    A typed option beats ENDAUDA_COMMAND_OPTION beats ENDAUDA_OPTION beats the command's table in endauda.toml beats
    what stands above the tables there. Unknown names are errors.

    **Examples**

    - `endauda config show fuse`
    - `endauda config show --changed`
    - `ENDAUDA_FUSE_THRESHOLD=70 endauda config show fuse`
    """
    from endauda_cli.progress import Note

    group: Any = options.context.find_root().command
    assert isinstance(group, Group)
    named = options.command
    if named is not None and named not in group.entries:
        raise ConfigError(f"{named!r} is no command{known_are(named, group.entries)}")
    found = find_workspace(options.workspace)
    commands = {name: one for name, one in group.loaded() if named in (None, name.partition(" ")[0])}
    rows = [row for name, one in commands.items() for row in _rows(name, one, list(group.entries), found)]
    with options.terminal("config show") as terminal:
        if named is None:
            known = _variables(rows)
            for name in (
                name for name in sorted(os.environ) if name.startswith(PREFIX) and name not in known
            ):
                hint = did_you_mean(name, known)
                terminal.report(Note(f"environment: {name} is no option of any command{hint}", "warning"))
        file = found.root / CONFIG_FILE
        shown = tuple(row for row in rows if not options.changed or row.origin != "built-in")
        terminal.show(ConfigResult(found.root, file if file.is_file() else None, shown))


app.command("show", cls=Command)(make_command(ConfigShow, show))


def _rows(name: str, command: Command, commands: list[str], workspace: Workspace) -> Iterator[ConfigRow]:
    settings = resolve(name, command.options(), commands, workspace, os.environ)
    params: dict[str, Any] = {param.name: param for param in command.params}
    for one in command.options():
        if one.key in ("workspace", "help"):
            continue
        setting = settings.get(one.parameter)
        value = setting.value if setting else built_in(params[one.parameter])
        origin = setting.origin if setting else "built-in"
        yield ConfigRow(name, one.key, value, origin, variable(one.key, name))


def built_in(param: Any) -> Any:
    """The default, or what the help says that it is."""
    if param.default is None:
        told = re.search(r"\[default: (.*)\]$", param.help or "")
        return told[1] if told else None
    return str(param.default) if isinstance(param.default, str | Path) else param.default


def _variables(rows: list[ConfigRow]) -> set[str]:
    """All that are read."""
    return {row.variable for row in rows} | {variable(key) for key in COMMON} | set(ELSEWHERE)
