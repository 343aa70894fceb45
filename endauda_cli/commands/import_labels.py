"""``endauda import-labels``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from endauda_cli.commands.export_labels import CORRECTED, learning
from endauda_cli.commands.options import Located, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import Workers
from endauda_cli.options import option
from endauda_cli.types import LabelFormatName, Split

_LABELS = "The labels"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ImportLabels(Workers, TargetData, Located):
    """Options of ``import-labels``."""

    made: Path = option(..., help="What the annotation tool exported: a file or a folder.")
    format: LabelFormatName = option(
        ..., "--format", panel=_LABELS, complete="label_formats", help="What it is, as in export-labels."
    )
    split: Split = option(Split.TRAIN, "--split", panel=_LABELS, help="Images of the target that it is of.")
    out: Path | None = option(
        None, "--out", panel=_LABELS, help=f"Folder. [default: WORKSPACE/{CORRECTED}/TARGET]"
    )


def run(options: ImportLabels) -> None:
    """Take labels back that people corrected in an annotation tool.

    Writes IMAGE.png (train ids, 255 = none) for every image that has labels; a second import adds to the first, and
    replaces what it has, too. endauda train --labelled learns from the folder.

    **Examples**

    - `endauda import-labels task.zip --format cvat`
    - `endauda import-labels project.json --format label-studio --out corrected/second-round`
    """
    session = open_session("import-labels", options)
    with session.terminal as terminal:
        from endauda_cli.annotating.taking_back import import_labels

        target = session.task.target
        samples = session.target_samples(options.split)
        out = options.out or session.workspace.root / CORRECTED / target.name
        source = session.path(options.made)
        result = import_labels(source, options.format, target, samples, out, terminal.report, options.workers)
        if options.split == Split.TRAIN:
            shown = out.relative_to(session.workspace.root) if options.out is None else out
            result = replace(result, commands=(learning(session, options, shown),))
        terminal.show(result)


command = make_command(ImportLabels, run)
