"""``endauda merge``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.commands.options import Located, OnDevice, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import Workers, check_name
from endauda_cli.errors import ConfigError
from endauda_cli.options import option
from endauda_cli.types import MergeBy, Split
from endauda_cli.workspace import RECORD_FILE, check_label_set, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample
    from endauda_cli.segmenter import Segmenter

_MERGED, _CHOSEN = "The merge", "How runs are chosen"
MOST_IMAGES = 100_000


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Merge(Workers, TargetData, OnDevice, Located):
    """Options of ``merge``."""

    runs: list[Path] = option(..., help="Names of runs, or checkpoints; two or more.", complete="runs")
    into: str = option(..., "--into", panel=_MERGED, help="Name of the run that is made.", complete="runs")
    by: MergeBy = option(
        MergeBy.UNIFORM, "--by", panel=_CHOSEN, complete="merging",
        help="All of them; or, from the best on, those that do not lower the agreement with fused labels (no true "
        "label is looked at), or the mIoU on a few labelled images.",
    )  # fmt: skip
    labels: str | None = option(
        None, "--labels", panel=_CHOSEN, complete="label_sets",
        help="Label set to agree with, best of images that no run learnt from. [default: the newest of train images]",
    )  # fmt: skip
    images: int = option(
        32, "--images", panel=_CHOSEN, metavar="N",
        help="Images that are scored: of the label set, those that --hold-out holds out; or labelled val images.",
    )  # fmt: skip
    statistics: int = option(
        0, "--statistics", panel=_MERGED, metavar="N",
        help="Target images that batch statistics are measured on anew; 0 averages these too.",
    )  # fmt: skip


def run(options: Merge) -> None:
    """Average the weights of several runs of one network into a further checkpoint.

    The runs should have begun from the same weights (one --init) and differ in seed, labels or recipe. Writes best.pt
    of a new run, which test, export-teacher, deploy and train --init take.

    **Examples**

    - `endauda merge first second third --into soup`
    - `endauda merge first second third --into soup --by agreement --labels consensus-val`
    - `endauda merge first second --into soup --by miou --images 5`
    """
    check_name(options.into, "--into")
    for flag, value, least in (("--images", options.images, 1), ("--statistics", options.statistics, 0)):
        if not least <= value <= MOST_IMAGES:
            raise ConfigError(f"{flag} {value}: must be from {least} to {MOST_IMAGES:,}")
    if options.statistics == 1:
        raise ConfigError("--statistics 1: one image has no variance to speak of; give more, or 0")
    if options.labels is not None and options.by != MergeBy.AGREEMENT:
        raise ConfigError(
            f"--labels {options.labels}: nothing agrees with them; add --by agreement, or leave it out"
        )
    session = open_session("merge", options, options.device)
    checkpoints = [session.checkpoint(run) for run in options.runs]
    whole = [path.resolve() for path in checkpoints]
    twice = next((path for path in whole if whole.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice}: named twice, which would count it twice; name each run once")
    if len(checkpoints) < 2:
        raise ConfigError(f"{options.runs[0]}: a single run has no mean; name two or more")
    with session.terminal.loading("torch"):
        from endauda_cli.config import InferenceConfig
        from endauda_cli.merging import Merging, merge

    train = [sample.image for sample in _spread(session.any_target_samples())]
    samples, read = _scored(session, options)
    with session.terminal as terminal:
        device, inference = session.device(), InferenceConfig(workers=options.workers)
        wanted = Merging(
            checkpoints,
            tuple(session.task.classes),
            session.workspace.run(session.task.source.name, options.into),
            options.by,
            train[: options.statistics] if len(train) > 1 else (),
            train,
            _score(session, samples, read, inference, device) if samples else None,
            tuple(sample.id for sample in samples),
        )
        terminal.show(merge(wanted, inference, device, terminal.report))


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    """Over towns and cameras: in the order in which ``training.holding_out`` draws."""
    return sorted(samples, key=lambda sample: hashlib.sha256(sample.id.encode()).digest())


def _scored(session: Session, options: Merge) -> tuple[list[Sample], Any]:
    """Images that decide, with the labels that they are compared with, and how these are read."""
    if options.by == MergeBy.UNIFORM:
        return [], None
    if options.by == MergeBy.MIOU:
        samples = session.target_samples(Split.VAL, need_labels=True)
        return _spread(samples)[: options.images], None
    from endauda_cli.datasets import Sample
    from endauda_cli.training.methods.distill import read_fused

    task, workspace = session.task, session.workspace
    if options.labels is None:
        folder = workspace.newest_labels(task.target, task.source.name)
    else:
        named = workspace.labels(task.target, options.labels)
        folder = named if named.is_dir() else session.path(Path(options.labels))
    check_label_set(folder, task.source.name, task.classes)
    split = (read_json(folder / RECORD_FILE) or {}).get("split", Split.TRAIN)
    found = [
        Sample(sample.id, sample.image, label)
        for sample in session.target_samples(str(split))
        if (label := folder / f"{sample.id}.png").is_file()
    ]
    if not found:
        raise ConfigError(f"--labels {folder}: no label PNG of an image of {task.target.name} {split} there")
    return _spread(found)[: options.images], read_fused


def _score(
    session: Session, samples: Sequence[Sample], read: Any, inference: Any, device: torch.device
) -> Callable[[Segmenter], float]:
    from endauda_cli.evaluation import Scoring, evaluate

    scoring = Scoring(session.task.target, "merge", read=read)

    def score(segmenter: Segmenter) -> float:
        return evaluate(segmenter, samples, scoring, inference, device, session.terminal.report).miou or 0.0

    return score


command = make_command(Merge, run)
