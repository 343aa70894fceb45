"""What ``export-teacher`` would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.archive import CertaintyReader, refuse_other_archive, stored_bytes
from endauda_cli.errors import ArchiveError
from endauda_cli.exporting import (
    EXPECTED_RATIO,
    FIRST,
    attributes_of,
    check_room,
    outputs_in,
    refuse_changed,
    refuse_contradictions,
    share_of,
    sources_of,
    stored_ids,
)
from endauda_cli.gridding import has_grid
from endauda_cli.labels import image_size
from endauda_cli.plan_results import Expected, PlannedWork
from endauda_cli.planning import NOTHING, expected
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from endauda_cli.config import ExportConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.plan_results import Plan
    from endauda_cli.progress import Reporter
    from endauda_cli.teachers import Teacher


def plan_network(
    config: ExportConfig,
    task: Task,
    teacher: Teacher,
    samples: Sequence[Sample],
    out: Path,
    root: Path,
    device: str,
    report: Reporter,
) -> Plan:
    """Of a network over images; see ``exporting.export_network``.

    Raises:
        EndaudaError: as that one, before it runs.
    """
    codec = Codec(config.codec) if has_grid(teacher.segmenter) else Codec(config.codec).of_planes
    attributes = attributes_of(config, task) | {"origin": "network"} | teacher.attributes(task.classes)
    files: dict[str, Sequence[Path]] = {sample.id: (sample.image,) for sample in share_of(config, samples)}
    return _plan(config, task, attributes, files, codec, out, root, device, report)


def plan_import(
    config: ExportConfig,
    task: Task,
    folder: Path,
    samples: Sequence[Sample] | None,
    out: Path,
    root: Path,
    report: Reporter,
) -> Plan:
    """Of outputs that exist; see ``exporting.import_outputs``.

    Raises:
        DataError, ArchiveError: as that one, before it stores.
    """
    found, ids = outputs_in(folder, config.teacher, samples, report)
    mine = share_of(config, ids)
    attributes = attributes_of(config, task) | {"origin": "import"}
    files: dict[str, Sequence[Path]] = {image: found[image] for image in mine}
    plan = _plan(config, task, attributes, files, Codec(config.codec).of_planes, out, root, "cpu", report)
    stored = stored_ids(out)
    first = [image for image in mine if image not in stored][:FIRST]
    refuse_contradictions([found[image] for image in first], len(task.classes))
    return plan


def _plan(
    config: ExportConfig,
    task: Task,
    attributes: dict[str, Any],
    files: Mapping[str, Sequence[Path]],
    codec: Codec,
    out: Path,
    root: Path,
    device: str,
    report: Reporter,
) -> Plan:
    check_room(task, out, {image: paths[0] for image, paths in files.items()}, codec, report)
    refuse_other_archive(out, task.classes, attributes)
    stored = stored_ids(out)
    refuse_changed(sources_of(config, out), out, files, stored)
    missing = [image for image in files if image not in stored]
    if not stored:
        why = "not exported yet"
    elif missing:
        why = f"the archive holds {len(stored):,} images, but not these"
    else:
        why = "the archive holds them all, made by this teacher and of these files"
    work = PlannedWork(
        f"certainties of {config.teacher}", "images", len(files) - len(missing), len(missing), 0, why
    )
    disk = _disk(task, out, codec, image_size(files[missing[0]][0]), len(missing)) if missing else NOTHING
    return expected(root, "export-teacher", out, device, [work], disk, [(config.teacher, len(missing))])


def _disk(task: Task, out: Path, codec: Codec, size: tuple[int, int], images: int) -> Expected:
    """By the archive's own bytes per image, else by those of another teacher's, else by what is expected of a codec."""
    for archive in (out, *sorted(path for path in out.parent.glob("*") if path != out)):
        try:
            with CertaintyReader(archive) as reader:
                stored = len(reader.ids)
        except ArchiveError:
            continue
        if stored:
            each = stored_bytes(archive) / stored
            return Expected(
                images * each, f"{each / 1e6:.3g} MB per image of {archive.name}, which has {stored:,}"
            )
    raw = size[0] * size[1] * len(task.classes)
    ratio = EXPECTED_RATIO[codec]
    return Expected(
        images * raw / ratio, f"a guess: {codec} {ratio} times smaller than raw; no archive here to go by"
    )
