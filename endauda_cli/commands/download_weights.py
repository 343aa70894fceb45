"""``endauda download-weights``."""

from __future__ import annotations

from typing import Annotated

import typer

from endauda_cli.commands import options as o


def command(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all, if none is named.")] = None,
    workspace: o.WorkspaceOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """List the published weights and pseudo labels: where they are and where to put them.

    Fetching itself is not built yet: open the page that is printed and save the file to the path shown.
    """
    from endauda_cli.console import Terminal
    from endauda_cli.weights import list_weights
    from endauda_cli.workspace import find_workspace

    with Terminal("download-weights", json, quiet, verbose) as terminal:
        terminal.show(list_weights(find_workspace(workspace), names or ()))
