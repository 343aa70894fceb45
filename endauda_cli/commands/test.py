"""``endauda test``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.errors import ConfigError
from endauda_cli.types import Arch, Backbone, Split
from endauda_cli.workspace import check_label_set

scored = o.panel("What is scored")


def command(
    weights: Annotated[
        Path | None,
        scored(
            "--weights",
            help="Checkpoint to score: a file, or a name of download-weights. [default: best.pt, else last.pt, "
            "of the newest run]",
            autocompletion=values.weights,
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        Backbone | None,
        scored("--backbone", help="Of the checkpoint, if it does not say. [default: drn]"),
    ] = None,
    arch: Annotated[
        Arch | None,
        scored("--arch", help="Of the checkpoint, if it does not say. [default: deeplabv3plus]"),
    ] = None,
    predictions: Annotated[
        Path | None,
        scored("--predictions", help="Score label PNGs that exist instead: IMAGE.png, 255 = none."),
    ] = None,
    split: Annotated[Split, scored("--split", help="Labelled images of the target.")] = Split.VAL,
    save_images: Annotated[
        bool, scored("--save-images/--no-save-images", help="Write predictions and colour pictures.")
    ] = True,
    scales: o.ScalesOption = None,
    flip: o.FlipOption = None,
    tile: o.TileOption = None,
    size: o.SizeOption = None,
    batch_size: o.BatchOption = 1,
    amp: o.AmpOption = False,
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
    """Score a checkpoint, or label PNGs that exist, on labelled images of the target.

    Prints the IoU per class and the mean over the classes that occur; writes eval.json, predictions and a
    report beside the checkpoint.

    **Examples**

    - `endauda test`
    - `endauda test --predictions outputs/labels --source synthia`
    """  # fmt: skip
    from endauda_cli.config import InferenceConfig
    from endauda_cli.progress import phase

    if predictions is not None and weights is not None:
        raise ConfigError("give either --weights or --predictions")
    session = o.open_session(
        "test", workspace, source, target, device, json, quiet, verbose, target_data=target_data
    )
    with session.terminal.loading("torch"):
        from endauda_cli.checkpoint import load_student
        from endauda_cli.distributed import process_group, rank
        from endauda_cli.evaluation import PROCEDURE, evaluate, score_predictions, write_evaluation

    passes = o.parse_scales(scales)
    samples = session.target_samples(split, need_labels=True)
    domain = session.task.target
    with process_group(session.device()) as where, session.terminal as terminal:
        if predictions is not None:
            folder = session.path(predictions)
            check_label_set(folder, session.task.source.name, session.task.classes)
            result = score_predictions(folder, samples, domain, terminal.report, split, workers)
            terminal.show(result)
            return
        path = (
            session.weights(weights)
            if weights
            else session.workspace.newest_checkpoint(session.task.source.name)
        )
        with phase(terminal.report, f"opening {path.name}"):
            network = load_student(path, session.task.classes, arch, backbone, o.parse_size(size, "--size"))
        elsewhere = network.meta.get("target", domain.name) != domain.name
        out = path.parent / f"test-{path.stem}-{f'{domain.name}-' if elsewhere else ''}{split}"
        config = InferenceConfig(batch_size, amp, workers, o.parse_tile(tile))
        result = evaluate(
            network.model, network.preprocessing, samples, domain, config, where, terminal.report, str(path), split,
            out if save_images else None, PROCEDURE.with_passes(passes, flip),
        )  # fmt: skip
        if rank() == 0:
            with phase(terminal.report, "writing the report"):
                write_evaluation(out, result, samples, domain)
            terminal.show(result)
