"""``endauda export-teacher``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import (
    DryRun,
    Located,
    OnDevice,
    Passes,
    SourceData,
    TargetData,
    arch_option,
    backbone_option,
)
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import ArchiveOptions, ExportConfig, InferenceConfig
from endauda_cli.errors import ConfigError
from endauda_cli.options import PASSES, chosen, option, parse_temperature
from endauda_cli.types import Arch, Backbone, ClassMapName, FittedOn, Split, TeacherName

if TYPE_CHECKING:
    import torch

    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample
    from endauda_cli.plan_results import Plan
    from endauda_cli.teachers import Teacher

_TEACHER = "The teacher"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class _Origin:
    """What the teacher is."""

    name: str = option(..., help="What to call the teacher.", complete="archives")
    weights: Path | None = option(
        None, "--weights", panel=_TEACHER, complete="weights",
        help="Checkpoint to run, a run's name, or a folder of transformers or segmentation-models-pytorch.",
    )  # fmt: skip
    program: Path | None = option(
        None, "--program", panel=_TEACHER,
        help="Network as torch.export .pt2, TorchScript or ONNX. It is run as it is, and can do what you can: only "
        "from people whose code you would run.",
    )  # fmt: skip
    network: str | None = option(
        None, "--network", panel=_TEACHER, complete="networks",
        help=f"Of the checkpoint: {', '.join(TeacherName)}, or an installed package's. "
        "[default: NAME, if it is one of these; else as the file tells]",
    )  # fmt: skip
    description: Path | None = option(
        None, "--description", panel=_TEACHER,
        help="TOML: preprocessing, class names, output. [default: beside the program]",
    )  # fmt: skip
    classes: str | None = option(
        None, "--classes", panel=_TEACHER, complete="class_maps",
        help=f"What its outputs are, to be joined with the target's classes: {', '.join(ClassMapName)}, or a TOML with "
        "classes, absent and [map]. [default: by name]",
    )  # fmt: skip
    backbone: Backbone | None = backbone_option(_TEACHER)
    arch: Arch | None = arch_option(_TEACHER)
    imported: Path | None = option(
        None, "--import", panel=_TEACHER,
        help="Folder of outputs that exist: IMAGE.png with IMAGE.npy or IMAGE.npz.",
    )  # fmt: skip
    split: list[Split] | None = option(
        None, "--split", panel="The archive", metavar="A B",
        help="Images of the target to export: train, val, test, or several. [default: train]",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ExportTeacher(_Origin, ArchiveOptions, Passes, SourceData, TargetData, OnDevice, DryRun, Located):
    """Options of ``export-teacher``."""

    temperature: str = option(
        "1", "--temperature", panel=PASSES, complete="temperatures",
        help="Divide the logits: a number; or fit it on labelled images: auto (target's val, else the source), "
        "val, source.",
    )  # fmt: skip


def run(options: ExportTeacher) -> None:
    """Store a teacher's certainties: run its network, or import outputs that exist.

    The archive goes to certainty/SOURCE/NAME. A run that was stopped goes on where it was. The names mic,
    hrda, daformer, segformer, dacs, crst, cbst and mrnet stand for the published networks with their own
    preprocessing and test-time procedure.

    **Examples**

    - `endauda export-teacher mic --weights latest.pth`
    - `endauda export-teacher dacs --weights checkpoint-iter250000.pth`
    - `endauda export-teacher mine --weights mine.pth --backbone resnet`
    - `endauda export-teacher former --weights mask2former/ --classes ade20k`
    - `endauda export-teacher former --program former.onnx --tile 1024x1024`
    - `endauda export-teacher dacs --import outputs/dacs --split train val`
    """
    if sum(given is not None for given in (options.weights, options.program, options.imported)) != 1:
        raise ConfigError(
            "say what the teacher is: --weights FILE, --program FILE, or, if its outputs exist, --import FOLDER"
        )
    if options.imported is not None and options.classes is not None:
        raise ConfigError(
            "--classes joins a network's outputs; what --import reads is in the target's classes already"
        )
    session = open_session("export-teacher", options, options.device)
    with session.terminal.loading("torch"):
        from endauda_cli.distributed import process_group
        from endauda_cli.exporting import export_network, import_outputs
        from endauda_cli.rates import Stopwatch
        from endauda_cli.teachers import with_passes

    splits = list(dict.fromkeys(options.split or (Split.TRAIN,)))
    if options.temperature not in tuple(FittedOn):
        parse_temperature(options.temperature)
    inference = chosen(InferenceConfig, options)
    config = chosen(ExportConfig, options, teacher=options.name, inference=inference)
    out = session.workspace.archive(session.task.source.name, options.name)
    with process_group(session.device()) as where, session.terminal as terminal:
        if options.imported is not None:
            folder = session.path(options.imported)
            samples = session.target_samples_if_any(splits[0], "importing all outputs of the folder instead")
            if samples is not None:
                samples += [sample for other in splits[1:] for sample in session.target_samples(other)]
            if options.dry_run:
                terminal.show(_plan(session, config, folder, samples, out, where))
                return
            watch = Stopwatch("exporting", terminal.report)
            result = import_outputs(config, session.task, folder, samples, out, watch.report)
        else:
            teacher = with_passes(_opened(session, options), options.scales, options.flip)
            samples = [sample for one in splits for sample in session.target_samples(one)]
            teacher = _with_temperature(session, teacher, options, out, where)
            if options.dry_run:
                terminal.show(_plan(session, config, teacher, samples, out, where))
                return
            watch = Stopwatch("exporting", terminal.report)
            result = export_network(config, session.task, teacher, samples, out, where, watch.report)
        device = "cpu" if options.imported is not None else where.type
        watch.store(
            session.workspace.root, "export-teacher", options.name, device, result.images - result.skipped
        )
        terminal.show(result)


def _plan(
    session: Session,
    config: ExportConfig,
    made_of: Teacher | Path,
    samples: list[Sample] | None,
    out: Path,
    device: torch.device,
) -> Plan:
    """Of a network, or of a folder of outputs."""
    from endauda_cli.planning.exports import plan_import, plan_network

    root, report = session.workspace.root, session.terminal.report
    if isinstance(made_of, Path):
        return plan_import(config, session.task, made_of, samples, out, root, report)
    assert samples is not None
    return plan_network(config, session.task, made_of, samples, out, root, device.type, report)


def _opened(session: Session, options: ExportTeacher) -> Teacher:
    from endauda_cli.progress import phase
    from endauda_cli.teachers import open_teacher, teacher_names

    if options.weights is None and options.program is not None:
        path = session.path(options.program)
    else:
        path = session.weights(options.weights or Path())
    unsaid = options.network is None and options.arch is None and options.backbone is None
    with phase(session.terminal.report, f"opening {path.name}"):
        return open_teacher(
            path,
            session.task.classes,
            options.name if unsaid and options.name in teacher_names() else options.network,
            program=options.program is not None,
            description=None if options.description is None else session.path(options.description),
            joined_by=None if options.classes is None else _class_map(session, options.classes),
            arch=options.arch,
            backbone=options.backbone,
            size=options.size,
            report=session.terminal.report,
        )


def _class_map(session: Session, given: str) -> str | Path:
    """A map's name, or its file."""
    path = session.path(Path(given))
    return given if given in tuple(ClassMapName) or not path.is_file() else path


def _with_temperature(
    session: Session, teacher: Teacher, options: ExportTeacher, out: Path, device: torch.device
) -> Teacher:
    """The teacher at the temperature asked for: a number, one that its archive has, or a fitted one."""
    from endauda_cli.calibration import fit_temperature
    from endauda_cli.exporting import stored_temperature
    from endauda_cli.progress import Note
    from endauda_cli.teachers import at_temperature

    if options.temperature not in tuple(FittedOn):
        return at_temperature(teacher, parse_temperature(options.temperature))
    if (stored := stored_temperature(out)) is not None:
        return at_temperature(teacher, *stored)
    report = session.terminal.report
    if options.dry_run:
        session.labelled_samples(options.temperature)
        report(
            Note(f"--temperature {options.temperature} would be fitted first, which the estimates leave out")
        )
        return teacher
    samples, domain, split = session.labelled_samples(options.temperature)
    inference = chosen(InferenceConfig, options)
    fit = fit_temperature(teacher, samples, domain, split, inference, device, report)
    report(
        Note(
            f"temperature {fit.temperature:g} from {fit.pixels:,} labelled pixels of {fit.images} images of {fit.on}: "
            f"mean log loss {fit.loss_before:.3f} before, {fit.loss_after:.3f} after"
        )
    )
    return at_temperature(teacher, fit.temperature, fit.facts())


command = make_command(ExportTeacher, run)
