"""``endauda inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from endauda_cli.commands.options import Located
from endauda_cli.commands.session import open_session, refuse_unknown_teachers
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ArchiveError
from endauda_cli.options import option


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Inspect(Located):
    """Options of ``inspect``."""

    archive: str = option(..., help="A teacher's name, or the folder of an archive.", complete="archives")
    image: str | None = option(
        None, "--image", help="Draw this image's label and certainty maps as PNG.", complete="images"
    )
    out: Path | None = option(None, "--out", help="Folder for pictures. [default: the current one]")
    export: Path | None = option(
        None, "--export", metavar="DIR",
        help="Write all images back as DIR/IMAGE.png and DIR/IMAGE.npy, as export-teacher --import takes them.",
    )  # fmt: skip
    verify: bool = option(False, "--verify", help="Read everything and compare checksums.")


def run(options: Inspect) -> None:
    """Show what a certainty archive holds.

    **Examples**

    - `endauda inspect dacs --verify`
    - `endauda inspect dacs --image aachen_000000_000019_leftImg8bit`
    - `endauda inspect dacs --export outputs/dacs`
    """
    session = open_session("inspect", options)
    with session.terminal.loading("the archive's codecs"):
        from endauda_cli.inspecting import inspect_archive

    named = session.workspace.archive(session.task.source.name, options.archive)
    path = named if named.is_dir() else session.path(Path(options.archive))
    if not path.is_dir() and options.archive == path.name:  # a word, not a path
        refuse_unknown_teachers(session, [options.archive])
    out, report = options.out or Path.cwd(), session.terminal.report
    with session.terminal as terminal:
        result = inspect_archive(path, options.image, out, options.verify, report, options.export)
        terminal.show(result)
    if result.intact is False:
        raise ArchiveError(f"{path.name}: {result.verified}")


command = make_command(Inspect, run)
