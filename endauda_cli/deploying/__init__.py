"""Engine: a network as a file for other programs, checked against its checkpoint before it gets its name.

``formats`` is a table: a function per format that writes one; ``quantising`` makes int8 of an ONNX file. The
description beside the file is the one that ``export-teacher --program`` reads.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from endauda_cli.config import InferenceConfig
from endauda_cli.deploying.formats import FORMATS, Wish, refuse_lost
from endauda_cli.deploying.quantising import quantise
from endauda_cli.errors import CheckpointError, ConfigError, WorkspaceError
from endauda_cli.files import cannot_write, read_text, sync
from endauda_cli.inference import load, run_network
from endauda_cli.progress import Note, Tick, phase
from endauda_cli.results import DeployResult
from endauda_cli.segmenter import label_map
from endauda_cli.teachers import open_teacher
from endauda_cli.teachers.descriptions import description_text, refuse_unsaid
from endauda_cli.types import Accuracy, Format
from endauda_cli.workspace import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.progress import Reporter
    from endauda_cli.segmenter import Segmenter
    from endauda_cli.teachers import Teacher

REMARK = "Written by endauda deploy; read by endauda export-teacher --program, and see docs/deploy.md."
"""First line of a description: what begins with it may be written anew."""
LEAST_EQUAL = 99.9
"""Percent of the pixels that a float32 file must label as its checkpoint does."""
_BENCHMARK_SECONDS, _MOST_RUNS = 3.0, 100
_AT_ONCE = 4
"""Images whose labels are held at once."""
_OTHER_SIZE = 32
"""By so many pixels is a second size of input larger, at which a dynamic file is tried."""


@dataclass(frozen=True)
class Deployment:
    """What is written, of what, to where.

    Attributes:
        checkpoint: the network's.
        classes: the task's class names.
        out: the file; its ending is the format's.
        format, precision: see ``types``.
        dynamic: inputs of any height and width; ``None`` where images keep their own size.
        size: (width, height) of the input instead of the checkpoint's.
        images: of the target, on which the file is compared with the checkpoint.
        calibration: of the target, on which int8's ranges are measured; none finds them as it runs.
        benchmark: also time both.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    out: Path
    format: Format
    precision: Accuracy
    dynamic: bool | None
    size: tuple[int, int] | None
    images: Sequence[Path]
    calibration: Sequence[Path]
    benchmark: bool = False


def deploy(wanted: Deployment, report: Reporter) -> DeployResult:
    """Write the file and its description, both or neither.

    Raises:
        EndaudaError: if the network cannot be written so, a package is missing, something foreign lies there, or a
            float32 file labels more than a thousandth of the pixels in another way than the checkpoint.
    """
    refuse_foreign(wanted.out)
    with phase(report, f"opening {wanted.checkpoint.name}"):
        teacher = open_teacher(wanted.checkpoint, wanted.classes, size=wanted.size, report=report)
    segmenter = teacher.segmenter
    dynamic = segmenter.preprocessing.size is None if wanted.dynamic is None else wanted.dynamic
    if not dynamic and segmenter.preprocessing.size is None:
        raise ConfigError(
            f"{wanted.checkpoint}: images keep their own size before this network, so a file for one would not do; "
            "leave out --fixed, or give a size with --size WIDTHxHEIGHT"
        )
    make_folder(wanted.out.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{wanted.out.name}.", dir=wanted.out.parent) as name:
            made = Path(name) / wanted.out.name
            text = made.with_suffix(".toml")
            text.write_text(description_text(segmenter, wanted.classes, REMARK), encoding="utf-8")
            refuse_unsaid(text, segmenter, wanted.checkpoint)
            _refuse_other_description(wanted.out, text)
            _write(wanted, teacher, dynamic, made, report)
            result = _checked(wanted, teacher, dynamic, made, report)
            _give_names(made, wanted.out)
    except OSError as error:
        raise WorkspaceError(f"{wanted.out}: {cannot_write(error)}") from error
    return result


def refuse_foreign(out: Path) -> None:
    """Refuse to write over what is not an earlier deployment.

    Raises:
        ConfigError: names it.
    """
    text = out.with_suffix(".toml")
    for path in (out, text):
        if path.exists() and not _is_ours(text):
            raise ConfigError(
                f"{path}: is there already and not from 'endauda deploy', so it was left alone; name another file with "
                "--out"
            )


def _refuse_other_description(out: Path, text: Path) -> None:
    """Two files of one name share a description: it must say the same of both."""
    others = [out.with_suffix(one.ending) for one in FORMATS.values()]
    beside = next((path for path in others if path != out and path.exists()), None)
    if beside is not None and read_text(out.with_suffix(".toml")) != read_text(text):
        raise ConfigError(
            f"{out}: {out.with_suffix('.toml').name} describes {beside.name} too, which takes other input; name "
            "another file with --out"
        )


def _is_ours(description: Path) -> bool:
    try:
        return read_text(description).startswith(f"# {REMARK}")
    except (OSError, ValueError):
        return False


def _give_names(made: Path, out: Path) -> None:
    """A file never stands beside the description of another one: rather beside none, if this is killed in between."""
    for path in (made, made.with_suffix(".toml")):
        sync(path)
    out.with_suffix(".toml").unlink(missing_ok=True)
    made.replace(out)
    made.with_suffix(".toml").replace(out.with_suffix(".toml"))


def _write(wanted: Deployment, teacher: Teacher, dynamic: bool, made: Path, report: Reporter) -> None:
    segmenter = teacher.segmenter
    width, height = _input_size(segmenter, wanted.images[0])
    wish = Wish(segmenter.network, made, (height, width), dynamic, wanted.checkpoint, wanted.size)
    if wanted.precision == Accuracy.FLOAT16:
        refuse_lost(wish)
        wish = replace(wish, half=True)
    with phase(report, f"writing {wanted.format}"):
        FORMATS[wanted.format].write(wish)
    if wanted.precision == Accuracy.INT8:
        report(Note(f"quantising; ranges from {len(wanted.calibration)} target images"))
        quantise(made, _inputs(segmenter, wanted.calibration))


def _input_size(segmenter: Segmenter, image: Path) -> tuple[int, int]:
    """(width, height) of the network's input for an image, padding included."""
    height, width = load(image, segmenter).pixels[0].shape[:2]
    multiple = segmenter.preprocessing.multiple_of
    return -(-width // multiple) * multiple, -(-height // multiple) * multiple


def _inputs(segmenter: Segmenter, images: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """(1, 3, h, w) float32 of each image, as the network takes it."""
    for path in images:
        yield _input(segmenter, path).numpy()


def _input(segmenter: Segmenter, path: Path) -> Tensor:
    pixels = load(path, segmenter).pixels[0][None]
    return segmenter.preprocessing.pad(segmenter.preprocessing.normalise(pixels))


# ---------------------------------------------------------------------------- checking


def _checked(
    wanted: Deployment, teacher: Teacher, dynamic: bool, made: Path, report: Reporter
) -> DeployResult:
    """Open the file as anybody would, and compare it with the checkpoint."""
    program = FORMATS[wanted.format].is_program
    with phase(report, f"opening {made.name} again"):
        again = open_teacher(made, wanted.classes, program=program).segmenter
    equal = pixels = 0
    for start in range(0, len(wanted.images), _AT_ONCE):
        some = wanted.images[start : start + _AT_ONCE]
        for expected, found in zip(_labels(teacher.segmenter, some), _labels(again, some), strict=True):
            equal, pixels = equal + int((expected == found).sum()), pixels + expected.size
        report(Tick("comparing", start + len(some), len(wanted.images)))
    share = 100 * equal / pixels
    if wanted.precision == Accuracy.FLOAT32 and share < LEAST_EQUAL:
        raise CheckpointError(
            f"{wanted.checkpoint}: as {wanted.format} it labels {share:.2f} % of the pixels of {len(wanted.images)} "
            f"images as the checkpoint does, but {LEAST_EQUAL} % or more were expected, so nothing was written; try "
            "another --format"
        )
    if dynamic and program:
        _refuse_one_size(wanted, teacher.segmenter, again)
    result = DeployResult(
        file=wanted.out,
        description=wanted.out.with_suffix(".toml"),
        checkpoint=wanted.checkpoint,
        format=wanted.format,
        precision=wanted.precision,
        size=teacher.segmenter.preprocessing.size,
        dynamic=dynamic,
        bytes=made.stat().st_size,
        float32_bytes=sum(4 * value.numel() for value in teacher.segmenter.network.state_dict().values()),
        images=len(wanted.images),
        equal=math.floor(share * 1e4) / 1e4,
        calibrated_on=len(wanted.calibration) if wanted.precision == Accuracy.INT8 else 0,
    )
    if not wanted.benchmark:
        return result
    with phase(report, "timing"):
        x = _input(teacher.segmenter, wanted.images[0])
        speeds = [_speed(one, x) for one in (again, teacher.segmenter)]
    return replace(
        result,
        images_per_second=speeds[0],
        checkpoint_images_per_second=speeds[1],
        threads=torch.get_num_threads(),
    )


def _labels(segmenter: Segmenter, images: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """To the last: torch's inference mode, which the pipeline is in meanwhile, must not be left in another order."""
    cpu, inference = torch.device("cpu"), InferenceConfig(workers=2)
    return [labels for (labels,) in run_network(segmenter, images, label_map, inference, cpu)]


def _refuse_one_size(wanted: Deployment, segmenter: Segmenter, again: Segmenter) -> None:
    """A traced network may have taken the sides of its example for constants: try it at others."""
    width, height = _input_size(segmenter, wanted.images[0])
    larger = (width + _OTHER_SIZE, height + _OTHER_SIZE)
    resized = [
        replace(one, preprocessing=replace(one.preprocessing, size=larger, longer_side=None))
        for one in (segmenter, again)
    ]
    first = wanted.images[:1]
    try:
        expected, found = (_labels(one, first)[0] for one in resized)
        share = 100 * float((expected == found).mean())
    except CheckpointError:
        share = 0.0
    if wanted.precision == Accuracy.FLOAT32 and share < LEAST_EQUAL:
        raise CheckpointError(
            f"{wanted.checkpoint}: as {wanted.format} it is right at {width}x{height} alone, so not --dynamic; "
            "give --fixed, or another --format"
        )


@torch.inference_mode()
def _speed(segmenter: Segmenter, x: Tensor) -> float:
    """Images per second of a network that is given (1, 3, h, w) again and again."""
    network = segmenter.network
    network(x)
    started, runs = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < _BENCHMARK_SECONDS and runs < _MOST_RUNS:
        network(x)
        runs += 1
    return runs / (taken if taken >= _BENCHMARK_SECONDS else time.perf_counter() - started)
