"""``endauda doctor``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from endauda_cli.commands.options import Located, OnDevice, SourceData, TargetData
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import EndaudaError
from endauda_cli.options import option
from endauda_cli.terminal.parsing import Group
from endauda_cli.terminal.settings import resolve
from endauda_cli.workspace import find_workspace


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Doctor(SourceData, TargetData, OnDevice, Located):
    """Options of ``doctor``."""

    speed: bool = option(True, "--speed/--no-speed", help="Measure the codecs, which takes seconds.")


def run(options: Doctor) -> None:
    """Check the program, this machine and the workspace, and say what the next step lacks.

    What is missing comes with the command that mends it. Nothing is written. Exits with 1 if something is broken that
    every command needs, or if the device does not compute.

    **Examples**

    - `endauda doctor`
    - `endauda doctor --no-speed --workspace /data/uda --source synthia`
    - `endauda doctor --device cuda:1 --json`
    """
    from endauda_cli.doctor import Asked, check_up

    data = (None if path is None else str(path) for path in (options.source_data, options.target_data))
    target = options.target if "target" in options.given else None
    named = dict(
        zip(("source", "target", "source-data", "target-data"), (options.source, target, *data), strict=True)
    )
    told, wrong = _settings(options.context, options.workspace)
    asked = Asked(options.workspace, named, told, wrong)
    with options.terminal("doctor") as terminal:
        result = check_up(asked, options.device, options.speed, terminal.report)
        terminal.show(result)
    if not result.usable:
        raise typer.Exit(1)


def _settings(ctx: typer.Context, workspace: Path | None) -> tuple[dict[str, dict[str, str]], str | None]:
    """What each command takes from the environment and endauda.toml, by option; and the first thing that is wrong
    with these."""
    group: Any = ctx.find_root().command
    assert isinstance(group, Group)
    told: dict[str, dict[str, str]] = {}
    wrong = None
    for name, command in group.loaded():
        options = command.options()
        try:
            found = resolve(name, options, list(group.entries), find_workspace(workspace), os.environ)
        except (EndaudaError, OSError) as error:
            wrong = wrong or str(error)
        else:
            told[name] = {o.key: str(found[o.parameter].value) for o in options if o.parameter in found}
    return told, wrong


command = make_command(Doctor, run)
