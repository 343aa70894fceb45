"""What is there for each step from images to a score, what is missing, and the command that makes it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from endauda_cli.datasets import find_samples
from endauda_cli.doctor.program import failure, import_quietly
from endauda_cli.doctor.speed import Workload
from endauda_cli.errors import ArchiveError, EndaudaError, NoImagesError
from endauda_cli.files import size_text
from endauda_cli.progress import Tick
from endauda_cli.results import Finding
from endauda_cli.types import FusionRule
from endauda_cli.weights import read_manifest
from endauda_cli.weights.manifest import is_checkpoint
from endauda_cli.workspace import BEST_FILE, CONFIG_FILE, JOURNALS, LAST_FILE, RECORD_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from endauda_cli.archive import Survey
    from endauda_cli.datasets import Sample
    from endauda_cli.doctor.place import Place
    from endauda_cli.domains import Domain, Task
    from endauda_cli.progress import Reporter
    from endauda_cli.weights import Artefact

MANY = 8
"""So many label sets, runs and scores are told of one by one, the newest ones."""
LABELLED_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Steps:
    """The steps, and what of them other parts of the report need."""

    findings: tuple[Finding, ...]
    work: Workload | None
    """The target's train images; ``None`` without any."""
    archives: int
    smaller: float | None
    """Raw bytes per byte of the archives that are there."""


def look_at_steps(place: Place, task: Task, report: Reporter) -> Steps:
    """Looks at everything between images and scores; reads no map, and writes nothing."""
    look = _Look(place, task, report)
    steps: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("target images", look.target_images),
        ("source images", look.source_images),
        ("weights", look.weights),
        ("teacher", look.archives),
        ("labels", look.label_sets),
        ("run", look.runs),
        ("score", look.scores),
    )
    findings: list[Finding] = list(look.locked_folders())
    for done, (name, step) in enumerate(steps):
        report(Tick("looking into the workspace", done, len(steps), unit="checks"))
        try:
            findings += step()
        except EndaudaError as error:
            findings.append(Finding(name, "missing", str(error)))
        except OSError as error:
            findings.append(Finding(name, "missing", f"{error.filename}: cannot be read ({error.strerror})"))
    report(Tick("looking into the workspace", len(steps), len(steps), unit="checks"))
    stored = sum(s.bytes for s in look.surveys.values())
    smaller = sum(s.raw_bytes for s in look.surveys.values()) / stored if stored else None
    return Steps(tuple(findings), look.workload(), len(look.teachers), smaller or None)


class _Look:
    """One walk over the steps; later ones need what earlier ones found."""

    def __init__(self, place: Place, task: Task, report: Reporter) -> None:
        self.place, self.task, self.report = place, task, report
        self.workspace, self.source = place.workspace, task.source.name
        self.images: dict[str, list[Sample]] = {}
        """Of the target, by split."""
        self.teachers: list[str] = []
        self.complete: list[str] = []
        """Teachers whose archives hold all train images."""
        self.surveys: dict[str, Survey] = {}
        self.has_labels = self.has_runs = False

    def workload(self) -> Workload | None:
        train = self.images.get("train")
        if not train:
            return None
        try:
            height, width = import_quietly("endauda_cli.labels").image_size(train[0].image)
        except Exception:  # a damaged image, or no Pillow: told elsewhere
            return None
        return Workload(len(train), height, width, len(self.task.classes))

    def locked_folders(self) -> Iterable[Finding]:
        """Folders that this user may not look into; searching them finds nothing, and says nothing."""
        root, task = self.workspace.root, self.task
        folders = [
            root, root / "certainty" / self.source, root / "runs" / self.source, root / task.target.labels_root,
            *self.place.roots(task.target, "target-data"), *self.place.roots(task.source, "source-data"),
        ]  # fmt: skip
        for folder in dict.fromkeys(_first_locked(folder, root) for folder in folders):
            if folder is not None:
                text = f"{folder}: this user may not look into this folder"
                yield Finding("folder", "missing", text, shlex.join(("chmod", "-R", "u+rX", str(folder))))

    # ------------------------------------------------------------------------ images

    def target_images(self) -> Iterable[Finding]:
        target, roots = self.task.target, self.place.roots(self.task.target, "target-data")
        troubles = self._find(target, roots, self.images)
        yield from _troubles("target images", troubles)
        if not self.images:
            if not troubles:
                yield Finding("target images", "missing", self._expected(), self._demo_if_empty())
            return
        state: Literal["ok", "note"] = "ok" if "train" in self.images else "note"
        yield Finding("target images", state, _counts(self.images), facts=_figures(self.images))
        if "train" not in self.images:
            yield Finding("target images", "missing", f"none of split train: {self._expected()}")
        if "val" in self.images and not _labelled(self.images["val"]):
            text = (
                "val images have no labels: 'endauda test' and the policies val and few-shot cannot use them"
            )
            yield Finding("target labels", "note", text)

    def source_images(self) -> Iterable[Finding]:
        if self.task.source is self.task.target:
            return
        images: dict[str, list[Sample]] = {}
        roots = self.place.roots(self.task.source, "source-data")
        troubles = self._find(self.task.source, roots, images, ("train",))
        yield from _troubles("source images", troubles)
        if images:
            yield Finding("source images", "ok", _counts(images), facts=_figures(images))
        elif not troubles:
            text = f"none of {self.source}; only 'train --method source' and '--temperature source' read them"
            yield Finding("source images", "note", text)

    def _find(
        self, domain: Domain, roots: tuple[Path, ...], images: dict[str, list[Sample]],
        splits: Sequence[str] = LABELLED_SPLITS,
    ) -> list[str]:  # fmt: skip
        """Fills ``images`` with the splits there are; returns what is wrong with others."""
        troubles = []
        for split in splits:
            try:
                images[split] = find_samples(domain, roots, split)
            except NoImagesError:
                continue
            except EndaudaError as error:
                troubles.append(str(error))
        return troubles

    def _expected(self) -> str:
        """Where the target's train images are looked for."""
        target, roots = self.task.target, self.place.roots(self.task.target, "target-data")
        layout = next((la for la in target.layouts if "train" in la.splits), None)
        if layout is None:
            return f"{target.name} describes no split train; add [train] to its TOML file"
        pattern = roots[0] / layout.images[0].format(split="train")
        return f"expected {_shown(pattern, self.workspace.root)}, or another folder by --target-data"

    def _demo_if_empty(self) -> str | None:
        """In an empty folder, the command that shows the whole story."""
        names = {"certainty", "runs", "Warehouse", CONFIG_FILE}
        return None if any((self.workspace.root / name).exists() for name in names) else "endauda demo"

    # ------------------------------------------------------------------------ weights and archives

    def weights(self) -> Iterable[Finding]:
        published = self._published()
        if not published:
            return
        there = [a.name for a in published if _checkpoints(a, self.workspace.root)]
        facts = {"published": [a.name for a in published], "there": there}
        if there:
            text = f"{len(there)} of {len(published)} published ones for {self.source}: {', '.join(there)}"
            yield Finding("weights", "ok", text, facts=facts)
        else:
            text = f"none of the {len(published)} published ones for {self.source}; needed only to start from these"
            yield Finding("weights", "note", text, self.place.line("download-weights"), facts)

    def _published(self) -> list[Artefact]:
        """Networks of this source; SYNTHIA's are the same for all of its class tables."""
        family = self.source.partition("-")[0]
        return [
            a
            for a in read_manifest().artefacts.values()
            if a.source == family and a.use in ("teacher", "init")
        ]

    def archives(self) -> Iterable[Finding]:
        self.teachers = self.workspace.teachers(self.source)
        if not self.teachers:
            folder = _shown(self.workspace.archive(self.source, ""), self.workspace.root)
            text = f"no certainty archive in {folder}; one is made of --weights, a --program, or outputs to --import"
            yield Finding("teachers", "missing", text, self._export_line())
            return
        try:
            survey = import_quietly("endauda_cli.archive").survey
        except Exception as error:
            names = ", ".join(self.teachers)
            yield Finding("teachers", "note", f"{names}; what they hold cannot be read: {failure(error)}")
            return
        for done, name in enumerate(self.teachers):
            self.report(Tick("looking into archives", done, len(self.teachers), name, "archives"))
            yield self._archive(name, survey)
        self.report(Tick("looking into archives", len(self.teachers), len(self.teachers), unit="archives"))

    def _archive(self, name: str, survey: Callable[[Path], Survey]) -> Finding:
        verify = self.place.line("inspect", name, "--verify")
        try:
            found = self.surveys[name] = survey(self.workspace.archive(self.source, name))
        except (ArchiveError, OSError) as error:
            return Finding("teacher", "missing", failure(error), self._export_line(name), {"name": name})
        counts = {split: (len(found.stored & _ids(s)), len(s)) for split, s in self.images.items()}
        facts: dict[str, Any] = {
            "name": name, "images": len(found.stored), "bytes": found.bytes, "raw_bytes": found.raw_bytes,
            "lost": len(found.lost), "waiting": found.waiting, "damaged_files": list(found.orphans),
            **{split: {"done": done, "images": of} for split, (done, of) in counts.items()},
        }  # fmt: skip
        parts = [f"{done} of {of} {split}" for split, (done, of) in counts.items()] or [
            str(len(found.stored))
        ]
        text = f"{name}: {', '.join(parts)} images, {size_text(found.bytes)}"
        if found.classes != self.task.classes:
            text += (
                f"; but {len(found.classes)} classes of another table than --source {self.source} has "
                f"({len(self.task.classes)})"
            )
            return Finding("teacher", "missing", text, self._export_line(name), facts)
        if found.lost or found.orphans:
            text += f"; {len(found.lost)} images are in files that are gone or cut short"
            text += f", and {', '.join(found.orphans)} has no manifest" if found.orphans else ""
            return Finding("teacher", "missing", text, verify, facts)
        done, of = counts.get("train", (1, 1))
        if done < of:
            text += "; an export is at work, or was stopped" if found.waiting else ""
            text += ": the same export again adds only what is missing"
            return Finding("teacher", "missing", text, self._export_line(name), facts)
        self.complete.append(name)
        return Finding("teacher", "ok", text, facts=facts)

    def _export_line(self, teacher: str | None = None) -> str:
        """The export of a teacher whose weights are there, else a line in which words in capitals are the user's."""
        teachers = [a for a in self._published() if a.use == "teacher" and a.network is not None]
        for artefact in teachers:
            name = artefact.network.teacher if artefact.network else None
            files = _checkpoints(artefact, self.workspace.root)
            if files and name is not None and teacher in (None, name):
                return self.place.line("export-teacher", name, "--weights", _typed(files[0]))
        if teacher is None and teachers:
            return self.place.line(
                "download-weights", *dict.fromkeys(a.name for a in teachers if "/" not in a.name)
            )
        return self.place.line("export-teacher", teacher or "NAME", "--weights", "FILE")

    # ------------------------------------------------------------------------ labels, students, scores

    def label_sets(self) -> Iterable[Finding]:
        target, root = self.task.target, self.workspace.root
        names = self.workspace.label_sets(target, self.source)
        records = {name: read_json(self.workspace.labels(target, name) / RECORD_FILE) or {} for name in names}
        self.has_labels = any(record.get("split") == "train" for record in records.values())
        yield from _older("labels", names)
        for name in names[-MANY:]:
            facts = {"name": name, **_some(records[name], "split", "images", "coverage", "rule", "teachers")}
            yield Finding("labels", "ok", f"{name}: {_label_set(records[name])}", facts=facts)
        for folder in _subfolders(root / target.labels_root):
            journals = sorted(folder.glob(JOURNALS))
            if journals and not (folder / RECORD_FILE).exists():
                done = sum(max(0, _lines(path) - 1) for path in journals)
                text = f"{folder.name}: {done} images fused, not finished; the same line again goes on from there"
                facts = {"name": folder.name, "images": done}
                yield Finding("labels", "note", text, self._fuse_line(folder.name), facts)
        if not self.has_labels:
            text = "no fused labels of train images yet"
            fuse = self._fuse_line() if self.teachers else None
            yield Finding(
                "labels", "missing", text if fuse else f"{text}; needs a teacher's archive first", fuse
            )

    def _fuse_line(self, name: str | None = None) -> str:
        words = ["--teachers", *(self.complete or self.teachers)]
        if name is not None:
            words += ["--rule", name] if name in tuple(FusionRule) else ["--name", name]
        return self.place.line("fuse", *words)

    def runs(self) -> Iterable[Finding]:
        names = self.workspace.runs(self.source)
        self.has_runs = bool(names)
        yield from _older("run", names)
        try:
            read_meta = import_quietly("endauda_cli.checkpoint").read_meta
        except Exception as error:
            if names:
                yield Finding(
                    "run", "note", f"{', '.join(names)}; what they hold cannot be read: {failure(error)}"
                )
        else:
            for name in names[-MANY:]:
                yield self._run(name, read_meta)
        if not names:
            text = "no student yet"
            train = self.place.line("train") if self.has_labels else None
            yield Finding("student", "missing", text if train else f"{text}; needs fused labels first", train)

    def _run(self, name: str, read_meta: Callable[[Path], dict[str, Any]]) -> Finding:
        folder = self.workspace.run(self.source, name)
        last, best = folder / LAST_FILE, folder / BEST_FILE
        path = last if last.exists() else best
        try:
            meta = read_meta(path)
            step, steps = int(meta["step"]), int(meta["config"]["steps"])
            if best.exists():  # it is what 'endauda test' takes
                read_meta(best)
        except EndaudaError as error:
            text = f"{failure(error)}; copy it again from where it was made, or delete it and train again"
            return Finding("run", "missing", text, facts={"name": name})
        except (KeyError, TypeError, ValueError, OverflowError):
            text = f"{name}/{path.name} does not say how far it is; is it another program's?"
            return Finding("run", "note", text, facts={"name": name})
        facts = {"name": name, "step": step, "steps": steps}
        if step < steps:
            text = f"{name}: step {step} of {steps}; the same train line again goes on from there"
            return Finding("run", "note", text, facts=facts)
        return Finding("run", "ok", f"{name}: {steps} steps, finished", facts=facts)

    def scores(self) -> Iterable[Finding]:
        root = self.workspace.root / "runs" / self.source
        files = sorted(root.glob("*/test-*/eval.json"), key=lambda path: path.stat().st_mtime)
        records = {f"{path.parts[-3]}/{path.parts[-2]}": read_json(path) or {} for path in files}
        yield from _older("score", list(records))
        for name, record in list(records.items())[-MANY:]:
            facts = {"name": name, **_some(record, "miou", "images", "target", "split")}
            yield Finding("score", "ok", f"{name}: {_score(record)}", facts=facts)
        if records:
            return
        if not _labelled(self.images.get("val", [])):
            yield Finding("score", "note", "no labelled val images of the target, so nothing to score on")
        elif self.has_runs:
            yield Finding("score", "missing", "no student was scored yet", self.place.line("test"))
        else:
            yield Finding("score", "missing", "none yet; needs a student first")


# ---------------------------------------------------------------------------- words


def _counts(images: dict[str, list[Sample]]) -> str:
    """``2975 train, 500 val (500 labelled)``."""
    return ", ".join(
        f"{len(s)} {split}" + (f" ({n if n < len(s) else 'all'} labelled)" if (n := _labelled(s)) else "")
        for split, s in images.items()
    )


def _figures(images: dict[str, list[Sample]]) -> dict[str, Any]:
    return {split: {"images": len(s), "labelled": _labelled(s)} for split, s in images.items()}


def _troubles(name: str, troubles: Iterable[str]) -> Iterable[Finding]:
    return (Finding(name, "missing", trouble) for trouble in troubles)


def _older(kind: str, names: Sequence[str]) -> Iterable[Finding]:
    if len(names) > MANY:
        yield Finding(
            kind, "ok", f"{len(names)} in all, the newest {MANY} of them:", facts={"names": list(names)}
        )


def _label_set(record: dict[str, Any]) -> str:
    teachers, coverage = record.get("teachers"), record.get("coverage")
    names = f" of {' '.join(map(str, teachers))}" if isinstance(teachers, list) else ""
    kept = f", coverage {100 * coverage:.1f} %" if isinstance(coverage, (int, float)) else ""
    return f"{record.get('images', '?')} {record.get('split', '?')} images{kept}, {record.get('rule', '?')}{names}"


def _score(record: dict[str, Any]) -> str:
    miou = record.get("miou")
    value = f"{miou:.2f}" if isinstance(miou, (int, float)) else "n/a"
    where = " ".join(str(record.get(key, "?")) for key in ("target", "split"))
    return f"mIoU {value} on {record.get('images', '?')} images of {where}"


def _some(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record.get(key) for key in keys}


# ---------------------------------------------------------------------------- files


def _labelled(samples: Iterable[Sample]) -> int:
    return sum(sample.label is not None for sample in samples)


def _ids(samples: Iterable[Sample]) -> frozenset[str]:
    return frozenset(sample.id for sample in samples)


def _checkpoints(artefact: Artefact, root: Path) -> list[Path]:
    target = artefact.target(root)
    if artefact.is_folder:
        return (
            [path for path in sorted(target.rglob("*")) if is_checkpoint(path.name)]
            if target.is_dir()
            else []
        )
    return [target] if target.is_file() else []


def _first_locked(folder: Path, root: Path) -> Path | None:
    """The folder, or the first one above it up to the workspace, that is there but cannot be looked into."""
    for path in reversed([folder, *(p for p in folder.parents if p == root or root in p.parents)]):
        try:
            if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
                return path
        except OSError:
            return None
    return None


def _subfolders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _typed(path: Path) -> str:
    """As short as it can be typed here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
