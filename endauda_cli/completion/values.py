"""Values for TAB, most of them from the user's own workspace, with a few words on each.

Standard library only, and of this package only what a value needs; never raises, never prints.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.types import (
    Accuracy,
    Augmentation,
    ClassMapName,
    Codec,
    FittedOn,
    Format,
    FusionRule,
    LabelFormatName,
    Labelled,
    MergeBy,
    PolicyKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from enum import StrEnum

    from endauda_cli.domains import Task
    from endauda_cli.workspace import Workspace

    Completer = Callable[[Any, str], list[tuple[str, str]]]
    Described = tuple[str, str | Callable[[], str]]
    """A value and a few words on it, or how to get them: only what is shown is worth opening files."""

PATHS = dict.fromkeys(
    ("program", "description", "manifest", "from_file", "delta", "policy", "source"), "files"
)
PATHS |= dict.fromkeys(("target", "weights", "init", "config", "classes", "run", "runs", "made"), "files")
PATHS |= dict.fromkeys(
    ("workspace", "source_data", "target_data", "imported", "predictions", "labelled"), "folders"
)
PATHS |= dict.fromkeys(("out", "export", "cache", "labels", "archive"), "folders")
"""Parameters that take a path, beside the values they may have, and of what."""

MANY = 200
"""So many values are described; more are only listed."""


def _completer(values: Callable[[Any, Workspace], Iterable[Described]]) -> Completer:
    def complete(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
        from endauda_cli.workspace import find_workspace

        try:
            given = ctx.params.get("workspace")
            workspace = find_workspace(Path(given) if given else None)
            found = sorted(
                (v for v in values(ctx, workspace) if v[0].startswith(incomplete)), key=lambda v: v[0]
            )
        except Exception:  # a traceback in the middle of a typed line helps nobody
            return []
        shown = (
            len(found) <= MANY and os.environ.get("_ENDAUDA_COMPLETE") != "bash"
        )  # which lists values alone
        return [(value, _words(text) if shown else "") for value, text in found]

    return complete


def _words(text: str | Callable[[], str]) -> str:
    try:
        return text if isinstance(text, str) else text()
    except Exception:  # a damaged file is still a value
        return ""


def _choices(kind: Iterable[StrEnum]) -> Completer:
    """The members of an enum, with what they say of themselves."""
    pairs = [(choice.value, getattr(choice, "about", "")) for choice in kind]
    return lambda ctx, incomplete: [pair for pair in pairs if pair[0].startswith(incomplete)]


def _plain(*values: str) -> Completer:
    return lambda ctx, incomplete: [(value, "") for value in values if value.startswith(incomplete)]


def _task(ctx: Any, workspace: Workspace) -> Task:
    """Source and target of a half-typed line."""
    from endauda_cli.datasets import load_task

    return load_task(ctx.params.get("source"), ctx.params["target"], workspace.root)


# ---------------------------------------------------------------------------- archives


def _archives(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    source = _task(ctx, workspace).source.name
    for name in workspace.teachers(source):
        yield name, partial(_size_of, workspace.archive(source, name))


def _teachers(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    taken = {value.partition("=")[0] for value in ctx.params.get("teachers") or ()}
    return (described for described in _archives(ctx, workspace) if described[0] not in taken)


def _size_of(archive: Path) -> str:
    from endauda_cli.archive.layout import image_ids

    images = len(image_ids(archive))
    return f"{images} image{'s' * (images != 1)}"


def _images(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    """Of the archive that the line names."""
    from endauda_cli.archive.layout import image_ids

    named = Path(ctx.params["archive"])
    folder = workspace.archive(_task(ctx, workspace).source.name, str(named))
    return ((image, "") for image in image_ids(folder if folder.is_dir() else named))


def _labelled_images(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    from endauda_cli.datasets import find_samples

    target, given = _task(ctx, workspace).target, ctx.params.get("target_data")
    roots = workspace.data_roots(target) if given is None else (Path(given),)
    taken = set(ctx.params.get("few_shot") or ())
    return ((s.id, "") for s in find_samples(target, roots, "val") if s.label and s.id not in taken)


# ---------------------------------------------------------------------------- labels, runs, weights


def _label_sets(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    task = _task(ctx, workspace)
    for name in workspace.label_sets(task.target, task.source.name):
        yield name, partial(_history_of, workspace.labels(task.target, name))


def _history_of(labels: Path) -> str:
    from endauda_cli.workspace import RECORD_FILE, read_json

    record = read_json(labels / RECORD_FILE) or {}
    return f"{record['rule']} of {', '.join(record['teachers'])}"


def _runs(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    source = _task(ctx, workspace).source.name
    return ((name, partial(_step_of, workspace.run(source, name))) for name in workspace.runs(source))


def _step_of(run: Path) -> str:
    """How far a run is; the checkpoints would say so, too, but take torch to open."""
    from endauda_cli.workspace import METRICS_FILE, RUN_FILE

    with (run / METRICS_FILE).open("rb") as metrics:
        metrics.seek(max(0, metrics.seek(0, os.SEEK_END) - 4096))
        last = metrics.read().splitlines()[-1]
    steps = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))["config"]["steps"]
    return f"step {int(json.loads(last)['step']) + 1:,} of {int(steps):,}"


def _weights(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    """Runs by their names, checkpoints of the source's runs and downloads, and what has been downloaded by its name."""
    source = _task(ctx, workspace).source.name
    yield from _runs(ctx, workspace)
    for name in workspace.runs(source):
        run = workspace.run(source, name)
        for path in run.glob("*.pt"):
            yield str(path.relative_to(workspace.root)), partial(_step_of, run)
    for path in workspace.weights(source).rglob("*"):
        if path.suffix in (".pth", ".pt", ".params"):
            yield str(path.relative_to(workspace.root)), "downloaded"
    yield from _downloaded(workspace)


def _scored(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    """All that ``test`` can score by name."""
    yield from _archives(ctx, workspace)
    yield from _label_sets(ctx, workspace)
    yield from _runs(ctx, workspace)


def _downloaded(workspace: Workspace) -> Iterable[Described]:
    from endauda_cli.errors import ConfigError
    from endauda_cli.weights.manifest import installed, read_manifest

    manifest = read_manifest()
    for name, artefact in manifest.artefacts.items():
        if artefact.use == "labels":
            continue
        try:
            installed(workspace.root, manifest, name)
        except ConfigError:
            continue
        yield name, artefact.what


def _published(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    from endauda_cli.weights.manifest import read_manifest

    manifest = ctx.params.get("manifest")
    taken = set(ctx.params.get("names") or ())
    artefacts = read_manifest(Path(manifest) if manifest else None).artefacts
    return ((name, artefact.what) for name, artefact in artefacts.items() if name not in taken)


# ---------------------------------------------------------------------------- data sets, networks, devices


def _data_sets(ctx: Any, workspace: Workspace, without: str = "") -> Iterable[Described]:
    """Those known by name, and TOML files in the workspace's own folder."""
    from endauda_cli.domains import DOMAINS
    from endauda_cli.workspace import CONFIG_FILE

    for name, domain in DOMAINS.items():
        if name != without:
            yield name, f"{len(domain.classes)} classes"
    for path in workspace.root.glob("*.toml"):
        if path.name != CONFIG_FILE:
            yield path.name, "your data set"


def _networks(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    from importlib.metadata import entry_points

    from endauda_cli.types import TEACHER_ENTRY_POINTS, TeacherName

    entries = {
        entry.name: f"of {entry.value.partition(':')[0]}"
        for entry in entry_points(group=TEACHER_ENTRY_POINTS)
    }
    return {**entries, **{name.value: "published" for name in TeacherName}}.items()


def _student_networks(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    from importlib.metadata import entry_points

    from endauda_cli.types import STUDENT_ENTRY_POINTS, TeacherName

    yield "smp:unet/resnet18", "any network and encoder of segmentation-models-pytorch"
    for name in TeacherName:
        yield name.value, "a published teacher's"
    for entry in entry_points(group=STUDENT_ENTRY_POINTS):
        yield entry.name, f"of {entry.value.partition(':')[0]}"


def _devices(ctx: Any, workspace: Workspace) -> Iterable[Described]:
    """What may be there; to be sure would take torch."""
    yield "auto", "the fastest there is"
    yield "cpu", ""
    if sys.platform == "darwin":
        yield "mps", "Apple's GPU"
        return
    yield "cuda", "the first NVIDIA GPU"
    for path in Path("/dev").glob("nvidia[0-9]*"):
        yield f"cuda:{path.name.removeprefix('nvidia')}", ""


teachers = _completer(_teachers)
networks = _completer(_networks)
student_networks = _completer(_student_networks)
archives = _completer(_archives)
images = _completer(_images)
labelled_images = _completer(_labelled_images)
label_sets = _completer(_label_sets)
runs = _completer(_runs)
weights = _completer(_weights)
scored = _completer(_scored)
published = _completer(_published)
sources = _completer(partial(_data_sets, without="cityscapes"))
targets = _completer(_data_sets)
devices = _completer(_devices)
rules = _choices(dict.fromkeys((FusionRule.CONSENSUS, *FusionRule)))  # the usual one first
commands = _completer(
    lambda ctx, workspace: ((name, "") for name in ctx.find_root().command.list_commands(ctx))
)
policies = _choices(PolicyKind)
formats, accuracies, merging = _choices(Format), _choices(Accuracy), _choices(MergeBy)
label_formats, labelled = _choices(LabelFormatName), _choices(Labelled)
codecs = _choices(Codec)
class_maps = _choices(ClassMapName)
temperatures = _choices(FittedOn)
augmentations = _choices(Augmentation)
shells = _plain("bash", "zsh", "fish", "powershell")
scales = _plain("0.5", "0.75", "1", "1.25", "1.5", "1.75", "2")
sizes = _plain("512x256", "1024x512", "2048x1024")

AFTER_EQUALS: dict[str, Completer] = {"teachers": weights}
"""Parameters whose values may be NAME=VALUE, and what completes VALUE; it is a path as well."""
