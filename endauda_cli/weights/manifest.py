"""The list of what can be fetched: ``data/weights.json``, or a file of the user's own in the same format.

The format is described in ``docs/weights.md``. ``null`` is "not known", and said so. Standard library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from endauda_cli.errors import ConfigError, did_you_mean, known_are
from endauda_cli.files import read_text
from endauda_cli.names import id_fault
from endauda_cli.types import Arch, Backbone
from endauda_cli.weights.lockfile import PATH as LOCK_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FORMAT = 1
NETWORKS_OF_TEACHERS = ("dacs", "crst", "cbst", "mrnet", "daformer", "hrda", "mic", "segformer")
"""Networks that ``models.build_teacher`` knows (or will know)."""
USES = ("test", "init", "teacher", "labels")
"""What an artefact is for; decides which command is named when it is there."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)


@dataclass(frozen=True)
class Network:
    """What a checkpoint should fit: a ``teacher``, a student (``arch``, ``backbone``), or a backbone alone.

    A student whose ``arch`` is not known is tried with each; without ``classes`` it is an ImageNet backbone.
    """

    teacher: str | None = None
    arch: str | None = None
    backbone: str | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Artefact:
    """Something that was published. ``None`` is not known."""

    name: str
    what: str
    path: str
    """Where it goes, relative to the workspace; with a slash at its end it is a folder, and archives that
    are fetched for it are unpacked there."""
    page: str
    """The page to open in a browser when all else fails."""
    urls: tuple[str, ...] = ()
    """Where it lives, mirrors in order: direct links, share links of Google Drive's files or folders."""
    member: str | None = None
    """Which files of a Drive folder or archive are meant, as a shell pattern on the end of their path."""
    size: int | None = None
    """Bytes of the file that is fetched."""
    sha256: str | None = None
    """Of the file that is fetched, in hex; its first digits (8 or more) count, too."""
    licence: str | None = None
    miou: float | None = None
    """Published score on Cityscapes val, percent."""
    source: str | None = None
    use: str | None = None
    network: Network | None = None
    note: str | None = None

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")

    def target(self, root: Path) -> Path:
        """Its place in a workspace."""
        return root / self.path

    def selects(self, path: str) -> bool:
        """Whether a file in a Drive folder or an archive is meant."""
        return self.member is None or any(fnmatchcase(path, p) for p in (self.member, f"*/{self.member}"))


@dataclass(frozen=True)
class Manifest:
    """All artefacts of one list, by name."""

    artefacts: dict[str, Artefact]

    def choose(self, names: Sequence[str]) -> list[Artefact]:
        """Those of the names; shell patterns such as ``gta5/*`` count; without names, all.

        Raises:
            ConfigError: if a name is unknown, or a pattern names nothing.
        """
        chosen: dict[str, Artefact] = {}
        for name in names or ("*",):
            found = {known: a for known, a in self.artefacts.items() if fnmatchcase(known, name)}
            if not found:
                known = ", ".join(self.artefacts)
                hint = did_you_mean(name, self.artefacts)
                raise ConfigError(f"no published weights {name!r}: known are {known}{hint}")
            chosen |= found
        return list(chosen.values())


def read_manifest(path: Path | None = None) -> Manifest:
    """The package's own list, or that of a file.

    Raises:
        ConfigError: says which file, which artefact, which field, what is there and what was expected.
    """
    where = str(path) if path is not None else "weights.json"
    try:
        own = files("endauda_cli").joinpath("data/weights.json")
        text = own.read_text(encoding="utf-8") if path is None else read_text(path)
        content = json.loads(text)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); check --manifest") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); see docs/weights.md for the format") from error
    return parse_manifest(content, where)


def parse_manifest(content: Any, where: str) -> Manifest:
    """A manifest from its JSON value.

    Raises:
        ConfigError: as ``read_manifest``.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ConfigError(
            f'{where}: expected a JSON object with "format": {FORMAT}, found {found!r:.80}; see docs/weights.md'
        )
    entries = content.get("artefacts")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f'{where}: expected "artefacts", a list that is not empty; see docs/weights.md')
    artefacts: dict[str, Artefact] = {}
    for number, entry in enumerate(entries, 1):
        artefact = _Entry(entry, f"{where}: artefact {number}").artefact()
        if artefact.name in artefacts:
            raise ConfigError(f"{where}: two artefacts are called {artefact.name!r}; rename one")
        artefacts[artefact.name] = artefact
    paths: dict[str, str] = {}
    for artefact in artefacts.values():
        if not artefact.is_folder and artefact.path in paths:
            raise ConfigError(
                f"{where}: {paths[artefact.path]} and {artefact.name} both go to {artefact.path}; change one path"
            )
        paths[artefact.path] = artefact.name
    return Manifest(artefacts)


def installed(root: Path, manifest: Manifest, name: str) -> Path | None:
    """Where the checkpoint of a name lies; ``None`` if the manifest does not know the name.

    Raises:
        ConfigError: if it knows it, but the file is not there (or a folder does not hold just one).
    """
    if (artefact := manifest.artefacts.get(name)) is None:
        return None
    target = artefact.target(root)
    found = [target] if target.is_file() else []
    if artefact.is_folder and target.is_dir():
        found = [path for path in sorted(target.rglob("*")) if is_checkpoint(path.name)]
    if not found:
        raise ConfigError(f"{target}: not there; fetch it with: endauda download-weights {name}")
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(target)) for path in found)
        raise ConfigError(
            f"{target}: holds {len(found)} checkpoints ({listed}); name one of them by its path"
        )
    return found[0]


def is_checkpoint(name: str) -> bool:
    """Whether a file of this name is opened as a PyTorch checkpoint."""
    return name.lower().endswith((".pth", ".pt", ".ckpt", ".pth.tar"))


def is_link(value: Any) -> bool:
    """Whether a value is a web address."""
    try:
        parts = urlsplit(value) if isinstance(value, str) and value.isprintable() else None
    except ValueError:
        return False
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


class _Entry:
    """One artefact as written, and how to complain of it."""

    def __init__(self, entry: Any, where: str) -> None:
        self.where = where
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: expected an object, found {entry!r:.80}")
        self.entry = entry
        if isinstance(entry.get("name"), str):
            self.where += f" ({entry['name'][:80]})"

    def artefact(self) -> Artefact:
        known = {field.name: field for field in fields(Artefact)}
        for key in self.entry:
            if key not in known:
                raise ConfigError(f"{self.where}: no field is called {key!r:.80}{known_are(key, known)}")
        for name, field in known.items():
            if field.default is MISSING and name not in self.entry:
                raise ConfigError(f"{self.where}: the field {name!r} is missing")
        return Artefact(
            name=self._text("name", _NAME, "letters, digits and . _ + - with / between words") or "",
            what=self._text("what") or "",
            path=self._path(),
            page=self._url("page", self.entry["page"]),
            urls=self._urls(),
            member=self._text("member"),
            size=self._number("size", int, "a whole number of bytes", 1 << 60),
            sha256=self._text(
                "sha256", re.compile(r"[0-9a-f]{8,64}"), "8 to 64 hexadecimal digits (0-9, a-f)"
            ),
            licence=self._text("licence"),
            miou=self._number("miou", float, "a percentage", 100),
            source=self._text("source"),
            use=self._choice("use", USES),
            network=self._network(),
            note=self._text("note"),
        )

    def _refuse(self, field: str, value: Any, expected: str) -> NoReturn:
        raise ConfigError(
            f"{self.where}: {field!r} is {json.dumps(value)[:200]}, but {expected} was expected"
        )

    def _text(
        self, field: str, pattern: re.Pattern[str] | None = None, form: str = "text in one line"
    ) -> str | None:
        value = self.entry.get(field)
        optional = field not in ("name", "what")
        if value is None and optional:
            return None
        if (
            not isinstance(value, str)
            or not value
            or not value.isprintable()
            or (pattern is not None and not pattern.fullmatch(value))
        ):
            self._refuse(field, value, form + (" or null" if optional else ""))
        return value

    def _number(self, field: str, kind: type[int] | type[float], form: str, most: int) -> Any:
        value = self.entry.get(field)
        allowed = (int,) if kind is int else (int, float)
        if value is not None and (type(value) not in allowed or not 0 <= value <= most):
            self._refuse(field, value, f"{form} or null")
        return value

    def _choice(self, field: str, choices: Sequence[str], value: Any = MISSING) -> str | None:
        value = self.entry.get(field) if value is MISSING else value
        if value is not None and value not in choices:
            self._refuse(field, value, f"one of {', '.join(choices)} or null")
        return value if value is None else str(value)

    def _path(self) -> str:
        value = self.entry["path"]
        form = "a path inside the workspace, with / between folders"
        if (
            not isinstance(value, str)
            or not value.strip("/.")
            or "\\" in value
            or ":" in value
            or not value.isprintable()
        ):
            self._refuse("path", value, form)
        pure = PurePosixPath(value)
        plain = str(pure) + "/" * value.endswith("/") == value
        if pure.is_absolute() or ".." in pure.parts or not plain or id_fault(str(pure)):
            self._refuse("path", value, form)
        if LOCK_PATH == value or (value.endswith("/") and LOCK_PATH.startswith(value)):
            self._refuse("path", value, f"a path that does not hold {LOCK_PATH}")
        return value

    def _url(self, field: str, value: Any) -> str:
        if not is_link(value):
            self._refuse(field, value, "a link that begins with https:// or http://")
        return str(value)

    def _urls(self) -> tuple[str, ...]:
        value = self.entry.get("urls", [])
        if not isinstance(value, list):
            self._refuse("urls", value, "a list of links")
        return tuple(self._url("urls", url) for url in value)

    def _network(self) -> Network | None:
        value = self.entry.get("network")
        if value is None:
            return None
        known = [field.name for field in fields(Network)]
        if not isinstance(value, dict) or not set(value) <= set(known):
            self._refuse("network", value, f"an object of {', '.join(known)}, or null,")
        network = Network(
            self._choice("network.teacher", NETWORKS_OF_TEACHERS, value.get("teacher")),
            self._choice("network.arch", tuple(Arch), value.get("arch")),
            self._choice("network.backbone", tuple(Backbone), value.get("backbone")),
            value.get("classes"),
        )
        if network.classes is not None and (
            type(network.classes) is not int or not 0 < network.classes < 256
        ):
            self._refuse("network.classes", network.classes, "a whole number or null")
        if (network.teacher is None) == (network.backbone is None):
            self._refuse("network", value, "either a teacher or a backbone")
        if network.classes is None and (network.teacher or network.arch):
            self._refuse("network", value, "a number of classes beside it")
        return network
