"""``endauda train``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import Located, OnDevice, SourceData, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import InferenceConfig, TrainConfig, check_name
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option
from endauda_cli.types import Method
from endauda_cli.workspace import check_label_set

if TYPE_CHECKING:
    from endauda_cli.commands.session import Session
    from endauda_cli.training.loop import Example

_LEARNT, _NETWORK, _IMAGES = "What is learnt", "Network", "Images"


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig, SourceData, TargetData, OnDevice, Located):
    """Options of ``train``."""

    labels: str | None = option(
        None, "--labels", panel=_LEARNT, complete="label_sets",
        help="Label set, or a folder of label PNGs. [default: the newest label set]",
    )  # fmt: skip
    init: Path | None = option(
        None, "--init", panel=_NETWORK, complete="weights",
        help="Checkpoint to start from, a source model or a backbone: a file, or a name of download-weights.",
    )  # fmt: skip
    name: str | None = option(
        None, "--name", panel=_LEARNT, complete="runs",
        help="Name of the run. [default: from network and labels]",
    )  # fmt: skip
    resume: bool = option(
        False, "--resume", panel=_LEARNT, help="Go on with the run; an error if there is none."
    )
    cache: Path | None = option(
        None, "--cache", panel=_IMAGES, help="Folder for decoded images. [default: WORKSPACE/cache]"
    )


def run(options: Train) -> None:
    """Train a student on fused labels, or a source model on the labelled source.

    Checkpoints, metrics.jsonl and TensorBoard events go to runs/SOURCE/NAME. The same line again goes on
    where the run was stopped.

    **Examples**

    - `endauda train --backbone drn`
    - `endauda train --labels plf --init gta5/source --validate-every 1000`
    """
    session = open_session("train", options, options.device)
    with session.terminal.loading("torch"):
        from endauda_cli.distributed import process_group
        from endauda_cli.evaluation import evaluate
        from endauda_cli.training.loop import train
        from endauda_cli.transforms import AUGMENTATIONS, Preprocessing

    for change in options.augment:
        if change not in AUGMENTATIONS:
            raise ConfigError(f"--augment {change}: choose among {', '.join(AUGMENTATIONS)}")
    area = options.crop[0] * options.crop[1]
    config = chosen(TrainConfig, options, balance_area=max(1, area // 32))
    examples, label_name = _examples(session, options)
    task = session.task
    if options.name is not None:
        check_name(options.name, "--name")
    name = options.name or f"{options.arch}-{options.backbone}-{label_name}"
    out = session.workspace.run(task.source.name, name)
    validate = None
    with process_group(session.device()) as where, session.terminal as terminal:
        if options.validate_every:
            validate = partial(
                evaluate, preprocessing=Preprocessing(size=options.size),
                samples=session.target_samples("val", need_labels=True), domain=task.target,
                config=InferenceConfig(amp=options.amp, workers=options.workers), device=where,
                report=terminal.report, scored=str(out),
            )  # fmt: skip
        result = train(
            config, task, task.target if options.method == Method.DISTILL else task.source, examples, out,
            options.cache or session.workspace.root / "cache",
            session.weights(options.init) if options.init is not None else None, options.resume, where, validate,
            terminal.report,
        )  # fmt: skip
        terminal.show(result)


def _examples(session: Session, options: Train) -> tuple[list[Example], str]:
    """Images with their label files, and a word for the run's name."""
    from endauda_cli.datasets import find_samples
    from endauda_cli.training.loop import Example

    task, labels = session.task, options.labels
    if options.method == Method.SOURCE:
        samples = find_samples(task.source, session.source_roots, "train", need_labels=True)
        return [Example(s.id, s.image, s.label) for s in samples if s.label is not None], "source"
    if labels is None:
        folder = session.workspace.newest_labels(task.target, task.source.name)
    else:
        named = session.workspace.labels(task.target, labels)
        folder = named if named.is_dir() else session.path(Path(labels))
    check_label_set(folder, task.source.name, task.classes)
    if not folder.is_dir():
        known = ", ".join(session.workspace.label_sets(task.target, task.source.name)) or "none yet"
        raise ConfigError(f"--labels {labels}: neither a label set ({known}) nor a folder")
    samples = session.target_samples("train")
    return [Example(s.id, s.image, folder / f"{s.id}.png") for s in samples], folder.name


command = make_command(Train, run)
