"""Engine: a teacher's certainties into an archive, from a network or from outputs that exist."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, CertaintyWriter, stored_bytes
from endauda_cli.datasets import one_per_image
from endauda_cli.distributed import rank, total_over_ranks, world_size
from endauda_cli.errors import ArchiveError, ConfigError, DataError
from endauda_cli.files import free_bytes, size_text
from endauda_cli.inference import run_network
from endauda_cli.jit import compiling_told
from endauda_cli.labels import image_size, read_train_ids
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.results import ExportResult
from endauda_cli.segmenter import certainty_maps
from endauda_cli.threads import ordered_map
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from endauda_cli.archive import CodedImage
    from endauda_cli.config import ExportConfig, InferenceConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.teachers import Teacher

    UInt8 = NDArray[np.uint8]

# Softmax maps of street scenes pack better than this; what packs worse is caught by the writer in time.
EXPECTED_RATIO = dict.fromkeys(Codec, 5) | {Codec.SOFTMAX: 10, Codec.JPEGLS: 8}
"""How many times smaller than raw bytes an archive is expected to be."""

SUM_TOLERANCE = 0.02
"""How far a pixel's softmax may be from 1: half precision and a few decimals in a file are no other thing."""


def export_network(
    config: ExportConfig,
    task: Task,
    teacher: Teacher,
    samples: Sequence[Sample],
    out: Path,
    device: torch.device,
    report: Reporter,
) -> ExportResult:
    """Run a teacher over the samples and store what it says at each image's own size.

    Raises:
        EndaudaError: if an image cannot be read, the archive holds something else, or the disk is too small.
    """
    attributes = _attributes(config, task) | {"origin": "network"} | teacher.attributes(task.classes)
    mine = _share(config, samples)
    _check_room(config, task, out, {s.id: s.image for s in (samples if world_size() > 1 else mine)}, report)
    with _writer(config, task, out, attributes) as writer:
        todo = [sample for sample in mine if sample.id not in writer.done]
        maps = teacher_maps(teacher, [s.image for s in todo], config.inference, device, report)
        raw = _write_all(
            writer, zip((s.id for s in todo), maps, strict=True), len(todo), config.inference.workers, report
        )
    return _result(config, out, len(mine), len(mine) - len(todo), raw)


def teacher_maps(
    teacher: Teacher, images: Sequence[Path], config: InferenceConfig, device: torch.device, report: Reporter
) -> Iterator[tuple[UInt8, UInt8]]:
    """A teacher over image files: yields label map (H, W) and certainties (C, H, W) of each, uint8, in order.

    Raises:
        EndaudaError: if an image cannot be read, or the teacher cannot be run on it.
    """
    for label, certainty in run_network(teacher.segmenter, images, certainty_maps, config, device, report):
        yield label.astype(np.uint8, copy=False), certainty.astype(np.uint8, copy=False)


def import_outputs(
    config: ExportConfig,
    task: Task,
    folder: Path,
    samples: Sequence[Sample] | None,
    out: Path,
    report: Reporter,
) -> ExportResult:
    """Store outputs that a teacher's own code wrote: ``<id>.png`` (train ids) with ``<id>.npy`` or ``.npz``.

    Certainties are (H, W, C) uint8 in 0..100: as ``.npy`` (the reference's layout) or as the only array of a
    ``.npz`` (the follow-up project's).

    Args:
        config: teacher and codec.
        task: source and target.
        folder: where the files lie, at any depth.
        samples: images whose outputs are wanted; ``None`` takes all outputs there are.
        out: the archive.
        report: told of progress.

    Raises:
        DataError: if an output is absent, there twice or not what it should be, or if the disk is too small.
            What was imported before stays.
    """
    found = _find_outputs(folder, None if samples is None else {sample.id for sample in samples})
    ids = sorted(found) if samples is None else [sample.id for sample in samples]
    for image in ids:
        if image not in found:
            raise DataError(
                f"{folder}: teacher {config.teacher} has no output for image {image}; expected {image}.png with "
                f"{image}.npy or {image}.npz"
            )
    if not ids:
        raise DataError(f"{folder}: no teacher outputs; expected <image>.png with <image>.npy or <image>.npz")
    if samples is not None:
        _warn_of_sizes(samples[0], found, report)
    mine = _share(config, ids)
    _check_room(config, task, out, {i: found[i][0] for i in (ids if world_size() > 1 else mine)}, report)
    num_classes = len(task.classes)

    def load(image: str) -> tuple[str, tuple[UInt8, UInt8]]:
        label_path, certainty_path = found[image]
        label = read_train_ids(label_path, num_classes)
        return image, (label, _read_certainty(certainty_path, num_classes, label.shape))

    with (
        _writer(config, task, out, _attributes(config, task) | {"origin": "import"}) as writer,
        ThreadPoolExecutor(config.inference.workers) as pool,
    ):
        todo = [image for image in mine if image not in writer.done]
        loaded = ordered_map(pool, load, todo, config.inference.workers + 2)
        raw = _write_all(writer, loaded, len(todo), config.inference.workers, report)
    return _result(config, out, len(mine), len(mine) - len(todo), raw)


def _attributes(config: ExportConfig, task: Task) -> dict[str, Any]:
    return {
        "teacher": config.teacher,
        "source": task.source.name,
        "target": task.target.name,
        "unit": "percent, truncated",
        "created_by": f"endauda {__version__}",
    }


def _share(config: ExportConfig, items: Sequence[Any]) -> Sequence[Any]:
    """Every n-th item: by ``--shard``, or by rank under ``torchrun``."""
    number, of = config.shard
    if world_size() > 1:
        if of > 1:
            raise ConfigError("--shard and torchrun both split the images; use one of them")
        return items[rank() :: world_size()]
    return items[number - 1 :: of]


def _check_room(
    config: ExportConfig, task: Task, out: Path, files: Mapping[str, Path], report: Reporter
) -> None:
    """Warn if the archive may not fit on its disk.

    Args:
        config: the codec.
        task: the classes.
        out: the archive, or where it is going to be.
        files: by id, a file of the size of each image that this run is to store (under ``torchrun``, all ranks
            together: they fill one disk).
        report: told of it.

    Raises:
        DataError: if not even half of the expected bytes are free.
    """
    stored = _stored_ids(out)
    left = [path for image, path in files.items() if image not in stored]
    free = free_bytes(out)
    if not left or free is None:
        return
    height, width = image_size(left[0])
    ratio = EXPECTED_RATIO[Codec(config.codec)]
    needed = len(left) * len(task.classes) * height * width / ratio
    if free >= needed:
        return
    facts = (
        f"{out}: {len(left):,} images of {width}x{height} pixels and {len(task.classes)} classes take about "
        f"{size_text(needed)} as {config.codec} (expected to be {ratio} times smaller than raw), but "
        f"{size_text(free)} are free"
    )
    if free < needed / 2:
        raise DataError(f"{facts}; free some space, or name a workspace on another disk with --workspace")
    report(Note(f"{facts}; if the disk fills up, free some space and run the same command again", "warning"))


def stored_temperature(out: Path) -> tuple[float, dict[str, Any]] | None:
    """The fitted temperature of an archive that exists, with how it was found: a rerun goes on with it."""
    try:
        with CertaintyReader(out) as reader:
            temperature, fit = reader.attributes.get("temperature"), reader.attributes.get("temperature_fit")
    except ArchiveError:
        return None
    if not isinstance(temperature, int | float) or not isinstance(fit, dict):
        return None
    return float(temperature), fit


def _stored_ids(out: Path) -> frozenset[str]:
    try:
        with CertaintyReader(out) as reader:
            return frozenset(reader.ids)
    except ArchiveError:  # not there yet; if it is damaged, the writer says so
        return frozenset()


def _writer(config: ExportConfig, task: Task, out: Path, attributes: dict[str, Any]) -> CertaintyWriter:
    number, of = config.shard if world_size() == 1 else (rank() + 1, world_size())
    return CertaintyWriter(
        out, classes=task.classes, codec=config.codec, attributes=attributes, tag=f"{number}-of-{of}"
    )


def _write_all(
    writer: CertaintyWriter,
    outputs: Iterable[tuple[str, tuple[UInt8, ...]]],
    total: int,
    workers: int,
    report: Reporter,
) -> int:
    """Compress in threads, at most two images ahead of them, and store in order; returns the raw bytes."""

    def code(output: tuple[str, tuple[UInt8, ...]]) -> tuple[int, CodedImage]:
        image, (label, certainty) = output
        return label.nbytes + certainty.nbytes, writer.code(image, label, certainty)

    raw = 0
    with compiling_told(report), ThreadPoolExecutor(workers) as pool:
        report(Tick("exporting", 0, total, kept=0))
        for done, (size, coded) in enumerate(ordered_map(pool, code, outputs, workers + 2), 1):
            writer.store(coded)
            raw += size
            report(Tick("exporting", done, total, coded.id, kept=done))
    return raw


def _result(config: ExportConfig, out: Path, images: int, skipped: int, raw: int) -> ExportResult:
    images, skipped, raw = total_over_ranks(images, skipped, raw)
    return ExportResult(out, config.teacher, images, skipped, raw, stored_bytes(out))


def _find_outputs(folder: Path, wanted: set[str] | None) -> dict[str, tuple[Path, Path]]:
    """Image id -> (label PNG, certainty file) for the wanted images' complete pairs below the folder.

    ``None`` wants them all, and then none may be incomplete: nobody would notice that an image is left out.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of teacher outputs")
    files = sorted(path for path in folder.rglob("*") if not path.name.startswith("."))
    pngs = [path for path in files if path.suffix == ".png"]
    arrays = [path for path in files if path.suffix in (".npy", ".npz")]
    certainties = one_per_image(arrays, wanted, "certainty")
    labels = one_per_image(pngs, certainties, "label map")
    if wanted is None:
        _refuse_lone(pngs, labels, certainties)
    return {image: (labels[image], path) for image, path in certainties.items() if image in labels}


def _refuse_lone(pngs: Iterable[Path], labels: dict[str, Path], certainties: dict[str, Path]) -> None:
    for image, path in certainties.items():
        if image not in labels:
            raise DataError(
                f"{path}: no {image}.png with its labels; write that, or move this file elsewhere"
            )
    # Colour previews, and folders of pictures only, are no outputs.
    folders = {path.parent for path in (*labels.values(), *certainties.values())}
    for path in pngs:
        if path.stem not in certainties and not path.stem.endswith("_color") and path.parent in folders:
            raise DataError(
                f"{path}: no {path.stem}.npy or {path.stem}.npz with its certainties; write one, or move this file "
                "elsewhere"
            )


def _read_certainty(path: Path, num_classes: int, size: tuple[int, ...]) -> UInt8:
    """(C, H, W) uint8 percent from a file of (H, W, C): bytes, or the softmax itself."""
    array = _read_array(path)
    expected = f"expected (H, W, {num_classes}) bytes 0 to 100, or a softmax"
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[2] != num_classes:
        hint = "; if they are of other classes, name their data set with --target FILE.toml"
        if array.ndim == 3 and array.shape[0] == num_classes:
            hint = "; the class axis must be last"
        raise DataError(f"{path}: certainties of shape {array.shape}, {expected}{hint}")
    if array.shape[:2] != size:
        raise DataError(
            f"{path}: certainties of {array.shape[1]}x{array.shape[0]} pixels, but the label map beside it has "
            f"{size[1]}x{size[0]}"
        )
    if array.dtype.kind == "f":
        array = _percent(path, array, expected)
    elif array.dtype != np.uint8:
        raise DataError(f"{path}: certainties of type {array.dtype}, {expected}")
    highest = int(array.max(initial=0))
    if highest > 100:
        raise DataError(f"{path}: certainty {highest}, {expected}; are these 0 to 255, or logits?")
    if highest <= 1:
        raise DataError(f"{path}: no certainty above {highest}, {expected}; was 0 to 1 stored as bytes?")
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _percent(path: Path, softmax: NDArray[Any], expected: str) -> UInt8:
    """A softmax, 0 to 1 or 0 to 100, as bytes of percent, truncated as published teachers do it."""
    total = softmax.sum(2, dtype=np.float64)
    for scale in (1, 100):
        if softmax.min(initial=0) >= 0 and np.allclose(total, scale, rtol=SUM_TOLERANCE):
            return np.asarray(softmax * np.float32(100 / scale), np.uint8)
    raise DataError(
        f"{path}: {softmax.dtype} values from {softmax.min(initial=0):g} to {softmax.max(initial=0):g} that do not "
        f"sum to 1 (or 100) over the classes, {expected}; are these logits?"
    )


def _read_array(path: Path) -> NDArray[Any]:
    for _ in range(20):
        # Python 3.11's parser, which reads the header, trips over other threads' parsing (gh-106905).
        with contextlib.suppress(SystemError):
            return _load_array(path)
    return _load_array(path)


def _load_array(path: Path) -> NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1:
                raise DataError(f"{path}: holds arrays {', '.join(loaded.files)}, but one is expected")
            array: NDArray[Any] = loaded[loaded.files[0]]
            return array
    except (DataError, SystemError):
        raise
    except Exception as error:  # a damaged header, shape or zip can end in an error of almost any type
        raise DataError(f"{path}: truncated or not a NumPy file ({error}); write it again") from error


def _warn_of_sizes(sample: Sample, found: dict[str, tuple[Path, Path]], report: Reporter) -> None:
    image, label = image_size(sample.image), image_size(found[sample.id][0])
    if image != label:
        report(
            Note(
                f"{found[sample.id][0]}: {label[1]}x{label[0]} pixels, but the image has {image[1]}x{image[0]}; "
                "'endauda test' scores at the size of the ground truth",
                "warning",
            )
        )
