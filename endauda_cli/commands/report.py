"""``endauda report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from endauda_cli.commands.options import Located
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.options import option

PAGE = "workspace.html"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Report(Located):
    """Options of ``report``."""

    out: Path | None = option(
        None, "--out", metavar="FILE", help=f"The page. [default: {PAGE} in the workspace]"
    )


def run(options: Report) -> None:
    """Show the whole workspace on one page: teachers, labels, runs and scores.

    Reads what the other commands left, of all sources, and computes nothing again; what is missing is named with the
    line that makes it, and a damaged file with what is wrong. One HTML file that needs no network; its links lead to
    the pages of fuse, train and test.

    **Examples**

    - `endauda report`
    - `endauda report --out pages/overview.html`
    """
    session = open_session("report", options)
    out = session.workspace.root / PAGE if options.out is None else options.out
    with session.terminal.loading("the archive's codecs"):
        from endauda_cli.overview import report_workspace

    with session.terminal as terminal:
        terminal.show(report_workspace(session.workspace, session.task.target, out, terminal.report))


command = make_command(Report, run)
