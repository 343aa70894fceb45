"""Where an option's value comes from when it is not typed: the environment, ``endauda.toml``, the program.

A flag beats ``ENDAUDA_<COMMAND>_<OPTION>`` beats ``ENDAUDA_<OPTION>`` beats the command's table in ``endauda.toml``
beats what stands above the tables there beats the built-in value. The second and fourth hold for every command that
has the option, so only options that mean the same everywhere can be given there: ``COMMON``. A command with
``--config`` takes another file of the same form, which beats ``endauda.toml`` and is beaten by the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError, did_you_mean, known_are
from endauda_cli.terminal.multivalue import split_commas
from endauda_cli.workspace import CONFIG_FILE, read_options

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from endauda_cli.workspace import Workspace

PATHS = (
    "source-data", "target-data", "cache", "out", "export", "predictions", "program", "description", "import", "delta",
    "from-file", "manifest", "made",
)  # fmt: skip
"""Options that take a path; from the file it is one in the workspace."""
NAMES_TOO = (
    "run",
    "weights",
    "classes",
    "init",
    "labels",
    "labelled",
    "policy",
    "teachers",
    "source",
    "domains",
    "target",
)
"""Options that take a name or a path."""
COMMON = (
    "source", "target", "source-data", "target-data", "device", "workers", "amp", "json", "quiet", "verbose",
)  # fmt: skip
"""Options that may also be set for all commands at once. The workspace is where the file is, so not in the file."""

PREFIX = "ENDAUDA_"
CONFIG = "config"
"""The option that names a further file of options."""
IN_NO_FILE = ("workspace", CONFIG, "advise", "dry-run")
"""Options that say where a file of options is, and what is asked for once and not for good."""


@dataclass(frozen=True)
class Option:
    """What matters here of an option of a command.

    Attributes:
        key: its name without dashes before it, as in ``endauda.toml``.
        parameter: of the command's function.
        switch: it is on or off.
        several: it takes several values.
    """

    key: str
    parameter: str
    switch: bool = False
    several: bool = False


@dataclass(frozen=True)
class Setting:
    """A value that was not typed.

    Attributes:
        value: as Typer is to read it.
        origin: where it is from: the variable, or file and table.
    """

    value: Any
    origin: str


def resolve(
    command: str,
    options: Iterable[Option],
    commands: Collection[str],
    workspace: Workspace,
    environment: Mapping[str, str],
    file: Path | None = None,
) -> dict[str, Setting]:
    """Settings of a command by the name of the parameter; those that nobody made are left out.

    Args:
        command: its name.
        options: all it has.
        commands: names of all commands.
        workspace: whose ``endauda.toml`` is read.
        environment: variables.
        file: what was typed after ``--config``.

    Raises:
        ConfigError: if a table, a key or a variable is unknown, or a value of the wrong kind; if there is no such file.
    """
    known = {option.key: option for option in options if option.key != "workspace"}
    in_files = {key: option for key, option in known.items() if key not in IN_NO_FILE}
    by_variable = _from_environment(command, known, environment)
    if file is None and CONFIG in by_variable:
        file = Path(by_variable[CONFIG].value)
    by_key = _from_file(workspace.root / CONFIG_FILE, command, in_files, commands, workspace)
    if file is not None:
        named = workspace.path(file)
        if not os.path.isfile(named):  # pathlib raises for what is too long to be a path
            raise ConfigError(
                f"--config {file}: no such file; name a run's config.toml, or another of that form"
            )
        by_key |= _from_file(named, command, in_files, commands, workspace)
    by_key |= by_variable
    return {known[key].parameter: setting for key, setting in by_key.items()}


def variable(key: str, command: str | None = None) -> str:
    """The environment variable of an option, of one command or of all: ``ENDAUDA_FUSE_FEW_SHOT``."""
    words = key if command is None else f"{command}_{key}"
    return PREFIX + words.replace("-", "_").replace(" ", "_").upper()


def _from_file(
    path: Path, command: str, known: Mapping[str, Option], commands: Collection[str], workspace: Workspace
) -> dict[str, Setting]:
    config = read_options(path)
    found = {}

    def in_workspace(option: Option, value: Any, where: str) -> Any:
        typed = _of_toml(option, value, where)
        if isinstance(typed, list):
            return [_in_workspace(option, text, workspace.root) for text in typed]
        return _in_workspace(option, typed, workspace.root) if isinstance(typed, str) else typed

    for key, value in config.items():
        if isinstance(value, dict):
            if key not in commands:
                raise ConfigError(f"{path}: [{key}] is no command{known_are(key, commands)}")
        elif key not in COMMON:
            wrong = "stands outside a table, as only options of all commands do"
            raise ConfigError(f"{path}: {key} {wrong}{known_are(key, COMMON)}")
        elif key in known:
            found[key] = Setting(in_workspace(known[key], value, f"{path}: {key}"), str(path))
    name, _, sub = command.partition(" ")
    own = config.get(name, {})
    if sub:  # [config.show]
        for key in (key for key, value in own.items() if not isinstance(value, dict)):
            raise ConfigError(f"{path}: [{name}] has no option {key!r}; put it under [{name}.{sub}]")
        own = own.get(sub, {})
    table = command.replace(" ", ".")
    for key, value in own.items():
        where = f"{path}: [{table}]"
        if key not in known:
            raise ConfigError(f"{where} has no option {key!r}{known_are(key, sorted(known))}")
        found[key] = Setting(in_workspace(known[key], value, f"{where} {key}"), f"{path} [{table}]")
    return found


def _from_environment(
    command: str, known: Mapping[str, Option], environment: Mapping[str, str]
) -> dict[str, Setting]:
    found = {}
    for key in (key for key in COMMON if key in known):
        if value := environment.get(variable(key)):
            found[key] = Setting(_of_text(known[key], value), variable(key))
    names = {variable(key, command): key for key in known}
    for name in (name for name in environment if name.startswith(variable("", command))):
        if name not in names:  # one workspace serves all commands
            near = [variable("workspace")] if name == variable("workspace", command) else names
            raise ConfigError(f"environment: {name} is no option of {command}{did_you_mean(name, near)}")
        if environment[name]:
            key = names[name]
            found[key] = Setting(_of_text(known[key], environment[name]), name)
    return found


def _in_workspace(option: Option, text: str, root: Path) -> str:
    """A path in the file is relative to the workspace, wherever the command is run; a name stays what it is."""
    named = option.key in NAMES_TOO
    if (not named and option.key not in PATHS) or Path.cwd() == root:
        return text
    name, equals, path = text.rpartition("=")  # a teacher's NAME=PATH
    inside = root / path
    try:
        if not path or (named and not ("/" in path or "." in path)):
            return text
        if not inside.exists() and (named or Path(path).exists()):
            return text
    except (OSError, ValueError):  # too long, or with a NUL: the command says so
        return text
    return f"{name}{equals}{inside}"


def _of_text(option: Option, text: str) -> str | list[str]:
    return [part for word in text.split() for part in split_commas(word)] if option.several else text


def _of_toml(option: Option, value: Any, where: str) -> Any:
    """A TOML value as Typer is to read it: on or off as such, all else as typed, for ``int`` would take 1.5 as 1."""
    if option.switch:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} is {value!r}; expected true or false")
        return value
    values = value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, str | int | float) for v in values):
        raise ConfigError(f"{where} is {value!r}; expected what one would type, a string or a number")
    try:
        texts = [str(v) for v in values]
    except ValueError as error:  # 0xfff... of more digits than Python prints
        raise ConfigError(f"{where} is a number of thousands of digits; expected one of use") from error
    if option.several:
        return [part for text in texts for part in split_commas(text)]
    if isinstance(value, list):
        raise ConfigError(f"{where} is {value!r}; it takes one value")
    return texts[0]
