"""``endauda train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import Located, OnDevice, SourceData, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import InferenceConfig, StudentOptions, TrainConfig, check_name
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option
from endauda_cli.types import Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from endauda_cli.commands.session import Session
    from endauda_cli.results import EvalResult

_LEARNT, _NETWORK, _IMAGES = "What is learnt", "Network", "Images"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class _Run(StudentOptions):
    """What it is learnt from, and as which run."""

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


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Train(_Run, TrainConfig, SourceData, TargetData, OnDevice, Located):
    """Options of ``train``."""

    drop_mismatched: bool = option(
        False, "--drop-mismatched", panel=_IMAGES,
        help="Leave out images whose labels have another size, and count them: GTA5 has a few. [default: refuse]",
    )  # fmt: skip
    cache: Path | None = option(
        None, "--cache", panel=_IMAGES, help="Folder for decoded images. [default: WORKSPACE/cache]"
    )

    def __post_init__(self) -> None:
        """Checked when the recipe is made of it, with the method's own defaults."""


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
        from endauda_cli.training.loop import train
        from endauda_cli.training.methods import METHODS, Material
        from endauda_cli.training.pairs import matched
        from endauda_cli.training.run import Run
        from endauda_cli.transforms import AUGMENTATIONS

    for change in options.augment:
        if change not in AUGMENTATIONS:
            raise ConfigError(f"--augment {change}: choose among {', '.join(AUGMENTATIONS)}")
    method, task, workspace = METHODS[options.method], session.task, session.workspace
    area = options.crop[0] * options.crop[1]
    defaults = {"balance_area": max(1, area // 32), **method.defaults}
    own = {name: value for name, value in defaults.items() if name not in options.given}
    config = chosen(TrainConfig, options, **own)
    material = Material(task, workspace, session.source_roots, session.target_roots, options.labels)
    streams, word = method.streams(material)
    if options.name is not None:
        check_name(options.name, "--name")
    out = workspace.run(task.source.name, options.name or f"{options.arch}-{options.backbone}-{word}")
    with process_group(session.device()) as where, session.terminal as terminal:
        streams = matched(streams, options.drop_mismatched, options.workers, terminal.report)
        init = session.weights(options.init) if options.init is not None else None
        cache = options.cache or workspace.root / "cache"
        validate, truth = _validation(session, options, out, where)
        run = Run(task, streams, out, cache, where, init, options.resume, validate, truth)
        terminal.show(train(config, run, terminal.report))


def _validation(
    session: Session, options: Train, out: Path, device: torch.device
) -> tuple[Callable[[nn.Module], EvalResult] | None, str]:
    """Scores a network on labelled images of the target, if that is wanted; and a digest of what it scores by."""
    from endauda_cli.evaluation import PROCEDURE, Scoring, evaluate
    from endauda_cli.labels import shows_class
    from endauda_cli.progress import Note
    from endauda_cli.segmenter import Segmenter
    from endauda_cli.training.contents import digest_of_truth
    from endauda_cli.training.precision import chosen_precision
    from endauda_cli.transforms import Preprocessing

    if not options.validate_every:
        return None, ""
    target, report = session.task.target, session.terminal.report
    samples, scoring = session.target_samples("val", need_labels=True), Scoring(target, str(out))
    half = chosen_precision(options.precision, device) == Precision.BF16
    inference = InferenceConfig(amp=half, workers=options.workers)
    files = [sample.label for sample in samples if sample.label is not None]
    if not shows_class(files, target):
        report(
            Note(
                f"--validate-every {options.validate_every}: the labels of all {len(files)} val images show no class "
                f"of {target.name}, only what is ignored, so nothing can be scored and no best.pt is kept",
                "warning",
            )
        )

    def validate(model: nn.Module) -> EvalResult:
        segmenter = Segmenter(model, Preprocessing(size=options.size), PROCEDURE)
        return evaluate(segmenter, samples, scoring, inference, device, report)

    return validate, digest_of_truth(target, files)


command = make_command(Train, run)
