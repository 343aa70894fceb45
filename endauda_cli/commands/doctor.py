"""``endauda doctor``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from endauda_cli.commands import options as o
from endauda_cli.errors import EndaudaError
from endauda_cli.terminal.parsing import Group
from endauda_cli.terminal.settings import resolve
from endauda_cli.workspace import find_workspace


def command(
    ctx: typer.Context,
    speed: Annotated[
        bool, o.option("--speed/--no-speed", help="Measure the codecs, which takes seconds.")
    ] = True,
    source_data: o.SourceDataOption = None,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Check the program, this machine and the workspace, and say what the next step lacks.

    What is missing comes with the command that mends it. Nothing is written. Exits with 1 if something is broken that
    every command needs, or if the device does not compute.

    **Examples**

    - `endauda doctor`
    - `endauda doctor --no-speed --workspace /data/uda --source synthia`
    - `endauda doctor --device cuda:1 --json`
    """
    from endauda_cli.doctor import Asked, check_up
    from endauda_cli.terminal.console import Terminal

    origin = ctx.get_parameter_source("target")
    options = {
        "source": source,
        "target": None if origin is not None and origin.name == "DEFAULT" else target,
        "source-data": None if source_data is None else str(source_data),
        "target-data": None if target_data is None else str(target_data),
    }
    told, wrong = _settings(ctx, workspace)
    asked = Asked(workspace, options, told, wrong)
    with Terminal("doctor", json, quiet, verbose) as terminal:
        result = check_up(asked, device, speed, terminal.report)
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
