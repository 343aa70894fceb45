"""``endauda train``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from endauda_cli.commands.options import Located, OnDevice, SourceData, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import InferenceConfig, TrainConfig, check_name
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option

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
        from endauda_cli.training.methods import METHODS, Material
        from endauda_cli.training.run import Run
        from endauda_cli.transforms import AUGMENTATIONS, Preprocessing

    for change in options.augment:
        if change not in AUGMENTATIONS:
            raise ConfigError(f"--augment {change}: choose among {', '.join(AUGMENTATIONS)}")
    method, task, workspace = METHODS[options.method], session.task, session.workspace
    defaults = {name: value for name, value in method.defaults.items() if name not in options.given}
    area = options.crop[0] * options.crop[1]
    config = chosen(TrainConfig, options, **{"balance_area": max(1, area // 32), **defaults})
    material = Material(task, workspace, session.source_roots, session.target_roots, options.labels)
    streams, word = method.streams(material)
    if options.name is not None:
        check_name(options.name, "--name")
    out = workspace.run(task.source.name, options.name or f"{options.arch}-{options.backbone}-{word}")
    with process_group(session.device()) as where, session.terminal as terminal:
        validate = None
        if options.validate_every:
            validate = partial(
                evaluate, preprocessing=Preprocessing(size=options.size),
                samples=session.target_samples("val", need_labels=True), domain=task.target,
                config=InferenceConfig(amp=options.amp, workers=options.workers), device=where,
                report=terminal.report, scored=str(out),
            )  # fmt: skip
        init = session.weights(options.init) if options.init is not None else None
        cache = options.cache or workspace.root / "cache"
        run = Run(task, streams, out, cache, where, init, options.resume, validate)
        terminal.show(train(config, run, terminal.report))


command = make_command(Train, run)
