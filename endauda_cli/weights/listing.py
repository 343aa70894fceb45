"""What was published, what of it is here, and what to do with it."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from endauda_cli.results import ListedWeights, WeightsList
from endauda_cli.weights.lockfile import Record, Seen, look, read_records
from endauda_cli.weights.manifest import Artefact, Manifest, is_checkpoint
from endauda_cli.weights.places import staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from endauda_cli.weights.matching import Match
    from endauda_cli.workspace import Workspace


def list_weights(workspace: Workspace, manifest: Manifest, names: Sequence[str] = ()) -> WeightsList:
    """The artefacts of those names (all, if none is given), and their state in the workspace.

    Raises:
        ConfigError: if a name is unknown.
        DownloadError: if the lock file is damaged.
    """
    records = read_records(workspace.root)
    return WeightsList(
        tuple(
            ListedWeights(
                a.name, a.what, a.path, a.page, a.urls, a.size, a.sha256, a.licence, a.miou, a.note,
                state_of(workspace.root, a, records.get(a.name)),
            )
            for a in manifest.choose(names)
        )
    )  # fmt: skip


def state_of(root: Path, artefact: Artefact, record: Record | None) -> str:
    target = artefact.target(root)
    if record is not None:
        if not is_of(record, artefact):
            return "foreign"
        there = {path: root / path for path in record.files if (root / path).is_file()}
        if there:
            same = len(there) == len(record.files) and all(
                look(path) == record.files[name] for name, path in there.items()
            )
            trusted = same and all(trouble_of(artefact, seen) is None for seen in record.downloads.values())
            return "verified" if trusted else "foreign"
    elif artefact.is_folder:
        # Other things may lie in such a folder; checkpoints are what would be taken for these.
        if target.is_dir() and any(is_checkpoint(path.name) for path in target.rglob("*")):
            return "foreign"
    elif target.exists():
        known = (
            artefact.sha256 is not None and target.is_file() and trouble_of(artefact, look(target)) is None
        )
        return "verified" if known else "foreign"
    return "partial" if staging(target).exists() else "absent"


def is_of(record: Record, artefact: Artefact) -> bool:
    """Whether a record is of the place that the manifest names; one of the two may have been edited."""
    if not artefact.is_folder:
        return set(record.files) == {artefact.path}
    inside = (n.startswith(artefact.path) and ".." not in PurePosixPath(n).parts for n in record.files)
    return bool(record.files) and all(inside)


def trouble_of(artefact: Artefact, seen: Seen) -> str | None:
    """How a fetched file differs from what the manifest says of it."""
    if artefact.size is not None and seen.size != artefact.size:
        return f"has {seen.size:,} bytes, but {artefact.size:,} were expected"
    if artefact.sha256 is not None and not seen.sha256.startswith(artefact.sha256):
        return f"has the SHA-256 {seen.sha256}, but {artefact.sha256} was expected"
    return None


def next_steps(
    artefact: Artefact, root: Path, record: Record, matches: list[tuple[Path, Match]]
) -> Iterator[str]:
    """Command lines, as they work in the workspace."""
    network = artefact.network
    source = () if artefact.source in (None, "gta5") else ("--source", str(artefact.source))
    if artefact.use == "labels":
        parents = {PurePosixPath(name).parent for name in record.files if name.endswith(".png")}
        sets = {p for p in parents if p.parent == PurePosixPath(artefact.path.rstrip("/"))}
        for folder in sorted(sets):
            yield command_line("train", "--labels", folder.name, *source)
    if network is None:
        return
    for place, found in matches:
        path = place.relative_to(root).as_posix()
        if not found.fits:
            continue
        if artefact.use == "teacher" and network.teacher is not None:
            yield command_line("export-teacher", network.teacher, "--weights", path, *source)
        elif network.backbone is not None:
            chosen = [] if network.backbone == "drn" else ["--backbone", network.backbone]
            chosen += [] if found.arch in (None, "deeplabv3plus") else ["--arch", found.arch or ""]
            if artefact.use == "test":
                yield command_line("test", "--weights", path, *chosen, *source)
            elif artefact.use == "init":
                yield command_line("train", "--init", path, *chosen, *source)


def command_line(*words: str) -> str:
    """A line to type in the workspace."""
    return shlex.join(["endauda", *words])
