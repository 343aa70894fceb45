"""Which workspace, source and target are meant, who says so, and command lines that mean the same."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.datasets import load_task
from endauda_cli.errors import ConfigError, EndaudaError
from endauda_cli.results import Finding
from endauda_cli.workspace import CONFIG_FILE, Workspace, find_workspace, read_config

if TYPE_CHECKING:
    from endauda_cli.domains import Domain, Task

STEPS = ("export-teacher", "fuse", "train", "test")
"""The commands of the way from images to a score."""
OPTIONS = {
    "export-teacher": ("source", "target", "source-data", "target-data"),
    "fuse": ("source", "target", "target-data"),
    "train": ("source", "target", "source-data", "target-data"),
    "test": ("source", "target", "target-data"),
    "inspect": ("source", "target"),
}
"""Options that lead a command to its data."""
DEFAULTS = {"target": "cityscapes"}


@dataclass(frozen=True)
class Asked:
    """What the user said; ``None`` is left to the environment, ``endauda.toml`` and the defaults."""

    workspace: Path | None = None
    options: dict[str, str | None] = field(default_factory=dict)
    """``source``, ``target``, ``source-data``, ``target-data``."""
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each command takes for its options from the environment and ``endauda.toml``."""
    wrong: str | None = None
    """What is wrong with these."""


@dataclass(frozen=True)
class Place:
    """A workspace and what is adapted to what in it."""

    workspace: Workspace
    asked: Asked
    used: dict[str, str]
    """The options of ``Asked`` as they hold, less those that nobody gave."""
    task: Task | None
    """``None`` if source or target cannot be found."""

    def roots(self, domain: Domain, option: str) -> tuple[Path, ...]:
        """Folders that may hold a domain's images."""
        given = self.used.get(option)
        return self.workspace.data_roots(domain) if given is None else (self.workspace.path(Path(given)),)

    def line(self, command: str, *words: str) -> str:
        """A command line to copy that means this workspace, source and target from the current folder."""
        parts = ["endauda", command, *words]
        for option in OPTIONS.get(command, ()):
            value = self.used.get(option)
            if value is not None and value != _told(self.asked, command, option):
                parts += [f"--{option}", value]
        if self.asked.workspace is not None:
            parts += ["--workspace", str(self.asked.workspace)]
        return shlex.join(parts)


def find_place(asked: Asked) -> tuple[Place | None, list[Finding]]:
    """The place, ``None`` if there is no workspace; and what there is to say of it."""
    try:
        workspace = find_workspace(asked.workspace)
        where = Finding("workspace", "ok", f"{workspace.root} ({_why(asked.workspace, workspace)})",
                        facts={"path": str(workspace.root)})  # fmt: skip
    except (EndaudaError, OSError) as error:
        folder = asked.workspace or Path(os.environ.get("ENDAUDA_WORKSPACE", "."))
        mend = None if _exists(folder) else f"mkdir -p {shlex.quote(str(folder))}"
        return None, [Finding("workspace", "broken", str(error), mend)]
    used, disagreements = _options(asked)
    task, about_task = _load_task(workspace, used)
    place = Place(workspace, asked, used, task)
    findings = [where, *_check_config(asked, workspace), *disagreements, *about_task]
    for option in ("source-data", "target-data"):
        if option in used and not place.workspace.path(Path(used[option])).is_dir():
            findings.append(Finding(f"--{option}", "missing", f"{used[option]}: no such folder"))
    return place, findings


def _why(given: Path | None, workspace: Workspace) -> str:
    if given is not None:
        return "--workspace"
    if os.environ.get("ENDAUDA_WORKSPACE"):
        return "ENDAUDA_WORKSPACE"
    if (workspace.root / CONFIG_FILE).is_file():
        return f"holds {CONFIG_FILE}"
    return f"the current folder; no {CONFIG_FILE} here or above"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True


def _check_config(asked: Asked, workspace: Workspace) -> list[Finding]:
    path, wrong = workspace.root / CONFIG_FILE, asked.wrong
    if wrong is not None and str(path) not in wrong:
        return [Finding("environment", "missing", wrong.removeprefix("environment: "))]
    if wrong is not None:
        edit = None if os.name == "nt" else f"${{EDITOR:-vi}} {shlex.quote(str(path))}"
        return [Finding(CONFIG_FILE, "broken", wrong.removeprefix(f"{path}: "), edit)]
    if not path.is_file():
        return []
    keys = (f"[{key}]" if isinstance(value, dict) else key for key, value in read_config(workspace).items())
    return [Finding(CONFIG_FILE, "ok", f"valid; sets {', '.join(keys) or 'nothing'}")]


def _told(asked: Asked, command: str, option: str) -> str | None:
    """What a command takes if nothing is typed."""
    return asked.told.get(command, {}).get(option, DEFAULTS.get(option))


def _options(asked: Asked) -> tuple[dict[str, str], list[Finding]]:
    """The options that hold: typed ones, else what the commands take, of whom the first one that says
    something counts."""
    used: dict[str, str] = {}
    findings = []
    for option in OPTIONS["train"]:
        if (typed := asked.options.get(option)) is not None:
            used[option] = typed
            continue
        told = {command: _told(asked, command, option) for command in STEPS if option in OPTIONS[command]}
        default = DEFAULTS.get(option)
        value = next((v for v in told.values() if v not in (None, default)), default)
        if value is not None:
            used[option] = value
        if len(set(told.values())) > 1:
            says = ", ".join(f"{command} {v or 'the default'}" for command, v in told.items())
            text = f"the commands take different ones ({says}); this report is for {value}"
            findings.append(Finding(f"--{option}", "note", text))
    return used, findings


def _load_task(workspace: Workspace, used: dict[str, str]) -> tuple[Task | None, list[Finding]]:
    try:
        task = load_task(used.get("source"), used["target"], workspace.root)
    except (EndaudaError, OSError) as error:
        names = " and ".join(f"--{key} {used[key]}" for key in ("source", "target") if key in used)
        mend = "endauda doctor --source gta5 --target cityscapes" if isinstance(error, ConfigError) else None
        return None, [Finding("domains", "missing", f"{names}: {error}", mend)]
    text = f"{task.source.name} -> {task.target.name}, {len(task.classes)} classes"
    facts = {"source": task.source.name, "target": task.target.name, "classes": list(task.classes)}
    return task, [Finding("domains", "ok", text, facts=facts)]
