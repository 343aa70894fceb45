"""What a command works with: workspace, task, terminal, images, and its part of them."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from endauda_cli.config import launched
from endauda_cli.errors import ConfigError, NoImagesError, NoLabelsError, WorkspaceError, did_you_mean
from endauda_cli.types import Split
from endauda_cli.workspace import Workspace, checkpoint_in, find_workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from endauda_cli.commands.options import Located
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain, Task
    from endauda_cli.terminal.console import Terminal


@dataclass(frozen=True)
class Session:
    """What the common options come to."""

    workspace: Workspace
    task: Task
    terminal: Terminal
    device_name: str
    source_roots: tuple[Path, ...]
    target_roots: tuple[Path, ...]
    further: tuple[tuple[Domain, tuple[Path, ...]], ...] = ()
    """Labelled sources that are learnt beside the task's, each with its folders."""

    def device(self) -> torch.device:
        """The device that was asked for."""
        from endauda_cli.distributed import pick_device

        return pick_device(self.device_name)

    def target_samples(self, split: str, need_labels: bool = False) -> list[Sample]:
        """Images of the target's split."""
        from endauda_cli.datasets import find_samples

        return find_samples(self.task.target, self.target_roots, split, need_labels, self.terminal.report)

    def any_target_samples(self) -> list[Sample]:
        """Of the train split, else of val, else of test: images that only have to look like the target."""
        for split in (Split.TRAIN, Split.VAL):
            with suppress(NoImagesError):
                return self.target_samples(split)
        return self.target_samples(Split.TEST)

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
        """Images of the target's split with their ground truth; none if there are none, or, with a warning, if
        it is not clear which."""
        from endauda_cli.errors import DataError
        from endauda_cli.progress import Note

        try:
            return self.target_samples(split, need_labels=True)
        except (NoImagesError, NoLabelsError):
            return []
        except DataError as error:
            self.terminal.report(Note(f"{error}; nothing is scored on {split}", "warning"))
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
        """A file or folder of weights: the checkpoint of a run by its name or folder, ``best.pt`` before ``last.pt``;
        any by its path; or what ``download-weights`` lists under that name.

        Raises:
            ConfigError: if it is the name of a run and a path, or such a name and was not fetched.
        """
        path = self.path(given)
        run = self.workspace.run(self.task.source.name, given.name) if len(given.parts) == 1 else path
        found = checkpoint_in(run)
        if found is not None:
            if os.path.exists(path) and not path.samefile(run):
                raise ConfigError(f"{given}: a run and a path too; name {found} or {path.resolve()}")
            return found
        if os.path.exists(path):
            return checkpoint_in(path) or path
        from endauda_cli.weights import installed, read_manifest

        return installed(self.workspace.root, read_manifest(), given.as_posix()) or path

    def checkpoint(self, given: Path | None) -> Path:
        """As ``weights``, which must be there; of the newest run without any.

        Raises:
            EndaudaError: if there is none.
        """
        source = self.task.source.name
        if given is None:
            return self.workspace.newest_checkpoint(source)
        path = self.weights(given)
        if not os.path.exists(path):
            names = self.workspace.runs(source)
            known = f"runs of {source} are {', '.join(names)}" if names else f"there is no run of {source}"
            raise WorkspaceError(
                f"{given}: neither a run of the workspace nor a file of weights; {known}"
                f"{did_you_mean(str(given), names)}"
            )
        return path


def open_session(
    command: str, options: Located, device: str = "cpu", together: Sequence[str] = ()
) -> Session:
    """Resolve the options that say where a command works.

    Args:
        command: its name.
        options: all it was told.
        device: as it was named.
        together: sources in place of ``--source``, to be learnt at once.

    Raises:
        EndaudaError: if the workspace or a domain cannot be found, or class tables disagree.
    """
    from endauda_cli.datasets import load_task, load_together
    from endauda_cli.limits import check_space

    check_space()
    found = find_workspace(options.workspace)
    further: tuple[Domain, ...] = ()
    if together:
        task, further = load_together(together, options.target, found.root)
    else:
        task = load_task(options.source, options.target, found.root)
    source_data, target_data = (getattr(options, name, None) for name in ("source_data", "target_data"))
    return Session(
        workspace=found,
        task=task,
        terminal=options.terminal(command),
        device_name=device,
        source_roots=_roots(found, task.source, source_data, "--source-data"),
        target_roots=_roots(found, task.target, target_data, "--target-data"),
        further=tuple((domain, found.data_roots(domain)) for domain in further),
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
        others: under ``torchrun``, waits for all of them and sums what each gives.
    """

    device: str
    shard: tuple[int, int]
    others: Callable[[int], int] | None = None


@contextmanager
def place(session: Session, shard: tuple[int, int], networks: bool) -> Iterator[Place]:
    """This process's part of the images, by ``--shard`` or by its rank under ``torchrun``.

    Archives are fused on the CPU unless the user names a device; then, and without ranks, torch is not needed, which
    saves seconds and half a gigabyte.
    """
    number, of = shard
    on_cpu = session.device_name == "cpu" or (session.device_name == "auto" and not networks)
    if launched() == 1:
        yield Place("cpu" if on_cpu else str(session.device()), (number, of))
        return
    if of > 1:
        raise ConfigError("--shard and torchrun both split the images; use one of them")
    from endauda_cli.distributed import pick_device, process_group, rank, total_over_ranks, world_size

    with process_group(pick_device("cpu") if on_cpu else session.device()) as device:
        yield Place(str(device), (rank() + 1, world_size()), lambda made: total_over_ranks(made)[0])


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
