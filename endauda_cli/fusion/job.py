"""Engine: archives of several teachers (or the teachers' networks) -> one set of fused labels.

Images stream through one by one, some at a time in threads; nothing but counts outlives an image. Beside the
labels lie

* ``policy.json`` or ``delta.json``: who owned which class, and why; or the typical certainty of each rank;
* ``fusion.jsonl``: one line per finished image with its counts and the digest of what went in, so that a
  rerun does only what is missing or whose inputs changed (see ``journal``);
* ``fusion.json``: written last, the record of the whole, by which ``train`` finds the set.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, join_classes
from endauda_cli.errors import ArchiveError, DataError
from endauda_cli.fusion.choosing import (
    Evidence,
    choose_consensus,
    choose_policy,
    common_size,
    policy_of_all_rules,
)
from endauda_cli.fusion.image import Fusion, planes_of, run_rule
from endauda_cli.fusion.journal import Journal, refuse_other_set
from endauda_cli.fusion.policy_files import POLICY_FILE, policy_record, write_consensus
from endauda_cli.fusion.rank_certainty import DELTA_FILE, delta_for
from endauda_cli.fusion.report import write_fusion_report
from endauda_cli.fusion.rules import RULES, Fused, Recipe
from endauda_cli.fusion.rules.measures import agreement, overlaps, tally
from endauda_cli.fusion.summary import summarise, warn_of_what_is_lost
from endauda_cli.jit import compiling_told
from endauda_cli.labels import label_files, read_truth, write_label_and_colour
from endauda_cli.progress import Note, Reporter, Tick, phase
from endauda_cli.threads import ordered_map
from endauda_cli.types import CONSENSUS_FILE, PolicyKind
from endauda_cli.workspace import RECORD_FILE, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.config import FuseConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.fusion.image import Readers
    from endauda_cli.fusion.journal import Line
    from endauda_cli.fusion.rules.consensus import Consensus
    from endauda_cli.fusion.rules.policies import Policy
    from endauda_cli.results import FusionResult

    UInt8 = NDArray[np.uint8]

STATISTICS_FOLDER = ".agreement"
"""Beside the archives: what was learnt from them, by what went in; may be deleted."""
JOURNAL_VERSION = 2
"""Grows when the counts in a journal's lines change."""

MEMORY = 400e6
"""Bytes of certainties that may be held at once: fewer images are fused at a time where theirs are many."""
RUN_FOR_POLICY = 32
"""Images that networks are run over before the first is fused, for what a policy or ``delta`` is chosen by."""


@dataclass(frozen=True)
class Job:
    """What is fused, and where that goes.

    Attributes:
        task: source and target; teachers must have its classes.
        teachers: name -> folder of an archive, or outputs such as a network's; those of ``config.teachers`` are taken.
        samples: images to fuse; ``None`` takes all that the archives hold.
        labelled: finds the labelled target images, for policies that use labels.
        split: what ``samples`` are, for the record.
        out: folder for the label set; labels of other options in it are replaced.
        device: where the rule runs: ``cpu`` (no torch is needed then), ``cuda``, ``cuda:1``.
        others: under ``torchrun``, waits for all ranks; the first then writes the summary.
    """

    task: Task
    teachers: Mapping[str, Path | TeacherOutputs]
    samples: Sequence[Sample] | None
    labelled: Callable[[], list[Sample]]
    split: str
    out: Path
    device: str = "cpu"
    others: Callable[[], None] | None = None

    @property
    def about(self) -> dict[str, str]:
        """What a label set has to agree with."""
        return {"source": self.task.source.name, "target": self.task.target.name, "split": self.split}


def fuse(config: FuseConfig, job: Job, report: Reporter) -> FusionResult:
    """Fuse images of the target.

    Args:
        config: rule, policy, threshold.
        job: from what, to where.
        report: told of progress.

    Raises:
        EndaudaError: if archives do not fit each other or lack images, the policy is wrong, or the folder
            holds labels of another source or split.
    """
    out = job.out
    with ExitStack() as stack, compiling_told(report):
        readers = _open(config, job, stack, report)
        ids = _images(job, readers)
        refuse_other_set(out, job.about)
        fusion, policy = _prepare(config, job, readers, ids, report)
        number, of = config.shard
        mine = ids[number - 1 :: of]
        journal = Journal(out, _fingerprint(fusion), job.about, ids, mine, config.shard)
        out.mkdir(parents=True, exist_ok=True)
        journal.begin()
        _write_policy(out, policy, fusion)
        lines, made = _fuse_all(fusion, out, mine, journal, report)
        if job.others is not None:
            job.others()
        first = job.others is None or number == 1
        whole = journal.collect(lambda image: _inputs_digest(fusion, image)) if first else None
        result = summarise(fusion, policy, out, whole or lines, made)
        warn_of_what_is_lost(result, whole or lines, report)
        if whole is None:
            known = {image for image, _ in journal.lines}
            return replace(result, waiting_for=sum(image not in known for image in ids))
        with phase(report, "writing the report"):
            write_fusion_report(fusion, result, whole, {s.id: s.image for s in job.samples or ()})
        journal.merge(whole)
    record = job.about | {"endauda": __version__, "config": asdict(config)} | asdict(result)
    write_text(out / RECORD_FILE, json.dumps(record, indent=1, default=str) + "\n")
    return result


def _open(config: FuseConfig, job: Job, stack: ExitStack, report: Reporter) -> Readers:
    """The teachers, with the task's classes."""
    with phase(report, "opening the archives"):
        opened: Readers = {}
        for name in config.teachers:
            teacher = job.teachers[name]
            if isinstance(teacher, Path):
                opened[name] = stack.enter_context(CertaintyReader(teacher))
            else:
                opened[name] = teacher
    _check_classes(job.task, opened)
    return {name: join_classes(reader, job.task.classes) for name, reader in opened.items()}


def _images(job: Job, readers: Readers) -> list[str]:
    stored = {image for reader in readers.values() for image in reader.ids}
    ids = sorted(stored) if job.samples is None else [sample.id for sample in job.samples]
    _check_images(readers, ids)
    return ids


def _prepare(
    config: FuseConfig, job: Job, readers: Readers, ids: list[str], report: Reporter
) -> tuple[Fusion, Policy | None]:
    """All that the labels depend on, and the rule's policy."""
    truths = _truths(config, job)
    folders = [teacher for teacher in job.teachers.values() if isinstance(teacher, Path)]
    run = len(folders) < len(job.teachers)
    store = None if run else folders[0].parent / STATISTICS_FOLDER
    seen = _seen_first(ids, run, config.rule, bool(truths), report)
    evidence = Evidence(job.task, readers, seen, job.labelled, config.few_shot, store)
    policy, recipe = _recipe(config, job, evidence, bool(truths), report)
    return Fusion(config, job.task, readers, recipe, truths, job.device), policy


def _fuse_all(
    fusion: Fusion, out: Path, images: Sequence[str], journal: Journal, report: Reporter
) -> tuple[list[Line], int]:
    """A line for each image, in order, and how many were made now."""

    def one(image: str) -> tuple[str, Line, bool]:
        digest = _inputs_digest(fusion, image)
        found = journal.find(image, digest)
        if found is not None:
            return image, found, True
        return image, {"id": image, "inputs": digest} | _fuse_one(fusion, out, image), False

    lines, made = [], 0
    at_once = _at_once(fusion, images)
    with ThreadPoolExecutor(at_once) as pool, journal:
        report(Tick("fusing", 0, len(images), kept=0))
        for done, (image, line, old) in enumerate(ordered_map(pool, one, images, at_once + 2), 1):
            lines.append(line)
            if not old:
                journal.add(line)
                made += 1
            report(Tick("fusing", done, len(images), image, kept=done))
    return lines, made


def _seen_first(ids: list[str], run: bool, rule: str, scored: bool, report: Reporter) -> list[str]:
    """The images that label-free statistics are taken from; networks are not run over all of them twice."""
    if not run or len(ids) <= RUN_FOR_POLICY:
        return ids
    sampled = ids[:: -(-len(ids) // RUN_FOR_POLICY)]
    if scored or RULES[rule].needs:
        report(
            Note(
                f"teachers are run: what is estimated without labels is estimated on {len(sampled)} of the "
                f"{len(ids):,} images"
            )
        )
    return sampled


def _recipe(
    config: FuseConfig, job: Job, evidence: Evidence, scored: bool, report: Reporter
) -> tuple[Policy | None, Recipe]:
    """What the rule is told; with a score, what any rule would be told. The policy is the rule's own."""
    needs = RULES[config.rule].needs
    policy: Policy | None = None
    model: Consensus | None = None
    num_classes = len(job.task.classes)
    owners: tuple[int, ...] = (0,) * num_classes
    delta: tuple[float, ...] = ()
    shared = policy_of_all_rules(config.policy)
    if "model" in needs:
        policy, model = choose_consensus(config.policy, evidence, report)
    elif scored:
        _, model = choose_consensus(shared, evidence, report)
    if "owners" in needs:
        policy = choose_policy(config.policy, evidence, report)
        owners = policy.owners
        if policy.kind == PolicyKind.CERTAINTY:
            report(Note("policy certainty compares teachers by certainty, which misleads where they are "
                        "calibrated differently; --policy auto does not", "warning"))  # fmt: skip
    elif scored:
        owners = choose_policy(shared, evidence, report).owners
    if scored or "delta" in needs:
        delta = delta_for(config.delta, evidence.readers, evidence.ids, num_classes, job.out, report)
    else:
        (job.out / DELTA_FILE).unlink(missing_ok=True)
    recipe = Recipe(
        num_classes, owners, config.window, config.border, config.threshold, config.unclaimed, delta, model
    )
    return policy, recipe


def _write_policy(out: Path, policy: Policy | None, fusion: Fusion) -> None:
    classes, teachers = fusion.task.classes, list(fusion.readers)
    if policy is None:
        (out / POLICY_FILE).unlink(missing_ok=True)
    else:
        write_text(out / POLICY_FILE, json.dumps(policy_record(policy, classes, teachers), indent=1) + "\n")
    if "model" in RULES[fusion.config.rule].needs and fusion.recipe.model is not None:
        write_consensus(out / POLICY_FILE, fusion.recipe.model, classes, teachers)
    else:
        (out / CONSENSUS_FILE).unlink(missing_ok=True)


def _truths(config: FuseConfig, job: Job) -> dict[str, Path]:
    """The ground truth to score with. Labels of train images are not touched unless somebody asks for it."""
    if config.score is False or (config.score is None and job.split == "train"):
        return {}
    found = {sample.id: sample.label for sample in job.samples or () if sample.label is not None}
    if config.score and not found:
        raise DataError(f"--score: the target has no labels for its {job.split} images")
    return found


def _check_classes(task: Task, readers: Readers) -> None:
    for name, reader in readers.items():
        missing = [c for c in task.classes if c not in reader.classes]
        if missing:
            raise ArchiveError(
                f"{name}: its archive has {len(reader.classes)} classes, and {missing[0]!r} is not among them, but "
                f"{task.source.name} has {len(task.classes)}; export it again with --source {task.source.name}, "
                "or fuse with the source it was made for"
            )


def _check_images(readers: Readers, ids: Sequence[str]) -> None:
    if not ids:
        raise DataError("there is no image to fuse; run 'endauda export-teacher' first")
    for name, reader in readers.items():
        missing = [image for image in ids if image not in reader]
        if missing:
            raise DataError(
                f"{name}: its archive lacks {len(missing)} of {len(ids)} images, first {missing[0]}; "
                f"run 'endauda export-teacher {name}' again, it adds what is missing"
            )
    for image in ids:
        common_size(readers, image)


def _at_once(fusion: Fusion, ids: Sequence[str]) -> int:
    """How many images are fused at a time: as many as there are workers, if memory allows."""
    if not ids:
        return 1
    height, width = common_size(fusion.readers, ids[0])
    rule = RULES[fusion.config.rule]
    planes = fusion.recipe.num_classes
    if fusion.truths or rule.holds_all or fusion.config.renormalise:
        planes *= len(fusion.readers) + 1
    if fusion.config.renormalise:
        planes *= 4  # float32
    return max(1, min(fusion.config.workers, int(MEMORY / (planes * height * width))))


def _fuse_one(fusion: Fusion, out: Path, image: str) -> Line:
    """Fuse and write an image; returns its counts."""
    teachers = list(fusion.readers.values())
    labels = np.stack([reader.labels(image) for reader in teachers])
    planes = planes_of(fusion, image, fusion.config.rule)
    fused = run_rule(fusion, fusion.config.rule, labels, planes)
    path, colours = label_files(out, image)
    write_label_and_colour(path, colours, fused.label, fusion.task.target.palette)
    line = _counts(fused, labels, fusion.recipe.num_classes) | {"bytes": path.stat().st_size}
    if image in fusion.truths:
        line["score"] = _score(fusion, image, labels)
    return line


def _counts(fused: Fused, labels: UInt8, num_classes: int) -> Line:
    """Counts of an image, per class before and after the threshold, and how far teachers agree."""
    (given, kept, overlap), unclaimed = tally(fused, num_classes)
    same, both, disputed = agreement(labels, num_classes)
    return {
        "pixels": fused.label.size,
        "given": given.tolist(),
        "kept": kept.tolist(),
        "overlap": overlap.tolist(),
        "unclaimed": unclaimed,
        "same": same.tolist(),
        "both": both.tolist(),
        "disputed": disputed,
    }


def _score(fusion: Fusion, image: str, labels: UInt8) -> dict[str, Any]:
    """Every teacher and every rule against the truth: of each class intersection and union, see ``overlaps``."""
    num_classes = fusion.recipe.num_classes
    truth = read_truth(fusion.truths[image], fusion.task.target)
    if truth.shape != labels.shape[1:]:
        raise DataError(
            f"{fusion.truths[image]}: {truth.shape[1]}x{truth.shape[0]} pixels, but the archives have "
            f"{labels.shape[2]}x{labels.shape[1]} for it; --no-score leaves labels out"
        )

    def score(label: UInt8) -> list[Any]:
        hits, unions, labelled = overlaps(truth, label, num_classes)
        return [hits.tolist(), unions.tolist(), labelled]

    fused = {rule: run_rule(fusion, rule, labels, planes_of(fusion, image, rule)) for rule in RULES}
    return {
        "teachers": [score(label) for label in labels],
        "rules": {rule: [score(of.candidate), score(of.label)] for rule, of in fused.items()},
    }


def _inputs_digest(fusion: Fusion, image: str) -> str:
    digests = "".join(reader.digest(image) for reader in fusion.readers.values())
    if image in fusion.truths:
        digests += hashlib.sha256(fusion.truths[image].read_bytes()).hexdigest()
        digests += json.dumps(
            _told(fusion), default=str
        )  # other rules are scored too, whatever they depend on
    return hashlib.sha256(digests.encode()).hexdigest()[:32]


def _fingerprint(fusion: Fusion) -> str:
    """What all images of a set have in common; another fingerprint means another set."""
    told = asdict(fusion.config) | _told(fusion)
    options = {name: told[name] for name in sorted(RULES[fusion.config.rule].options)}
    parts = [JOURNAL_VERSION, fusion.config.rule, fusion.config.teachers, fusion.task.classes, options]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def _told(fusion: Fusion) -> dict[str, Any]:
    """The recipe as plain values."""
    model = fusion.recipe.model
    told = asdict(replace(fusion.recipe, model=None))
    if model is not None:
        told["model"] = hashlib.sha256(
            b"".join(array.tobytes() for array in vars(model).values())
        ).hexdigest()
    return told
