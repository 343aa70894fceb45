"""Options that several commands share, and what they mean together."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endauda_cli.completion import values
from endauda_cli.config import launched
from endauda_cli.errors import ConfigError, NoImagesError, WorkspaceError, did_you_mean
from endauda_cli.terminal.answer import current
from endauda_cli.terminal.parsing import full_name
from endauda_cli.types import Split
from endauda_cli.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain, Task
    from endauda_cli.terminal.console import Terminal

# Every option can come from ENDAUDA_<COMMAND>_<OPTION>; saying so at each would drown the help.
option = partial(typer.Option, show_envvar=False)


def panel(title: str) -> partial[Any]:
    """Options under a heading of their own in ``--help``."""
    return partial(option, rich_help_panel=title)


data, passes, common = panel("Data"), panel("How the network is run"), panel("Common")


def _answer_in_json(ctx: typer.Context, asked: bool) -> bool:
    if not ctx.resilient_parsing:
        current().command = full_name(ctx)
        current().as_json = asked
    return asked


WorkspaceOption = Annotated[
    Path | None, data("--workspace", help="Folder with the data, archives, labels and runs. [default: nearest "
                        "folder upwards with an endauda.toml, else the current one]", show_default=False)
]  # fmt: skip
SourceOption = Annotated[
    str | None, data("--source", help="Labelled domain that the teachers come from: gta5, synthia, synthia-19, "
                       "synthia-13, or a .toml file. [default: gta5; with a .toml target, the target's own classes]",
                       autocompletion=values.sources, show_default=False)
]  # fmt: skip
TargetOption = Annotated[
    str,
    data("--target", help="Unlabelled domain: cityscapes, or a .toml file.", autocompletion=values.targets),
]
SourceDataOption = Annotated[
    Path | None,
    data("--source-data", help="Folder of the source's images and labels, if not in the workspace."),
]
TargetDataOption = Annotated[
    Path | None,
    data("--target-data", help="Folder of the target's images and labels, if not in the workspace."),
]
DeviceOption = Annotated[
    str, common("--device", help="auto, cpu, cuda, cuda:1, ...", autocompletion=values.devices)
]
JsonOption = Annotated[
    bool,
    # Eager: an error in another option is told as JSON too.
    common("--json", help="Print the result as JSON: docs/json.md.", callback=_answer_in_json, is_eager=True),
]
QuietOption = Annotated[bool, common("--quiet", "-q", help="Only the result, warnings and errors.")]
VerboseOption = Annotated[
    bool, common("--verbose", "-v", help="Show every bar at once; in logs, what each part of the work took.")
]
BatchOption = Annotated[int, passes("--batch-size", help="Images per forward pass.")]
AmpOption = Annotated[bool, passes("--amp", help="bfloat16 where it helps.")]
WorkersOption = Annotated[int, common("--workers", help="Threads that read, resize and code.")]
SizeOption = Annotated[
    str | None, passes("--size", metavar="WxH", help="Network input. [default: the checkpoint's, else 1024x512]",
                       autocompletion=values.sizes, show_default=False)
]  # fmt: skip
ScalesOption = Annotated[
    list[str] | None, passes("--scales", metavar="S S", help="Sizes to run and average, such as 0.75 1 1.25. "
                             "[default: the network's own]",
                             autocompletion=values.scales, show_default=False)
]  # fmt: skip
FlipOption = Annotated[
    bool | None, passes("--flip/--no-flip", help="Run mirrored too, and average. [default: the network's own]",
                        show_default=False)
]  # fmt: skip
TileOption = Annotated[
    str | None,
    passes(
        "--tile",
        metavar="WxH",
        help="Run larger inputs in overlapping pieces, to save memory.",
        autocompletion=values.sizes,
    ),
]


@dataclass(frozen=True)
class Session:
    """What the common options come to."""

    workspace: Workspace
    task: Task
    terminal: Terminal
    device_name: str
    source_roots: tuple[Path, ...]
    target_roots: tuple[Path, ...]

    def device(self) -> torch.device:
        """The device that was asked for."""
        from endauda_cli.distributed import pick_device

        return pick_device(self.device_name)

    def target_samples(self, split: str, need_labels: bool = False) -> list[Sample]:
        """Images of the target's split."""
        from endauda_cli.datasets import find_samples

        return find_samples(self.task.target, self.target_roots, split, need_labels)

    def target_samples_if_any(self, split: str, otherwise: str) -> list[Sample] | None:
        """Images of the target's split; without any image of the target at all, ``None`` and a warning that
        says what is done instead.

        Raises:
            DataError: if the split is empty, but others are not.
        """
        from endauda_cli.progress import Note

        try:
            return self.target_samples(split)
        except NoImagesError as error:
            if any(self._has_images(other) for other in Split):
                raise
            self.terminal.report(Note(f"{error}; {otherwise}", "warning"))
            return None

    def labelled_if_any(self, split: str) -> list[Sample]:
        """Images of the target's split with their ground truth; none if there are none."""
        from endauda_cli.errors import DataError

        try:
            return self.target_samples(split, need_labels=True)
        except DataError:
            return []

    def labelled_samples(self, where: str) -> tuple[list[Sample], Domain, str]:
        """Images with ground truth, the domain they are of and their split.

        Args:
            where: ``val`` (the target's), ``source`` (its train images), or ``auto``: the first of these there is.

        Raises:
            DataError: if there are none.
        """
        from endauda_cli.datasets import find_samples
        from endauda_cli.errors import DataError

        places = (
            ("val", self.task.target, self.target_roots),
            ("source", self.task.source, self.source_roots),
        )
        failures = []
        for name, domain, roots in places:
            if where not in ("auto", name):
                continue
            split = "val" if name == "val" else "train"
            try:
                return find_samples(domain, roots, split, need_labels=True), domain, split
            except DataError as error:
                failures.append(str(error))
        raise DataError(f"--temperature {where}: no labelled images ({'; '.join(failures)})")

    def _has_images(self, split: str) -> bool:
        try:
            return bool(self.target_samples(split))
        except NoImagesError:
            return False

    def path(self, given: Path) -> Path:
        """A path as typed, else relative to the workspace."""
        return self.workspace.path(given)

    def weights(self, given: Path) -> Path:
        """A file of weights by its path, or by the name that ``download-weights`` lists it under.

        Raises:
            ConfigError: if it is such a name, but was not fetched.
        """
        path = self.path(given)
        if not path.exists():
            from endauda_cli.weights import installed, read_manifest

            return installed(self.workspace.root, read_manifest(), given.as_posix()) or path
        return path


def open_session(
    command: str,
    workspace: Path | None,
    source: str | None,
    target: str,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    source_data: Path | None = None,
    target_data: Path | None = None,
) -> Session:
    """Resolve the common options.

    Raises:
        EndaudaError: if the workspace or a domain cannot be found, or class tables disagree.
    """
    from endauda_cli.datasets import load_task
    from endauda_cli.terminal.console import Terminal

    found = find_workspace(workspace)
    task = load_task(source, target, found.root)
    return Session(
        workspace=found,
        task=task,
        terminal=Terminal(command, json, quiet, verbose),
        device_name=device,
        source_roots=_roots(found, task.source, source_data, "--source-data"),
        target_roots=_roots(found, task.target, target_data, "--target-data"),
    )


def _roots(workspace: Workspace, domain: Domain, given: Path | None, option: str) -> tuple[Path, ...]:
    if given is None:
        return workspace.data_roots(domain)
    folder = workspace.path(given)
    if not folder.is_dir():
        raise ConfigError(f"{option} {given}: no such folder")
    return (folder,)


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that fuse one label set.

    Attributes:
        device: where rules and networks run.
        shard: (number, of): its part of the images.
        others: under ``torchrun``, waits for all of them.
    """

    device: str
    shard: tuple[int, int]
    others: Callable[[], None] | None = None


@contextmanager
def place(session: Session, shard: str, networks: bool) -> Iterator[Place]:
    """This process's part of the images, by ``--shard`` or by its rank under ``torchrun``.

    Archives are fused on the CPU unless the user names a device; then, and without ranks, torch is not needed, which
    saves seconds and half a gigabyte.
    """
    number, of = parse_shard(shard)
    on_cpu = session.device_name == "cpu" or (session.device_name == "auto" and not networks)
    if launched() == 1:
        yield Place("cpu" if on_cpu else str(session.device()), (number, of))
        return
    if of > 1:
        raise ConfigError("--shard and torchrun both split the images; use one of them")
    from endauda_cli.distributed import barrier, pick_device, process_group, rank, world_size

    with process_group(pick_device("cpu") if on_cpu else session.device()) as device:
        yield Place(str(device), (rank() + 1, world_size()), barrier)


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """``"1024x512"`` as (1024, 512).

    Raises:
        ConfigError: if it is of another form.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(_is_whole(part) and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} {text}: expected WIDTHxHEIGHT, such as 1024x512")
    return int(parts[0]), int(parts[1])


def parse_tile(text: str | None) -> tuple[int, int] | None:
    """``"1024x512"`` as (512, 1024): height, width.

    Raises:
        ConfigError: if it is of another form.
    """
    size = parse_size(text, "--tile")
    return None if size is None else (size[1], size[0])


def parse_scales(words: list[str] | None) -> tuple[float, ...] | None:
    """``["0.75", "1"]`` as (0.75, 1.0).

    Raises:
        ConfigError: if it is of another form.
    """
    if not words:
        return None
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise ConfigError(f"--scales {' '.join(words)}: expected numbers, such as 0.75 1 1.25") from error


def parse_temperature(text: str) -> float:
    """``"1.5"`` as 1.5.

    Raises:
        ConfigError: if it is neither a number above 0 nor a word that stands for one.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise ConfigError(f"--temperature {text}: expected auto, val, source or a number from 0.01 to 100")
    return value


def parse_window(text: str) -> tuple[int, int]:
    """``"5"`` as (5, 5), ``"3x7"`` as (3, 7): height, width.

    Raises:
        ConfigError: if it is of another form.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(_is_whole(part) for part in parts):
        raise ConfigError(f"--window {text}: expected one odd number, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8).

    Raises:
        ConfigError: if it is of another form.
    """
    number, slash, of = text.partition("/")
    if not (slash and _is_whole(number) and _is_whole(of)):
        raise ConfigError(f"--shard {text}: expected NUMBER/OF, such as 2/8")
    return int(number), int(of)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()  # isdigit() takes "²", which int() does not


def refuse_unknown_teachers(session: Session, names: Iterable[str]) -> None:
    """Refuse names of which the workspace has no archive.

    Raises:
        WorkspaceError: names them, and which there are.
    """
    source = session.task.source.name
    known = session.workspace.teachers(source)
    folder = session.workspace.archive(source, "")
    if not known:
        others = [name for name in session.workspace.sources() if session.workspace.teachers(name)]
        there = (
            f" (there are some of {' and '.join(others)}: name that with --source or --target)"
            if others
            else ""
        )
        raise WorkspaceError(
            f"{folder}: no archives there{there}; make one with 'endauda export-teacher NAME' first, or name another "
            "--workspace"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise WorkspaceError(
            f"no archive of a teacher {' or '.join(map(repr, unknown))} in {folder}: "
            f"there are {', '.join(known)}{did_you_mean(unknown, known)}"
        )
