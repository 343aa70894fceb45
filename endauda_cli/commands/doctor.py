"""``endauda doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from endauda_cli.commands import options as o
from endauda_cli.terminal import completing


def command(
    ctx: typer.Context,
    speed: Annotated[
        bool, o.option("--speed/--no-speed", help="Measure the codecs, which takes seconds.")
    ] = True,
    source_data: o.SourceDataOption = None,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: Annotated[
        str | None,
        o.common(
            "--target",
            help="Unlabelled domain: cityscapes, or a .toml file. [default: what endauda.toml gives the commands, "
            "else cityscapes]",
            autocompletion=completing.targets,
            show_default=False,
        ),
    ] = None,
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Check the program, this machine and the workspace; say what is missing for the next step, and the command for it.

    Nothing is written. Exits with 1 if something is broken that every command needs, or if `--device` does not compute.

    - `endauda doctor`
    - `endauda doctor --no-speed --workspace /data/uda --source synthia`
    - `endauda doctor --device cuda:1 --json`
    """
    from endauda_cli.checkup import Asked, check_up
    from endauda_cli.terminal.console import Terminal

    options = {
        "source": source,
        "target": target,
        "source-data": None if source_data is None else str(source_data),
        "target-data": None if target_data is None else str(target_data),
    }
    asked = Asked(workspace, options, None if ctx.obj is None else str(ctx.obj))
    with Terminal("doctor", json, quiet, verbose) as terminal:
        result = check_up(asked, device, speed, terminal.report)
        terminal.show(result)
    if not result.usable:
        raise typer.Exit(1)
