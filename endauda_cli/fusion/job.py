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
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

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
    policy_record,
    write_consensus,
)
from endauda_cli.fusion.image import Fusion, planes_of, run_rule
from endauda_cli.fusion.journal import Journal, label_files, refuse_other_set
from endauda_cli.fusion.rank_certainty import DELTA_FILE, delta_for
from endauda_cli.fusion.report import write_fusion_report
from endauda_cli.fusion.rules import RULES, Fused, Recipe
from endauda_cli.fusion.rules.cpu import agreement, overlaps, tally
from endauda_cli.jit import compiling_told
from endauda_cli.labels import read_truth, write_label_and_colour
from endauda_cli.progress import Note, Reporter, Tick, phase
from endauda_cli.results import ClassSummary, FusionResult, FusionScore
from endauda_cli.threads import ordered_map
from endauda_cli.types import CONSENSUS_FILE, FusionRule, PolicyKind
from endauda_cli.workspace import RECORD_FILE, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.config import FuseConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.fusion.image import Readers
    from endauda_cli.fusion.journal import Line
    from endauda_cli.fusion.live import NetworkReader
    from endauda_cli.fusion.rules.consensus import Consensus
    from endauda_cli.fusion.rules.policies import Policy

    UInt8 = NDArray[np.uint8]

POLICY_FILE = "policy.json"
SCARCE = 0.1
"""A class of whose labels less than this share is kept is warned of,"""
NOTABLE = 0.002
"""if it has more than this share of the pixels."""
STATISTICS_FOLDER = ".agreement"
"""Beside the archives: what was learnt from them, by what went in; may be deleted."""
JOURNAL_VERSION = 2
"""Grows when the counts in a journal's lines change."""

MEMORY = 400e6
"""Bytes of certainties that may be held at once: fewer images are fused at a time where theirs are many."""
RUN_FOR_POLICY = 32
"""Images that networks are run over before the first is fused, for what a policy or ``delta`` is chosen by."""


def fuse(
    config: FuseConfig,
    task: Task,
    archives: Mapping[str, Path],
    samples: Sequence[Sample] | None,
    labelled: Callable[[], list[Sample]],
    split: str,
    out: Path,
    device: str,
    report: Reporter,
    networks: Mapping[str, NetworkReader] | None = None,
    others: Callable[[], None] | None = None,
) -> FusionResult:
    """Fuse images of the target.

    Args:
        config: rule, policy, threshold.
        task: source and target; archives must have its classes.
        archives: teacher name -> folder; those of ``config.teachers`` are read, in that order.
        samples: images to fuse; ``None`` takes all that the archives hold.
        labelled: finds the labelled target images, for policies that use labels.
        split: what ``samples`` are, for the record.
        out: folder for the label set; labels of other options in it are replaced.
        device: where the rule runs: ``cpu`` (no torch is needed then), ``cuda``, ``cuda:1``.
        report: told of progress.
        networks: teachers that are run instead of read.
        others: under ``torchrun``, waits for all ranks; the first then writes the summary.

    Raises:
        EndaudaError: if archives do not fit each other or lack images, the policy is wrong, or the folder
            holds labels of another source or split.
    """
    networks = networks or {}
    with ExitStack() as stack, compiling_told(report):
        # A network that is run says the same words as an archive.
        with phase(report, "opening the archives"):
            opened: Readers = {
                name: cast("CertaintyReader", networks[name])
                if name in networks
                else stack.enter_context(CertaintyReader(archives[name]))
                for name in config.teachers
            }
        _check_classes(task, opened)
        readers = {name: join_classes(reader, task.classes) for name, reader in opened.items()}
        stored = {image for reader in readers.values() for image in reader.ids}
        ids = sorted(stored) if samples is None else [s.id for s in samples]
        _check_images(readers, ids)
        about = {"source": task.source.name, "target": task.target.name, "split": split}
        refuse_other_set(out, about)
        truths = _truths(config, split, samples)
        seen = _seen_first(ids, bool(networks), config.rule, bool(truths), report)
        store = None if networks else next(iter(archives.values())).parent / STATISTICS_FOLDER
        evidence = Evidence(task, readers, seen, labelled, config.few_shot, store)
        policy, recipe = _recipe(config, task, evidence, out, bool(truths), report)
        fusion = Fusion(config, task, readers, recipe, truths, device)
        number, of = config.shard
        mine = ids[number - 1 :: of]
        journal = Journal(out, _fingerprint(fusion), about, ids, mine, config.shard)
        out.mkdir(parents=True, exist_ok=True)
        journal.begin()
        _write_policy(out, policy, recipe, config.rule, task, readers)

        def inputs(image: str) -> str:
            return _inputs_digest(fusion, image)

        def one(image: str) -> tuple[str, Line, bool]:
            digest = inputs(image)
            found = journal.find(image, digest)
            if found is not None:
                return image, found, True
            return image, {"id": image, "inputs": digest} | _fuse_one(fusion, out, image), False

        lines, made = [], 0
        at_once = _at_once(fusion, mine)
        with ThreadPoolExecutor(at_once) as pool, journal:
            report(Tick("fusing", 0, len(mine), kept=0))
            for done, (image, line, old) in enumerate(ordered_map(pool, one, mine, at_once + 2), 1):
                lines.append(line)
                if not old:
                    journal.add(line)
                    made += 1
                report(Tick("fusing", done, len(mine), image, kept=done))
        if others is not None:
            others()
        whole = journal.collect(inputs) if others is None or number == 1 else None
        result = _summarise(fusion, policy, out, whole or lines, made)
        _warn_of_what_is_lost(result, whole or lines, report)
        if whole is None:
            known = {image for image, _ in journal.lines}
            return replace(result, waiting_for=sum(image not in known for image in ids))
        images = {sample.id: sample.image for sample in samples or ()}
        with phase(report, "writing the report"):
            write_fusion_report(fusion, result, whole, images)
        journal.merge(whole)
    record = about | {"endauda": __version__, "config": asdict(config)} | asdict(result)
    write_text(out / RECORD_FILE, json.dumps(record, indent=1, default=str) + "\n")
    return result


def _seen_first(ids: list[str], run: bool, rule: str, scored: bool, report: Reporter) -> list[str]:
    """The images that label-free statistics are taken from; networks are not run over all of them twice."""
    if not run or len(ids) <= RUN_FOR_POLICY:
        return ids
    sampled = ids[:: -(-len(ids) // RUN_FOR_POLICY)]
    if scored or rule in (FusionRule.PLF, FusionRule.SOFT_LABEL, FusionRule.CONSENSUS):
        report(
            Note(
                f"teachers are run: what is estimated without labels is estimated on {len(sampled)} of the "
                f"{len(ids):,} images"
            )
        )
    return sampled


def _recipe(
    config: FuseConfig, task: Task, evidence: Evidence, out: Path, scored: bool, report: Reporter
) -> tuple[Policy | None, Recipe]:
    """What the rule is told; with a score, what any rule would be told. The policy is the rule's own."""
    policy: Policy | None = None
    model: Consensus | None = None
    num_classes = len(task.classes)
    owners: tuple[int, ...] = (0,) * num_classes
    delta: tuple[float, ...] = ()
    shared = policy_of_all_rules(config.policy)
    if config.rule == FusionRule.CONSENSUS:
        policy, model = choose_consensus(config.policy, evidence, report)
    elif scored:
        _, model = choose_consensus(shared, evidence, report)
    if config.rule == FusionRule.PLF:
        policy = choose_policy(config.policy, evidence, report)
        owners = policy.owners
        if policy.kind == PolicyKind.CERTAINTY:
            report(Note("policy certainty compares teachers by certainty, which misleads where they are "
                        "calibrated differently; --policy auto does not", "warning"))  # fmt: skip
    elif scored:
        owners = choose_policy(shared, evidence, report).owners
    if scored or config.rule == FusionRule.SOFT_LABEL:
        delta = delta_for(config.delta, evidence.readers, evidence.ids, num_classes, out, report)
    else:
        (out / DELTA_FILE).unlink(missing_ok=True)
    recipe = Recipe(
        num_classes, owners, config.window, config.border, config.threshold, config.unclaimed, delta, model
    )
    return policy, recipe


def _warn_of_what_is_lost(result: FusionResult, lines: Sequence[Line], report: Reporter) -> None:
    """A student cannot learn a class whose labels the threshold took away. What hardly occurs is nobody's loss."""
    if not result.threshold:
        return
    given, pixels = (np.sum([line[key] for line in lines], axis=0) for key in ("given", "pixels"))
    lost = [
        c.name
        for c, labels in zip(result.classes, given, strict=True)
        if c.kept is not None and c.kept < SCARCE and labels > NOTABLE * pixels
    ]
    if lost:
        report(
            Note(
                f"--threshold {result.threshold:g} takes more than {1 - SCARCE:.0%} of the labels of "
                f"{', '.join(lost)}, which a student hardly sees; --threshold 0 keeps all",
                "warning",
            )
        )


def _write_policy(
    out: Path, policy: Policy | None, recipe: Recipe, rule: str, task: Task, readers: Readers
) -> None:
    if policy is None:
        (out / POLICY_FILE).unlink(missing_ok=True)
    else:
        record = policy_record(policy, task.classes, list(readers))
        write_text(out / POLICY_FILE, json.dumps(record, indent=1) + "\n")
    if rule == FusionRule.CONSENSUS and recipe.model is not None:
        write_consensus(out / POLICY_FILE, recipe.model, task.classes, list(readers))
    else:
        (out / CONSENSUS_FILE).unlink(missing_ok=True)


def _truths(config: FuseConfig, split: str, samples: Sequence[Sample] | None) -> dict[str, Path]:
    """The ground truth to score with. Labels of train images are not touched unless somebody asks for it."""
    if config.score is False or (config.score is None and split == "train"):
        return {}
    found = {sample.id: sample.label for sample in samples or () if sample.label is not None}
    if config.score and not found:
        raise DataError(f"--score: the target has no labels for its {split} images")
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


def _summarise(
    fusion: Fusion, policy: Policy | None, out: Path, lines: Sequence[Line], made: int
) -> FusionResult:
    config, names = fusion.config, fusion.config.teachers

    def total(key: str) -> Any:
        return np.sum([line[key] for line in lines], axis=0) if lines else np.zeros(1)

    num_classes = fusion.recipe.num_classes
    pixels = total("pixels")
    given, kept, overlap = (np.broadcast_to(total(key), num_classes) for key in ("given", "kept", "overlap"))
    same, both = (np.broadcast_to(total(key), (len(names), len(names))) for key in ("same", "both"))
    return FusionResult(
        labels=out,
        rule=config.rule,
        policy=policy.kind if policy else None,
        used_labels=bool(policy and policy.used_labels),
        labelled_images=policy.labelled if policy else (),
        teachers=names,
        threshold=config.threshold if "threshold" in RULES[config.rule].options else None,
        images=len(lines),
        skipped=len(lines) - made,
        coverage=_share(kept.sum(), pixels) or 0.0,
        overlap=_share(overlap.sum(), pixels) or 0.0,
        unclaimed=_share(total("unclaimed"), pixels) or 0.0,
        disputed=_share(total("disputed"), pixels) or 0.0,
        agreement=tuple(
            tuple(_share(same[t, u], both[t, u]) for u in range(len(names))) for t in range(len(names))
        ),
        classes=tuple(
            ClassSummary(
                name=name,
                owner=names[policy.owners[c]] if policy else None,
                margin=_margin(policy, c),
                sureness=policy.sureness[c] if policy and policy.sureness else None,
                share=_share(kept[c], kept.sum()),
                kept=_share(kept[c], given[c]),
                overlap=_share(overlap[c], given[c]),
            )
            for c, name in enumerate(fusion.task.classes)
        ),
        scores=_scores(fusion, lines),
    )


def _scores(fusion: Fusion, lines: Sequence[Line]) -> tuple[FusionScore, ...]:
    scored = [line["score"] for line in lines if "score" in line]
    if not scored:
        return ()
    pixels = sum(line["pixels"] for line in lines if "score" in line)

    def score(name: str, all_pixels: list[Any], kept: list[Any] | None) -> FusionScore:
        iou = _iou(all_pixels)
        kept_iou = None if kept is None else _iou(kept)
        return FusionScore(
            name=name,
            is_rule=kept is not None,
            miou=_mean(iou),
            kept_miou=None if kept_iou is None else _mean(kept_iou),
            coverage=None if kept is None else 100 * sum(part[2] for part in kept) / pixels,
            iou=dict(zip(fusion.task.classes, iou, strict=True)),
        )

    teachers = [
        score(name, [s["teachers"][t] for s in scored], None) for t, name in enumerate(fusion.config.teachers)
    ]
    rules = [
        score(rule, [s["rules"][rule][0] for s in scored], [s["rules"][rule][1] for s in scored])
        for rule in RULES
    ]
    return (*teachers, *rules)


def _iou(parts: list[Any]) -> list[float | None]:
    """Per class, percent; ``None`` for a class that occurs neither in truth nor in prediction."""
    hits, unions = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    return [float(100 * h / u) if u else None for h, u in zip(hits, unions, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _margin(policy: Policy | None, c: int) -> float | None:
    if policy is None or policy.scores is None:
        return None
    scores = [row[c] for row in policy.scores]
    own = scores[policy.owners[c]]
    others = [s for t, s in enumerate(scores) if t != policy.owners[c] and not np.isnan(s)]
    return None if np.isnan(own) or not others else own - max(others)


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
