"""Engine: archives of several teachers -> one set of fused labels.

Images stream through one by one; nothing but counts outlives an image. Beside the labels lie

* ``policy.json``: who owned which class, and why;
* ``fusion.jsonl``: one line per finished image with its counts and the digest of what went in, so that a
  rerun does only what is missing or whose inputs changed;
* ``fusion.json``: written last, the record of the whole, by which ``train`` finds the set.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, join_classes
from endauda_cli.choosing import (
    CONSENSUS_FILE,
    Evidence,
    choose_consensus,
    choose_policy,
    common_size,
    policy_record,
    write_consensus,
)
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ArchiveError, ConfigError, DataError
from endauda_cli.events import Note, Reporter, Tick
from endauda_cli.fusion import RULES, Fused, Inputs
from endauda_cli.labels import colourise, read_image, read_train_ids, write_colour, write_label
from endauda_cli.pipeline import ordered_map
from endauda_cli.report import (
    Gallery,
    PictureRow,
    Report,
    Row,
    Table,
    number,
    percent,
    thumbnail,
    write_report,
)
from endauda_cli.results import ClassSummary, FusionResult
from endauda_cli.types import FusionRule, PolicyKind
from endauda_cli.workspace import JOURNAL_FILE, RECORD_FILE, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from endauda_cli.config import FuseConfig
    from endauda_cli.consensus import Consensus
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.policy import Policy

PICTURED_IMAGES = 8
OWNER = {str(rule): "best" if rule == FusionRule.CONSENSUS else "owner" for rule in FusionRule}
POLICY_FILE = "policy.json"
STATISTICS_FOLDER = ".agreement"
"""Beside the archives: what was learnt from them, by what went in; may be deleted."""


def fuse(
    config: FuseConfig,
    task: Task,
    archives: dict[str, Path],
    samples: Sequence[Sample] | None,
    labelled: Callable[[], list[Sample]],
    split: str,
    out: Path,
    device: torch.device,
    report: Reporter,
) -> FusionResult:
    """Fuse images of the target.

    Args:
        config: rule, policy, threshold.
        task: source and target; archives must have its classes.
        archives: teacher name -> folder, in the order of ``config.teachers``.
        samples: images to fuse; ``None`` takes all that the archives hold.
        labelled: finds the labelled target images, for policies that use labels.
        split: what ``samples`` are, for the record.
        out: folder for the label set; labels of other options in it are replaced.
        device: where the rule runs.
        report: told of progress.

    Raises:
        EndaudaError: if archives do not fit each other or lack images, the policy is wrong, or the folder
            holds labels of another source or split.
    """
    rule = RULES[config.rule]
    with ExitStack() as stack:
        opened = {name: stack.enter_context(CertaintyReader(path)) for name, path in archives.items()}
        _check_classes(task, opened)
        readers = {name: join_classes(reader, task.classes) for name, reader in opened.items()}
        stored = {image for reader in readers.values() for image in reader.ids}
        ids = sorted(stored) if samples is None else [s.id for s in samples]
        _check_images(readers, ids)
        about = {"source": task.source.name, "target": task.target.name, "split": split}
        _refuse_other_set(out, about)
        policy, model = None, None
        store = next(iter(archives.values())).parent / STATISTICS_FOLDER
        evidence = Evidence(task, readers, ids, labelled, config.few_shot, store)
        if config.rule == FusionRule.CONSENSUS:
            policy, model = choose_consensus(config.policy, evidence, report)
        if config.rule == FusionRule.PLF:
            policy = choose_policy(config.policy, evidence, report)
            if policy.kind == PolicyKind.CERTAINTY:
                report(Note("policy certainty compares teachers by certainty, which misleads where they are "
                            "calibrated differently; --policy auto does not", "warning"))  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        journal = _Journal(out / JOURNAL_FILE, _fingerprint(config, task, policy, model), about)
        (out / RECORD_FILE).unlink(missing_ok=True)  # whole again only at the end
        if policy is not None:
            record = policy_record(policy, task.classes, list(readers))
            write_text(out / POLICY_FILE, json.dumps(record, indent=1) + "\n")
        else:
            (out / POLICY_FILE).unlink(missing_ok=True)
        if model is not None:
            write_consensus(out / POLICY_FILE, model, task.classes, list(readers))
        else:
            (out / CONSENSUS_FILE).unlink(missing_ok=True)

        def one(image: str) -> tuple[str, dict[str, Any], bool]:
            inputs = _inputs_digest(readers, image)
            found = journal.find(image, inputs)
            if found is not None and _is_whole(out, found):
                return image, found, True
            fused = rule(_load(config, readers, policy, model, image, len(task.classes), device))
            label = fused.label.cpu().numpy()
            write_colour(out / f"{image}_color.png", label, task.target.palette)
            path = out / f"{image}.png"
            write_label(path, label)
            line = {"id": image, "inputs": inputs, "bytes": path.stat().st_size}
            return image, _counts(fused, len(task.classes)) | line, False

        counts, skipped = [], 0
        with ThreadPoolExecutor(config.workers) as pool, journal:
            for done, (image, line, old) in enumerate(ordered_map(pool, one, ids, config.workers + 2), 1):
                counts.append(line)
                skipped += old
                if not old:
                    journal.add(line)
                report(Tick("fusing", done, len(ids), image))
        result = _summarise(config, task, policy, out, counts, skipped)
        _write_report(result, task, readers, ids, samples)
    record = about | {"endauda": __version__, "config": asdict(config)} | asdict(result)
    write_text(out / RECORD_FILE, json.dumps(record, indent=1, default=str) + "\n")
    return result


def _refuse_other_set(out: Path, about: dict[str, str]) -> None:
    """Labels of other images or class tables must not mix; those of other options are replaced."""
    head = (_read_lines(out / JOURNAL_FILE) or [{}])[0] | (read_json(out / RECORD_FILE) or {})
    for key, now in about.items():
        if head.get(key, now) != now:
            raise ConfigError(
                f"{out}: holds labels of {key} {head[key]}, not {now}; give these another --name, or delete the folder"
            )


def _is_whole(out: Path, line: dict[str, Any]) -> bool:
    """Whether the files of a finished image are still there, and not cut short by a power cut."""
    label, colours = (out / f"{line['id']}{suffix}.png" for suffix in ("", "_color"))
    return label.exists() and label.stat().st_size == line["bytes"] and colours.exists()


def _check_classes(task: Task, readers: dict[str, CertaintyReader]) -> None:
    """An archive may have more classes than the fusion, in any order, but not fewer."""
    for name, reader in readers.items():
        missing = [c for c in task.classes if c not in reader.classes]
        if missing:
            raise ArchiveError(
                f"{name}: its archive has {len(reader.classes)} classes, and {missing[0]!r} is not among them, but "
                f"{task.source.name} has {len(task.classes)}; export it again with --source {task.source.name}, "
                "or fuse with the source it was made for"
            )


def _check_images(readers: dict[str, CertaintyReader], ids: Sequence[str]) -> None:
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


def _load(
    config: FuseConfig,
    readers: dict[str, CertaintyReader],
    policy: Policy | None,
    model: Consensus | None,
    image: str,
    num_classes: int,
    device: torch.device,
) -> Inputs:
    """The inputs of a rule for one image; certainties are read when the rule asks for them."""
    teachers = list(readers.values())
    labels = torch.from_numpy(np.stack([reader.labels(image) for reader in teachers])).to(device)
    whole: dict[int, Tensor] = {}

    def plane(t: int, c: int) -> Tensor:
        if model is not None:  # it needs all planes, and scales them itself
            if t not in whole:
                whole[t] = torch.from_numpy(teachers[t].certainty(image))
            return whole[t][c]
        if not config.renormalise:
            return torch.from_numpy(teachers[t].plane(image, c)).to(device)
        if t not in whole:
            percent = torch.from_numpy(teachers[t].certainty(image)).to(device).float()
            whole[t] = percent * 100 / percent.sum(0)
        return whole[t][c]

    owners = policy.owners if policy is not None else (0,) * num_classes
    return Inputs(labels, plane, torch.tensor(owners, device=device), config.window, config.threshold, model)


def _counts(fused: Fused, num_classes: int) -> dict[str, Any]:
    """Counts of an image, per class before and after the threshold."""

    def per_class(labels: Tensor) -> list[int]:
        counted: list[int] = torch.bincount(labels.flatten(), minlength=256)[:num_classes].tolist()
        return counted

    return {
        "pixels": fused.label.numel(),
        "given": per_class(fused.candidate),
        "kept": per_class(fused.label),
        "overlap": per_class(torch.where(fused.claims > 1, fused.candidate, IGNORE)),
        "unclaimed": int((fused.claims == 0).sum()),
    }


def _summarise(
    config: FuseConfig,
    task: Task,
    policy: Policy | None,
    out: Path,
    counts: list[dict[str, Any]],
    skipped: int,
) -> FusionResult:
    def total(key: str) -> Any:
        return np.sum([line[key] for line in counts], axis=0)

    pixels, given, kept, overlap = total("pixels"), total("given"), total("kept"), total("overlap")
    return FusionResult(
        labels=out,
        rule=config.rule,
        policy=policy.kind if policy else None,
        used_labels=bool(policy and policy.used_labels),
        labelled_images=policy.labelled if policy else (),
        teachers=config.teachers,
        threshold=None if config.rule == FusionRule.MAJORITY else config.threshold,
        images=len(counts),
        skipped=skipped,
        coverage=_share(kept.sum(), pixels) or 0.0,
        overlap=_share(overlap.sum(), pixels) or 0.0,
        unclaimed=_share(total("unclaimed"), pixels) or 0.0,
        classes=tuple(
            ClassSummary(
                name=name,
                owner=config.teachers[policy.owners[c]] if policy else None,
                margin=_margin(policy, c),
                sureness=policy.sureness[c] if policy and policy.sureness else None,
                share=_share(kept[c], kept.sum()),
                kept=_share(kept[c], given[c]),
                overlap=_share(overlap[c], given[c]),
            )
            for c, name in enumerate(task.classes)
        ),
    )


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _margin(policy: Policy | None, c: int) -> float | None:
    if policy is None or policy.scores is None:
        return None
    scores = [row[c] for row in policy.scores]
    own = scores[policy.owners[c]]
    others = [s for t, s in enumerate(scores) if t != policy.owners[c] and not np.isnan(s)]
    return None if np.isnan(own) or not others else own - max(others)


def _write_report(
    result: FusionResult,
    task: Task,
    readers: dict[str, CertaintyReader],
    ids: Sequence[str],
    samples: Sequence[Sample] | None,
) -> None:
    """``report.html``: the table per class, and some images with what each teacher and the rule say."""
    files = {sample.id: sample.image for sample in samples or ()}
    rows = []
    for image in ids[:: max(1, -(-len(ids) // PICTURED_IMAGES))]:
        labels = [reader.labels(image) for reader in readers.values()]
        labels.append(read_train_ids(result.labels / f"{image}.png", len(task.classes)))
        pictures = [thumbnail(colourise(label, task.target.palette), flat=True) for label in labels]
        if image in files:
            pictures.insert(0, thumbnail(read_image(files[image])))
        rows.append(PictureRow(image, pictures))
    columns = [*(["image"] if files else []), *readers, result.rule]
    cells = [
        Row(
            [c.name, c.owner or "", number(c.margin, 3), percent(c.sureness)]
            + [percent(v) for v in (c.share, c.kept, c.overlap)]
        )
        for c in result.classes
    ]
    policy = f"policy {result.policy}" if result.policy else "no policy"
    labels_used = "no label of the target was used"
    if result.used_labels:
        some = ", ".join(result.labelled_images[:10]) + (", ..." if len(result.labelled_images) > 10 else "")
        labels_used = (
            f"labels of {len(result.labelled_images)} target images were used, do not score on these: {some}"
        )
    threshold = "no threshold" if result.threshold is None else f"threshold {result.threshold:g} %"
    report = Report(
        title=f"{result.rule} of {', '.join(result.teachers)}",
        intro=[
            f"{result.images} images of {task.target.name}; {policy}, {labels_used}; {threshold}.",
            f"Coverage {percent(result.coverage)} %, claimed by several classes {percent(result.overlap)} %, "
            f"by none {percent(result.unclaimed)} %.",
        ],
        sections=[
            Table(
                "Classes",
                [
                    "class",
                    OWNER[result.rule],
                    "margin",
                    "sure %",
                    "share of labels %",
                    "kept %",
                    "claimed by several %",
                ],
                cells,
                [
                    "Margin: by how much the teacher's score exceeds the next one's. Sure: in how many of "
                    "200 random draws of the images the same teacher comes first."
                ],
            ),
            Gallery("Images", columns, rows, list(zip(task.classes, task.target.palette, strict=True))),
        ],
    )
    write_report(result.labels / "report.html", report)


def _inputs_digest(readers: dict[str, CertaintyReader], image: str) -> str:
    digests = "".join(reader.digest(image) for reader in readers.values())
    return hashlib.sha256(digests.encode()).hexdigest()[:32]


def _fingerprint(config: FuseConfig, task: Task, policy: Policy | None, model: Consensus | None) -> str:
    """What all images of a set have in common; another fingerprint means another set."""
    parts: list[Any] = [config.rule, config.teachers, task.classes, config.renormalise]
    if config.rule != FusionRule.MAJORITY:
        parts.append(config.threshold)
    if model is not None:
        parts.append(hashlib.sha256(b"".join(a.tobytes() for a in vars(model).values())).hexdigest())
    elif policy is not None:
        parts += [policy.owners, config.window]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


class _Journal:
    """Finished images of a label set, one JSON line each, valid for one fingerprint.

    Labels of another fingerprint are deleted, so that a set never mixes two recipes.
    """

    def __init__(self, path: Path, fingerprint: str, about: dict[str, str]) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        head = {"fingerprint": fingerprint, **about}
        lines = _read_lines(path)
        found = {line["id"]: line for line in lines[1:]}
        if lines[:1] == [head]:
            self.lines = found
        else:
            for image in found:
                for suffix in ("", "_color"):
                    (path.parent / f"{image}{suffix}.png").unlink(missing_ok=True)
        # Rewritten, not appended to: a kill may have left half a line at the end.
        kept = [head, *self.lines.values()]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def find(self, image: str, inputs: str) -> dict[str, Any] | None:
        """The counts of an image that is finished and whose inputs have not changed."""
        line = self.lines.get(image)
        return line if line is not None and line["inputs"] == inputs else None

    def __enter__(self) -> _Journal:
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, line: dict[str, Any]) -> None:
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error}); free disk space and run again"
            ) from error


def _read_lines(path: Path) -> list[Any]:
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines
