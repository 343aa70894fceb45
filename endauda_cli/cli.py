"""The ``endauda`` command: registrations and configuration file; how it ends is ``terminal.ending``'s.

Nothing imported here, or by a command's module, imports torch or numpy: ``--help``, ``--version`` and TAB
must answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endauda_cli import __version__
from endauda_cli.commands import demo, download_weights, export_teacher, fuse, inspect, test, train
from endauda_cli.errors import ConfigError
from endauda_cli.terminal import ending
from endauda_cli.terminal.multivalue import COMPLETE_VARIABLE, spread, spread_completion
from endauda_cli.terminal.starting import leave
from endauda_cli.workspace import CONFIG_FILE, find_workspace, read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="endauda",
    help="Turn several adapted segmentation models (teachers) and unlabelled images into one better model (student).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Start with: endauda demo",
)

for name, module in (
    ("export-teacher", export_teacher),
    ("fuse", fuse),
    ("train", train),
    ("test", test),
    ("download-weights", download_weights),
    ("inspect", inspect),
    ("demo", demo),
):
    prefix = f"ENDAUDA_{name.upper().replace('-', '_')}"
    app.command(name, context_settings={"auto_envvar_prefix": prefix})(module.command)


def _version(asked: bool) -> None:
    if asked:
        print(f"endauda {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    ctx.default_map = _defaults(ctx, _workspace_argument(sys.argv))


def _workspace_argument(argv: Sequence[str]) -> Path | None:
    """The value of ``--workspace``, which a command parses only after its defaults are needed."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--workspace" and following:
            return Path(following)
        if word.startswith("--workspace="):
            return Path(word.partition("=")[2])
    return None


def _defaults(ctx: typer.Context, given: Path | None) -> dict[str, Any]:
    """``endauda.toml`` as Typer's map of defaults: command -> parameter -> value."""
    workspace = find_workspace(given)
    commands: dict[str, Any] = ctx.command.commands  # type: ignore[attr-defined]
    defaults: dict[str, Any] = {}
    for table, values in read_config(workspace).items():
        where = f"{workspace.root / CONFIG_FILE}: [{table}]"
        if table not in commands:
            raise ConfigError(f"{where} is no command; known are {', '.join(commands)}")
        options = {
            flag.lstrip("-"): p for p in commands[table].params for flag in p.opts if flag.startswith("--")
        }
        for key in values:
            if key not in options:
                raise ConfigError(f"{where} has no option {key!r}; known are {', '.join(sorted(options))}")
        defaults[table] = {
            # teachers = "dacs,crst" would else be taken letter by letter
            options[key].name: [value] if options[key].multiple and isinstance(value, str) else value
            for key, value in values.items()
        }
    return defaults


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 (an error that is told), 2 (usage), 130 (interrupt)."""
    if COMPLETE_VARIABLE in os.environ:
        spread_completion()
    given = list(sys.argv[1:] if argv is None else argv)
    words = spread(given)
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        return ending.run(lambda: app(words, prog_name="endauda", standalone_mode=False), given)
    finally:
        sys.argv = before


def entry() -> None:
    """Run the command line of this process and end it."""
    leave(main())
