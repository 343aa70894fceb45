"""What an earlier version wrote, this one opens, recognises and goes on with (``data/earlier``)."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import DATA
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    contents,
    opinion,
    result_of,
    scene,
    seed_of,
)

if TYPE_CHECKING:
    from pathlib import Path

EARLIER = DATA / "earlier"
EXPECTED: dict[str, Any] = json.loads((EARLIER / "expected.json").read_text())
CHANGED = {"consensus"}
"""Rules that decide otherwise since: their labels are made anew, all of them."""
SETS: dict[str, tuple[str, ...]] = {"consensus": (), "plf": ("--rule", "plf", "--threshold", "50")}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER, tmp_path / "workspace")


@pytest.mark.parametrize("teacher", TEACHERS)
def test_archives_say_what_they_said(teacher: str) -> None:
    """Whole shards, and images that waited for one."""
    found = contents(EARLIER / "certainty/gta5" / teacher)
    assert set(found) == {*TRAIN, *VAL}
    for image, (labels, certainty) in found.items():
        label, certainties = opinion(teacher, scene(seed_of(image)), seed_of(image))
        assert labels == label.tobytes() and certainty == certainties.transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize("name", SETS)
def test_labels_are_recognised(workspace: Path, name: str) -> None:
    folder = workspace / CITIES / "gtFine" / name
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    result = result_of("fuse", "--teachers", *TEACHERS, *SETS[name], "--workspace", workspace)
    assert (result["images"], result["skipped"]) == (len(TRAIN), 0 if name in CHANGED else len(TRAIN))
    if name in CHANGED:
        return
    assert result["coverage"] == EXPECTED["coverage"][name]
    assert {path.name: path.read_bytes() for path in folder.glob("*leftImg8bit*.png")} == before


@pytest.mark.parametrize("name", sorted(SETS.keys() - CHANGED))
def test_labels_are_made_the_same(workspace: Path, name: str) -> None:
    line = ("fuse", "--teachers", *TEACHERS, *SETS[name], "--name", "anew")
    assert result_of(*line, "--workspace", workspace)["skipped"] == 0
    for path in (EARLIER / CITIES / "gtFine" / name).glob("*.png"):
        assert (workspace / CITIES / "gtFine/anew" / path.name).read_bytes() == path.read_bytes()


def test_a_run_goes_on(workspace: Path) -> None:
    result = result_of(
        "train", *SIZE_FLAGS, "--labels", "plf", "--name", "stopped", "--steps", "12", "--save-every", "4",
        "--mirror", "--resume", "--workspace", workspace,
    )  # fmt: skip
    assert (result["resumed_from"], result["steps"]) == (4, 12)
    lines = (workspace / "runs/gta5/stopped/metrics.jsonl").read_text().splitlines()
    losses = {str(line["step"]): line["loss"] for line in map(json.loads, lines)}
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-4)  # another processor sums in another order
    scored = result_of("test", "--no-save-images", "--workspace", workspace)
    assert scored["scored"] == str(workspace / "runs/gta5/stopped/last.pt")
    assert scored["miou"] == pytest.approx(EXPECTED["finished_miou"], abs=0.2)


def test_a_checkpoint_scores_the_same(workspace: Path) -> None:
    """A few pixels may lie on the border of two classes on another processor."""
    checkpoint = workspace / "runs/gta5/stopped/last.pt"
    scored = result_of("test", "--weights", checkpoint, "--no-save-images", "--workspace", workspace)
    assert scored["miou"] == pytest.approx(EXPECTED["stopped_miou"], abs=0.2)
