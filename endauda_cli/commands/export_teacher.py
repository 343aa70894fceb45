"""``endauda export-teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from endauda_cli import completing
from endauda_cli.commands import options as o
from endauda_cli.errors import ConfigError
from endauda_cli.types import Arch, Backbone, Codec, Split


def command(
    name: Annotated[
        str, typer.Argument(help="What to call the teacher.", autocompletion=completing.archives)
    ],
    weights: Annotated[
        Path | None, o.option("--weights", help="Checkpoint to run.", autocompletion=completing.weights)
    ] = None,
    backbone: Annotated[
        Backbone | None,
        o.option("--backbone", help="Of the checkpoint, if it does not say. [default: drn]"),
    ] = None,
    arch: Annotated[
        Arch | None,
        o.option("--arch", help="Of the checkpoint, if it does not say. [default: deeplabv3plus]"),
    ] = None,
    imported: Annotated[
        Path | None,
        o.option("--import", help="Folder of outputs that exist: IMAGE.png with IMAGE.npy or IMAGE.npz."),
    ] = None,
    split: Annotated[Split, o.option("--split", help="Images of the target to export.")] = Split.TRAIN,
    codec: Annotated[
        Codec,
        o.option("--codec", help="Lossless compression of the archive; other programs read all but softmax."),
    ] = Codec.SOFTMAX,
    shard: Annotated[
        str, o.option("--shard", metavar="I/N", help="Do the I-th of N parts, for several machines.")
    ] = "1/1",
    size: o.SizeOption = None,
    batch_size: o.BatchOption = 1,
    amp: o.AmpOption = False,
    workers: o.WorkersOption = 2,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Store a teacher's certainties: run its network over the target, or import outputs that exist.

    The archive goes to certainty/SOURCE/NAME. A run that was stopped goes on where it was.

    - `endauda export-teacher mine --weights mine.pth --backbone resnet`
    - `endauda export-teacher dacs --import outputs/dacs --split train`
    """
    from endauda_cli.checkpoint import load_student
    from endauda_cli.config import ExportConfig, InferenceConfig
    from endauda_cli.distributed import process_group
    from endauda_cli.exporting import export_network, import_outputs

    if (weights is None) == (imported is None):
        raise ConfigError(
            "name either the checkpoint to run with --weights, or existing outputs with --import"
        )
    session = o.open_session(
        "export-teacher", workspace, source, target, device, json, quiet, verbose, target_data=target_data
    )
    config = ExportConfig(name, codec, o.parse_shard(shard), InferenceConfig(batch_size, amp, workers))
    out = session.workspace.archive(session.task.source.name, name)
    with process_group(session.device()) as where, session.terminal as terminal:
        if imported is not None:
            folder = session.path(imported)
            samples = session.target_samples_if_any(split, "importing all outputs of the folder instead")
            result = import_outputs(config, session.task, folder, samples, out, terminal.report)
        else:
            assert weights is not None
            path = session.path(weights)
            network = load_student(path, session.task.classes, arch, backbone, o.parse_size(size, "--size"))
            samples = session.target_samples(split)
            result = export_network(config, session.task, network, path, samples, out, where, terminal.report)
        terminal.show(result)
