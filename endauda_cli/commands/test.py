"""``endauda test``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.commands.options import (
    DryRun,
    Located,
    OnDevice,
    Passes,
    TargetData,
    arch_option,
    backbone_option,
)
from endauda_cli.commands.scored_rows import (
    PUBLISHED,
    Chosen,
    all_rows,
    held_against_published,
    pairs_of,
    typed_rows,
    with_compared,
)
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ArchiveError, CheckpointError, ConfigError, DataError, WorkspaceError
from endauda_cli.options import chosen, option, parse_temperature
from endauda_cli.types import Arch, Backbone, PredictionIds, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from endauda_cli.checkpoint import LoadedStudent
    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample
    from endauda_cli.image_counts import ImageCounts
    from endauda_cli.plan_results import Plan
    from endauda_cli.score_page import Scored
    from endauda_cli.score_results import ScoreTable
    from endauda_cli.scoring import Maps
    from endauda_cli.segmenter import Procedure

_SCORED = "What is scored"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Test(Passes, TargetData, OnDevice, DryRun, Located):
    """Options of ``test``."""

    weights: list[str] | None = option(
        None, "--weights", panel=_SCORED, metavar="A B", complete="weights",
        help="Checkpoints to score: files, or names of download-weights. [default: best.pt, else last.pt, of the "
        "newest run, if nothing else is named]",
    )  # fmt: skip
    backbone: Backbone | None = backbone_option(_SCORED)
    arch: Arch | None = arch_option(_SCORED)
    predictions: list[str] | None = option(
        None, "--predictions", panel=_SCORED, metavar="DIR DIR",
        help="Score label PNGs that exist: IMAGE.png, 255 = none.",
    )  # fmt: skip
    prediction_ids: PredictionIds = option(
        PredictionIds.AUTO, "--prediction-ids", panel=_SCORED,
        help="What their values are: train ids, or label ids of the target; auto refuses what could be both.",
    )  # fmt: skip
    archive: list[str] | None = option(
        None, "--archive", panel=_SCORED, metavar="A B", complete="archives",
        help="Score the labels in teachers' archives.",
    )  # fmt: skip
    labels: list[str] | None = option(
        None, "--labels", panel=_SCORED, metavar="A B", complete="label_sets",
        help="Score label sets of fuse, by name or folder.",
    )  # fmt: skip
    all: bool = option(
        False, "--all", panel=_SCORED, help="Score all teachers, label sets and runs of the workspace."
    )
    compare: list[str] | None = option(
        None, "--compare", panel=_SCORED, metavar="A B", complete="scored",
        help="Say whether A really differs from B: rows that are scored, or others by name or path; alone, A from all. "
        "published: how far rows are from the figures of others.",
    )  # fmt: skip
    split: Split = option(Split.VAL, "--split", help="Labelled images of the target.", panel=_SCORED)
    boundaries: bool = option(
        False,
        "--boundaries/--no-boundaries",
        panel=_SCORED,
        help="Score outlines, too; label PNGs then take five times as long.",
    )
    calibration: bool = option(
        False, "--calibration", panel=_SCORED,
        help="Say how often certainties of archives and label sets are right: reliability, ECE, classwise, before and "
        "after a temperature.",
    )  # fmt: skip
    temperature: float | None = option(
        None, "--temperature", panel=_SCORED, metavar="T",
        help="The one that --calibration judges. [default: fitted to half of the images, judged on the others]",
    )  # fmt: skip
    save_images: bool = option(
        True, "--save-images/--no-save-images", panel=_SCORED, help="Write predictions and colour pictures."
    )


def run(options: Test) -> None:
    """Score checkpoints, archives, label sets or label PNGs on labelled images of the target.

    Prints the IoU per class and the mean over the classes that occur, with its 95 % interval; of a checkpoint it
    writes eval.json, counts.npz, predictions and a report beside it. Of several it prints one table, best first, and
    writes it to scores/ in the workspace. What each figure means: docs/scoring.md.

    **Examples**

    - `endauda test`
    - `endauda test --predictions outputs/labels --source synthia`
    - `endauda test --all`
    - `endauda test --compare consensus-val dacs`
    - `endauda test --archive dacs crst --calibration`
    """
    session = open_session("test", options, options.device)
    compared = options.compare or []
    rows = typed_rows(
        session,
        options.weights or [],
        options.predictions or [],
        options.archive or [],
        options.labels or [],
    )
    if options.all:
        rows = [*rows, *all_rows(session, options.split)]
    rows = with_compared(session, rows, compared)
    if PUBLISHED in compared:
        _refuse_elsewhere(session.task.target.name, options.split)
    _check_calibration(options, rows)
    networks = not rows or any(row.kind == "run" for row in rows)
    if networks:
        with session.terminal.loading("torch"):
            from endauda_cli.distributed import process_group, rank

    samples = session.target_samples(options.split, need_labels=True)
    with ExitStack() as stack:
        where = stack.enter_context(process_group(session.device())) if networks else None
        terminal = stack.enter_context(session.terminal)
        from endauda_cli.scoring import refuse_unlabelled

        refuse_unlabelled(samples, session.task.target, options.split)
        if not rows:
            newest = session.workspace.newest_checkpoint(session.task.source.name)
            rows = [Chosen(newest.parent.name, "run", newest)]
        for row in rows:
            if row.kind == "run" and not row.path.exists():  # before hours of other rows
                raise CheckpointError(f"{row.path}: no such file of weights")
        if options.dry_run:
            terminal.show(_plan(session, options, rows, samples, where))
            return
        scored = [*_score_maps(session, options, rows, samples)]
        scored += [
            one
            for row in rows
            if row.kind == "run"
            if (one := _score_network(session, options, row, samples, where))
        ]
        if networks and rank() != 0:
            return
        if len(rows) == 1 and not compared:
            terminal.show(scored[0].score)
            return
        terminal.show(_table(session, options, rows, scored, samples))


def _plan(
    session: Session,
    options: Test,
    rows: Sequence[Chosen],
    samples: list[Sample],
    where: torch.device | None,
) -> Plan:
    """Of the rows that can be opened."""
    from endauda_cli.planning.scores import PlannedRow, plan_test

    root, planned = session.workspace.root, []
    for row in rows:
        if row.kind != "run":
            if _open(session, options, row, samples):
                planned.append(PlannedRow(row.name, False))
        elif (network := _network(session, options, row)) is not None:
            pictures = _place(session, options, row.path, network)
            planned.append(PlannedRow(row.name, True, pictures if options.save_images else None))
    out = root / "scores" / f"{session.task.target.name}-{options.split}"
    if len(planned) == 1 and planned[0].pictures is not None:
        out = planned[0].pictures
    return plan_test(planned, samples, out, root, "cpu" if where is None else where.type)


def _table(
    session: Session, options: Test, rows: Sequence[Chosen], scored: Sequence[Scored], samples: list[Sample]
) -> ScoreTable:
    """Of all that could be scored."""
    from endauda_cli.score_table import published_scores, table_of
    from endauda_cli.weights.manifest import read_manifest

    domain, compared = session.task.target, options.compare or []
    there = {row.name: row for row in scored}
    pairs = [pair for pair in pairs_of(rows, compared) if there.keys() >= set(pair)]
    held = [there[name] for name in held_against_published(rows, compared) if name in there]
    artefacts = read_manifest().artefacts.values() if held else ()
    published = published_scores(held, artefacts, session.task.source.name)
    out = session.workspace.scores(domain.name, options.split)
    return table_of(scored, pairs, domain, options.split, out, published, samples)


def _refuse_elsewhere(target: str, split: str) -> None:
    from endauda_cli.score_table import PUBLISHED_ON

    if (target, split) != PUBLISHED_ON:
        raise ConfigError(
            f"--compare published: the figures are of {' '.join(PUBLISHED_ON)}, not of {target} {split}"
        )


def _check_calibration(options: Test, rows: Sequence[Chosen]) -> None:
    if options.temperature is not None:
        if not options.calibration:
            raise ConfigError("--temperature is what --calibration judges; add that")
        parse_temperature(str(options.temperature), ())
    if options.calibration and not any(row.kind in ("teacher", "labels") for row in rows):
        raise ConfigError(
            "--calibration is of certainties: name archives or label sets with --archive, --labels or --all"
        )


def _score_maps(
    session: Session, options: Test, rows: Sequence[Chosen], samples: list[Sample]
) -> list[Scored]:
    """Archives and label PNGs; no network, so torch is not loaded."""
    from endauda_cli.planning.scores import MAPS
    from endauda_cli.rates import Stopwatch
    from endauda_cli.scoring import count_maps

    opened = [
        (row, maps) for row in rows if row.kind != "run" if (maps := _open(session, options, row, samples))
    ]
    if not opened:
        return []
    watch = Stopwatch("scoring", session.terminal.report)
    counted = count_maps(
        [maps for _, maps in opened],
        samples,
        session.task.target,
        watch.report,
        options.workers,
        boundaries=options.boundaries,
    )
    watch.store(session.workspace.root, "test", MAPS, "cpu", len(opened) * len(samples))
    scored = [
        _scored(session, options, row, maps.scored, counts, _labels(maps, session))
        for (row, maps), counts in zip(opened, counted, strict=True)
    ]
    return [_calibrated(session, options, row, samples) for row in scored] if options.calibration else scored


def _calibrated(session: Session, options: Test, row: Scored, samples: list[Sample]) -> Scored:
    """With the calibration of an archive's certainties, or of those that a label set was kept by."""
    from endauda_cli.archive import CertaintyReader, join_classes
    from endauda_cli.progress import Note
    from endauda_cli.reliability import calibration_of, of_labels_alone, seen_of, seen_of_labels
    from endauda_cli.scoring import truth_of

    domain, classes = session.task.target, session.task.classes
    judge = partial(
        calibration_of, samples=samples, temperature=options.temperature, report=session.terminal.report,
        workers=options.workers, name=row.name,
    )  # fmt: skip
    if row.kind == "teacher":
        with CertaintyReader(Path(row.score.scored)) as archive:
            found = judge(partial(seen_of, join_classes(archive, classes), domain), classes=classes)
    elif row.kind == "labels":
        from endauda_cli.fusion.certainties import certainties_of

        place = partial(session.workspace.archive, session.task.source.name)
        try:
            with certainties_of(Path(row.score.scored), classes, place) as fused:
                found = judge(
                    lambda one: seen_of_labels(*fused(one.id), truth_of(one, domain), len(classes)),
                    classes=("right", "wrong"),
                )
        except WorkspaceError as error:
            session.terminal.report(Note(f"{error}; no calibration of it"))
            return row
        found = of_labels_alone(found)
    else:
        return row
    return replace(row, score=replace(row.score, calibration=found))


def _labels(maps: Maps, session: Session) -> Callable[[Sample], Any]:
    from endauda_cli.scoring import labels_of

    return lambda sample: labels_of(maps, sample, session.task.target)


def _open(session: Session, options: Test, row: Chosen, samples: list[Sample]) -> Maps | None:
    """The maps of a row; ``None`` and a note for one that nobody named and that lacks images or classes.

    Raises:
        DataError, ArchiveError: if one that was named lacks them.
    """
    from endauda_cli.progress import Note
    from endauda_cli.scoring import folder_of_maps, maps_of_archive

    try:
        if row.kind == "teacher":
            return maps_of_archive(row.path, samples, session.task.classes)
        ids = PredictionIds.TRAIN if row.kind == "labels" else options.prediction_ids
        return folder_of_maps(row.path, samples, ids)
    except (DataError, ArchiveError) as error:
        if row.typed:
            raise
        session.terminal.report(Note(f"{error}; left out"))
        return None


def _score_network(
    session: Session, options: Test, row: Chosen, samples: list[Sample], where: torch.device | None
) -> Scored | None:
    """A checkpoint, with its report beside it; ``None`` and a warning for one that nobody named and that cannot be
    opened."""
    from endauda_cli.config import InferenceConfig
    from endauda_cli.distributed import rank
    from endauda_cli.evaluation import Scoring, count_network, write_evaluation
    from endauda_cli.files import file_sha256
    from endauda_cli.planning.scores import NETWORK
    from endauda_cli.progress import Note, phase
    from endauda_cli.rates import Stopwatch
    from endauda_cli.score_table import TABLE_FILE
    from endauda_cli.scoring import COUNTS_FILE
    from endauda_cli.segmenter import Segmenter

    assert where is not None
    path, domain, report = row.path, session.task.target, session.terminal.report
    network = _network(session, options, row)
    if network is None:
        return None
    out = _place(session, options, path, network)
    if out.parent != path.parent:
        report(Note(f"{path.parent} cannot be written, so the report goes to {out}"))
    procedure = network.network.tested.with_passes(options.scales, options.flip)
    segmenter = Segmenter(network.model, network.preprocessing, procedure, batches=True)
    pictures = out if options.save_images else None
    scoring = Scoring(domain, str(path), options.split, pictures, boundaries=options.boundaries)
    watch = Stopwatch("testing", report)
    counts = count_network(segmenter, samples, scoring, chosen(InferenceConfig, options), where, watch.report)
    watch.store(session.workspace.root, "test", NETWORK, where.type, len(samples))
    read = None if pictures is None else partial(_saved, pictures, len(domain.classes))
    scored = _scored(
        session, options, row, str(path), counts, read, pictures=pictures, counts_file=out / COUNTS_FILE
    )
    if rank() == 0:
        with phase(report, "writing the report"):
            stored = session.workspace.scores(domain.name, options.split) / TABLE_FILE
            inputs = {
                "its sha256": file_sha256(path) if path.is_file() else None,
                "passes": _passes(procedure),
            }
            write_evaluation(out, scored.score, samples, domain, counts, stored, inputs)
    return scored


def _network(session: Session, options: Test, row: Chosen) -> LoadedStudent | None:
    """The network of a checkpoint; ``None`` and a warning for one that nobody named and that cannot be opened."""
    from endauda_cli.checkpoint import load_student
    from endauda_cli.progress import Note, phase

    report, classes = session.terminal.report, session.task.classes
    try:
        with phase(report, f"opening {row.path.name}"):
            return load_student(row.path, classes, options.arch, options.backbone, options.size, report)
    except CheckpointError as error:
        if row.typed:
            raise
        report(Note(f"{error}; left out", "warning"))
        return None


def _place(session: Session, options: Test, path: Path, network: LoadedStudent) -> Path:
    """Folder of the report on a checkpoint."""
    domain = session.task.target.name
    elsewhere = network.meta.get("target", domain) != domain
    name = f"test-{path.stem}-{f'{domain}-' if elsewhere else ''}{options.split}"
    return session.workspace.report(path, name)


def _passes(procedure: Procedure) -> str:
    scales = ", ".join(f"{scale:g}" for scale in procedure.scales)
    return f"scales {scales}{', and mirrored' if procedure.flip else ''}"


def _saved(folder: Path, classes: int, sample: Sample) -> Any:
    from endauda_cli.labels import read_train_ids

    return read_train_ids(folder / f"{sample.id}.png", classes)


def _scored(
    session: Session,
    options: Test,
    row: Chosen,
    what: str,
    counts: ImageCounts,
    labels: Callable[[Sample], Any] | None,
    **files: Any,
) -> Scored:
    """A row's figures."""
    from endauda_cli.score_page import Scored
    from endauda_cli.score_table import with_intervals
    from endauda_cli.scoring import result_of

    domain = session.task.target
    result = result_of(counts, domain, what, options.split, files.get("pictures"))
    result = replace(with_intervals(result, counts, domain), counts=files.get("counts_file"))
    return Scored(row.name, row.kind, counts, result, labels)


command = make_command(Test, run)
