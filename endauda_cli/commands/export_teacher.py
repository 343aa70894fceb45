"""``endauda export-teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.errors import ConfigError
from endauda_cli.types import Arch, Backbone, Codec, Split

if TYPE_CHECKING:
    import torch

    from endauda_cli.config import InferenceConfig
    from endauda_cli.teachers import Teacher

FITTED = ("auto", "val", "source")
"""Words that ``--temperature`` takes beside a number."""

origin = o.panel("The teacher")
archive = o.panel("The archive")


def command(
    name: Annotated[str, typer.Argument(help="What to call the teacher.", autocompletion=values.archives)],
    weights: Annotated[
        Path | None,
        origin(
            "--weights",
            help="Checkpoint to run, or a folder of transformers or segmentation-models-pytorch.",
            autocompletion=values.weights,
        ),
    ] = None,
    program: Annotated[
        Path | None,
        origin("--program", help="Network as torch.export .pt2, TorchScript or ONNX; it is run as it is."),
    ] = None,
    network: Annotated[
        str | None,
        origin(
            "--network",
            help="Of the checkpoint: dacs, crst, mrkld, lrent, cbst, mrnet, cbst-mxnet, or an installed package's. "
            "[default: NAME, if it is one of these; else as the file tells]",
            autocompletion=values.networks,
            show_default=False,
        ),
    ] = None,
    description: Annotated[
        Path | None,
        origin(
            "--description", help="TOML: preprocessing, class names, output. [default: beside the program]"
        ),
    ] = None,
    backbone: Annotated[
        Backbone | None,
        origin("--backbone", help="Of the checkpoint, if it does not say. [default: drn]"),
    ] = None,
    arch: Annotated[
        Arch | None,
        origin("--arch", help="Of the checkpoint, if it does not say. [default: deeplabv3plus]"),
    ] = None,
    imported: Annotated[
        Path | None,
        origin("--import", help="Folder of outputs that exist: IMAGE.png with IMAGE.npy or IMAGE.npz."),
    ] = None,
    split: Annotated[
        list[Split] | None,
        archive(
            "--split",
            metavar="A B",
            help="Images of the target to export: train, val, test, or several. [default: train]",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        Codec,
        archive(
            "--codec",
            help="Lossless compression of the archive; other programs read all but softmax.",
            autocompletion=values.codecs,
        ),
    ] = Codec.SOFTMAX,
    shard: Annotated[
        str, archive("--shard", metavar="I/N", help="Do the I-th of N parts, for several machines.")
    ] = "1/1",
    scales: o.ScalesOption = None,
    flip: o.FlipOption = None,
    tile: o.TileOption = None,
    temperature: Annotated[
        str,
        o.passes(
            "--temperature",
            help="Divide the logits: a number; or fit it on labelled images: auto (target's val, else the source), "
            "val, source.",
            autocompletion=values.temperatures,
        ),
    ] = "1",
    size: o.SizeOption = None,
    batch_size: o.BatchOption = 1,
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
    """Store a teacher's certainties: run its network, or import outputs that exist.

    The archive goes to certainty/SOURCE/NAME. A run that was stopped goes on where it was. The names dacs, crst,
    cbst and mrnet stand for the published networks with their own preprocessing and test-time procedure.

    **Examples**

    - `endauda export-teacher dacs --weights checkpoint-iter250000.pth`
    - `endauda export-teacher mine --weights mine.pth --backbone resnet`
    - `endauda export-teacher segformer --program segformer.onnx --tile 1024x1024`
    - `endauda export-teacher dacs --import outputs/dacs --split train val`
    """
    from endauda_cli.config import ExportConfig, InferenceConfig
    from endauda_cli.progress import phase

    if sum(given is not None for given in (weights, program, imported)) != 1:
        raise ConfigError(
            "say what the teacher is: --weights FILE, --program FILE, or, if its outputs exist, --import FOLDER"
        )
    session = o.open_session(
        "export-teacher",
        workspace,
        source,
        target,
        device,
        json,
        quiet,
        verbose,
        source_data,
        target_data,
    )
    with session.terminal.loading("torch"):
        from endauda_cli.distributed import process_group
        from endauda_cli.exporting import export_network, import_outputs
        from endauda_cli.teachers import open_teacher, teacher_names, with_passes

    splits = list(dict.fromkeys(split or (Split.TRAIN,)))
    passes = o.parse_scales(scales)
    if temperature not in FITTED:
        o.parse_temperature(temperature)
    inference = InferenceConfig(batch_size, amp, workers, o.parse_tile(tile))
    config = ExportConfig(name, codec, o.parse_shard(shard), inference)
    out = session.workspace.archive(session.task.source.name, name)
    with process_group(session.device()) as where, session.terminal as terminal:
        if imported is not None:
            folder = session.path(imported)
            samples = session.target_samples_if_any(splits[0], "importing all outputs of the folder instead")
            if samples is not None:
                samples += [sample for other in splits[1:] for sample in session.target_samples(other)]
            result = import_outputs(config, session.task, folder, samples, out, terminal.report)
            terminal.show(result)
            return
        path = (
            session.path(program)
            if weights is None and program is not None
            else session.weights(weights or Path())
        )
        known = network is None and arch is None and backbone is None and name in teacher_names()
        with phase(terminal.report, f"opening {path.name}"):
            teacher = open_teacher(
                path,
                session.task.classes,
                name if known else network,
                program=program is not None,
                description=None if description is None else session.path(description),
                arch=arch,
                backbone=backbone,
                size=o.parse_size(size, "--size"),
            )
        teacher = with_passes(teacher, passes, flip)
        samples = [sample for one in splits for sample in session.target_samples(one)]
        teacher = _with_temperature(session, teacher, temperature, out, inference, where)
        result = export_network(config, session.task, teacher, samples, out, where, terminal.report)
        terminal.show(result)


def _with_temperature(
    session: o.Session,
    teacher: Teacher,
    asked: str,
    out: Path,
    inference: InferenceConfig,
    device: torch.device,
) -> Teacher:
    """The teacher at the temperature asked for: a number, one that its archive has, or a fitted one."""
    from endauda_cli.calibration import fit_temperature
    from endauda_cli.exporting import stored_temperature
    from endauda_cli.progress import Note
    from endauda_cli.teachers import at_temperature

    if asked not in FITTED:
        return at_temperature(teacher, o.parse_temperature(asked))
    if (stored := stored_temperature(out)) is not None:
        return at_temperature(teacher, *stored)
    samples, domain, split = session.labelled_samples(asked)
    fit = fit_temperature(teacher, samples, domain, split, inference, device, session.terminal.report)
    session.terminal.report(
        Note(
            f"temperature {fit.temperature:g} from {fit.pixels:,} labelled pixels of {fit.images} images of {fit.on}: "
            f"mean log loss {fit.loss_before:.3f} before, {fit.loss_after:.3f} after"
        )
    )
    return at_temperature(teacher, fit.temperature, fit.facts())
