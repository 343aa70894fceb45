"""What TAB offers, asked as the shells ask: environment in, lines out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from endauda_cli.transforms import AUGMENTATIONS
from tests.command_lines import SIZE_FLAGS, TEACHERS, TRAIN, make_archive, make_workspace, succeed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with archives, two label sets, a run and downloaded weights."""
    root = make_workspace(tmp_path_factory.mktemp("used"))
    make_archive(root, "one", TRAIN[:1], "synthia")
    succeed("fuse", "--workspace", root, "--rule", "majority")
    succeed("fuse", "--workspace", root, "--rule", "certainty", "--name", "mean70")
    succeed("train", "--workspace", root, *SIZE_FLAGS, "--steps", "1", "--name", "student")
    weights = root / "weights/weights/gta5/source/model.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    return root


def ask(environment: dict[str, str], cwd: Path) -> list[str]:
    """The lines that the completion program answers with; it must be silent otherwise, and end well."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['endauda']; from endauda_cli.cli import entry; entry()"],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


def bash(line: str, cwd: Path) -> list[str]:
    """As completions/endauda.bash asks, with the cursor at the end of the line."""
    words = line.split(" ")
    return ask(
        {"_ENDAUDA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}, cwd
    )


def zsh(line: str, cwd: Path) -> list[str]:
    """As completions/_endauda asks; the answer is a call of ``_arguments`` or ``compadd``."""
    return ask({"_ENDAUDA_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}, cwd)


def fish(line: str, cwd: Path) -> list[str]:
    """As completions/endauda.fish asks for arguments."""
    answer = ask(
        {
            "_ENDAUDA_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TYPER_COMPLETE_ARGS": line,
        },
        cwd,
    )
    return [entry.partition("\t")[0] for entry in answer]


COMMANDS = {
    "config",
    "demo",
    "doctor",
    "download-weights",
    "export-teacher",
    "fuse",
    "inspect",
    "test",
    "train",
}
STUDENT = {"runs/gta5/student/last.pt", "weights/weights/gta5/source/model.pth"}
OFFERS = {
    "endauda ": COMMANDS,
    "endauda fuse --teachers ": {"cbst", "crst", "dacs"},
    "endauda fuse --teachers dacs ": {"cbst", "crst"},
    "endauda fuse --teachers dacs c": {"cbst", "crst"},
    "endauda fuse --teachers dacs cbst cr": {"crst"},
    "endauda fuse -t dacs ": {"cbst", "crst"},
    "endauda fuse --source synthia --teachers ": {"one"},
    "endauda fuse --rule ": {"plf", "certainty", "majority", "soft-label", "consensus"},
    "endauda fuse --policy ": {"auto", "few-shot", "val", "certainty", "paper"},
    "endauda fuse --teachers dacs --policy c": {"certainty"},
    "endauda fuse --source s": {"synthia", "synthia-13", "synthia-19"},
    "endauda train --labels ": {"majority", "mean70"},
    "endauda train --init ": STUDENT,
    "endauda train --name ": {"student"},
    "endauda train --augment ": set(AUGMENTATIONS),
    "endauda train --backbone ": {"drn", "resnet", "mobilenet", "tiny"},
    "endauda test --weights ": STUDENT,
    "endauda test --weights runs": {"runs/gta5/student/last.pt"},
    "endauda export-teacher ": {"cbst", "crst", "dacs"},
    "endauda export-teacher dacs --split ": {"train", "val", "test"},
    "endauda export-teacher mine --network mr": {"mrkld", "mrnet"},
    "endauda inspect d": {"dacs"},
    "endauda download-weights gta5/": {"gta5/ours/drn", "gta5/source"},
    "endauda download-weights dacs mr": {"mrnet"},
    "endauda download-weights dacs da": set(),
}


@pytest.mark.parametrize("line", OFFERS)
def test_bash(line: str, used: Path) -> None:
    assert set(bash(line, used)) == OFFERS[line]


@pytest.mark.parametrize("line", ["endauda fuse --teachers dacs ", "endauda fuse --teachers dacs c"])
def test_other_shells(line: str, used: Path) -> None:
    """Values in zsh's and fish's forms."""
    assert set(fish(line, used)) == OFFERS[line]
    answer = " ".join(zsh(line, used))
    assert all(f'"{name}"' in answer for name in OFFERS[line]) and '"dacs"' not in answer


def test_options(used: Path) -> None:
    assert {"--teachers", "--rule", "--policy", "--threshold", "--window"} <= set(
        bash("endauda fuse --", used)
    )
    assert set(bash("endauda fuse --teachers dacs crst --thr", used)) == {"--threshold"}


def test_commands_with_their_help(used: Path) -> None:
    answer = " ".join(zsh("endauda ", used))
    assert all(command in answer for command in COMMANDS)
    assert "Store a teacher" in answer


def test_workspace_of_a_data_set(used: Path, tmp_path: Path) -> None:
    """endauda.toml says which data sets, as the demo leaves it; TOML files complete, too."""
    for name in ("noon", "dusk"):
        (tmp_path / f"{name}.toml").write_text(
            f"name = '{name}'\nclasses = ['road', 'sky']\n[train]\nimages = '*.png'\n"
        )
    (tmp_path / "endauda.toml").write_text(
        "[fuse]\nsource = 'noon.toml'\ntarget = 'dusk.toml'\n[train]\nsource = 'noon.toml'\ntarget = 'dusk.toml'\n"
    )
    shutil.copytree(used / "certainty/gta5/dacs", tmp_path / "certainty/noon/places")
    shutil.copytree(used / "Warehouse/Cityscapes/data/gtFine/majority", tmp_path / "labels/dusk/mine")
    record = tmp_path / "labels/dusk/mine/fusion.json"
    record.write_text(record.read_text().replace('"source": "gta5"', '"source": "noon"'))
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        assert bash("endauda fuse --teachers ", folder) == ["places"]
        assert bash("endauda train --labels ", folder) == ["mine"]
    assert {"noon.toml", "dusk.toml"} <= set(bash("endauda fuse --target ", tmp_path))
    assert bash("endauda fuse --source gta5 --teachers ", tmp_path) == []


def test_workspace_that_is_named(used: Path, tmp_path: Path) -> None:
    assert bash(f"endauda fuse --workspace {used} --teachers ", tmp_path) == sorted(TEACHERS)
    assert bash("endauda fuse --workspace /nowhere --teachers ", tmp_path) == []


def test_broken_workspaces_are_silent(used: Path, tmp_path: Path) -> None:
    """A syntax error in endauda.toml, a file where a folder is expected, a torn record."""
    (tmp_path / "endauda.toml").write_text("[fuse\n")
    assert bash("endauda fuse --teachers ", tmp_path) == []
    assert set(bash("endauda fuse --rule ", tmp_path)) == OFFERS["endauda fuse --rule "]
    (tmp_path / "endauda.toml").write_text("")
    (tmp_path / "certainty").mkdir()
    (tmp_path / "certainty/gta5").write_text("no folder")
    (tmp_path / "runs/gta5/mine/last.pt").mkdir(parents=True)
    (tmp_path / "Warehouse/Cityscapes/data/gtFine/torn").mkdir(parents=True)
    (tmp_path / "Warehouse/Cityscapes/data/gtFine/torn/fusion.json").write_text('{"source": ')
    for line in ("fuse --teachers ", "train --labels "):
        assert bash(f"endauda {line}", tmp_path) == []
    if os.geteuid() != 0:  # root may read everything
        (tmp_path / "certainty/gta5").unlink()
        (tmp_path / "certainty/gta5").mkdir(mode=0)
        assert bash("endauda fuse --teachers ", tmp_path) == []


@pytest.mark.parametrize(
    "line", ["endauda fuse --teachers 'da", 'endauda fuse --name "a b" --ru', "endauda nothing "]
)
def test_half_typed_lines_are_silent(line: str, used: Path) -> None:
    bash(line, used)
    zsh(line, used)


def test_installed_functions_ask_like_this() -> None:
    """The files in completions/ set the variables that are set here."""
    files = {"endauda.bash": ("COMP_WORDS", "COMP_CWORD"), "_endauda": ("_TYPER_COMPLETE_ARGS",)}
    files["endauda.fish"] = ("_TYPER_COMPLETE_ARGS", "_TYPER_COMPLETE_FISH_ACTION")
    for name, variables in files.items():
        text = (ROOT / "completions" / name).read_text()
        assert all(variable in text for variable in (*variables, "_ENDAUDA_COMPLETE"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself(used: Path, tmp_path: Path) -> None:
    """The file in completions/, sourced and called by a real shell."""
    script = """
    source "$1"
    COMP_WORDS=(endauda fuse --teachers dacs ""); COMP_CWORD=4
    _endauda_completion endauda; echo "${COMPREPLY[*]}"
    """
    (tmp_path / "endauda").write_text(f'#!/bin/sh\nexec {sys.executable} -m endauda_cli "$@"\n')
    (tmp_path / "endauda").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(ROOT / "completions/endauda.bash")], cwd=used,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["cbst", "crst"], "")
