"""The packages that endauda needs: there, new enough, fitting each other, and able to work."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import tomllib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

import endauda_cli
from endauda_cli.progress import Tick
from endauda_cli.results import Finding

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from endauda_cli.progress import Reporter

PACKAGE = "endauda"
MODULES = {"pillow": "PIL"}
"""What a package is imported as, where that is not its own name."""
NEEDED_BY_ALL = ("torch", "torchvision", "numpy", "pillow", "h5py", "hdf5plugin", "imagecodecs", "numba")
"""Without one of these no command does its work."""
DEVELOPMENT = ("test",)
"""Extras that only those who change endauda want."""
WHEELS = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Requirement:
    """A package that endauda asks for."""

    name: str
    line: str
    """As pip takes it: ``torch>=2.10``."""
    versions: str
    """``>=2.10``."""
    extra: str | None
    """The extra that asks for it; ``None`` is always wanted."""

    @property
    def module(self) -> str:
        return MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def install(self) -> str:
        return f"pip install '{self.line if self.extra is None else f'{PACKAGE}[{self.extra}]'}'"


def check_program(report: Reporter) -> list[Finding]:
    """Imports every package once. One that fails to is a finding."""
    required, origin = _requirements()
    findings = [_versions_of_ours(origin)]
    good: dict[str, str] = {}
    reasons: dict[str, str] = {}
    with suppress(Exception):  # why not is found below
        import_quietly("endauda_cli.jit")  # before numba reads settings that it does not load with
    for done, requirement in enumerate(required):
        report(Tick("looking at packages", done, len(required), requirement.name, "packages"))
        finding = _check(requirement, reasons)
        if finding.state == "ok":
            good[requirement.name] = finding.facts["version"]
        else:
            findings.append(finding)
    report(Tick("looking at packages", len(required), len(required), unit="packages"))
    if good:
        text = ", ".join(f"{name} {version}" for name, version in good.items())
        findings.insert(1, Finding("packages", "ok", text, facts=dict(good)))
    for name, needs, look in (
        ("torchvision", ("torch", "torchvision"), _check_torchvision),
        ("numba", ("numpy", "numba"), _check_numba),
        ("h5py", ("numpy", "h5py", "hdf5plugin", "imagecodecs"), _check_hdf5),
    ):
        if good.keys() >= set(needs):
            findings.append(_guarded(name, look))
    return findings


def failure(error: BaseException) -> str:
    """The first sentence of an error, for a line of the report."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shorten(lines[0], 200, placeholder=" ...")


def import_quietly(module: str) -> ModuleType:
    """The module, without the warnings of its authors. Raises whatever it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def reinstall_torch() -> str:
    """The line that gives torch and torchvision of one build: of the one that is there, if it is a special one."""
    _, _, build = (_version("torch") or "").partition("+")
    index = f" --index-url {WHEELS}/{build}" if re.fullmatch(r"cu\d+|cpu|rocm[\d.]+", build) else ""
    return f"pip install --force-reinstall torch torchvision{index}"


# ---------------------------------------------------------------------------- what is asked for


def _versions_of_ours(origin: str | None) -> Finding:
    text = f"{endauda_cli.__version__} in {Path(endauda_cli.__file__).parent}, Python {platform.python_version()}"
    facts = {"version": endauda_cli.__version__, "python": platform.python_version()}
    if origin is None:
        text += "; it was not installed by pip, so what versions it needs is not known"
        return Finding(PACKAGE, "note", text, "pip install .", facts)
    if shutil.which(PACKAGE) is None:
        run = shlex.quote(f"{shlex.quote(sys.executable)} -m endauda_cli")
        alias = None if os.name == "nt" else f"alias {PACKAGE}={run}"
        text += f"; '{PACKAGE}' is not found on PATH, so type 'python -m endauda_cli'"
        return Finding(PACKAGE, "note", text, alias, facts)
    return Finding(PACKAGE, "ok", text, facts=facts)


def _requirements() -> tuple[list[Requirement], str | None]:
    """What the checkout's ``pyproject.toml`` or the installed package asks for, and which of the two it was."""
    lines, origin = _lines_of_checkout(), "pyproject.toml"
    if not lines:
        try:
            lines, origin = importlib.metadata.requires(PACKAGE) or [], "metadata"
        except importlib.metadata.PackageNotFoundError:
            return [Requirement(name, name, "", None) for name in NEEDED_BY_ALL], None
    parsed = (_parse(line) for line in lines)
    return [r for r in parsed if r is not None and r.name != PACKAGE and r.extra not in DEVELOPMENT], origin


def _lines_of_checkout() -> list[str]:
    """Requirements in the form of ``Requires-Dist``."""
    try:
        path = Path(endauda_cli.__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        if project["name"] != PACKAGE:
            return []
        extras = project.get("optional-dependencies", {})
        wanted = [f'{line}; extra == "{extra}"' for extra, lines in extras.items() for line in lines]
        return [*project["dependencies"], *wanted]
    except (OSError, ValueError, KeyError):
        return []


def _parse(line: str) -> Requirement | None:
    """A requirement; ``None`` if it is for another system or version of Python."""
    wanted, _, marker = line.partition(";")
    match = re.match(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)]*)\)?", wanted)
    extra = re.search(r"extra\s*==\s*[\"']([\w.-]+)", marker)
    if match is None or not _applies(marker, extra[1] if extra else ""):
        return None
    name, versions = match[1].lower(), match[2].strip()
    return Requirement(name, f"{name}{versions}", versions, extra[1] if extra else None)


def _applies(marker: str, extra: str) -> bool:
    if not marker.strip():
        return True
    try:
        from packaging.markers import Marker
    except ImportError:
        return True
    return Marker(marker.strip()).evaluate({"extra": extra})


def _fits(version: str, versions: str) -> bool:
    """Whether a version is one of those; true where nobody can tell."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError:
        return True
    try:
        return SpecifierSet(versions).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------------------- what is there


def _check(requirement: Requirement, reasons: dict[str, str]) -> Finding:
    """Looks at a package. ``reasons`` says of errors which package was the first to fail with it: others that import
    that one fail alike."""
    name, version = requirement.name, _version(requirement.name)
    facts = {"version": version, "needs": requirement.versions, "extra": requirement.extra}
    if importlib.util.find_spec(requirement.module) is None:
        text = "not installed"
        if requirement.extra is not None:
            text += f"; only needed for what the extra '{requirement.extra}' adds"
        return Finding(name, _without(requirement), text, requirement.install, facts)
    try:
        module = import_quietly(requirement.module)
    except Exception as error:
        first = reasons.setdefault(failure(error), name)
        if first != name:
            return Finding(name, _without(requirement), f"{version or ''} needs {first}".strip(), None, facts)
        return _not_importable(requirement, failure(error), facts)
    version = facts["version"] = version or str(getattr(module, "__version__", "of unknown version"))
    if not _fits(version, requirement.versions):
        text = f"{version}, but endauda needs {requirement.versions}"
        install = requirement.install.replace("install", "install --upgrade", 1)
        return Finding(name, "note", text, install, facts)
    return Finding(name, "ok", version, facts=facts)


def _without(requirement: Requirement) -> Literal["broken", "missing", "note"]:
    """How bad it is to be without a package."""
    if requirement.extra is not None:
        return "note"
    return "broken" if requirement.name in NEEDED_BY_ALL else "missing"


def _not_importable(requirement: Requirement, reason: str, facts: dict[str, Any]) -> Finding:
    install = f"pip install --force-reinstall '{requirement.line}'"
    if requirement.name in ("torch", "torchvision"):
        install = reinstall_torch()
    if requirement.name == "torchvision" and (misfit := _misfit()):
        reason = f"{reason} ({misfit})"
    state = _without(requirement)
    return Finding(
        requirement.name,
        state,
        f"{facts['version'] or ''} cannot be imported: {reason}".strip(),
        install,
        facts,
    )


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return look()
    except Exception as error:
        mend = reinstall_torch() if name == "torchvision" else f"pip install --force-reinstall {name}"
        return Finding(name, "broken", f"does not work: {failure(error)}", mend)


def _misfit() -> str | None:
    """Why torchvision cannot work with this torch, as far as their versions tell."""
    torch = _version("torch")
    try:
        requires = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in filter(None, map(_parse, requires)):
        if requirement.name == "torch" and torch and not _fits(torch, requirement.versions):
            built = requirement.versions.removeprefix("==")
            return f"torchvision {_version('torchvision')} was built for torch {built}, but torch {torch} is here"
    return None


def _check_torchvision() -> Finding:
    """Runs one of its compiled operators: with a torch that it was not built for they are the first to go."""
    torch, ops = import_quietly("torch"), import_quietly("torchvision.ops")
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
    kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise RuntimeError(f"its operator nms keeps boxes {kept} instead of [0, 2]")
    if misfit := _misfit():
        return Finding("torchvision", "note", misfit, reinstall_torch())
    return Finding("torchvision", "ok", "fits torch: its compiled operators run")


def _check_numba() -> Finding:
    """Compiles a line, and asks where machine code is kept."""
    compiled = import_quietly("endauda_cli.jit").jit(_successor)
    if compiled(1) != 2:
        raise RuntimeError("what it compiled computes something else")
    folder = compiled.stats.cache_path
    if folder is None or not os.access(folder, os.W_OK):
        return Finding(
            "numba", "note", "compiles, but has no folder to keep machine code in, so each command compiles anew",
            "export NUMBA_CACHE_DIR=/tmp/numba",
        )  # fmt: skip
    return Finding("numba", "ok", f"compiles, and keeps machine code in {folder}", facts={"cache": folder})


def _successor(number: int) -> int:
    return number + 1


def _check_hdf5() -> Finding:
    h5py = import_quietly("h5py")
    archive = import_quietly("endauda_cli.archive")  # asks HDF5 for each filter
    version = str(h5py.version.hdf5_version)
    return Finding(
        "HDF5", "ok", f"{version}, with filters for the codecs {', '.join(map(str, archive.CODECS))}",
        facts={"version": version},
    )  # fmt: skip
