"""The ``endauda`` command: its table of commands; how it ends is ``terminal.ending``'s.

Nothing imported here, or by a command's module, imports torch or numpy: ``--help``, ``--version`` and TAB
must answer at once.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from endauda_cli import __version__
from endauda_cli.completion.shells import InstallCompletion, ShowCompletion, serve_shell
from endauda_cli.terminal import ending
from endauda_cli.terminal.parsing import Entry, Group
from endauda_cli.terminal.starting import leave

if TYPE_CHECKING:
    from collections.abc import Sequence

PIPELINE, TOOLS = "From teachers to a student", "Around it"

# fmt: off
COMMANDS = {
    name: Entry(summary, panel, f"endauda_cli.commands.{name.replace('-', '_')}", tolerant=name == "doctor")
    for panel, name, summary in (
        (PIPELINE, "export-teacher", "Store a teacher's certainties: run its network, or import outputs that exist."),
        (PIPELINE, "fuse", "Fuse the teachers' archives into one set of labels for the target."),
        (PIPELINE, "train", "Train a student on fused labels, or a model or teacher from the labelled source."),
        (PIPELINE, "test", "Score checkpoints, archives, label sets or label PNGs on labelled images of the target."),
        (TOOLS, "merge", "Average the weights of several runs of one network into a further checkpoint."),
        (TOOLS, "deploy", "Write a student as ONNX, .pt2, TorchScript or safetensors, checked against its checkpoint."),
        (TOOLS, "export-labels", "Write labels in the format of an annotation tool or another program."),
        (TOOLS, "import-labels", "Take labels back that people corrected in an annotation tool."),
        (TOOLS, "report", "Show the whole workspace on one page: teachers, labels, runs and scores."),
        (TOOLS, "demo", "Show the whole story on a generated street world: archives, labels, student, scores."),
        (TOOLS, "download-weights", "Fetch published weights and pseudo labels, and verify them."),
        (TOOLS, "inspect", "Show what a certainty archive holds."),
        (TOOLS, "doctor", "Check the program, this machine and the workspace, and say what the next step lacks."),
        (TOOLS, "config", "Show what every option is set to, and where that comes from."),
    )
}
# fmt: on


class Commands(Group):
    """The table as a group of commands."""

    entries = COMMANDS


app = typer.Typer(
    name="endauda",
    cls=Commands,
    help="Turn several adapted segmentation models (teachers) and unlabelled images into one better model (student).",
    no_args_is_help=True,
    add_completion=False,  # Typer's own scripts; ours are in terminal.shells
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Start with: endauda demo",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"endauda {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    install_completion: InstallCompletion = None,
    show_completion: ShowCompletion = None,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0, 1 (an error that is told), 2 (usage), 130 and 143 (stopped)."""
    words = list(sys.argv[1:] if argv is None else argv)

    def program() -> object:
        served = serve_shell(words, partial(typer.main.get_command, app))
        return None if served else app(words, prog_name="endauda", standalone_mode=False)

    return ending.run(program, words)


def entry() -> None:
    """Run the command line of this process and end it."""
    leave(main())
