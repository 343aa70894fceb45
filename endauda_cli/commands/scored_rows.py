"""What ``endauda test`` scores: names and paths that were typed, or all that the workspace has, as rows of a table."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from endauda_cli.commands.session import refuse_unknown_teachers
from endauda_cli.errors import ConfigError, WorkspaceError, did_you_mean
from endauda_cli.progress import Note
from endauda_cli.workspace import BEST_FILE, LAST_FILE, RECORD_FILE, check_label_set, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from endauda_cli.commands.session import Session

PUBLISHED = "published"
"""Among the words of ``--compare``: figures that others published."""

Kind = Literal["teacher", "labels", "run", "predictions"]


@dataclass(frozen=True)
class Chosen:
    """A row to score.

    Attributes:
        name: as typed, or as the workspace has it.
        kind: what it is.
        path: an archive, a folder of label PNGs, or a checkpoint.
        typed: whether somebody asked for it; the others are left out where they cannot be scored.
    """

    name: str
    kind: Kind
    path: Path
    typed: bool = True


def typed_rows(
    session: Session,
    weights: Sequence[str],
    predictions: Sequence[str],
    archives: Sequence[str],
    label_sets: Sequence[str],
) -> list[Chosen]:
    """The rows that options name.

    Raises:
        WorkspaceError: if an archive or label set is not there, or the set is unfinished or of other classes.
    """
    rows = [Chosen(name, "teacher", _archive(session, name)) for name in archives]
    rows += [Chosen(name, "labels", _labels(session, name)) for name in label_sets]
    rows += [Chosen(word, "predictions", session.path(Path(word))) for word in _whole(session, predictions)]
    rows += [Chosen(word, "run", session.weights(Path(word))) for word in _whole(session, weights)]
    for row in rows:
        if row.kind == "predictions":
            check_label_set(row.path, session.task.source.name, session.task.classes)
    return rows


def all_rows(session: Session, split: str) -> list[Chosen]:
    """All teachers, label sets of the split and runs of the workspace."""
    workspace, task = session.workspace, session.task
    source = task.source.name
    rows = [
        Chosen(name, "teacher", workspace.archive(source, name), False) for name in workspace.teachers(source)
    ]
    for name in workspace.label_sets(task.target, source):
        folder = workspace.labels(task.target, name)
        if (read_json(folder / RECORD_FILE) or {}).get("split") != split:
            continue
        try:
            check_label_set(folder, source, task.classes)
        except WorkspaceError as error:
            session.terminal.report(Note(f"{error}; left out", "warning"))
            continue
        rows.append(Chosen(name, "labels", folder, False))
    for name in workspace.runs(source):
        rows.append(Chosen(name, "run", _checkpoint(workspace.run(source, name)), False))
    if not rows:
        raise WorkspaceError(
            f"{workspace.root}: no archives, label sets of {split} images or runs of source {source} to score; name "
            "something with --weights, --predictions, --archive or --labels"
        )
    return rows


def with_compared(session: Session, rows: Sequence[Chosen], compared: Sequence[str]) -> list[Chosen]:
    """The rows, each once and under a name of its own, and those that are only compared.

    Raises:
        ConfigError: if a compared word is neither a row nor anything that can be scored.
    """
    rows = list(rows)
    for word in (word for word in compared if word != PUBLISHED):
        if not any(word in (row.name, f"{row.kind}/{row.name}") for row in rows):
            rows.append(_found(session, word, [row.name for row in rows]))
    rows = list({(row.kind, row.path): row for row in rows}.values())
    times = Counter(row.name for row in rows)
    return [replace(row, name=f"{row.kind}/{row.name}") if times[row.name] > 1 else row for row in rows]


def pairs_of(rows: Sequence[Chosen], compared: Sequence[str]) -> list[tuple[str, str]]:
    """The names of the rows that are compared: the first word's with each of the others', or with all rows."""
    names = [_named(rows, word) for word in compared if word != PUBLISHED]
    if not names or (len(names) == 1 and PUBLISHED in compared):
        return []
    others = names[1:] or [row.name for row in rows]
    return [(names[0], other) for other in others if other != names[0]]


def held_against_published(rows: Sequence[Chosen], compared: Sequence[str]) -> list[str]:
    """Names of the rows that are held against published figures: those compared, or all."""
    if PUBLISHED not in compared:
        return []
    return [_named(rows, word) for word in compared if word != PUBLISHED] or [row.name for row in rows]


def _named(rows: Sequence[Chosen], word: str) -> str:
    fitting = [row.name for row in rows if word in (row.name, f"{row.kind}/{row.name}")]
    if not fitting:
        known = [row.name for row in rows]
        raise ConfigError(f"--compare {word}: say which: {', '.join(known)}{did_you_mean(word, known)}")
    return fitting[0]


def _found(session: Session, word: str, rows: Sequence[str]) -> Chosen:
    """What a word of ``--compare`` names: a teacher, a label set or a run of the workspace, or a path."""
    workspace, task = session.workspace, session.task
    source = task.source.name
    teachers, sets = workspace.teachers(source), workspace.label_sets(task.target, source)
    runs = workspace.runs(source)
    if word in teachers:
        return Chosen(word, "teacher", workspace.archive(source, word))
    if word in sets:
        return Chosen(word, "labels", _labels(session, word))
    if word in runs:
        return Chosen(word, "run", _checkpoint(workspace.run(source, word)))
    path = session.weights(Path(word))
    if path.is_dir():
        check_label_set(path, source, task.classes)
        return Chosen(word, "predictions", path)
    if path.is_file():
        return Chosen(word, "run", path)
    known = [*rows, *teachers, *sets, *runs]
    raise ConfigError(
        f"--compare {word}: neither a teacher, a label set or a run of the workspace nor a path"
        f"{did_you_mean(word, known)}"
    )


def _archive(session: Session, name: str) -> Path:
    named = session.workspace.archive(session.task.source.name, name)
    path = session.path(Path(name))
    if not named.is_dir() and (path / "archive.json").is_file():
        return path
    refuse_unknown_teachers(session, [name])
    return named


def _labels(session: Session, name: str) -> Path:
    known = session.workspace.label_sets(session.task.target, session.task.source.name)
    folder = session.workspace.labels(session.task.target, name)
    if name not in known:
        folder = session.path(Path(name))
        if not folder.is_dir():
            there = f"there are {', '.join(known)}" if known else "'endauda fuse' makes them"
            raise WorkspaceError(f"--labels {name}: no such label set; {there}{did_you_mean(name, known)}")
    check_label_set(folder, session.task.source.name, session.task.classes)
    return folder


def _checkpoint(run: Path) -> Path:
    return run / BEST_FILE if (run / BEST_FILE).exists() else run / LAST_FILE


def _whole(session: Session, words: Sequence[str]) -> list[str]:
    """The words, or the one path that they are the parts of: options of several values are taken apart at commas, and
    variables at spaces."""
    if len(words) > 1 and not os.path.exists(session.path(Path(words[0]))):
        for between in (",", ", ", " "):
            if os.path.exists(session.path(Path(between.join(words)))):
                return [between.join(words)]
    return list(words)
