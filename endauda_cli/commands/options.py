"""Groups of options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.config import InferenceConfig
from endauda_cli.options import COMMON, DATA, PASSES, option, parse_scales, parse_size
from endauda_cli.terminal.answer import current
from endauda_cli.terminal.parsing import full_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import typer

    from endauda_cli.terminal.console import Terminal


def _answer_in_json(ctx: typer.Context, asked: bool) -> bool:
    if not ctx.resilient_parsing:
        current().command = full_name(ctx)
        current().as_json = asked
    return asked


_answer_in_json.__annotations__.clear()  # Typer would look the context's type up, which only the type checker imports


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Told:
    """How a command tells of itself; every command has these."""

    context: Any = None
    """Typer's."""
    json: bool = option(
        False, "--json", help="Print the result as JSON: docs/json.md.", panel=COMMON,
        callback=_answer_in_json, is_eager=True,  # an error in another option is told as JSON too
    )  # fmt: skip
    quiet: bool = option(False, "--quiet", "-q", help="Only the result, warnings and errors.", panel=COMMON)
    verbose: bool = option(
        False, "--verbose", "-v", panel=COMMON,
        help="Show every bar at once; in logs, what each part of the work took.",
    )  # fmt: skip

    def terminal(self, command: str) -> Terminal:
        """What the command prints with."""
        from endauda_cli.terminal.console import Terminal

        return Terminal(command, self.json, self.quiet, self.verbose)

    @property
    def given(self) -> frozenset[str]:
        """Fields that were typed, or set in the environment or ``endauda.toml``."""
        return frozenset(name for name, origin in self._origins() if origin != "DEFAULT")

    @property
    def typed(self) -> frozenset[str]:
        """Fields that were typed on the command line."""
        return frozenset(name for name, origin in self._origins() if origin == "COMMANDLINE")

    def _origins(self) -> Iterator[tuple[str, str]]:
        for name in self.context.params:
            if (source := self.context.get_parameter_source(name)) is not None:
                yield name, source.name


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class AtWorkspace(Told):
    """Which workspace."""

    workspace: Path | None = option(
        None, "--workspace", panel=DATA,
        help="Folder with the data, archives, labels and runs. [default: nearest folder upwards with an "
        "endauda.toml, else the current one]",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Located(AtWorkspace):
    """Which workspace, source and target."""

    source: str | None = option(
        None, "--source", panel=DATA, complete="sources",
        help="Labelled domain that the teachers come from: gta5, synthia, synthia-19, synthia-13, or a .toml file. "
        "[default: gta5; with a .toml target, the target's own classes]",
    )  # fmt: skip
    target: str = option(
        "cityscapes", "--target", panel=DATA, complete="targets",
        help="Unlabelled domain: cityscapes, or a .toml file.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SourceData:
    """Where the source's files are."""

    source_data: Path | None = option(
        None, "--source-data", panel=DATA,
        help="Folder of the source's images and labels, if not in the workspace.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TargetData:
    """Where the target's files are."""

    target_data: Path | None = option(
        None, "--target-data", panel=DATA,
        help="Folder of the target's images and labels, if not in the workspace.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class OnDevice:
    """Where it is computed."""

    device: str = option(
        "auto", "--device", help="auto, cpu, cuda, cuda:1, ...", panel=COMMON, complete="devices"
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class DryRun:
    """Whether anything is done at all."""

    dry_run: bool = option(
        False, "--dry-run", help="Say what would be done, why and what it takes; write nothing.", panel=COMMON
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class InputSize:
    """What size a network sees."""

    size: tuple[int, int] | None = option(
        None, "--size", panel=PASSES, metavar="WxH", complete="sizes", parse=parse_size("--size"),
        help="Network input. [default: the checkpoint's, else 1024x512]",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Passes(InferenceConfig, InputSize):
    """How a network is run, in how many passes."""

    scales: tuple[float, ...] | None = option(
        None, "--scales", panel=PASSES, metavar="S S", complete="scales", typed=list[str], parse=parse_scales,
        help="Sizes to run and average, such as 0.75 1 1.25. [default: the network's own]",
    )  # fmt: skip
    flip: bool | None = option(
        None, "--flip/--no-flip", panel=PASSES,
        help="Run mirrored too, and average. [default: the network's own]",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Checked when the engine's own configuration is made of it, not where it is not asked for."""


def backbone_option(panel: str, of: str = "the checkpoint, if it does not say") -> Any:
    """``--backbone`` of a network that does not say what it is."""
    return option(None, "--backbone", help=f"Of {of}. [default: drn]", panel=panel)


def arch_option(panel: str, of: str = "the checkpoint, if it does not say") -> Any:
    """``--arch``, likewise."""
    return option(None, "--arch", help=f"Of {of}. [default: deeplabv3plus]", panel=panel)
