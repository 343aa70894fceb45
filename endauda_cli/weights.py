"""Store: the published weights and pseudo labels that endauda knows of, from ``data/weights.json``."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from endauda_cli.errors import ConfigError
from endauda_cli.results import Artefact, WeightsList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from endauda_cli.workspace import Workspace


def list_weights(workspace: Workspace, names: Sequence[str] = ()) -> WeightsList:
    """The artefacts of those names (all, if none is given), and whether they lie in the workspace.

    Raises:
        ConfigError: if a name is unknown.
    """
    known = {a.name: a for a in _manifest()}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"no published weights {name!r}: known are {', '.join(known)}{hint}")
    chosen = [known[name] for name in names or known]
    return WeightsList(tuple(replace(a, present=_holds_file(workspace, a)) for a in chosen))


def _manifest() -> list[Artefact]:
    text = files("endauda_cli").joinpath("data/weights.json").read_text(encoding="utf-8")
    return [Artefact(**entry) for entry in json.loads(text)["artefacts"]]


def _holds_file(workspace: Workspace, artefact: Artefact) -> bool:
    suffixes = (".pth", ".pt", ".tar", ".params")
    return any(path.suffix in suffixes for path in (workspace.root / artefact.path).glob("*"))
