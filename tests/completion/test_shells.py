"""TAB in the real shells: type, press TAB, read the screen."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from tests.support.command_lines import TEACHERS, TRAIN, make_archive, shell
from tests.support.terminals import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

PACKAGE_OF_BASH = Path("/usr/share/bash-completion/bash_completion")
PROMPT = "ready>"


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three archives, runs, and names that need quoting."""
    root = tmp_path_factory.mktemp("used")
    for teacher in TEACHERS:
        make_archive(root, teacher, TRAIN[:2])
    for name in ("student", "two words"):
        run = root / "runs/gta5" / name
        run.mkdir(parents=True)
        (run / "last.pt").touch()
        (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 41}\n')
        (run / "config.json").write_text(json.dumps({"config": {"steps": 100}}))
    (root / "my folder").mkdir()
    (root / "my folder/a b.pth").touch()
    return root


class Person:
    """Types at a prompt; the shell is started anew for each line."""

    def __init__(self, command: list[str], home: Path, cwd: Path) -> None:
        self.command, self.cwd, self.home = command, cwd, home
        programs = home / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        (programs / "endauda").write_text(f'#!/bin/sh\nexec {sys.executable} -m endauda_cli "$@"\n')
        (programs / "endauda").chmod(0o755)
        self.environment = {
            "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "xterm",
            "LC_ALL": "C.UTF-8", "INPUTRC": str(home / "inputrc"),
        }  # fmt: skip
        (home / "inputrc").write_text(
            "set bell-style none\nset show-all-if-ambiguous on\nset enable-bracketed-paste off\n"
        )

    def sees(self, keys: str, *texts: str) -> str:
        """What is on the screen once it shows the texts after the keys."""
        terminal = Terminal(self.command, self.cwd, self.environment)
        try:
            terminal.wait_for(PROMPT)
            terminal.type(keys)
            return terminal.wait_for(*texts)
        finally:
            terminal.close()


def bash(home: Path, cwd: Path, startup: str) -> Person:
    (home / ".bashrc").write_text(f"{startup}\nPS1='{PROMPT} '\n")
    return Person(["bash", "--noprofile", "--rcfile", str(home / ".bashrc"), "-i"], home, cwd)


def bash_alone(home: Path, cwd: Path) -> Person:
    return bash(home, cwd, f". {ROOT}/completions/endauda.bash")


def bash_with_package(home: Path, cwd: Path) -> Person:
    """The package loads the script by its name from the user's folder at the first TAB."""
    if not PACKAGE_OF_BASH.exists():
        pytest.skip("no bash-completion package")
    folder = home / ".local/share/bash-completion/completions"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "completions/endauda.bash", folder / "endauda")
    return bash(home, cwd, f". {PACKAGE_OF_BASH}")


def zsh(home: Path, cwd: Path, startup: str) -> Person:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh")
    (home / ".zshrc").write_text(f"{startup}\nPS1='{PROMPT} '\n")
    return Person(["zsh", "-d", "-i"], home, cwd)


def zsh_sourced(home: Path, cwd: Path) -> Person:
    return zsh(home, cwd, f"autoload -Uz compinit; compinit -u; . {ROOT}/completions/_endauda")


def zsh_autoloaded(home: Path, cwd: Path) -> Person:
    return zsh(home, cwd, f"fpath=({ROOT}/completions $fpath); autoload -Uz compinit; compinit -u")


def fish(home: Path, cwd: Path, script: bool = True) -> Person:
    if shutil.which("fish") is None:
        pytest.skip("no fish")
    folder = home / ".config/fish/completions"
    # Without it, a new user's fish reads all manual pages, in the background, for minutes.
    (home / ".local/share/fish/generated_completions").mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder.parent / "config.fish").write_text(
        f"function fish_prompt; echo -n '{PROMPT} '; end\nset -g fish_greeting\nset -g fish_autosuggestion_enabled 0\n"
    )
    if script:
        shutil.copy(ROOT / "completions/endauda.fish", folder)
    return Person(["fish", "-i"], home, cwd)


SHELLS = (bash_alone, bash_with_package, zsh_sourced, zsh_autoloaded, fish)


@pytest.fixture(params=SHELLS, ids=lambda start: start.__name__)
def person(request: pytest.FixtureRequest, tmp_path: Path, used: Path) -> Person:
    start: Callable[[Path, Path], Person] = request.param
    return start(tmp_path, used)


COMPLETED = {
    "endauda dow": "endauda download-weights ",
    "endauda fuse --thr": "endauda fuse --threshold ",
    "endauda fuse --teachers dacs cr": "endauda fuse --teachers dacs crst ",
    "endauda fuse --teachers=da": "endauda fuse --teachers=dacs ",
    "endauda fuse -t dacs,cr": "endauda fuse -t dacs,crst ",
    "endauda fuse --teachers=dacs,cr": "endauda fuse --teachers=dacs,crst ",
    "endauda fuse -t crst=runs/gta5/st": "endauda fuse -t crst=runs/gta5/student/last.pt ",
    "endauda fuse -t crst=my": r"endauda fuse -t crst=my\ folder/",
    "endauda test --weights runs/gta5/two": r"endauda test --weights runs/gta5/two\ words/last.pt ",
    'endauda test --weights "runs/gta5/two': 'endauda test --weights "runs/gta5/two words/last.pt" ',
    r"endauda test --weights my\ f": r"endauda test --weights my\ folder/",
    "endauda demo --out my": r"endauda demo --out my\ folder/",
    "endauda demo --out=my": r"endauda demo --out=my\ folder/",
    "true; A=1 endauda train --device cp": "true; A=1 endauda train --device cpu ",
}


def test_one_value_is_typed_out(person: Person) -> None:
    """All lines at one prompt: each is wiped before the next."""
    terminal = Terminal(person.command, person.cwd, person.environment)
    try:
        terminal.wait_for(PROMPT)
        for line, completed in COMPLETED.items():
            terminal.type(f"{line}\tX")  # X shows where the cursor is
            terminal.wait_for(f"{PROMPT} {completed}X")
            terminal.type("\x15\x0c")  # Control-U, Control-L: an empty line on an empty screen
    finally:
        terminal.close()


def test_several_values_are_listed(person: Person) -> None:
    """A second TAB, where the first types what they have in common."""
    shown = person.sees("endauda fuse --teachers dacs \t\t", "cbst", "crst")
    assert not any("dacs" in line for line in shown.splitlines() if not line.startswith(PROMPT))


def test_descriptions(person: Person) -> None:
    """Where the shell shows them."""
    if person.command[0] == "bash":
        shown = person.sees("endauda test --weights runs/gta5/\t\t", "student/last.pt")
        assert "step" not in shown
    else:
        person.sees("endauda test --weights runs/gta5/\t\t", "student/last.pt", "step 42 of 100")


def test_what_cannot_be_completed_stays(person: Person) -> None:
    """Neither values nor file names where neither fit; nothing else on the screen."""
    for line in ("endauda fuse --rule my", "endauda nothing my", "endauda fuse --teachers dacs my"):
        assert person.sees(f"{line}\tX", "myX") == f"{PROMPT} {line}X"


def test_a_program_that_fails_is_silent(person: Person) -> None:
    """Uninstalled, or broken: the shell goes on with file names."""
    (person.home / "bin/endauda").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    assert (
        person.sees("endauda test --weights my\tX", "folder/X")
        == rf"{PROMPT} endauda test --weights my\ folder/X"
    )


INSTALLED: dict[str, tuple[Callable[[Path, Path], Person], ...]] = {
    "bash": (
        lambda home, cwd: bash(home, cwd, "# nothing"),
        lambda home, cwd: bash(home, cwd, f". {PACKAGE_OF_BASH}"),
    ),
    "zsh": (
        lambda home, cwd: zsh(home, cwd, "# nothing"),
        lambda home, cwd: zsh(home, cwd, "autoload -Uz compinit; compinit -u"),
    ),
    "fish": (lambda home, cwd: fish(home, cwd, script=False),),
}


@pytest.mark.parametrize(
    ("name", "variant"), [(n, v) for n, all in INSTALLED.items() for v in range(len(all))]
)
def test_installed_by_the_program(name: str, variant: int, tmp_path: Path, used: Path) -> None:
    """``--install-completion`` as a user calls it, then a new shell."""
    person = INSTALLED[name][variant](tmp_path, used)
    done = shell(
        "--install-completion", name, cwd=used, HOME=str(tmp_path), PYTHONPATH=str(ROOT), XDG_DATA_HOME="",
        XDG_CONFIG_HOME="", BASH_COMPLETION_USER_DIR="", ZDOTDIR="",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    person.sees("endauda fuse -t dacs,cr\tX", "endauda fuse -t dacs,crst X")
