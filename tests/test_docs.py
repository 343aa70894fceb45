"""README and docs: every command line in them parses, every link and picture is there."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.core import TyperGroup

from endauda_cli.cli import app
from tests.support import ROOT
from tests.support.pages import PAGES, blocks, inline

if TYPE_CHECKING:
    from pathlib import Path

_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_TORCHRUN = re.compile(r"^torchrun .* -m endauda_cli ")
_START = re.compile(r"^(?:timeout .*? |[A-Z_]+=\S+ )?endauda ")


def lines_of(page: Path) -> list[str]:
    """The command lines of ours on a page: in its blocks, and between backticks in its text."""
    written = [line for block in blocks(page) if block.language == "bash" for line in block.lines]
    parts = [part.strip() for line in written + inline(page) for part in re.split(r"&&|\|\||\s[|>]\s", line)]
    ours = [_START.sub("endauda ", _TORCHRUN.sub("endauda ", part)) for part in parts]
    # Generated references write usage as [OPTIONS]; "..." stands for what a reader has.
    return [line for line in ours if line.startswith("endauda ") and "[" not in line]


LINES = [(page, line) for page in PAGES for line in lines_of(page)]


def parse(line: str) -> None:
    """Hand a command line to its command's parser, without running it. Raises what the parser raises."""
    words = shlex.split(line, comments=True)[1:]
    root = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words[0] in {flag for option in root.params for flag in option.opts}, line
        return
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">")), None)]
    context: Any = root.make_context("endauda", [], resilient_parsing=True)
    name, command, arguments = context.command.resolve_command(context, words)
    assert command is not None, f"{line}: no command {words[0]}"
    while arguments and isinstance(command, TyperGroup):
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        name, command, arguments = command.resolve_command(context, arguments)
    if arguments and arguments != ["..."]:
        command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.name}-{line}" for page, line in LINES])
def test_command_lines_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if named := re.search(r"--config (\S+)", line):  # read before all else
        file = tmp_path / named[1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    parse(line)


@pytest.mark.parametrize(
    "line", ["endauda fues", "endauda fuse --teacher dacs", "endauda fuse --rule median", "endauda inspect"]
)
def test_wrong_lines_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"."):
        parse(line if line.count(" ") > 1 else f"{line} --bogus")


def test_there_are_lines_on_the_main_pages() -> None:
    found = {page.name for page, _ in LINES}
    assert {"README.md", "tutorial.md", "archives-elsewhere.md", "teachers.md"} <= found and len(LINES) > 60


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for match in _LINK.finditer(page.read_text(encoding="utf-8")):
        path, _, place = match["target"].partition("#")
        if "://" in path or not (path or place):
            continue
        file = page.parent / path if path else page
        assert file.exists(), match[0]
        if place:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), match[0]


def test_pictures_load_at_once() -> None:
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 150_000, picture


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
