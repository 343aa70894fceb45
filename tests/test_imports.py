"""Who may import whom: downward only, no cycles. Read from the source, so it holds for imports in functions too."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from PIL import Image

from endauda_cli.archive import CertaintyWriter
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "endauda_cli"

TABLES = re.findall(r"(?m)^(?:\|.*\n)+", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def rows(table: str) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


def names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([\w.]+)`", cell))


LAYERS = {layer: names(modules) for layer, _, modules in reversed(rows(TABLES[0]))}
"""From the bottom up: a layer imports from those before it."""
SIDEWAYS = {names(module)[0]: set(names(others)) for module, others in rows(TABLES[1])}
"""Imports within a layer. Inside a package (archive, models, commands) every one is fine, but no cycle."""

STDLIB_ONLY = ("words", "values")
LIGHT = (
    *("torch", "torchvision", "numpy", "h5py", "hdf5plugin", "PIL", "jinja2", "tensorboard"),
    *("numba", "requests"),
)
NOT_IN_KERNELS = {"h5py", "hdf5plugin", "pathlib", "PIL"}
EXCEPTIONS = {
    "transforms": {"PIL"},
    "demo.street": {"PIL"},
}  # Pillow resizes as published, and draws


COMPILER = ("torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "torchvision")
"""The compiler, which takes as long to load as torch itself, and what brings it along."""
NOT_LOADED = {
    "train --labels plf --steps 1 --crop 32x32 --batch-size 2": (*COMPILER, "numba"),
    "test": (*COMPILER, "numba", "h5py", "hdf5plugin", "tensorboard"),
    "export-teacher other --weights runs/tiny/student/last.pt": (*COMPILER, "tensorboard", "jinja2"),
    "fuse --teachers live=runs/tiny/student/last.pt": (*COMPILER, "tensorboard"),
    "test --predictions fused": (*COMPILER, "torch", "numba", "h5py", "hdf5plugin", "tensorboard"),
    "test --labels labels/tiny/plf": (*COMPILER, "torch", "numba", "h5py", "hdf5plugin", "tensorboard"),
    "test --archive said --compare said fused": (*COMPILER, "torch", "numba", "tensorboard"),
}
"""What a whole command never imports, besides the plugins of Pillow that no image file of ours needs."""
TINY = """
name = "tiny"
classes = ["road", "car", "sky"]
[train]
images = "images/*.png"
[val]
images = "images/*.png"
labels = "fused/*.png"
"""


class Import(NamedTuple):
    """``name`` as written, absolute; whether only the type checker sees it."""

    name: str
    typing_only: bool


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name without ``endauda_cli.``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:  # not the package itself, which holds its version
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(tree: ast.AST, typing_only: bool = False) -> list[Import]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            if node.module != "__future__":
                found += [Import(f"{node.module}.{alias.name}", typing_only) for alias in node.names]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                found += imports_of(ast.Module([child], []), True)
            for child in node.orelse:
                found += imports_of(ast.Module([child], []), typing_only)
        else:
            found += imports_of(node, typing_only)
    return found


MODULES = modules()
IMPORTS = {name: imports_of(tree) for name, tree in MODULES.items()}
LAYER_OF = {module: layer for layer, members in LAYERS.items() for module in members}
ORDER = list(LAYERS)


def own(imported: Import) -> str | None:
    """The module of this package that an import names, if it is one."""
    package, _, rest = imported.name.partition(".")
    if package != PACKAGE.name or not rest:
        return None
    return rest if rest in MODULES else rest.rpartition(".")[0] or None


def top(module: str) -> str:
    """The entry of the table that a module belongs to: the longest that it begins with."""
    fitting = (entry for entry in LAYER_OF if f"{module}.".startswith(f"{entry}."))
    return max(fitting, key=len, default=module.partition(".")[0])


def test_every_module_has_a_layer() -> None:
    assert {top(name) for name in MODULES} == set(LAYER_OF)
    assert sum(map(len, LAYERS.values())) == len(LAYER_OF)
    assert imports_of(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name: str) -> None:
    for imported in IMPORTS[name]:
        other = own(imported)
        if other is None or top(other) == top(name):
            continue
        below = ORDER.index(LAYER_OF[top(other)]) < ORDER.index(LAYER_OF[top(name)])
        assert below or top(other) in SIDEWAYS.get(top(name), ()), f"{name} imports {other}"


def test_no_cycles() -> None:
    graph = {name: {o for i in IMPORTS[name] if (o := own(i)) is not None} for name in MODULES}
    # A package imports its members; that members name their package as they name each other is no cycle.
    edges = {name: {o for o in others if o != top(name)} for name, others in graph.items()}
    TopologicalSorter(edges).prepare()  # CycleError


def test_sideways_imports_are_needed() -> None:
    """The table does not permit what nobody does."""
    used = {
        (top(name), top(other))
        for name in MODULES
        for imported in IMPORTS[name]
        if (other := own(imported)) is not None and LAYER_OF[top(other)] == LAYER_OF[top(name)]
    }
    assert {(a, b) for a, others in SIDEWAYS.items() for b in others} == {(a, b) for a, b in used if a != b}


def test_only_the_command_line_knows_the_terminal() -> None:
    for name, imports in IMPORTS.items():
        names = {own(i) for i in imports} | {top(i.name) for i in imports}
        if names & {"terminal.console", "rich"}:
            assert top(name) in ("cli", "commands", "completion", "terminal"), name
        if "typer" in names:
            assert top(name) in ("cli", "commands", "completion", "terminal"), name


@pytest.mark.parametrize("name", [name for name in MODULES if LAYER_OF[top(name)] == "kernels"])
def test_kernels_know_no_files(name: str) -> None:
    forbidden = NOT_IN_KERNELS - EXCEPTIONS.get(top(name), set())
    found = {top(imported.name) for imported in IMPORTS[name] if not imported.typing_only}
    assert not found & forbidden


@pytest.mark.parametrize("name", [name for name in MODULES if LAYER_OF[top(name)] in STDLIB_ONLY])
def test_words_and_values_need_the_standard_library_alone(name: str) -> None:
    found = {top(imported.name) for imported in IMPORTS[name]}
    assert found <= sys.stdlib_module_names | {PACKAGE.name}


def test_help_and_completion_load_nothing_heavy() -> None:
    """In a fresh interpreter, everything that runs before a command does."""
    layers = ("words", "values", "commands", "entry")
    light = [
        n
        for n in MODULES
        if LAYER_OF[top(n)] in layers or n in ("workspace", "datasets", "completion.values")
    ]
    lines = [f"import {PACKAGE.name}.{name}" for name in light if name != "__main__"]
    lines += ["import sys", f"print(*sorted(set(sys.modules) & set({LIGHT})))"]
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.split() == []


def imported_by(line: str, workspace: Path) -> set[str]:
    """All modules of a process in which the whole command ran."""
    words = line.split()
    if "--predictions" not in words:
        words += ["--size", "64x32"]
    program = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=open('modules', 'w')))"
    program += "; from endauda_cli.cli import entry; entry()"
    subprocess.run(
        [sys.executable, "-c", program, *words, "--target", "tiny.toml", "--device", "cpu"],
        cwd=workspace, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    return set((workspace / "modules").read_text().split())


@pytest.fixture(scope="module")
def tiny_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image, its labels, an archive and a student."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "tiny.toml").write_text(TINY)
    rng = np.random.default_rng(0)
    for folder, shape in {"images": (32, 64, 3), "fused": (32, 64), "labels/tiny/plf": (32, 64)}.items():
        (root / folder).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(root / folder / "one.png")
    with CertaintyWriter(root / "certainty/tiny/said", classes=("road", "car", "sky")) as writer:
        writer.write("one", np.zeros((32, 64), np.uint8), np.zeros((3, 32, 64), np.uint8))
    imported_by(
        "train --labels plf --name student --backbone tiny --steps 1 --crop 32x32 --batch-size 2", root
    )
    return root


@pytest.mark.slow
@pytest.mark.parametrize("line", NOT_LOADED)
def test_commands_load_only_what_they_use(line: str, tiny_workspace: Path) -> None:
    loaded = imported_by(line, tiny_workspace)
    assert "endauda_cli.labels" in loaded
    assert not loaded & {
        *NOT_LOADED[line],
        "PIL.EpsImagePlugin",
        "PIL.AvifImagePlugin",
        "PIL.Jpeg2KImagePlugin",
    }
