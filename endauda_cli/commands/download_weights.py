"""``endauda download-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.errors import ConfigError, DownloadError


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which, or patterns such as 'gta5/*'; without any, what there is gets listed.",
            autocompletion=values.published,
        ),
    ] = None,
    show_list: Annotated[
        bool, o.option("--list", help="List them: name, state, licence, place, size, score.")
    ] = False,
    from_file: Annotated[
        Path | None,
        o.option(
            "--from-file", help="Check and install a file that you have fetched yourself (for one name)."
        ),
    ] = None,
    offline: Annotated[bool, o.option("--offline", help="Ask nobody; only check what is there.")] = False,
    mirror: Annotated[
        str | None,
        o.option(
            "--mirror", metavar="URL", help="Web folder with files under their workspace paths; asked first."
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        o.option(
            "--manifest",
            help="List of your own, in the format of docs/weights.md. [default: the published weights]",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, o.option("--timeout", help="Seconds without a byte after which to connect anew.")
    ] = 30,
    attempts: Annotated[
        int, o.option("--attempts", help="Connections that bring nothing new before a link is given up.")
    ] = 5,
    workspace: o.WorkspaceOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Fetch published weights and pseudo labels, and verify them.

    A download that was stopped goes on where it was. Each file is compared with its digest (or with what was first
    seen, in weights/weights.lock.json), and each checkpoint is opened without running code and laid against its
    network before it gets its name. Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    **Examples**

    - `endauda download-weights`
    - `endauda download-weights gta5/source gta5/ours/drn`
    - `endauda download-weights dacs --from-file ~/Downloads/dacs.zip`
    """
    from endauda_cli.terminal.console import Terminal
    from endauda_cli.weights import FetchOptions, Patience, fetch_weights, list_weights, read_manifest
    from endauda_cli.workspace import find_workspace

    if timeout <= 0 or attempts < 1:
        raise ConfigError("--timeout must be above 0 and --attempts at least 1")
    if from_file is not None and not names:
        raise ConfigError("--from-file needs the name of what the file is")
    found = find_workspace(workspace)
    published = read_manifest(manifest)
    with Terminal("download-weights", json, quiet, verbose) as terminal:
        if show_list or not names:
            terminal.show(list_weights(found, published, names or ()))
            return
        options = FetchOptions(
            mirror,
            None if from_file is None else found.path(from_file.expanduser()),
            offline,
            Patience(timeout_s=timeout, attempts=attempts),
        )
        result = fetch_weights(found, published, names, options, terminal.report)
        terminal.show(result)
    failed = result.failures
    if len(failed) + len(result.fetched) > 1 and failed:
        raise DownloadError(
            f"not there: {', '.join(f.name for f in failed)} (reasons above); run again to retry"
        )
    if failed:
        raise DownloadError(failed[0].reason)
