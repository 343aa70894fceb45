"""Store: where things lie in a workspace, and which of them are there.

Standard library only: completion asks it on every TAB. The tree is the one that users of the reference
implementation already have, with ``certainty/`` and ``runs/`` beside it::

    <workspace>/
      endauda.toml
      Warehouse/<data set>/...
      weights/weights/<source>/*.pth
      certainty/<source>/<teacher>/
      <labels root of the target>/<label set>/<image>.png
      runs/<source>/<run>/
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.archive.layout import has_images
from endauda_cli.errors import ConfigError, WorkspaceError
from endauda_cli.files import RECORD_BYTES, cannot_write, read_text, read_toml, replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from endauda_cli.domains import Domain

CONFIG_FILE = "endauda.toml"
RECORD_FILE = "fusion.json"
"""Written beside the labels of a label set: which archives, rule and policy made it."""
JOURNAL_FILE = "fusion.jsonl"
"""Written beside the labels of a label set: which images are finished."""
JOURNALS = "fusion*.jsonl"
"""The same, with those of the parts that several processes make."""
LAST_FILE, BEST_FILE = "last.pt", "best.pt"
"""A run's checkpoints: what it goes on from, and the one that scored best."""
PRETRAINED_FOLDER = "pretrained"
"""The better of them as its network's library keeps it, where it is of one."""
METRICS_FILE, RUN_FILE = "metrics.jsonl", "config.json"
"""What a run logs, a line each time, and what it was told."""
RECIPE_FILE, REPORT_FILE = "config.toml", "report.html"
"""The options of a run as ``train --config`` takes them back, and the page that shows how it goes."""
ORDER = "order"
"""In ``RECORD_FILE`` and ``RUN_FILE``: of two, the newer has the higher number, see ``next_order``."""


@dataclass(frozen=True)
class Workspace:
    """A folder with the tree above. Nothing is created before something is written to it."""

    root: Path

    def data_roots(self, domain: Domain) -> tuple[Path, ...]:
        """Folders in which the domain's images may lie, most likely first."""
        return tuple(self.root / root for root in domain.roots)

    def archive(self, source: str, teacher: str) -> Path:
        """Where the certainty archive of a teacher lies."""
        return self.root / "certainty" / source / teacher

    def labels(self, target: Domain, name: str) -> Path:
        """Where a label set of the target lies."""
        return self.root / target.labels_root / name

    def run(self, source: str, name: str) -> Path:
        """Where a training run (and the reports on it) lies."""
        return self.root / "runs" / source / name

    def scores(self, target: str, split: str) -> Path:
        """Where the table of all that was scored on a target's split lies."""
        return self.root / "scores" / f"{target}-{split}"

    def weights(self, source: str) -> Path:
        """Where downloaded weights of a source lie."""
        return self.root / "weights" / "weights" / source

    def teachers(self, source: str) -> list[str]:
        """Names of the teachers that have an archive with images for this source, sorted."""
        folders = _folders(self.root / "certainty" / source)
        return sorted(folder.name for folder in folders if has_images(folder))

    def sources(self) -> list[str]:
        """Names of the sources that the archives are of, sorted."""
        return sorted(folder.name for folder in _folders(self.root / "certainty"))

    def label_sets(self, target: Domain, source: str) -> list[str]:
        """Names of the label sets that ``fuse`` made for this source and target, newest last."""
        found = []
        for folder in _folders(self.root / target.labels_root):
            record = read_json(folder / RECORD_FILE)
            if record is not None and record.get("source") == source:
                found.append((_age(record, [folder / RECORD_FILE]), folder.name))
        return [name for _, name in sorted(found)]

    def runs(self, source: str) -> list[str]:
        """Names of the training runs for this source that have a checkpoint, newest last."""
        found = []
        for folder in _folders(self.root / "runs" / source):
            checkpoints = list(folder.glob("*.pt"))
            if checkpoints:
                found.append((_age(read_json(folder / RUN_FILE) or {}, checkpoints), folder.name))
        return [name for _, name in sorted(found)]

    def path(self, given: Path) -> Path:
        """A path as typed, else relative to the workspace."""
        inside = self.root / given
        # os.path, for pathlib raises for what is too long to be a path.
        return inside if not os.path.exists(given) and os.path.exists(inside) else given

    def written(self, given: Path) -> str:
        """A path as a file of options has it: one in the workspace where it is there, else a whole one."""
        path = self.path(given)
        if not os.path.exists(path):
            return given.as_posix()
        whole = path.resolve()
        return (whole.relative_to(self.root) if whole.is_relative_to(self.root) else whole).as_posix()

    def newest_labels(self, target: Domain, source: str) -> Path:
        """The label set of train images that was fused last.

        Raises:
            WorkspaceError: if there is none.
        """
        sets = (self.labels(target, name) for name in self.label_sets(target, source))
        folders = [
            folder for folder in sets if (read_json(folder / RECORD_FILE) or {}).get("split") == "train"
        ]
        if not folders:
            raise WorkspaceError(
                f"no fused labels of source {source} (train images) in {self.root / target.labels_root}: "
                "run 'endauda fuse' first, or name a folder of label PNGs with --labels"
            )
        return folders[-1]

    def report(self, checkpoint: Path, name: str) -> Path:
        """Where the report on a checkpoint lies: beside it, or in ``scores`` where its folder may not be written."""
        beside = checkpoint.parent / name
        if os.access(beside if beside.exists() else beside.parent, os.W_OK | os.X_OK):
            return beside
        return self.root / "scores" / f"{checkpoint.parent.name}-{name}"

    def newest_checkpoint(self, source: str) -> Path:
        """``best.pt`` of the newest run, else its ``last.pt``.

        Raises:
            WorkspaceError: if there is no run with a checkpoint.
        """
        names = self.runs(source)
        if not names:
            raise WorkspaceError(
                f"no trained run of source {source} in {self.root / 'runs' / source}: "
                "run 'endauda train' first, or name a checkpoint with --weights"
            )
        return checkpoint_in(self.run(source, names[-1])) or self.run(source, names[-1]) / LAST_FILE


def checkpoint_in(folder: Path) -> Path | None:
    """``best.pt`` of a run's folder, else its ``last.pt``; ``None`` if it has neither."""
    return next((folder / name for name in (BEST_FILE, LAST_FILE) if os.path.exists(folder / name)), None)


def find_workspace(given: Path | None) -> Workspace:
    """The workspace: ``given``, else ``ENDAUDA_WORKSPACE``, else the nearest folder upwards with an
    ``endauda.toml``, else the current folder.

    Raises:
        ConfigError: if a folder was named that is not there.
    """
    if given is None and (named := os.environ.get("ENDAUDA_WORKSPACE")):
        given = Path(named)
    if given is not None:
        if not given.is_dir():
            raise ConfigError(
                f"workspace {given} is not a folder; create it or name another with --workspace"
            )
        return Workspace(given.resolve())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / CONFIG_FILE).is_file():
            return Workspace(folder)
    return Workspace(here)


def read_config(workspace: Workspace) -> dict[str, Any]:
    """What ``endauda.toml`` holds; see :func:`read_options`."""
    return read_options(workspace.root / CONFIG_FILE)


def read_options(path: Path) -> dict[str, Any]:
    """What a file of options holds: a table of options per command, and options of all above them. Empty without it.

    Raises:
        ConfigError: if the file is not TOML.
    """
    if not path.is_file():
        return {}
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({error!s:.200}); mend that line") from error


def check_label_set(folder: Path, source: str, classes: Sequence[str]) -> None:
    """Refuse a label set of ours that is unfinished or of other classes; other folders pass.

    Raises:
        WorkspaceError: says which.
    """
    record = read_json(folder / RECORD_FILE)
    if record is None:
        if any(folder.glob(JOURNALS)):
            raise WorkspaceError(
                f"{folder}: fusing these labels was not finished; run 'endauda fuse' again first"
            )
        return
    names = _class_names(record)
    if names is None:
        raise WorkspaceError(
            f"{folder / RECORD_FILE}: does not say which classes these labels have, as 'endauda fuse' writes it; "
            "fuse them again, or delete this file if they are not from there"
        )
    if names != list(classes):
        raise WorkspaceError(
            f"{folder}: labels of {len(names)} classes, fused with --source {str(record.get('source'))[:80]}, but "
            f"--source {source} has {len(classes)}; give the source that they were fused with"
        )


def _class_names(record: dict[str, Any]) -> list[str] | None:
    try:
        names = [c["name"] for c in record["classes"]]
    except (KeyError, TypeError):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def next_order(folder: Path, file: str) -> int:
    """The number under ``ORDER`` in a record that is written now: above those of all folders beside this one.

    The time, unless a clock was set back in between or differs on another machine. Times of files say nothing once
    a workspace was copied.

    Args:
        folder: of the label set or run.
        file: name of the record, ``RECORD_FILE`` or ``RUN_FILE``.
    """
    known = (_order(read_json(other / file) or {}) for other in _folders(folder.parent))
    return max(time.time_ns(), *(number + 1 for number in known if number is not None), 0)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or ``None`` if it is absent or not one."""
    import json  # as above

    try:
        value = json.loads(read_text(path, RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        WorkspaceError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"{folder}: {cannot_write(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        WorkspaceError: if the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkspaceError(f"{path}: {cannot_write(error)}") from error


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _age(record: dict[str, Any], files: Sequence[Path]) -> tuple[bool, float]:
    """By which label sets and runs are sorted. Those of earlier versions have no number: they come first, by time."""
    number = _order(record)
    return (True, number) if number is not None else (False, max(map(_modified, files)))


def _order(record: dict[str, Any]) -> int | None:
    number = record.get(ORDER)
    return number if type(number) is int and 0 <= number < 1 << 62 else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
