"""What TAB offers, asked as the shells ask: environment in, lines out."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import shellingham
import typer
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.augmentation import AUGMENTATIONS
from endauda_cli.cli import app
from endauda_cli.completion import shells, values
from endauda_cli.completion.shells import SHELLS
from endauda_cli.completion.tab import LINE, REPLACED, VARIABLE, split_line
from endauda_cli.terminal.parsing import Group
from endauda_cli.types import ClassMapName, Codec
from endauda_cli.weights.manifest import read_manifest
from tests.support import ROOT
from tests.support.command_lines import (
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    endauda,
    files_of,
    make_archive,
    make_workspace,
    succeed,
)


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


ENTRY = """
import sys
sys.argv = ["endauda"]
from endauda_cli.cli import main
code = main()
heavy = set("torch torchvision numpy h5py hdf5plugin PIL numba requests urllib3 http rich pydantic jinja2".split())
print(code, *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def ask(shell: str, line: str, cwd: Path, replaced: str | None = None, **environment: str) -> list[str]:
    """What the program answers to a shell's script, without the kind of word; it must end well, be silent otherwise,
    and load nothing heavy."""
    environment |= {"_ENDAUDA_COMPLETE": shell, "_ENDAUDA_LINE": line}
    if replaced is not None:
        environment["_ENDAUDA_WORD"] = replaced
    done = subprocess.run(
        [sys.executable, "-c", ENTRY], cwd=cwd, env=os.environ | environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "0\n")
    return done.stdout.splitlines()


def bash(line: str, cwd: Path) -> list[str]:
    """Values, with the cursor at the end of the line."""
    return ask("bash", line, cwd)[1:]


def described(line: str, cwd: Path) -> dict[str, str]:
    """Values with their descriptions, in fish's form."""
    return {value: text for value, _, text in (entry.partition("\t") for entry in ask("fish", line, cwd)[1:])}


COMMANDS = {
    "config",
    "demo",
    "deploy",
    "doctor",
    "download-weights",
    "export-labels",
    "export-teacher",
    "fuse",
    "import-labels",
    "inspect",
    "merge",
    "report",
    "test",
    "train",
}
STUDENT = {"student", "runs/gta5/student/last.pt", "weights/weights/gta5/source/model.pth"}
OFFERS = {
    "endauda ": COMMANDS,
    "endauda fuse --teachers ": {"cbst", "crst", "dacs"},
    "endauda fuse --teachers dacs ": {"cbst", "crst"},
    "endauda fuse --teachers=": {f"--teachers={name}" for name in TEACHERS},
    "endauda fuse --teachers=dacs,c": {"--teachers=dacs,cbst", "--teachers=dacs,crst"},
    "endauda fuse -t dacs,c": {"dacs,cbst", "dacs,crst"},
    "endauda fuse -t dacs,cbst cr": {"crst"},
    "endauda fuse -t dacs crst=": {f"crst={path}" for path in STUDENT},
    "endauda fuse -t dacs crst=we": {"crst=weights/weights/gta5/source/model.pth"},
    "endauda fuse --name ": {"majority", "mean70"},
    "endauda fuse --few-shot ": set(VAL),
    f"endauda fuse --few-shot {VAL[0]},": {f"{VAL[0]},{VAL[1]}"},
    "endauda fuse --device c": {"cpu", "cuda"},
    "endauda fuse --border i": {"inside"},
    "endauda test --scales 0.5 0.7": {"0.75"},
    "endauda test --tile 1": {"1024x512"},
    "endauda export-teacher dacs --codec ": set(Codec),
    "endauda export-teacher x --classes ": set(ClassMapName),
    "endauda export-teacher dacs --temperature ": {"auto", "val", "source"},
    "endauda export-teacher x --weights y --classes ma": {"mapillary-v1.2", "mapillary-v2.0"},
    "endauda inspect dacs --image li": set(VAL),
    "endauda inspect certainty/gta5/dacs --image li": set(VAL),
    "endauda config ": {"show"},
    "endauda config show tr": {"train"},
    "endauda --install-completion ": set(SHELLS),
    "endauda --show-completion=z": {"--show-completion=zsh"},
    "A=1 endauda train --labels ma": {"majority"},
    "endauda train --labelled ": {"target", "source"},
    "endauda export-labels --labels ma": {"majority"},
    "endauda import-labels x --format c": {"cityscapes", "cvat", "coco-panoptic"},
    "endauda train -- ": set(),
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
    "endauda download-weights dacs dac": set(),
}


@pytest.mark.parametrize("line", OFFERS)
def test_bash(line: str, used: Path) -> None:
    assert set(bash(line, used)) == OFFERS[line]


def test_descriptions(used: Path) -> None:
    assert described("endauda fuse --teachers ", used) == dict.fromkeys(TEACHERS, "7 images")
    assert (
        described("endauda train --labels ", used)["mean70"] == f"certainty of {', '.join(sorted(TEACHERS))}"
    )
    assert described("endauda train --name ", used) == {"student": "step 1 of 1"}
    assert described("endauda test --weights ", used)["runs/gta5/student/last.pt"] == "step 1 of 1"
    assert described("endauda fuse --source synthia-1", used)["synthia-13"] == "13 classes"
    assert described("endauda fuse --thr", used) == {
        "--threshold": "Keep labels of at least this certainty, in percent"
    }
    assert described("endauda f", used)["fuse"].startswith("Fuse the teachers' archives")


def test_downloaded_weights_by_their_name(used: Path) -> None:
    """As --weights and --init take them; what is not there is not offered."""
    place = used / "weights/imagenet/drn_d_54-0e0534ff.pth"
    place.parent.mkdir()
    place.touch()
    try:
        name = next(a.name for a in read_manifest().artefacts.values() if a.path.endswith(place.name))
        assert bash(f"endauda train --init {name[:5]}", used) == [name]
        assert bash(f"endauda test --weights {name[:5]}", used) == [name]
    finally:
        shutil.rmtree(place.parent)


def test_options(used: Path) -> None:
    assert {"--teachers", "--rule", "--policy", "--threshold", "--window"} <= set(
        bash("endauda fuse --", used)
    )
    assert set(bash("endauda fuse --teachers dacs crst --thr", used)) == {"--threshold"}


def test_options_are_given_once(used: Path) -> None:
    """Unless they take several values."""
    left = bash("endauda fuse --rule plf --no-score --json -q --threshold=5 -t dacs --", used)
    assert not {"--rule", "--score", "--no-score", "--json", "--quiet", "--threshold"} & set(left)
    assert {"--teachers", "--policy", "--verbose"} <= set(left)


@pytest.mark.slow
def test_what_else_may_stand_there(used: Path) -> None:
    """Where no value fits, the shell offers files, folders or nothing."""
    kinds = {
        "test --weights x": "files", "fuse -t a=x": "files", "fuse --policy x": "files", "fuse --source x": "files",
        "train --labels x": "folders", "demo --out x": "folders", "export-teacher a --import=x": "folders",
        "inspect x": "folders", "fuse --rule x": "values", "fuse x": "values", "fuse -t x": "values",
        "fuse --threshold ": "values",
    }  # fmt: skip
    assert {line: ask("bash", f"endauda {line}", used) for line in kinds} == {
        k: [v] for k, v in kinds.items()
    }


def test_every_path_is_known_as_one() -> None:
    """``completing.PATHS`` names all parameters that are paths, and some words that may be one."""
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    parameters = {
        (name, kind)
        for _, command in group.loaded()
        for name, kind in get_type_hints(command.callback).items()
    }
    paths = {name for name, kind in parameters if Path in (kind, *get_args(kind))}
    assert paths <= set(values.PATHS)
    assert set(values.PATHS) - paths <= {
        *("labels", "labelled", "policy", "predictions", "source", "target", "archive", "classes")
    }  # fmt: skip


# ---------------------------------------------------------------------------- the shells' forms


def test_only_what_bash_replaces(used: Path) -> None:
    """bash breaks words at = and :, and says what it will replace."""
    assert ask("bash", "endauda fuse --teachers=da", used, "da")[1:] == ["dacs"]
    assert ask("bash", "endauda fuse --teachers=", used, "")[1:] == sorted(TEACHERS)
    assert ask("bash", "endauda fuse -t crst=runs/", used, "runs/")[1:] == ["runs/gta5/student/last.pt"]


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with names that shells must quote."""
    root = tmp_path_factory.mktemp("strange")
    for name in ("two words", "it's", 'say "$x"', "a:b", "new\nline", "plain"):
        (root / "runs/gta5" / name).mkdir(parents=True)
        (root / "runs/gta5" / name / "last.pt").touch()
    return root


QUOTED = {
    ("bash", "tw"): [r"two\ words"],
    ("bash", "'tw"): ["'two words"],
    ("bash", '"sa'): [r'"say \"\$x\"'],
    ("bash", "it"): [r"it\'s"],
    ("bash", "new"): [],
    ("zsh", "a"): ["0", r"a\:b"],
    ("zsh", "'tw"): ["0", "two words"],
    ("zsh", "new"): ["0"],
    ("fish", "'tw"): ["two words"],
    ("powershell", "tw"): ["two` words\ttwo words\t"],
    ("powershell", "'it"): ["'it''s'\tit's\t"],
    ("powershell", '"sa'): ['"say `"`$x`""\tsay "$x"\t'],
    ("powershell", "pl"): ["plain\tplain\t"],
}


@pytest.mark.parametrize(("shell", "word"), QUOTED)
def test_quoting(shell: str, word: str, strange: Path) -> None:
    assert ask(shell, f"endauda train --name {word}", strange)[1:] == QUOTED[shell, word]


def test_zsh_is_told_what_stays(used: Path) -> None:
    """How many characters as typed, without an opening quote, which zsh sets apart."""
    assert ask("zsh", "endauda fuse --teachers=dacs,cr", used)[1:] == ["16", "crst:7 images"]
    assert ask("zsh", r"endauda fuse -t d\acs,cr", used)[1] == "6"
    assert ask("zsh", "endauda fuse -t 'dacs,cr", used)[1] == "5"


def test_powershell(used: Path) -> None:
    """There is no PowerShell to try it in: the variables as its script sets them."""
    assert ask("powershell", "endauda fuse -t dacs,cr", used, "dacs,cr")[1:] == ["dacs,crst\tcrst\t7 images"]
    assert ask("powershell", "endauda fuse -t dacs,cr", used, "cr")[1:] == ["crst\tcrst\t7 images"]
    assert ask("powershell", "endauda train --labels ma", used, "ma")[0] == "folders"
    script = SHELLS["powershell"].script()
    assert all(f"$env:{variable}" in script for variable in (VARIABLE, LINE, REPLACED))


@given(st.text(alphabet=" ab=-,'\"\\\\$`é\t", max_size=30), st.sampled_from("\\\\`"))
def test_any_line_can_be_split(line: str, escape: str) -> None:
    words = split_line(line, escape)
    assert words and all(len(word.ends) in (0, len(word.text)) for word in words)
    assert line.endswith(words[-1].raw) and words[-1].ends == tuple(sorted(words[-1].ends))


@given(st.lists(st.text(alphabet="ab='\" $", min_size=1, max_size=8)))
def test_quoted_words_are_read_as_meant(words: list[str]) -> None:
    assert [word.text for word in split_line(f"{shlex.join(words)} ")] == [*words, ""]


# ---------------------------------------------------------------------------- silence


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


def test_workspace_as_the_shell_will_expand_it(used: Path, tmp_path: Path) -> None:
    for named in (f"~/{used.name}", f"$HOME/{used.name}", f'"$HOME/{used.name}"'):
        line = f"endauda fuse --workspace {named} --teachers "
        assert ask("bash", line, tmp_path, HOME=str(used.parent))[1:] == sorted(TEACHERS)
    line = f"endauda fuse --workspace '$HOME/{used.name}' --teachers "
    assert ask("bash", line, tmp_path, HOME=str(used.parent))[1:] == []


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


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "line",
    [
        "", "endauda", "endauda fuse --teachers 'da", 'endauda fuse --name "a b" --ru', "endauda nothing ",
        "endauda fuse --rule nonsense --steps x -t ", "endauda fuse -- ", "endauda --version ", "endauda fuse -t a\\\\",
        "endauda -h ", "endauda fuse --help --te", "endauda config nothing ", "endauda inspect a b c ",
        "endauda fuse --workspace  --teachers ", "endauda fuse --target nothing.toml --teachers ", "é \udcff endauda ",
    ],
)  # fmt: skip
def test_half_typed_lines_are_silent(line: str, shell: str, used: Path) -> None:
    ask(shell, line, used)


def test_scripts_of_other_times_are_silent(used: Path) -> None:
    """Typer's, which earlier versions installed, and whatever else comes in the variable."""
    environment = {"COMP_WORDS": "endauda fuse ", "COMP_CWORD": "2"}
    assert ask("complete_bash", "", used, **environment) == []
    assert ask("", "endauda ", used) == []


DEAD_SHARE = """
import os, time
opened = os.open
def wait(path, *how, **more):
    if str(path).endswith("fusion.json"):
        time.sleep(600)
    return opened(path, *how, **more)
os.open = wait
"""
"""Imported by Python itself at its start: whoever opens a record of labels waits."""


@pytest.mark.slow
def test_a_folder_that_does_not_answer(used: Path, tmp_path: Path) -> None:
    """A network share that is dead: TAB offers nothing, and soon."""
    asked = {"_ENDAUDA_COMPLETE": "zsh", "_ENDAUDA_LINE": "endauda train --labels "}

    def answer(environment: dict[str, str]) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "endauda_cli"], cwd=used, env=os.environ | asked | environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    assert "majority" in answer({})[1]
    (tmp_path / "sitecustomize.py").write_text(DEAD_SHARE)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert answer({"PYTHONPATH": paths}) == (0, "", "")


def test_thousands_of_runs(tmp_path: Path) -> None:
    for number in range(2000):
        run = tmp_path / f"runs/gta5/run-{number}"
        run.mkdir(parents=True)
        (run / "last.pt").touch()
    assert len(bash("endauda train --name ", tmp_path)) == 2000
    assert len(described("endauda test --weights runs/gta5/run-1", tmp_path)) == 1111


# ---------------------------------------------------------------------------- scripts and their installation

FILES = {"bash": "endauda.bash", "zsh": "_endauda", "fish": "endauda.fish", "powershell": "endauda.ps1"}


def refusal(*words: str) -> str:
    """The one sentence that a command line is refused with."""
    outcome = endauda(*words)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1), outcome
    return outcome.err.removeprefix("endauda: ").rstrip()


@pytest.mark.parametrize("name", SHELLS)
def test_scripts_are_shown(name: str) -> None:
    """And those of the folder ``completions`` are the same."""
    shown = succeed("--show-completion", name).out
    assert shown == (ROOT / "completions" / FILES[name]).read_text()
    assert succeed(f"--show-completion={name}").out == shown
    assert {path.name for path in (ROOT / "completions").iterdir()} == set(FILES.values())


def test_package_managers_get_the_same() -> None:
    """The wheel puts them under share/, by the names that the shells look for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    placed = project["tool"]["setuptools"]["data-files"]
    files = {f"{folder}/{Path(path).name}": ROOT / path for folder, [path] in placed.items()}
    assert {place: path.read_text() for place, path in files.items()} == {
        "share/bash-completion/completions/endauda": SHELLS["bash"].script(),
        "share/zsh/site-functions/_endauda": SHELLS["zsh"].script(),
        "share/fish/vendor_completions.d/endauda.fish": SHELLS["fish"].script(),
    }


def test_shell_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("fish", "/usr/bin/fish"))
    assert succeed("--show-completion").out == SHELLS["fish"].script()
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("pwsh", "/usr/bin/pwsh"))
    assert succeed("--show-completion").out == SHELLS["powershell"].script()

    def fail() -> None:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr("shellingham.detect_shell", fail)
    monkeypatch.setenv("SHELL", "/bin/zsh")
    assert succeed("--show-completion").out == SHELLS["zsh"].script()
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert (
        refusal("--show-completion")
        == "no completion for the shell 'tcsh', only for bash, zsh, fish, powershell"
    )
    monkeypatch.delenv("SHELL")
    assert refusal("--install-completion").startswith(
        "which shell this is cannot be told; name it: bash, zsh"
    )


def test_unknown_shells_are_refused() -> None:
    assert refusal("--show-completion", "fsh").endswith("did you mean fish?")
    assert "takes one shell, but 2 were named" in refusal("--install-completion", "fish", "zsh")
    assert "--install-completion" in succeed("--install-completion", "--help").out


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where nothing of the machine's own is found."""
    folder = tmp_path / "home of mine"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(shells, "_powershell_profile", lambda: folder / "powershell/profile.ps1")
    return folder


PLACES = {
    "bash": (".local/share/bash-completion/completions/endauda", ".bashrc"),
    "zsh": (".local/share/zsh/site-functions/_endauda", ".zshrc"),
    "fish": (".config/fish/completions/endauda.fish", None),
    "powershell": ("powershell/endauda.completion.ps1", "powershell/profile.ps1"),
}


@pytest.mark.parametrize("name", SHELLS)
def test_installation(name: str, home: Path) -> None:
    """Each in its place; the second time changes nothing, and says so."""
    script, startup = PLACES[name]
    said = succeed("--install-completion", name).out
    assert (home / script).read_text() == SHELLS[name].script()
    assert str(home / script) in said and f"in every {name} that is started from now on" in said
    assert startup is None or str(home / startup) in said
    before = files_of(home)
    assert set(before) == {path for path in (script, startup) if path}
    again = succeed("--install-completion", name).out
    assert (
        files_of(home) == before and "up to date" in again and "wrote" not in again and "added" not in again
    )


@pytest.mark.parametrize("name", ["bash", "zsh", "powershell"])
def test_startup_files_are_kept(name: str, home: Path) -> None:
    """Byte by byte, without a line's end at their end, with their permissions, through a link."""
    startup = home / str(PLACES[name][1])
    startup.parent.mkdir(exist_ok=True)
    original = home / "dotfiles"
    original.write_bytes(b"export A=\xff\r\n# no end")
    original.chmod(0o600)
    startup.symlink_to(original)
    succeed("--install-completion", name)
    content = original.read_bytes()
    assert content.startswith(b"export A=\xff\r\n# no end\n" + shells.BEGIN) and content.endswith(
        shells.END + b"\n"
    )
    assert startup.is_symlink() and original.stat().st_mode & 0o777 == 0o600
    original.write_bytes(content.replace(shells.BEGIN, shells.BEGIN + b"\nof yesterday") + b"export B=1\n")
    assert "changed the lines of endauda" in succeed("--install-completion", name).out
    assert original.read_bytes() == content + b"export B=1\n"
    assert startup.is_symlink() and original.stat().st_mode & 0o777 == 0o600


def test_folders_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR"):
        monkeypatch.setenv(variable, str(home / variable))
    for name in ("bash", "zsh", "fish"):
        succeed("--install-completion", name)
    assert set(files_of(home)) == {
        "BASH_COMPLETION_USER_DIR/completions/endauda", ".bashrc", "XDG_DATA_HOME/zsh/site-functions/_endauda",
        "ZDOTDIR/.zshrc", "XDG_CONFIG_HOME/fish/completions/endauda.fish",
    }  # fmt: skip


def test_places_that_cannot_be_written(home: Path) -> None:
    (home / ".config").write_text("a file where a folder is expected")
    said = refusal("--install-completion", "fish")
    assert said.startswith(str(home / ".config")) and "endauda --show-completion fish" in said
    (home / ".bashrc").mkdir()
    assert str(home / ".bashrc") in refusal("--install-completion", "bash")
