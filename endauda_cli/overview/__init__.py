"""Engine: the workspace on one page: teachers, label sets, runs and scores, and how they hang together.

Nothing is computed again and no map is opened: ``gathering`` reads the records that other commands left, whoever wrote
them last, and ``page`` shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.overview.gathering import gather
from endauda_cli.overview.page import write_page

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.domains import Domain
    from endauda_cli.overview_results import WorkspaceReport
    from endauda_cli.progress import Reporter
    from endauda_cli.workspace import Workspace


def report_workspace(workspace: Workspace, target: Domain, out: Path, report: Reporter) -> WorkspaceReport:
    """Gather what a workspace holds of a target, and write the page.

    Args:
        workspace: may be empty.
        target: whose label sets and colours.
        out: the page.
        report: told of progress.

    Raises:
        WorkspaceError: if the page cannot be written.
    """
    found = gather(workspace, target, out, report)
    write_page(found, target)
    return found
