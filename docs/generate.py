"""Writes ``docs/commands.md``, the reference of every command, from the program itself.

    python docs/generate.py

A test compares the file with what this makes of the program.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from endauda_cli.cli import COMMANDS, app
from endauda_cli.commands.config import built_in
from endauda_cli.terminal.parsing import Group, tidy
from endauda_cli.terminal.settings import COMMON, variable

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).with_name("commands.md")

HEAD = """# Commands

Made from the program by `python docs/generate.py`; each command's `--help` says the same.

An option that takes several values takes them as people type them: `--teachers a b c`, `--teachers a,b,c`,
`--teachers=a b`, or the option again for each. The values end at the next option or at `--`.

Every option can also be set in the environment, as `ENDAUDA_<COMMAND>_<OPTION>` (`ENDAUDA_FUSE_THRESHOLD=70`), or in
the workspace's `endauda.toml`, in a table of the command's name. A typed option beats the environment beats the file
beats the built-in value; `endauda config show` prints what holds, and where it comes from. The workspace, where that
file lies, is one for all: `ENDAUDA_WORKSPACE`. A relative path in the file is one in the workspace, wherever the
command is run; typed and in the environment it is one from the current folder. These can be set for all
commands at once, above the tables of the file or without a command in the variable:
"""


def reference() -> str:
    """The page."""
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    common = ", ".join(f"`{key}` (`{variable(key)}`)" for key in COMMON)
    anchors = {name.partition(" ")[0]: name.replace(" ", "-") for name, _ in group.loaded()}
    contents = [
        f"| [`{name}`](#endauda-{anchors[name]}) | {entry.summary} |" for name, entry in COMMANDS.items()
    ]
    parts = [HEAD + common + ".", "\n".join(["| command | |", "|---|---|", *contents])]
    root = group.make_context("endauda", [], resilient_parsing=True)
    for name, command in group.loaded():
        tidy(command, command.make_context(name, [], parent=root, resilient_parsing=True))
        parts += _command(name, command)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## endauda {name}"
    text, examples = _split(inspect.cleandoc(command.help or ""))
    yield text
    usage = "".join(f" {_argument(p)}" for p in command.params if p.param_type_name == "argument")
    yield "```bash\n" + "\n".join([f"endauda {name}{usage} [OPTIONS]", *examples]) + "\n```"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments:
        yield "\n".join(
            ["| argument | |", "|---|---|", *(f"| `{p.name.upper()}` | {_text(p)} |" for p in arguments)]
        )
    panels: dict[str, list[Any]] = {}
    for param in command.params:
        if param.param_type_name == "option" and not param.hidden:
            panels.setdefault(param.rich_help_panel or "Options", []).append(param)
    for title, params in panels.items():
        rows = [f"| {_flags(p)} | {_default(p)} | {_text(p)} |" for p in params]
        yield "\n".join([f"| {title} | default | |", "|---|---|---|", *rows])


def _split(help_text: str) -> tuple[str, list[str]]:
    """Text and examples of a docstring, whose examples are a list of lines in backticks at its end."""
    lines = help_text.splitlines()
    examples = [line[3:-1] for line in lines if line.startswith("- `") and line.endswith("`")]
    kept = [line for line in lines if not line.startswith("- `") and line != "**Examples**"]
    return "\n".join(kept).strip(), examples


def _argument(param: Any) -> str:
    name = param.name.upper() + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _flags(param: Any) -> str:
    names = [*param.opts, *param.secondary_opts]
    value = "" if param.is_flag else f" {param.metavar}"
    return ", ".join(f"`{name}{value if name == names[-1] else ''}`" for name in names).replace("|", "\\|")


def _default(param: Any) -> str:
    value = built_in(param)
    if value in (None, False, ()):
        return ""
    return "on" if value is True else str(value).replace("|", "\\|")


def _text(param: Any) -> str:
    return str(param.help or "").rpartition(" [default: ")[0] or str(param.help or "")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
