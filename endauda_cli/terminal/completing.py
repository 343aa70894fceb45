"""Values for TAB from the user's own workspace. Standard library only; never raises, never prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.datasets import load_task
from endauda_cli.domains import DOMAINS
from endauda_cli.types import TEACHER_ENTRY_POINTS, PolicyKind, TeacherName
from endauda_cli.workspace import CONFIG_FILE, Workspace, find_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from endauda_cli.domains import Task

    Completer = Callable[[Any, str], list[str]]


def _completer(values: Callable[[Any, Workspace], Iterable[str]]) -> Completer:
    def complete(ctx: Any, incomplete: str) -> list[str]:
        try:
            workspace = find_workspace(ctx.params.get("workspace"))
            return sorted(v for v in values(ctx, workspace) if v.startswith(incomplete))
        except Exception:  # a traceback in the middle of a typed line helps nobody
            return []

    return complete


def _task(ctx: Any, workspace: Workspace) -> Task:
    """Source and target of a half-typed line."""
    return load_task(ctx.params.get("source"), ctx.params["target"], workspace.root)


def _archives(ctx: Any, workspace: Workspace) -> Iterable[str]:
    return workspace.teachers(_task(ctx, workspace).source.name)


def _teachers(ctx: Any, workspace: Workspace) -> Iterable[str]:
    taken = set(ctx.params.get("teachers") or ())
    return [name for name in _archives(ctx, workspace) if name not in taken]


def _label_sets(ctx: Any, workspace: Workspace) -> Iterable[str]:
    task = _task(ctx, workspace)
    return workspace.label_sets(task.target, task.source.name)


def _runs(ctx: Any, workspace: Workspace) -> Iterable[str]:
    return workspace.runs(_task(ctx, workspace).source.name)


def _weights(ctx: Any, workspace: Workspace) -> Iterable[str]:
    source = _task(ctx, workspace).source.name
    runs = [workspace.run(source, name) for name in workspace.runs(source)]
    files = [path for run in runs for path in run.glob("*.pt")]
    files += [
        path for path in workspace.weights(source).rglob("*") if path.suffix in (".pth", ".pt", ".params")
    ]
    return [str(path.relative_to(workspace.root)) for path in files]


def _published(ctx: Any, workspace: Workspace) -> Iterable[str]:
    from endauda_cli.weights.manifest import read_manifest

    manifest = ctx.params.get("manifest")
    taken = set(ctx.params.get("names") or ())
    return [
        name for name in read_manifest(Path(manifest) if manifest else None).artefacts if name not in taken
    ]


def _data_sets(workspace: Workspace) -> list[str]:
    """TOML files in the workspace's own folder."""
    return [path.name for path in workspace.root.glob("*.toml") if path.name != CONFIG_FILE]


def _networks(ctx: Any, workspace: Workspace) -> Iterable[str]:
    from importlib.metadata import entry_points

    return {*TeacherName, *(entry.name for entry in entry_points(group=TEACHER_ENTRY_POINTS))}


teachers = _completer(_teachers)
networks = _completer(_networks)
archives = _completer(_archives)
label_sets = _completer(_label_sets)
runs = _completer(_runs)
weights = _completer(_weights)
published = _completer(_published)
sources = _completer(
    lambda ctx, workspace: [*(name for name in DOMAINS if name != "cityscapes"), *_data_sets(workspace)]
)
targets = _completer(lambda ctx, workspace: [*DOMAINS, *_data_sets(workspace)])
policies = _completer(lambda ctx, workspace: PolicyKind)
commands = _completer(lambda ctx, workspace: ctx.find_root().command.list_commands(ctx))
augmentations = _completer(lambda ctx, workspace: ("colour", "light", "texture"))
