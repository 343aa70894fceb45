"""``endauda train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.config import check_name
from endauda_cli.errors import ConfigError
from endauda_cli.types import Arch, Backbone, Method
from endauda_cli.workspace import check_label_set

if TYPE_CHECKING:
    from endauda_cli.training.loop import Example

learning = o.panel("What is learnt")
network = o.panel("Network")
schedule = o.panel("Schedule")
pictures = o.panel("Images")
weighing = o.panel("Loss")


def command(
    backbone: Annotated[Backbone, network("--backbone", help="Feature extractor.")] = Backbone.DRN,
    arch: Annotated[Arch, network("--arch", help="Network around it.")] = Arch.DEEPLABV3PLUS,
    method: Annotated[
        Method, learning("--method", help="distill learns fused labels, source learns the labelled source.")
    ] = Method.DISTILL,
    labels: Annotated[
        str | None,
        learning(
            "--labels",
            help="Label set, or a folder of label PNGs. [default: the newest label set]",
            autocompletion=values.label_sets,
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        network(
            "--init",
            help="Checkpoint to start from, a source model or a backbone: a file, or a name of download-weights.",
            autocompletion=values.weights,
        ),
    ] = None,
    name: Annotated[
        str | None,
        learning(
            "--name",
            help="Name of the run. [default: from network and labels]",
            autocompletion=values.runs,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, learning("--resume", help="Go on with the run; an error if there is none.")
    ] = False,
    steps: Annotated[int, schedule("--steps", help="Optimiser steps.")] = 100_001,
    batch_size: Annotated[int, schedule("--batch-size", help="Images per step, over all devices.")] = 10,
    lr: Annotated[
        float, schedule("--lr", help="Learning rate of the backbone; the rest gets ten times that.")
    ] = 1e-4,
    size: Annotated[
        str,
        pictures("--size", metavar="WxH", help="Images are resized to this.", autocompletion=values.sizes),
    ] = "1024x512",
    crop: Annotated[
        str, pictures("--crop", metavar="WxH", help="Random crop.", autocompletion=values.sizes)
    ] = "512x256",
    mirror: Annotated[bool, pictures("--mirror", help="Flip half of the crops.")] = False,
    augment: Annotated[
        list[str] | None,
        pictures(
            "--augment",
            metavar="A B",
            help="Photometric changes: colour, light, texture. [default: none]",
            autocompletion=values.augmentations,
            show_default=False,
        ),
    ] = None,
    class_balance: Annotated[
        bool, weighing("--class-balance/--no-class-balance", help="Weigh classes that are rare in the batch.")
    ] = True,
    often_balance: Annotated[
        bool, weighing("--often-balance/--no-often-balance", help="Weigh classes that batches often lack.")
    ] = True,
    hard_percentile: Annotated[
        float,
        weighing("--hard-percentile", help="Learn from pixels with a loss above this percentile; 0 = all."),
    ] = 80,
    seed: Annotated[int, schedule("--seed", help="Of order, crops, dropout and initial weights.")] = 0,
    save_every: Annotated[int, schedule("--save-every", help="Steps between checkpoints.")] = 1000,
    validate_every: Annotated[
        int,
        schedule(
            "--validate-every",
            help="Steps between tests on labelled target images, by which best.pt is "
            "chosen; 0 = never look at them.",
        ),
    ] = 0,
    warm_up: Annotated[int, schedule("--warm-up", help="Steps of linear warm-up.")] = 0,
    cache: Annotated[
        Path | None,
        pictures("--cache", help="Folder for decoded images. [default: WORKSPACE/cache]", show_default=False),
    ] = None,
    amp: o.AmpOption = False,
    source_data: o.SourceDataOption = None,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    workers: o.WorkersOption = 2,
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Train a student on fused labels, or a source model on the labelled source.

    Checkpoints, metrics.jsonl and TensorBoard events go to runs/SOURCE/NAME. The same line again goes on
    where the run was stopped.

    **Examples**

    - `endauda train --backbone drn`
    - `endauda train --labels plf --init gta5/source --validate-every 1000`
    """  # fmt: skip
    from endauda_cli.config import InferenceConfig, TrainConfig

    session = o.open_session(
        "train", workspace, source, target, device, json, quiet, verbose, source_data, target_data
    )
    with session.terminal.loading("torch"):
        from endauda_cli.distributed import process_group
        from endauda_cli.evaluation import evaluate
        from endauda_cli.training.loop import train
        from endauda_cli.transforms import AUGMENTATIONS, Preprocessing

    for change in augment or ():
        if change not in AUGMENTATIONS:
            raise ConfigError(f"--augment {change}: choose among {', '.join(AUGMENTATIONS)}")
    wh, crop_wh = o.parse_size(size, "--size"), o.parse_size(crop, "--crop")
    assert wh is not None and crop_wh is not None
    config = TrainConfig(
        backbone=backbone, arch=arch, method=method, steps=steps, batch_size=batch_size, learning_rate=lr,
        warm_up=warm_up, size=wh, crop=crop_wh, mirror=mirror, augment=tuple(augment or ()),
        class_balance=class_balance, often_balance=often_balance, hard_percentile=hard_percentile,
        balance_area=max(1, crop_wh[0] * crop_wh[1] // 32), seed=seed, amp=amp, save_every=save_every,
        validate_every=validate_every, workers=workers,
    )  # fmt: skip
    examples, label_name = _examples(session, method, labels)
    task = session.task
    if name is not None:
        check_name(name, "--name")
    out = session.workspace.run(task.source.name, name or f"{arch}-{backbone}-{label_name}")
    validate = None
    with process_group(session.device()) as where, session.terminal as terminal:
        if validate_every:
            val = session.target_samples("val", need_labels=True)
            inference = InferenceConfig(amp=amp, workers=workers)
            validate = lambda model: evaluate(  # noqa: E731
                model, Preprocessing(size=wh), val, task.target, inference, where, terminal.report, str(out)
            )
        domain = task.target if method == Method.DISTILL else task.source
        result = train(
            config, task, domain, examples, out, cache or session.workspace.root / "cache",
            session.weights(init) if init is not None else None, resume, where, validate, terminal.report,
        )  # fmt: skip
        terminal.show(result)


def _examples(session: o.Session, method: Method, labels: str | None) -> tuple[list[Example], str]:
    """Images with their label files, and a word for the run's name."""
    from endauda_cli.datasets import find_samples
    from endauda_cli.training.loop import Example

    task = session.task
    if method == Method.SOURCE:
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
