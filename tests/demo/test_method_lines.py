"""The demo's settings of the published methods, as the lines that ``benchmarks/methods.py`` types."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from endauda_cli.commands import train
from endauda_cli.config import TrainConfig
from endauda_cli.demo import full, story
from endauda_cli.errors import EndaudaError
from endauda_cli.options import options_of
from endauda_cli.workspace import Workspace
from tests.support.command_lines import make_cityscapes, refused
from tests.training.test_adaptation_commands import make_source

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its options are the demo's, its images few."""
    root = make_cityscapes(tmp_path_factory.mktemp("lines"))
    make_source(root, "gta5")
    story.write_defaults(Workspace(root), full.TEACHERS)
    written = (root / "endauda.toml").read_text().splitlines()
    (root / "endauda.toml").write_text("\n".join(line for line in written if ".toml" not in line))
    return root


@pytest.mark.parametrize("name", full.RUNS)
def test_a_line_makes_the_recipe(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, found = full.RUNS[name], []

    def caught(session: Any, options: Any, config: TrainConfig, *others: Any) -> Any:
        found.append(config)
        raise EndaudaError("enough")

    monkeypatch.setattr(train, "_done", caught)
    assert refused("train", *full.command_line(run), "--workspace", folder) == "enough"
    typed, wanted = asdict(found[0]), asdict(full.recipe(run))
    same_as_nothing = {"network": None, "workers": typed["workers"]}
    same_as_nothing |= {"scale_jitter": None} if typed["scale_jitter"] == (1, 1) else {}
    same_as_nothing |= {"source_size": None} if typed["source_size"] == typed["size"] else {}
    assert {**typed, **same_as_nothing} == {**wanted, "workers": typed["workers"]}


def test_options_are_typed_as_they_are_read() -> None:
    known = options_of(TrainConfig)
    changed = {"size": (64, 32), "mirror": True, "nesterov": False, "strong": ("blur",), "sure": 0.5}
    words = [word for name, value in changed.items() for word in known[name].line(value)]
    assert words == ["--size", "64x32", "--mirror", "--no-nesterov", "--strong", "blur", "--sure", "0.5"]
