"""From names to verified files: lock, fetch, verify, open, write down, rename; one artefact after the other.

A file is written down in the lock file before it gets its final name, so that a kill between the two leaves
something that the next run only has to rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from endauda_cli.errors import CheckpointError, ConfigError, DownloadError
from endauda_cli.progress import Note, Tick, phase
from endauda_cli.results import DownloadResult, FetchedWeights, WeightsFailure
from endauda_cli.weights import drive, transport
from endauda_cli.weights.listing import command_line, is_of, next_steps, state_of, trouble_of
from endauda_cli.weights.lockfile import PATH as LOCK_PATH
from endauda_cli.weights.lockfile import Record, Seen, add_record, look, read_records
from endauda_cli.weights.manifest import Artefact, Manifest, is_checkpoint, is_link
from endauda_cli.weights.matching import Match, match
from endauda_cli.weights.places import direct, in_the_way, move, name_in, only_one, staging, words
from endauda_cli.weights.transport import Patience
from endauda_cli.weights.troubles import SourceError, shown
from endauda_cli.weights.unpacking import BadArchiveError, is_archive, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    import requests

    from endauda_cli.progress import Reporter
    from endauda_cli.workspace import Workspace

ARCHIVES = (".zip", ".tar")
"""How a mirror may hold what goes to a folder."""
"""For another process that fetches the same."""


@dataclass(frozen=True)
class FetchOptions:
    """How to get at what was named."""

    mirror: str | None = None
    """A web folder that holds files under their workspace paths; asked first."""
    from_file: Path | None = None
    """A file that the user has fetched, instead of any link."""
    offline: bool = False
    """Ask nobody."""
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class _Piece:
    """A file that was fetched for an artefact, not in its final place yet."""

    path: Path
    name: str
    """Of the file, as its source calls it."""
    url: str


def fetch_weights(
    workspace: Workspace, manifest: Manifest, names: Sequence[str], options: FetchOptions, report: Reporter
) -> DownloadResult:
    """Get the artefacts of those names; what fails does not keep the others from coming.

    Raises:
        ConfigError: if a name is unknown, ``from_file`` is given for several, or ``mirror`` is no link.
    """
    chosen = manifest.choose(names)
    if options.mirror is not None and not is_link(options.mirror):
        raise ConfigError(
            f"--mirror {options.mirror}: a link that begins with https:// or http:// was expected"
        )
    if options.from_file is not None:
        if len(chosen) != 1:
            raise ConfigError(f"--from-file is for one name, but {len(chosen)} are meant")
        if not options.from_file.is_file():
            raise ConfigError(f"--from-file {options.from_file}: no such file")

    def tell(event: Tick | Note) -> None:
        if isinstance(event, Note):
            report(replace(event, text=shown(event.text)))
        else:
            report(replace(event, note=shown(event.note)))

    fetched, failures = [], []
    for number, artefact in enumerate(chosen):
        if len(chosen) > 1:
            report(Tick("in all", number, len(chosen), artefact.name, "files", kept=number))
        try:
            fetched.append(_Job(workspace.root, artefact, options, tell).run())
        except (DownloadError, CheckpointError) as error:
            reason = shown(str(error))
            failures.append(WeightsFailure(artefact.name, reason))
            if len(chosen) > 1:
                named = reason.startswith((f"{artefact.name} ", f"{artefact.name}: "))
                report(Note(reason if named else f"{artefact.name}: {reason}", "warning"))
    if len(chosen) > 1:
        report(Tick("in all", len(chosen), len(chosen), unit="files", kept=len(chosen)))
    return DownloadResult(tuple(fetched), tuple(failures))


class _Job:
    """One artefact on its way into the workspace."""

    def __init__(self, root: Path, artefact: Artefact, options: FetchOptions, report: Reporter) -> None:
        self.root, self.artefact, self.options, self.report = root, artefact, options, report
        self.target = artefact.target(root)
        self.staging = staging(self.target)
        self.record: Record | None = None
        self.seen: dict[Path, Seen] = {}

    def run(self) -> FetchedWeights:
        """Until it is there.

        Raises:
            DownloadError: if no source gives it, or what came is not what was published.
            CheckpointError: if a checkpoint in it cannot be opened or is of another network.
        """
        with only_one(self.target, self.artefact.name, self.report):
            self.record = read_records(self.root).get(self.artefact.name)
            if self.record is not None and not is_of(self.record, self.artefact):
                raise DownloadError(
                    f"{self.root / LOCK_PATH}: {self.artefact.name!r} was seen as {', '.join(self.record.files)}, "
                    f"but {self.artefact.path} was expected; delete that entry and run again"
                )
            state = state_of(self.root, self.artefact, self.record)
            if state == "verified" and self.record is not None:
                places = self._places(self.record)
                with phase(self.report, f"checking {self.artefact.name}"):
                    return self._result(self.record, False, self._open_all(places))
            given = self.options.from_file
            if state == "verified":  # by the manifest's digest: the user put it there
                given = self.target
            if state == "foreign" and not (given is not None and self._is_in_place(given)):
                self._refuse_foreign()
            pieces = self._pieces_of_user(given) if given is not None else self._pieces_from_sources()
            return self._install(pieces)

    def _is_in_place(self, given: Path) -> bool:
        return not self.artefact.is_folder and self.target.exists() and given.samefile(self.target)

    def _refuse_foreign(self) -> None:
        if self.artefact.is_folder:
            return  # only files of the same names are in the way; see _install
        known = "is not what was first fetched" if self.record is not None else "was not fetched by endauda"
        line = command_line("download-weights", self.artefact.name, "--from-file", self.artefact.path)
        raise DownloadError(
            f"{self.target}: something lies there that {known}; to check and adopt it run '{line}', "
            "to fetch it anew move it away"
        )

    # ------------------------------------------------------------------------ sources

    def _pieces_of_user(self, given: Path) -> list[_Piece]:
        """The user's own file, copied; it stays where it is."""
        if self._is_in_place(given):
            piece = _Piece(self.target, given.name, self.artefact.path)
            self._verify(piece)
            return [piece]
        copy = self._part(given.name).with_suffix(".given")  # the part of a cut download stays
        piece = _Piece(copy, given.name, str(given))
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, copy)
            self._verify(piece)
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if self.artefact.is_folder:
                with suppress(OSError):  # the parts of a cut download stay
                    self.staging.rmdir()
            if isinstance(error, OSError):
                raise DownloadError(
                    f"{given}: cannot be copied to {copy} ({error.strerror}); free some space and run again"
                ) from error
            raise
        return [piece]

    def _pieces_from_sources(self) -> list[_Piece]:
        """From the first source that gives it."""
        reasons = []
        if not self.options.offline:
            for url in self._urls():
                try:
                    with transport.new_session() as session:
                        return [self._fetch(session, link, name) for link, name in self._links(url)]
                except SourceError as error:
                    reasons.append(str(error))
                    if url != self._urls()[-1]:
                        self.report(Note(f"{error}; asking the next link"))
        a = self.artefact
        if self.options.offline:
            why = f"{a.name} is not there, and --offline asks nobody"
        elif not reasons:
            why = f"{a.name}: no link to it is known"
        else:
            why = f"{a.name} cannot be fetched: {'; '.join(reasons)}"
        save = "save the file" if a.is_folder else f"save the file as {self.target}"
        line = command_line("download-weights", a.name, "--from-file", "FILE" if a.is_folder else a.path)
        raise DownloadError(f"{why}; open {a.page} in a browser, {save}, then run '{line}'")

    def _urls(self) -> list[str]:
        """Links to ask, in order."""
        a, urls = self.artefact, []
        if self.options.mirror is not None:
            web = urlsplit(self.options.mirror)  # may end with a token
            base = f"{web.path.rstrip('/')}/{quote(a.path.rstrip('/'))}"
            urls += [web._replace(path=base + end).geturl() for end in (ARCHIVES if a.is_folder else ("",))]
        return urls + list(a.urls)

    def _links(self, url: str) -> list[tuple[str, str]]:
        """(link, name or path, if the link says it) of each file that a source means: one, but for Drive's folders."""
        if drive.folder_id(url) is None:
            return [(url, "" if drive.file_id(url) else name_in(url))]
        pinned = list(self.record.downloads) if self.record is not None else []
        if not self.artefact.is_folder and pinned and drive.file_id(pinned[0]):
            return [(pinned[0], self.target.name)]
        waiting = lambda why: self.report(Note(f"{self.artefact.name}: {why}"))  # noqa: E731
        with phase(self.report, f"asking for {self.artefact.name}"):
            files = drive.list_folder(url, self.options.patience, waiting)
        wanted = [file for file in files if self.artefact.selects(file.path)]
        if not wanted:
            listed = ", ".join(file.path for file in files[:8]) or "no file"
            more = f" and {len(files) - 8} more" if len(files) > 8 else ""
            expected = f", but nothing like {self.artefact.member}" if self.artefact.member else ""
            raise SourceError(f"{url}: holds {listed}{more}{expected}")
        if len(wanted) > 1 and not self.artefact.is_folder:
            listed = ", ".join(file.path for file in wanted)
            raise SourceError(f"{url}: holds several files like {self.artefact.member} ({listed})")
        paths = Counter(file.path for file in wanted)
        if twice := [path for path, times in paths.items() if times > 1]:
            raise SourceError(f"{url}: holds two files called {twice[0]}")
        return [(file.url, file.path) for file in wanted]

    def _fetch(self, session: requests.Session, url: str, name: str) -> _Piece:
        """One file, complete and verified, as a part."""
        path = self._part(name)
        task = PurePosixPath(name).name or self.artefact.name
        seen_before = self.record.downloads.get(shown(url)) if self.record is not None else None
        size = self.artefact.size
        if size is None and seen_before is not None:
            size = seen_before.size
        if url.startswith("http://") and self.artefact.sha256 is None and seen_before is None:
            self.report(Note(f"{url}: not encrypted, and no digest is known to check it against", "warning"))
        called = transport.fetch(
            session,
            direct(url),
            drive.open_file if drive.file_id(url) else transport.follow,
            path,
            size,
            self.artefact.sha256 is not None or seen_before is not None,
            self.options.patience,
            lambda done, total, note: self.report(Tick(task, done, total, note, "bytes", kept=done)),
        )
        done = path.stat().st_size
        self.report(Tick(task, done, done, "", "bytes", kept=done))
        piece = _Piece(path, name or called or "download", url)
        try:
            self._verify(piece)
        except DownloadError as error:
            transport.remove_part(path)
            self.seen.pop(path, None)
            raise SourceError(str(error)) from error
        return piece

    def _part(self, name: str) -> Path:
        """Where a file grows: beside a file's place, or below the folder's own staging folder (names of others
        may be too long for this, or the same but for upper and lower case)."""
        if not self.artefact.is_folder:
            return self.staging
        return self.staging / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.part"

    def _look(self, path: Path) -> Seen:
        """Size and digest of a file that is complete; read once."""
        if path not in self.seen:
            with phase(self.report, f"reading {path.name}"):
                self.seen[path] = look(path)
        return self.seen[path]

    def _verify(self, piece: _Piece) -> None:
        """That it is a file of the kind, size and digest that the manifest says.

        Raises:
            DownloadError: says what is there and what was expected.
        """
        if transport.begins_a_page(piece.path):
            raise DownloadError(f"{piece.url}: a web page came instead of a file")
        if is_checkpoint(self.target.name) and is_archive(piece.path):
            raise DownloadError(
                f"{piece.url}: is an archive, but the checkpoint {self.target.name} itself was expected; unpack it "
                "and give that file to --from-file"
            )
        if self.artefact.size is None and self.artefact.sha256 is None:
            return
        if (trouble := trouble_of(self.artefact, self._look(piece.path))) is not None:
            raise DownloadError(f"{piece.url}: {trouble}")

    # ------------------------------------------------------------------------ into place

    def _install(self, pieces: list[_Piece]) -> FetchedWeights:
        """Open, compare with the lock file, write down, rename."""
        files = self._unpacked(pieces) if self.artefact.is_folder else {self.target: pieces[0].path}
        found = {
            str(place.relative_to(self.root).as_posix()): self._look(path) for place, path in files.items()
        }
        self._compare(found, pieces)
        for place, path in files.items():
            if path != place and (other := in_the_way(place, self._look(path))) is not None:
                raise DownloadError(f"{other}: another file lies there; move it away and run again")
        with phase(self.report, f"checking {self.artefact.name}"):
            matches = self._open_all(files)
        record = Record(
            shown(pieces[0].url if len(pieces) == 1 else next(iter(self.artefact.urls), pieces[0].url)),
            self.record.first_seen if self.record is not None else date.today().isoformat(),
            {shown(piece.url): self._look(piece.path) for piece in pieces},
            found,
        )
        if self.record is None:
            add_record(self.root, self.artefact.name, record)
        for place, path in files.items():
            move(path, place)
        if self.artefact.is_folder:
            shutil.rmtree(self.staging, ignore_errors=True)
        else:
            transport.remove_part(self.staging)
        return self._result(record, True, matches)

    def _unpacked(self, pieces: list[_Piece]) -> dict[Path, Path]:
        """Final place -> present place of every file of a folder."""
        files: dict[Path, Path] = {}
        for number, piece in enumerate(pieces):
            if is_archive(piece.path):
                folder = self.staging / f"unpacked-{number}"
                shutil.rmtree(folder, ignore_errors=True)
                try:
                    inside = unpack(piece.path, folder, self.artefact.selects, piece.url)
                except BadArchiveError:
                    transport.remove_part(piece.path)
                    raise
                found = {self.target / path: folder / path for path in inside}
            else:
                found = {self.target / Path(*PurePosixPath(piece.name).parts): piece.path}
            for place in files.keys() & found.keys():
                if self._look(files[place]) != self._look(found[place]):
                    raise DownloadError(
                        f"{piece.url}: holds another {place.name} than the files before it; nothing was installed"
                    )
            files |= found
        above = {folder for place in files for folder in place.parents}
        if both := files.keys() & above:
            raise DownloadError(
                f"{pieces[0].url}: {min(both).name} is both a file and a folder; nothing was installed"
            )
        if not files:
            what = "no files" if self.artefact.member is None else f"nothing like {self.artefact.member}"
            raise DownloadError(f"{pieces[0].url}: holds {what}")
        return files

    def _compare(self, found: dict[str, Seen], pieces: list[_Piece]) -> None:
        if self.record is None or found == self.record.files:
            return
        names = sorted(set(found) | set(self.record.files))
        name = next(name for name in names if found.get(name) != self.record.files.get(name))
        now, then = found.get(name), self.record.files.get(name)
        for piece in pieces:
            if piece.path != self.target:
                transport.remove_part(piece.path)
        raise DownloadError(
            f"{self.root / name}: {pieces[0].url} gives {words(now)}, but {words(then)} was first seen on "
            f"{self.record.first_seen}; if the change is meant, delete {self.artefact.name!r} from "
            f"{self.root / LOCK_PATH} and run again"
        )

    def _open_all(self, files: dict[Path, Path]) -> list[tuple[Path, Match]]:
        """Open all checkpoints among files (final place -> present place); one at least must fit, if it can.

        Raises:
            CheckpointError: if one cannot be opened safely, or none fits.
        """
        matches: list[tuple[Path, Match]] = []
        refused: CheckpointError | None = None
        for place, path in files.items():
            if not is_checkpoint(place.name):
                continue
            try:
                matches.append((place, match(path, self.artefact.network, place)))
            except CheckpointError as error:
                if not self.artefact.is_folder:
                    raise self._set_aside(path, place, error) from error
                refused = refused or error
                matches.append((place, Match(f"not usable: {error}", False)))
        if self.artefact.is_folder and self.artefact.network is not None and not matches:
            names = ", ".join(sorted(place.name for place in files)[:8])
            refused = CheckpointError(f"{self.target}: holds no checkpoint (.pth, .pt, .ckpt), but {names}")
        if refused is not None and not any(m.fits for _, m in matches):
            raise self._set_aside(self.staging, self.target, refused) from refused
        return matches

    def _set_aside(self, path: Path, place: Path, error: CheckpointError) -> CheckpointError:
        """What is whole, but not the network: kept for a look, but neither as the file nor as its part."""
        if path == place or not path.exists():  # it was there already
            return error
        if self.options.from_file is not None and path.is_file():  # a copy: the user has it
            path.unlink()
            return CheckpointError(str(error).replace(str(place), str(self.options.from_file)))
        rejected = place.with_name(f"{place.name}.rejected")
        if rejected.is_dir():
            shutil.rmtree(rejected)
        os.replace(path, rejected)
        transport.remove_part(path)
        return CheckpointError(str(error).replace(str(place), f"{rejected} (set aside, not installed)"))

    def _places(self, record: Record) -> dict[Path, Path]:
        return {self.root / name: self.root / name for name in record.files}

    def _result(self, record: Record, fetched: bool, matches: list[tuple[Path, Match]]) -> FetchedWeights:
        a = self.artefact
        checks = [
            m.sentence if len(matches) == 1 else f"{place.relative_to(self.target)}: {m.sentence}"
            for place, m in matches
        ]
        if not matches and not a.is_folder:
            checks.append("not a PyTorch file, so its content was not looked at")
        return FetchedWeights(
            a.name,
            self.target,
            fetched,
            record.url if fetched else None,
            sum(seen.size for seen in record.files.values()),
            None if a.is_folder else record.files[a.path].sha256,
            tuple(checks),
            tuple(next_steps(a, self.root, record, matches)),
        )
