"""What the files of a workspace say, each taken for what it is worth: a damaged one is named, and the rest goes on."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from endauda_cli.archive import survey
from endauda_cli.archive.layout import has_images
from endauda_cli.archive.manifest import read_info
from endauda_cli.errors import ArchiveError
from endauda_cli.files import RECORD_BYTES, open_regular
from endauda_cli.overview_results import (
    Lack,
    StoredLabels,
    StoredRun,
    StoredScore,
    StoredTeacher,
    Unreadable,
    WorkspaceReport,
)
from endauda_cli.progress import Reporter, Tick
from endauda_cli.report.diagrams import thinned
from endauda_cli.workspace import JOURNALS, METRICS_FILE, ORDER, RECORD_FILE, REPORT_FILE, RUN_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from endauda_cli.domains import Domain
    from endauda_cli.workspace import Workspace

    Record = Mapping[str, Any]
    Points = tuple[tuple[float, float], ...]

TABLE_FILE, SCORE_FILE = "scores.json", "eval.json"
LINE_BYTES = 1 << 20
"""More than any line of ``metrics.jsonl`` has."""
POINTS = 100
"""Of a curve."""


def gather(workspace: Workspace, target: Domain, out: Path, report: Reporter) -> WorkspaceReport:
    """All that there is; see :func:`endauda_cli.overview.report_workspace`."""
    look = _Look(workspace, target)
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("scores", look.scores), ("teachers", look.teachers), ("labels", look.labels), ("runs", look.runs)
    )  # fmt: skip
    for done, (_, step) in enumerate(steps):
        report(Tick("looking into the workspace", done, len(steps), unit="checks"))
        step()
    report(Tick("looking into the workspace", len(steps), len(steps), unit="checks"))
    return WorkspaceReport(
        workspace=workspace.root,
        target=target.name,
        report=out,
        teachers=tuple(look.found_teachers),
        label_sets=tuple(look.found_labels),
        runs=tuple(look.found_runs),
        scores=tuple(look.found_scores),
        missing=tuple(look.missing()),
        unreadable=tuple(look.unreadable),
    )


class _Look:
    """One walk; what was found is in its lists."""

    def __init__(self, workspace: Workspace, target: Domain) -> None:
        self.workspace, self.target = workspace, target
        self.unreadable: list[Unreadable] = []
        self.found_scores: list[StoredScore] = []
        self.found_teachers: list[StoredTeacher] = []
        self.found_labels: list[StoredLabels] = []
        self.found_runs: list[StoredRun] = []

    def record(self, path: Path) -> Record | None:
        """A JSON object; ``None`` where there is none, and it is noted where there is something else."""
        found = read_json(path)
        if found is None and path.exists():
            self.unreadable.append(Unreadable(path, "is no JSON object, or cannot be read"))
        return found

    # ------------------------------------------------------------------------ scores

    def scores(self) -> None:
        """The tables of several rows."""
        for path in sorted((self.workspace.root / "scores").glob(f"*/{TABLE_FILE}")):
            table = self.record(path)
            rows = (table or {}).get("rows")
            if table is None or not isinstance(rows, list):
                continue
            for row in rows:
                score = row.get("score") if isinstance(row, dict) else None
                if not isinstance(score, dict):
                    self.unreadable.append(Unreadable(path, "has a row without a score"))
                    continue
                kind, name = _text(row.get("kind")), _text(row.get("name"))
                self.found_scores.append(_score(kind, name, score, path.parent / REPORT_FILE))

    def _scores_of(self, kind: str, name: str) -> tuple[StoredScore, ...]:
        names = (name, f"{kind}/{name}")
        return tuple(score for score in self.found_scores if score.kind == kind and score.name in names)

    # ------------------------------------------------------------------------ teachers

    def teachers(self) -> None:
        """Archives of all sources."""
        for source in self.workspace.sources():
            for folder in _folders(self.workspace.root / "certainty" / source):
                if has_images(folder):
                    self._teacher(source, folder)

    def _teacher(self, source: str, folder: Path) -> None:
        try:
            found, attributes = survey(folder), read_info(folder).attributes
        except (ArchiveError, OSError) as error:
            self.unreadable.append(Unreadable(folder, _reason(error)))
            return
        if found.lost or found.orphans:
            reason = f"{len(found.lost)} images are in files that are gone or cut short"
            reason += f", and {', '.join(found.orphans)} has no manifest" if found.orphans else ""
            self.unreadable.append(Unreadable(folder, reason))
        sha256 = attributes.get("weights_sha256")
        self.found_teachers.append(
            StoredTeacher(
                name=folder.name,
                source=source,
                folder=folder,
                images=len(found.stored),
                bytes=found.bytes,
                classes=len(found.classes),
                made_from=_made_from(attributes),
                weights_sha256=_text(sha256) if sha256 else None,
                scores=self._scores_of("teacher", folder.name),
            )
        )

    # ------------------------------------------------------------------------ label sets

    def labels(self) -> None:
        """Label sets of the target, newest last."""
        found = []
        for folder in _folders(self.workspace.root / self.target.labels_root):
            path = folder / RECORD_FILE
            record = self.record(path)
            if record is not None:
                found.append((_order(record), folder.name, self._label_set(folder, record)))
            elif not path.exists() and any(folder.glob(JOURNALS)):
                self.unreadable.append(
                    Unreadable(folder, "fusing these labels was not finished; run fuse again")
                )
        self.found_labels = [labels for *_, labels in sorted(found, key=lambda one: one[:2])]

    def _label_set(self, folder: Path, record: Record) -> StoredLabels:
        rule = _text(record.get("rule"))
        own = [
            score
            for score in _list(record.get("scores"))
            if isinstance(score, dict) and score.get("is_rule") and score.get("name") == rule
        ]
        return StoredLabels(
            name=folder.name,
            source=_text(record.get("source")),
            split=_text(record.get("split")),
            folder=folder,
            rule=rule,
            policy=_text(record["policy"]) if record.get("policy") else None,
            threshold=_number(record.get("threshold")),
            teachers=tuple(map(_text, _list(record.get("teachers")))),
            images=_whole(record.get("images")) or 0,
            coverage=_number(record.get("coverage")),
            disputed=_number(record.get("disputed")),
            used_labels=record.get("used_labels") is True,
            miou=_number(own[0].get("miou")) if own else None,
            page=_there(folder / REPORT_FILE),
            scores=self._scores_of("labels", folder.name),
        )

    # ------------------------------------------------------------------------ runs

    def runs(self) -> None:
        """Runs and merges of all sources, newest last."""
        found = []
        for source in _folders(self.workspace.root / "runs"):
            for folder in _folders(source):
                checkpoints = tuple(sorted(path.name for path in folder.glob("*.pt")))
                record = self.record(folder / RUN_FILE)
                if record is not None or checkpoints:
                    run = self._run(source.name, folder, record or {}, checkpoints)
                    found.append((_order(record or {}), folder.name, run))
        self.found_runs = [run for *_, run in sorted(found, key=lambda one: one[:2])]

    def _run(self, source: str, folder: Path, record: Record, checkpoints: tuple[str, ...]) -> StoredRun:
        config, parents = _dict(record.get("config")), _dict(record.get("parents"))
        labels, init = _dict(parents.get("labels")), _dict(parents.get("init"))
        logged = self._metrics(folder / METRICS_FILE)
        loss, miou = logged.get("loss", ()), logged.get("val_miou", ())
        best = max(miou, key=lambda point: point[1], default=None)
        steps = [points[-1][0] for points in logged.values() if points]
        averaged = _list(_dict(record.get("merged")).get("runs"))
        merged = [_text(one.get("checkpoint")) for one in averaged if isinstance(one, dict)]
        arch, backbone = _text(record.get("arch")), _text(record.get("backbone"))
        return StoredRun(
            name=folder.name,
            source=source,
            folder=folder,
            network=" on ".join(part for part in (arch, backbone) if part),
            method="merge" if merged else _text(config.get("method")),
            step=int(max(steps)) + 1 if steps else None,
            steps=_whole(config.get("steps")),
            last_loss=loss[-1][1] if loss else None,
            best_miou=None if best is None else best[1],
            best_step=None if best is None else int(best[0]) + 1,
            labels=_last_part(labels.get("folder")),
            teachers=tuple(map(_text, _list(labels.get("teachers")))),
            init=_text(init["file"]) if init.get("file") else None,
            merged=tuple(_run_of(path) for path in merged),
            checkpoints=checkpoints,
            loss=_thin(loss),
            val_miou=_thin(miou),
            page=_there(folder / REPORT_FILE),
            scores=(*self._tests(folder), *self._scores_of("run", folder.name)),
        )

    def _tests(self, folder: Path) -> Iterator[StoredScore]:
        for path in sorted(folder.glob(f"test-*/{SCORE_FILE}")):
            if (record := self.record(path)) is not None:
                yield _score("run", folder.name, record, path.parent / REPORT_FILE)

    def _metrics(self, path: Path) -> dict[str, Points]:
        """What was logged, line by line; lines that are none are counted."""
        curves: dict[str, list[tuple[float, float]]] = {}
        bad = 0
        try:
            with open_regular(path, RECORD_BYTES) as file:
                while line := file.readline(LINE_BYTES):
                    try:
                        entry = json.loads(line)
                        step = float(entry["step"])
                    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                        bad += 1
                        continue
                    for key in ("loss", "val_miou"):
                        value = _number(entry.get(key))
                        if value is not None and math.isfinite(step):
                            curves.setdefault(key, []).append((step, value))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.unreadable.append(Unreadable(path, _reason(error)))
        if bad:
            self.unreadable.append(Unreadable(path, f"{bad} lines are no figures of a step"))
        return {key: tuple(points) for key, points in curves.items()}

    # ------------------------------------------------------------------------ what is missing

    def missing(self) -> Iterator[Lack]:
        """In the order of the work, with the line that makes it."""
        if not self.found_teachers:
            yield Lack("archives of teachers", "endauda export-teacher NAME --weights FILE")
        if not any(labels.split == "train" for labels in self.found_labels):
            names = " ".join(dict.fromkeys(teacher.name for teacher in self.found_teachers)) or "NAME NAME"
            yield Lack("fused labels of train images", f"endauda fuse --teachers {names}")
        if not self.found_runs:
            yield Lack("a trained student", "endauda train")
        elif not any(run.scores for run in self.found_runs):
            yield Lack("a score of a run", "endauda test")
        if not self.found_scores:
            yield Lack("a table of all scores on the same images", "endauda test --all")


def _score(kind: str, name: str, score: Record, page: Path) -> StoredScore:
    first = next((one for one in _list(score.get("intervals")) if isinstance(one, dict)), {})
    iou = _dict(score.get("iou"))
    return StoredScore(
        kind=kind,
        name=name,
        target=_text(score.get("target")),
        split=_text(score.get("split")),
        images=_whole(score.get("images")) or 0,
        miou=_number(score.get("miou")),
        low=_number(first.get("low")),
        high=_number(first.get("high")),
        page=_there(page),
        iou={_text(key): _number(value) for key, value in iou.items()},
    )


def _made_from(attributes: Record) -> str:
    parts = [_text(attributes[key]) for key in ("network", "arch", "backbone") if attributes.get(key)]
    return ", ".join(parts) or _text(attributes.get("origin")) or "unknown"


def _thin(points: Points) -> Points:
    return tuple(thinned(points, POINTS)[0])


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _run_of(checkpoint: str) -> str:
    parts = checkpoint.rstrip("/").split("/")
    return parts[-2] if len(parts) > 1 else checkpoint


def _last_part(path: object) -> str | None:
    return path.rstrip("/").rpartition("/")[2] or None if isinstance(path, str) else None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _order(record: Record) -> int:
    number = record.get(ORDER)
    return number if type(number) is int else 0


def _text(value: object) -> str:
    return value[:500] if isinstance(value, str) else "" if value is None else f"{value!s:.500}"


def _number(value: object) -> float | None:
    try:
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if known else None  # type: ignore[arg-type]
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 62 else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
