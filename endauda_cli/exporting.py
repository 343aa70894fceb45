"""Engine: a teacher's certainties into an archive, from a network or from outputs that exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, CertaintyWriter, stored_bytes
from endauda_cli.compiling import compiling_told
from endauda_cli.datasets import one_per_image
from endauda_cli.distributed import rank, total_over_ranks, world_size
from endauda_cli.errors import ArchiveError, ConfigError, DataError
from endauda_cli.files import free_bytes, size_text
from endauda_cli.gridding import grid_maps, has_grid, said_of
from endauda_cli.inference import run_network, run_network_there
from endauda_cli.labels import image_size, read_train_ids
from endauda_cli.outputs import (
    LEAST_AGREEMENT,
    LEAST_OF_ONE,
    Sources,
    agreement,
    likely_cause,
    read_certainty,
    refuse_contradiction,
)
from endauda_cli.patterns import files_below
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.results import ExportResult
from endauda_cli.segmenter import certainty_maps
from endauda_cli.threads import ordered_map
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from endauda_cli.archive import CodedImage
    from endauda_cli.config import ExportConfig, InferenceConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.segmenter import Segmenter
    from endauda_cli.teachers import Teacher

    UInt8 = NDArray[np.uint8]

# Softmax maps of street scenes pack better than this; what packs worse is caught by the writer in time.
EXPECTED_RATIO = dict.fromkeys(Codec, 5) | {Codec.GRID: 40, Codec.SOFTMAX: 10, Codec.JPEGLS: 8}
"""How many times smaller than raw bytes an archive is expected to be."""

FIRST = 3
"""Outputs whose labels are compared with their certainties before anything is stored."""


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
    attributes = attributes_of(config, task) | {"origin": "network"} | teacher.attributes(task.classes)
    mine = share_of(config, samples)
    codec = Codec(config.codec) if has_grid(teacher.segmenter) else Codec(config.codec).of_planes
    check_room(task, out, {s.id: s.image for s in (samples if world_size() > 1 else mine)}, codec, report)
    with _writer(config, task, out, attributes) as writer:
        todo = [sample for sample in mine if sample.id not in writer.done]
        files: dict[str, Sequence[Path]] = {sample.id: (sample.image,) for sample in mine}
        sources = sources_of(config, out)
        refuse_changed(sources, out, files, writer.done)
        finish = grid_maps if codec == Codec.GRID else certainty_maps
        paths = [sample.image for sample in todo]
        outputs = run_network(teacher.segmenter, paths, finish, config.inference, device, report)

        def code(output: tuple[str, tuple[NDArray[Any], ...]]) -> tuple[int, CodedImage]:
            return _code_network(writer, teacher.segmenter, *output)

        raw = _write_all(
            writer,
            code,
            zip((s.id for s in todo), outputs, strict=True),
            len(todo),
            config.inference.workers,
            report,
            sources,
            files,
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


def teacher_tensors(
    teacher: Teacher, images: Sequence[Path], config: InferenceConfig, device: torch.device, report: Reporter
) -> Iterator[tuple[torch.Tensor, ...]]:
    """As ``teacher_maps``, but of tensors that stay on the device."""
    return run_network_there(teacher.segmenter, images, certainty_maps, config, device, report)


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
    found, ids = outputs_in(folder, config.teacher, samples, report)
    mine, codec = share_of(config, ids), Codec(config.codec).of_planes
    check_room(
        task,
        out,
        {i: found[i][0] for i in (ids if world_size() > 1 else mine)},
        codec,
        report,
    )
    num_classes = len(task.classes)

    def load(image: str) -> tuple[str, tuple[UInt8, UInt8]]:
        label, certainty = _read_outputs(found[image], num_classes)
        agreed, valid = agreement(label, certainty)
        if agreed < LEAST_OF_ONE * valid:
            cause = likely_cause(label, certainty)
            refuse_contradiction(found[image][1], agreed, valid, cause, LEAST_OF_ONE)
        return image, (label, certainty)

    with (
        _writer(config, task, out, attributes_of(config, task) | {"origin": "import"}) as writer,
        ThreadPoolExecutor(config.inference.workers) as pool,
    ):
        todo = [image for image in mine if image not in writer.done]
        sources = sources_of(config, out)
        refuse_changed(sources, out, {image: found[image] for image in mine}, writer.done)
        refuse_contradictions([found[image] for image in todo[:FIRST]], num_classes)
        loaded = ordered_map(pool, load, todo, config.inference.workers + 2)
        raw = _write_all(
            writer,
            lambda output: _code(writer, output[0], *output[1]),
            loaded,
            len(todo),
            config.inference.workers,
            report,
            sources,
            found,
        )
    return _result(config, out, len(mine), len(mine) - len(todo), raw)


def outputs_in(
    folder: Path, teacher: str, samples: Sequence[Sample] | None, report: Reporter
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Label map and certainties of each image by its id, and the ids that are wanted.

    Raises:
        DataError: if an output is absent or there twice.
    """
    found = _find_outputs(folder, None if samples is None else {sample.id for sample in samples})
    ids = sorted(found) if samples is None else [sample.id for sample in samples]
    for image in ids:
        if image not in found:
            raise DataError(
                f"{folder}: teacher {teacher} has no output for image {image}; expected {image}.png with "
                f"{image}.npy or {image}.npz"
            )
    if not ids:
        raise DataError(f"{folder}: no teacher outputs; expected <image>.png with <image>.npy or <image>.npz")
    if samples is not None:
        _warn_of_sizes(samples[0], found, report)
    return found, ids


def _read_outputs(files: tuple[Path, Path], num_classes: int) -> tuple[UInt8, UInt8]:
    label = read_train_ids(files[0], num_classes)
    return label, read_certainty(files[1], num_classes, label.shape)


def refuse_contradictions(pairs: Sequence[tuple[Path, Path]], num_classes: int) -> None:
    """Refuse outputs whose label maps are not what their certainties say, over the first images together."""
    agreed = valid = 0
    causes = []
    for pair in pairs:
        try:
            label, certainty = _read_outputs(pair, num_classes)
        except DataError:  # told in its turn, when those before it are stored
            continue
        counts = agreement(label, certainty)
        agreed, valid = agreed + counts[0], valid + counts[1]
        if counts[0] < LEAST_AGREEMENT * counts[1]:
            causes.append(likely_cause(label, certainty))
    if valid:
        cause = causes[0] if causes and all(cause == causes[0] for cause in causes) else None
        refuse_contradiction(pairs[0][1], agreed, valid, cause, LEAST_AGREEMENT)


def refuse_changed(
    sources: Sources, out: Path, files: Mapping[str, Sequence[Path]], done: Container[str]
) -> None:
    """Refuse to go on with an archive, images of which were made of files that have other content now."""
    changed = sources.changed({image: made_of for image, made_of in files.items() if image in done})
    if changed:
        first = files[changed[0]][0]
        raise ArchiveError(
            f"{out}: {len(changed):,} of its images were made of files that changed since, such as {first}; remove the "
            "archive and run the same command again, or give the teacher another name"
        )


def attributes_of(config: ExportConfig, task: Task) -> dict[str, Any]:
    return {
        "teacher": config.teacher,
        "source": task.source.name,
        "target": task.target.name,
        "unit": "percent, truncated",
        "created_by": f"endauda {__version__}",
    }


def share_of(config: ExportConfig, items: Sequence[Any]) -> Sequence[Any]:
    """Every n-th item: by ``--shard``, or by rank under ``torchrun``."""
    number, of = config.shard
    if world_size() > 1:
        if of > 1:
            raise ConfigError("--shard and torchrun both split the images; use one of them")
        return items[rank() :: world_size()]
    return items[number - 1 :: of]


def check_room(task: Task, out: Path, files: Mapping[str, Path], codec: Codec, report: Reporter) -> None:
    """Warn if the archive may not fit on its disk.

    Args:
        task: the classes.
        out: the archive, or where it is going to be.
        files: by id, a file of the size of each image that this run is to store (under ``torchrun``, all ranks
            together: they fill one disk).
        codec: how most images are going to be stored.
        report: told of it.

    Raises:
        DataError: if not even half of the expected bytes are free.
    """
    stored = stored_ids(out)
    left = [path for image, path in files.items() if image not in stored]
    free = free_bytes(out)
    if not left or free is None:
        return
    height, width = image_size(left[0])
    ratio = EXPECTED_RATIO[codec]
    needed = len(left) * len(task.classes) * height * width / ratio
    if free >= needed:
        return
    facts = (
        f"{out}: {len(left):,} images of {width}x{height} pixels and {len(task.classes)} classes take about "
        f"{size_text(needed)} as {codec} (expected to be {ratio} times smaller than raw), but "
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


def stored_ids(out: Path) -> frozenset[str]:
    try:
        with CertaintyReader(out) as reader:
            return frozenset(reader.ids)
    except ArchiveError:  # not there yet; if it is damaged, the writer says so
        return frozenset()


def _writer(config: ExportConfig, task: Task, out: Path, attributes: dict[str, Any]) -> CertaintyWriter:
    return CertaintyWriter(
        out, classes=task.classes, codec=config.codec, attributes=attributes, tag=_tag(config)
    )


def _tag(config: ExportConfig) -> str:
    number, of = config.shard if world_size() == 1 else (rank() + 1, world_size())
    return f"{number}-of-{of}"


def sources_of(config: ExportConfig, out: Path) -> Sources:
    return Sources(out, _tag(config))


def _write_all(
    writer: CertaintyWriter,
    code: Callable[[tuple[str, Any]], tuple[int, CodedImage]],
    outputs: Iterable[tuple[str, Any]],
    total: int,
    workers: int,
    report: Reporter,
    sources: Sources,
    files: Mapping[str, Sequence[Path]],
) -> int:
    """Compress in threads, at most two images ahead of them, and store in order; returns the raw bytes.

    ``code`` returns those of an image, and the image; ``files`` are what each was made of.
    """

    def whole(output: tuple[str, Any]) -> tuple[int, CodedImage, str]:
        return *code(output), sources.line(output[0], files[output[0]])

    raw = 0
    with compiling_told(report), ThreadPoolExecutor(workers) as pool:
        report(Tick("exporting", 0, total, kept=0))
        for done, (size, coded, line) in enumerate(ordered_map(pool, whole, outputs, workers + 2), 1):
            sources.add(line)
            writer.store(coded)
            raw += size
            report(Tick("exporting", done, total, coded.id, kept=done))
    return raw


def _code(writer: CertaintyWriter, image: str, label: UInt8, certainty: UInt8) -> tuple[int, CodedImage]:
    return label.nbytes + certainty.nbytes, writer.code(image, label, certainty)


def _code_network(
    writer: CertaintyWriter, segmenter: Segmenter, image: str, output: tuple[NDArray[Any], ...]
) -> tuple[int, CodedImage]:
    """An image of which there is what ``grid_maps`` or ``certainty_maps`` returns."""
    label, *said = output
    label = label.astype(np.uint8, copy=False)
    if len(said) == 1:
        return _code(writer, image, label, said[0].astype(np.uint8, copy=False))
    shares, *numbers = said
    raw = label.nbytes * (1 + len(numbers[0]))
    return raw, writer.code_grids(image, label, said_of(segmenter, shares, numbers))


def _result(config: ExportConfig, out: Path, images: int, skipped: int, raw: int) -> ExportResult:
    images, skipped, raw = total_over_ranks(images, skipped, raw)
    return ExportResult(out, config.teacher, images, skipped, raw, stored_bytes(out))


def _find_outputs(folder: Path, wanted: set[str] | None) -> dict[str, tuple[Path, Path]]:
    """Image id -> (label PNG, certainty file) for the wanted images' complete pairs below the folder.

    ``None`` wants them all, and then none may be incomplete: nobody would notice that an image is left out.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of teacher outputs")
    files = sorted(files_below(folder))
    pngs = [path for path in files if path.suffix.lower() == ".png"]
    arrays = [path for path in files if path.suffix.lower() in (".npy", ".npz")]
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
