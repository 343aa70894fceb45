"""``endauda deploy``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import InputSize, Located, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ConfigError
from endauda_cli.options import option
from endauda_cli.types import Accuracy, Format
from endauda_cli.workspace import RUN_FILE

if TYPE_CHECKING:
    from endauda_cli.commands.session import Session

_FILE, _CHECKED = "The file", "How it is checked"
MOST_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Deploy(InputSize, TargetData, Located):
    """Options of ``deploy``."""

    run: Path | None = option(
        None,
        complete="runs",
        help="A run's name, or a checkpoint. [default: best.pt, else last.pt, of the newest run]",
    )
    format: Format = option(
        Format.ONNX, "--format", panel=_FILE, complete="formats",
        help="What is written; a description of classes, pre- and postprocessing lies beside it.",
    )  # fmt: skip
    precision: Accuracy = option(
        Accuracy.FLOAT32, "--precision", panel=_FILE, complete="accuracies",
        help="What it computes in; int8 of onnx alone.",
    )  # fmt: skip
    dynamic: bool | None = option(
        None, "--dynamic/--fixed", panel=_FILE,
        help="Inputs of any height and width, or of one size. [default: one, if the network has one]",
    )  # fmt: skip
    out: Path | None = option(
        None, "--out", panel=_FILE, help="The file. [default: WORKSPACE/deployed/SOURCE/RUN.ENDING]"
    )
    calibrate: int = option(
        32, "--calibrate", panel=_FILE, metavar="N",
        help="Target images that int8's ranges are measured on; 0 finds them for each image as it runs.",
    )  # fmt: skip
    images: int = option(
        8, "--images", panel=_CHECKED, metavar="N",
        help="Target images on which its labels are compared with the checkpoint's.",
    )  # fmt: skip
    benchmark: bool = option(
        False, "--benchmark", panel=_CHECKED, help="Also time it and the checkpoint on this machine's CPU."
    )


def run(options: Deploy) -> None:
    """Write a student as ONNX, .pt2, TorchScript or safetensors, checked against its checkpoint.

    The file and the checkpoint are run on real images of the target: in float32 they must label 99.9 % of the pixels
    alike, else nothing is written; in other precisions the share is told. The file can be taken as a teacher again.

    **Examples**

    - `endauda deploy`
    - `endauda deploy second --format onnx --precision int8 --benchmark`
    - `endauda deploy runs/gta5/second/last.pt --format pt2 --dynamic --out student.pt2`
    """
    if options.precision == Accuracy.INT8 and options.format != Format.ONNX:
        raise ConfigError(
            f"--precision int8 is written as onnx alone, not as {options.format}; leave one of them out"
        )
    for flag, value, least in (("--images", options.images, 1), ("--calibrate", options.calibrate, 0)):
        if not least <= value <= MOST_IMAGES:
            raise ConfigError(f"{flag} {value}: must be from {least} to {MOST_IMAGES:,}")
    session = open_session("deploy", options)
    checkpoint = session.checkpoint(options.run)
    with session.terminal.loading("torch"):
        from endauda_cli.deploying import Deployment, deploy
        from endauda_cli.deploying.formats import FORMATS

    ending = FORMATS[options.format].ending
    out = options.out or _place(session, checkpoint, options.precision, ending)
    if out.suffix != ending:
        raise ConfigError(f"--out {out}: files of --format {options.format} end in {ending}")
    images = [sample.image for sample in session.any_target_samples()]
    with session.terminal as terminal:
        wanted = Deployment(
            checkpoint,
            tuple(session.task.classes),
            out,
            options.format,
            options.precision,
            options.dynamic,
            options.size,
            _spread(images, options.images),
            _spread(images, options.calibrate) if options.precision == Accuracy.INT8 else (),
            options.benchmark,
        )
        terminal.show(deploy(wanted, terminal.report))


def _place(session: Session, checkpoint: Path, precision: Accuracy, ending: str) -> Path:
    of_run = (checkpoint.parent / RUN_FILE).exists() and checkpoint.is_file()
    name = checkpoint.resolve().parent.name if of_run else checkpoint.stem
    kind = "" if precision == Accuracy.FLOAT32 else f"-{precision}"
    return session.workspace.root / "deployed" / session.task.source.name / f"{name}{kind}{ending}"


def _spread(images: list[Path], count: int) -> list[Path]:
    """So many of them, evenly over all."""
    count = min(count, len(images))
    return [images[i * len(images) // count] for i in range(count)]


command = make_command(Deploy, run)
