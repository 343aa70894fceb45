"""``endauda inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.errors import ArchiveError


def command(
    archive: Annotated[
        str,
        typer.Argument(help="A teacher's name, or the folder of an archive.", autocompletion=values.archives),
    ],
    image: Annotated[
        str | None,
        o.option(
            "--image",
            help="Draw this image's label and certainty maps as PNG.",
            autocompletion=values.images,
        ),
    ] = None,
    out: Annotated[
        Path | None, o.option("--out", help="Folder for pictures. [default: the current one]")
    ] = None,
    export: Annotated[
        Path | None,
        o.option(
            "--export",
            metavar="DIR",
            help="Write all images back as DIR/IMAGE.png and DIR/IMAGE.npy, as export-teacher --import takes them.",
        ),
    ] = None,
    verify: Annotated[bool, o.option("--verify", help="Read everything and compare checksums.")] = False,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Show what a certainty archive holds.

    **Examples**

    - `endauda inspect dacs --verify`
    - `endauda inspect dacs --image aachen_000000_000019_leftImg8bit`
    - `endauda inspect dacs --export outputs/dacs`
    """
    session = o.open_session("inspect", workspace, source, target, "cpu", json, quiet, verbose)
    with session.terminal.loading("the archive's codecs"):
        from endauda_cli.inspecting import inspect_archive

    named = session.workspace.archive(session.task.source.name, archive)
    path = named if named.is_dir() else session.path(Path(archive))
    if not path.is_dir() and archive == path.name:  # a word, not a path
        o.refuse_unknown_teachers(session, [archive])
    with session.terminal as terminal:
        result = inspect_archive(path, image, out or Path.cwd(), verify, terminal.report, export)
        terminal.show(result)
    if result.intact is False:
        raise ArchiveError(f"{path.name}: {result.verified}")
