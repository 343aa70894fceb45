"""What a stranger's file says is shown, and never steers the terminal: names of classes, attributes, ids, paths."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from rich.table import Table
from rich.text import Text

from endauda_cli.masking import printable
from endauda_cli.terminal.screens import error_screen, say
from tests.support.archive_samples import smooth, write
from tests.support.command_lines import endauda, make_workspace

if TYPE_CHECKING:
    from pathlib import Path

STEERING = ("\x1b[2J", "\x1b]0;mine\x07", "\x9b31m", "\r", "\x08", "\u202e", "\x7f")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_shown(*texts: str) -> None:
    for text in texts:
        assert not CONTROL.search(text), ascii(CONTROL.search(text))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("city"))


@pytest.mark.parametrize("evil", STEERING)
def test_of_an_archive(evil: str, tmp_path: Path) -> None:
    attributes = {"teacher": f"a{evil}b", f"k{evil}": [evil, {evil: evil}]}
    classes = (f"road{evil}", "car", "sky")
    path = write(tmp_path / "a", {"x": smooth(0, 3, 8, 9)}, classes=classes, attributes=attributes)
    for words in (
        (),
        ("--image", "x", "--out", tmp_path / "out"),
        ("--image", f"y{evil}"),
        ("--verify",),
        ("--json",),
    ):
        outcome = endauda("inspect", path, *words)
        assert outcome.code == int(f"y{evil}" in words), outcome
        assert_shown(outcome.out, outcome.err)


@pytest.mark.parametrize("evil", STEERING)
def test_of_what_is_typed(evil: str, city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(city)
    for words in (
        ("fuse", "--teachers", f"x{evil}"),
        ("fuse", "--policy", f"x{evil}.json"),
        ("fuse", "--name", f"x{evil}"),
        ("fuse", f"--no{evil}"),
        (f"fu{evil}se",),
        ("test", "--weights", f"x{evil}.pth"),
        ("train", "--labels", f"x{evil}"),
        ("export-teacher", f"x{evil}", "--weights", "none.pth"),
        ("inspect", f"x{evil}"),
        ("doctor", "--workspace", f"x{evil}"),
        ("fuse", "--target", f"x{evil}.toml"),
        ("config", "show", "--workspace", f"x{evil}"),
    ):
        outcome = endauda(*words)
        assert outcome.code in (1, 2)
        assert_shown(outcome.out, outcome.err)


@pytest.mark.parametrize("evil", ["\\u001b[2J", "\\u009b31m", "\\r", "\\u202e"])
def test_of_a_data_set_and_a_checkpoint(evil: str, city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(city)
    text = f'name = "mine"\nclasses = ["road{evil}", "car"]\npalette = "{evil}"\n["{evil}"]\n'
    (city / "mine.toml").write_text(text)
    outcome = endauda("fuse", "--target", "mine.toml")
    assert outcome.code == 1
    assert_shown(outcome.out, outcome.err)
    raw = evil.encode().decode("unicode-escape")
    meta = {"arch": f"x{raw}", "backbone": raw, "classes": [f"road{raw}"], "size": [1, 1]}
    torch.save({"format": 1, "weights": {f"k{raw}": torch.zeros(1)}, "meta": meta}, city / "evil.pt")
    for words in (("test", "--weights", "evil.pt"), ("export-teacher", "x", "--weights", "evil.pt")):
        outcome = endauda(*words)
        assert outcome.code == 1
        assert_shown(outcome.out, outcome.err)


@pytest.mark.parametrize("evil", STEERING)
def test_of_a_folder(evil: str, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / f"city{evil}x")
    for words in (("fuse", "--rule", "majority"), ("doctor",), ("inspect", "dacs"), ("test",)):
        outcome = endauda(*words, "--workspace", root)
        assert_shown(outcome.out, outcome.err)


def test_of_tables_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    screen = error_screen()
    table = Table(title="a\x1b[2Jb")
    table.add_column("c\x1b]0;x\x07d")
    table.add_row(Text("e\x9bf", "bold"))
    screen.print(table)
    say(screen, Text("g\rh\tk"))
    err = capsys.readouterr().err
    assert_shown(err)
    assert "a\\x1b[2Jb" in err and "gh" in err


def test_what_is_printable_stays() -> None:
    text = "Zürich 日本 … ─ │\n\t€"
    assert printable(text) == text
    assert printable("a\x1b\x9b\ud800\u2066") == "a\\x1b\\x9b\\ud800\\u2066"
