"""What is written about the program is what the program says."""

from __future__ import annotations

import inspect
import runpy

import pytest
import typer

from endauda_cli.cli import COMMANDS, app
from endauda_cli.terminal.parsing import Group
from tests.support import ROOT
from tests.support.command_lines import succeed

DOCS = ROOT / "docs"


def whole_program() -> Group:
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    return group


GROUP = whole_program()
LOADED = dict(GROUP.loaded())


def test_reference_is_what_the_program_says() -> None:
    made: str = runpy.run_path(str(DOCS / "generate.py"))["reference"]()
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == made, "run: python docs/generate.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_listed_as_it_introduces_itself(name: str) -> None:
    """The table of all commands holds the first line of each command's own help."""
    assert inspect.cleandoc(GROUP.load(name).help or "").splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", LOADED)
def test_every_command_explains_itself(name: str) -> None:
    command = LOADED[name]
    assert "**Examples**" in (command.help or "") and f"- `endauda {name}" in (command.help or "")
    for param in command.params:
        text = getattr(param, "help", "") or ""
        assert text.rstrip("]").endswith(".") or "[default: " in text, f"{name} {param.name}: {text!r}"
    help_page = succeed(*name.split(), "--help").out
    assert "Examples" in help_page and f"Usage: endauda {name}" in help_page
    assert "\\[" not in help_page, "an escape that Typer shows"
    assert {"--json", "--quiet", "--verbose"} <= {flag for param in command.params for flag in param.opts}
