"""Engine: archives of several teachers (or the teachers' networks) -> one set of fused labels.

Images stream through one by one, some at a time in threads; nothing but counts outlives an image. Beside the
labels lie

* ``policy.json`` or ``delta.json``: who owned which class, and why; or the typical certainty of each rank;
* ``fusion.jsonl``: one line per finished image with its counts and the digest of what went in, so that a
  rerun does only what is missing or whose inputs changed (see ``journal``);
* ``fusion.json``: written last, the record of the whole, by which ``train`` finds the set.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, join_classes
from endauda_cli.compiling import compiling_told
from endauda_cli.errors import ArchiveError, DataError
from endauda_cli.fusion.choosing import (
    Evidence,
    choose_consensus,
    choose_policy,
    common_size,
    labelled_samples,
    policy_of_all_rules,
)
from endauda_cli.fusion.counting import fuse_one, is_line
from endauda_cli.fusion.image import Fusion
from endauda_cli.fusion.inputs import archive_record, fingerprint, inputs_digest
from endauda_cli.fusion.journal import Journal, refuse_other_set
from endauda_cli.fusion.policy_files import POLICY_FILE, fitted_teachers, policy_record, write_consensus
from endauda_cli.fusion.rank_certainty import DELTA_FILE, delta_for
from endauda_cli.fusion.report import write_fusion_report
from endauda_cli.fusion.rules import RULES, Recipe
from endauda_cli.fusion.summary import summarise, warn_of_what_is_lost
from endauda_cli.fusion.witnesses import one_witness_each, votes_count
from endauda_cli.fusion.writers import only_recipe
from endauda_cli.names import checked_id
from endauda_cli.progress import Note, Reporter, Tick, phase
from endauda_cli.threads import ordered_map
from endauda_cli.types import CONSENSUS_FILE, PolicyKind
from endauda_cli.workspace import ORDER, RECORD_FILE, next_order, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.config import FuseConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.fusion.image import Readers
    from endauda_cli.fusion.journal import Line
    from endauda_cli.fusion.rules.consensus import Consensus
    from endauda_cli.fusion.rules.policies import Policy
    from endauda_cli.results import Advice, FusionResult

STATISTICS_FOLDER = ".agreement"
"""Beside the archives: what was learnt from them, by what went in; may be deleted."""
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
        others: under ``torchrun``, waits for all ranks and sums what each of them gives; the first then writes the
            summary.
    """

    task: Task
    teachers: Mapping[str, Path | TeacherOutputs]
    samples: Sequence[Sample] | None
    labelled: Callable[[], list[Sample]]
    split: str
    out: Path
    device: str = "cpu"
    others: Callable[[int], int] | None = None

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
        readers, facts = open_teachers(config, job, stack, report)
        ids = images_of(job, readers)
        refuse_other_set(out, job.about)
        copies = copies_among(config, readers, facts, ids, report)
        readers = {name: reader for name, reader in readers.items() if name not in copies}
        config = replace(config, teachers=tuple(readers))
        fusion, chosen = prepare(config, job, readers, ids, report)
        stack.enter_context(only_recipe(out, fingerprint(fusion), config.shard, report))
        result, whole = _make(fusion, chosen, job, ids, report)
        if whole:
            about: dict[str, Any] = job.about | {
                "endauda": __version__,
                "config": asdict(config),
                "copies": copies,
            }
            about["archives"] = {
                name: archive_record(reader, facts[name], ids) for name, reader in readers.items()
            }
            record = about | asdict(result) | {ORDER: next_order(out, RECORD_FILE)}
            write_text(out / RECORD_FILE, json.dumps(record, indent=1, default=str) + "\n")
    return result


def advice(config: FuseConfig, job: Job, report: Reporter) -> Advice:
    """Which of the teachers to fuse, and by which rule; nothing is written.

    Args:
        config: the teachers; policy ``auto`` looks at no label, ``few-shot`` and ``val`` at those that they name.
        job: from what; ``out`` is not looked at.
        report: told of progress.

    Raises:
        EndaudaError: as ``fuse``; or if labelled images lack outputs.
    """
    from endauda_cli.fusion.advising import advise

    with ExitStack() as stack, compiling_told(report):
        readers, facts = open_teachers(config, job, stack, report)
        ids = images_of(job, readers)
        evidence = Evidence(job.task, readers, ids, job.labelled, config.few_shot)
        labelled = [] if config.policy == PolicyKind.AUTO else labelled_samples(config.policy, evidence)
        _check_images(readers, [*ids, *(sample.id for sample in labelled)])
        copies = one_witness_each(readers, facts, ids, report) if len(readers) > 1 else {}
        readers = {name: reader for name, reader in readers.items() if name not in copies}
        return advise(job.task, readers, copies, ids, labelled, report)


def _make(
    fusion: Fusion, chosen: _Chosen, job: Job, ids: list[str], report: Reporter
) -> tuple[FusionResult, bool]:
    """This process's labels; and whether the set is whole, and this process the one to say so."""
    out, (number, of) = job.out, fusion.config.shard
    mine = ids[number - 1 :: of]
    refuse_other_set(out, job.about)
    whole_line = partial(is_line, fusion)
    journal = Journal(out, fingerprint(fusion), job.about, ids, mine, fusion.config.shard, whole_line)
    journal.begin()
    _write_choice(out, chosen, fusion)
    lines, made = _fuse_all(fusion, out, mine, journal, report)
    made_by_all = made if job.others is None else job.others(made)
    first = job.others is None or number == 1
    whole = journal.collect(lambda image: inputs_digest(fusion, image)) if first else None
    if whole is None:
        result = summarise(fusion, chosen.policy, out, lines, made)
        warn_of_what_is_lost(result, lines, report)
        return replace(result, waiting_for=sum(image not in journal.lines for image in ids)), False
    result = summarise(fusion, chosen.policy, out, whole, made_by_all)
    warn_of_what_is_lost(result, whole, report)
    with phase(report, "writing the report"):
        write_fusion_report(fusion, result, whole, {s.id: s.image for s in job.samples or ()})
    journal.merge(whole)
    return result, True


def open_teachers(
    config: FuseConfig, job: Job, stack: ExitStack, report: Reporter
) -> tuple[Readers, dict[str, Mapping[str, Any]]]:
    """The teachers, with the task's classes; and what is known of where their outputs are from."""
    opened: Readers = {}
    facts: dict[str, Mapping[str, Any]] = {}
    with phase(report, "opening the archives"):
        for name in config.teachers:
            teacher = job.teachers[name]
            if isinstance(teacher, Path):
                archive = stack.enter_context(CertaintyReader(teacher))
                opened[name], facts[name] = archive, archive.attributes
            else:
                opened[name] = teacher
                # Asked by name: ``live`` loads torch.
                facts[name] = getattr(getattr(teacher, "network", None), "facts", {})
    _check_classes(job.task, opened)
    return {name: join_classes(reader, job.task.classes) for name, reader in opened.items()}, facts


def images_of(job: Job, readers: Readers) -> list[str]:
    if job.samples is not None:
        ids = [sample.id for sample in job.samples]
    else:
        ids = sorted(
            {
                checked_id(image, f"the archive of {name}")
                for name, reader in readers.items()
                for image in reader.ids
            }
        )
    _check_images(readers, ids)
    known = set(ids)
    if taken := [image for image in ids if f"{image}_color" in known]:
        raise DataError(
            f"the images {taken[0]} and {taken[0]}_color: the labels of the second would be written where the colour "
            "preview of the first goes; rename one of them and export it again"
        )
    return ids


def copies_among(
    config: FuseConfig,
    readers: Readers,
    facts: Mapping[str, Mapping[str, Any]],
    ids: list[str],
    report: Reporter,
) -> dict[str, str]:
    """Teachers that are left out, because another says the same: name -> of whom."""
    if len(readers) < 2 or not votes_count(config.rule, config.policy):
        return {}
    if config.policy not in tuple(PolicyKind) and fitted_teachers(Path(config.policy)) == config.teachers:
        return {}  # fitted by an earlier version, with the copy among them
    return one_witness_each(readers, facts, ids, report)


def prepare(
    config: FuseConfig,
    job: Job,
    readers: Readers,
    ids: list[str],
    report: Reporter,
    kept_only: bool = False,
) -> tuple[Fusion, _Chosen]:
    """All that the labels depend on, and what was chosen for it; with ``kept_only`` ``NotKeptError`` if it would have
    to be learnt from the archives first."""
    truths = _truths(config, job)
    folders = [teacher for teacher in job.teachers.values() if isinstance(teacher, Path)]
    run = len(folders) < len(job.teachers)
    store = None if run else folders[0].parent / STATISTICS_FOLDER
    seen = _seen_first(ids, run, config.rule, bool(truths), report)
    evidence = Evidence(job.task, readers, seen, job.labelled, config.few_shot, store, kept_only)
    chosen = _choose(config, job, evidence, bool(truths), report)
    return Fusion(config, job.task, readers, chosen.recipe, truths, job.device), chosen


def _fuse_all(
    fusion: Fusion, out: Path, images: Sequence[str], journal: Journal, report: Reporter
) -> tuple[list[Line], int]:
    """A line for each image, in order, and how many were made now."""

    def one(image: str) -> tuple[str, Line, bool]:
        digest = inputs_digest(fusion, image)
        found = journal.find(image, digest)
        if found is not None:
            return image, found, True
        return image, {"id": image, "inputs": digest} | fuse_one(fusion, out, image), False

    lines, made = [], 0
    at_once = images_at_once(fusion, images)
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


@dataclass(frozen=True)
class _Chosen:
    """What the rule goes by: the policy is the rule's own; ``delta`` is what there is to write of an estimate."""

    policy: Policy | None
    recipe: Recipe
    delta: dict[str, Any] | None


def _choose(config: FuseConfig, job: Job, evidence: Evidence, scored: bool, report: Reporter) -> _Chosen:
    """What the rule is told; with a score, what any rule would be told."""
    needs = RULES[config.rule].needs
    policy: Policy | None = None
    model: Consensus | None = None
    num_classes = len(job.task.classes)
    owners: tuple[int, ...] = (0,) * num_classes
    delta: tuple[float, ...] = ()
    estimate: dict[str, Any] | None = None
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
        delta, estimate = delta_for(
            config.delta, evidence.readers, evidence.ids, num_classes, job.out, report
        )
    recipe = Recipe(
        num_classes, owners, config.window, config.border, config.threshold, config.unclaimed, delta, model
    )
    return _Chosen(policy, recipe, estimate)


def _write_choice(out: Path, chosen: _Chosen, fusion: Fusion) -> None:
    classes, teachers, policy = fusion.task.classes, list(fusion.readers), chosen.policy
    if chosen.delta is not None:
        write_text(out / DELTA_FILE, json.dumps(chosen.delta, indent=1) + "\n")
    elif not chosen.recipe.delta:
        (out / DELTA_FILE).unlink(missing_ok=True)
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


def images_at_once(fusion: Fusion, ids: Sequence[str]) -> int:
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
