"""``endauda export-labels``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import Located, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import Workers
from endauda_cli.errors import ConfigError
from endauda_cli.options import option
from endauda_cli.types import LabelFormatName, Split
from endauda_cli.workspace import RECORD_FILE, check_label_set, read_json

if TYPE_CHECKING:
    from endauda_cli.annotating.handing_out import Maps
    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample

_WHAT, _HOW = "What is exported", "How it is written"
CORRECTED = "corrected"
"""Folder of the workspace in which corrected labels lie, by target."""
NO_WAY_BACK = (LabelFormatName.CITYSCAPES,)
"""Formats that nobody corrects labels in."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExportLabels(Workers, TargetData, Located):
    """Options of ``export-labels``."""

    format: LabelFormatName = option(
        ..., "--format", panel=_HOW, complete="label_formats",
        help="cityscapes: a submission; cvat, label-studio: to correct labels in; coco-panoptic, ultralytics: for "
        "other programs.",
    )  # fmt: skip
    labels: str | None = option(
        None, "--labels", panel=_WHAT, complete="label_sets",
        help="Label set of fuse, by name or folder. [default: the newest of train images]",
    )  # fmt: skip
    predictions: Path | None = option(
        None, "--predictions", panel=_WHAT,
        help="Folder of label PNGs instead, such as test writes: IMAGE.png of train ids, 255 = none.",
    )  # fmt: skip
    archive: str | None = option(
        None, "--archive", panel=_WHAT, complete="archives", help="The labels in a teacher's archive instead."
    )
    split: Split | None = option(
        None,
        "--split",
        panel=_WHAT,
        help="Images of the target. [default: the label set's; val of predictions]",
    )
    most_disputed: int | None = option(
        None, "--most-disputed", panel=_WHAT, metavar="N",
        help="Only the N images on which the label set's teachers disagree most, those first. [default: all]",
    )  # fmt: skip
    out: Path | None = option(
        None, "--out", panel=_HOW, help="Folder. [default: WORKSPACE/exported/LABELS-FORMAT]"
    )
    link_images: bool = option(
        False, "--link-images", panel=_HOW, help="Link the images into it instead of copying them."
    )
    image_url: str = option(
        "/data/local-files/?d=images/", "--image-url", panel=_HOW, metavar="URL",
        help="Of label-studio: what stands before an image's file name in its address.",
    )  # fmt: skip


def run(options: ExportLabels) -> None:
    """Write labels in the format of an annotation tool or another program.

    People correct the images that teachers disagree on first; endauda import-labels takes back what they made of
    them, and train --labelled learns from it. What each format is: docs/formats.md.

    **Examples**

    - `endauda export-labels --format cvat --most-disputed 50`
    - `endauda export-labels --format label-studio --labels plf --out to-correct`
    - `endauda export-labels --format cityscapes --archive student --split test`
    """
    named = [
        f"--{name}" for name in ("labels", "predictions", "archive") if getattr(options, name) is not None
    ]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)}: one of them at a time")
    if options.most_disputed is not None and options.most_disputed < 1:
        raise ConfigError(f"--most-disputed {options.most_disputed}: must be at least 1")
    if options.most_disputed is not None and named and named != ["--labels"]:
        raise ConfigError(
            f"--most-disputed: only a label set knows how far its teachers disagree, not {named[0]}"
        )
    session = open_session("export-labels", options)
    with session.terminal as terminal:
        from endauda_cli.annotating.handing_out import export_labels
        from endauda_cli.annotating.kinds import Handout

        maps, samples, split, name = _maps(session, options)
        out = options.out or session.workspace.root / "exported" / f"{name}-{options.format}"
        handout = Handout(session.task.target, split, maps.said_by, options.image_url)
        result = export_labels(
            maps, samples, handout, options.format, out, terminal.report, options.workers, options.link_images
        )
        if options.format not in NO_WAY_BACK:
            result = replace(result, commands=_way_back(session, options, split, out))
        terminal.show(result)


def _maps(session: Session, options: ExportLabels) -> tuple[Maps, list[Sample], str, str]:
    """The labels, the images that are wanted, their split, and a word for the folder."""
    from endauda_cli.annotating.handing_out import maps_in_archive, maps_in_folder, most_disputed
    from endauda_cli.fusion.journal import disputes

    task, workspace = session.task, session.workspace
    split = str(options.split or Split.VAL)
    if options.archive is not None:
        samples = session.target_samples(split)
        folder = workspace.archive(task.source.name, options.archive)
        folder = folder if folder.is_dir() else session.path(Path(options.archive))
        return maps_in_archive(folder, samples, task.classes), samples, split, folder.name
    if options.predictions is not None:
        folder = session.path(options.predictions)
        samples = session.target_samples(split)
        return maps_in_folder(folder, samples, task.target), samples, split, folder.resolve().name
    if options.labels is None:
        folder = workspace.newest_labels(task.target, task.source.name)
    else:
        own = workspace.labels(task.target, options.labels)
        folder = own if own.is_dir() else session.path(Path(options.labels))
    check_label_set(folder, task.source.name, task.classes)
    fused = str((read_json(folder / RECORD_FILE) or {}).get("split", Split.TRAIN))
    split = str(options.split or (fused if fused in tuple(Split) else Split.TRAIN))
    samples, disputed = session.target_samples(split), disputes(folder)
    if options.most_disputed is not None:
        samples = most_disputed(samples, disputed, options.most_disputed)
    return maps_in_folder(folder, samples, task.target, disputed), samples, split, folder.resolve().name


def _way_back(session: Session, options: ExportLabels, split: str, out: Path) -> tuple[str, ...]:
    back = "FILE" if options.format in (LabelFormatName.CVAT, LabelFormatName.LABEL_STUDIO) else str(out)
    more = [] if split == Split.TRAIN else ["--split", split]
    lines = [
        f"endauda import-labels {back if back == 'FILE' else shlex.quote(back)} --format {options.format}"
    ]
    lines[0] = " ".join([lines[0], *more, *typed_again(options)])
    if split == Split.TRAIN:
        lines.append(learning(session, options, Path(CORRECTED) / session.task.target.name))
    return tuple(lines)


def learning(session: Session, options: Located, corrected: Path) -> str:
    """The line that learns from corrected labels."""
    return " ".join(["endauda train --labelled", shlex.quote(str(corrected)), *typed_again(options)])


def typed_again(options: Located) -> list[str]:
    """What was typed of where things lie: a line for later needs it, too."""
    named = [name for name in ("workspace", "source", "target", "target_data") if name in options.typed]
    pairs = [(f"--{name.replace('_', '-')}", shlex.quote(str(getattr(options, name)))) for name in named]
    return [word for pair in pairs for word in pair]


command = make_command(ExportLabels, run)
