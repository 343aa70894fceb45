"""The tutorial, followed line by line in an empty folder, as printed.

Smaller than for a reader: the demo that it starts with draws and learns less, and ``ENDAUDA_TRAIN_STEPS``, which the
page tells of, shortens the training. So nothing is learnt here, and figures are not compared.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from endauda_cli.archive import CertaintyReader
from tests.support import ROOT
from tests.support.command_lines import read_png, succeed
from tests.support.pages import blocks, follow, in_shell
from tests.support.small_demo import shrink

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs/tutorial.md"
STEPS = 6
IMAGES = {"train": 6, "val": 32}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The reader's folder in the end, and the command lines that led there; read only."""
    folder = tmp_path_factory.mktemp("reader")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, IMAGES, scenes=1, steps=2)
        patch.setenv("ENDAUDA_TRAIN_STEPS", str(STEPS))
        patch.delenv("ENDAUDA_WORKSPACE", raising=False)

        def run(line: str, here: Path) -> None:
            patch.chdir(here)
            lines.append(line)
            if line.startswith("endauda "):
                succeed(*shlex.split(line)[1:])  # in this process, which has torch loaded already
            else:
                in_shell(line, here)

        follow(PAGE, folder, run)
    return folder / "mine", lines


@pytest.mark.slow
def test_every_step_leaves_what_the_page_says(followed: tuple[Path, list[str]]) -> None:
    mine, _ = followed
    for teacher in ("places", "traffic", "people"):
        with CertaintyReader(mine / "certainty/mine" / teacher) as archive:
            assert len(archive) == sum(IMAGES.values()) and len(archive.classes) == 8
    assert (mine / "dusk_train_000_classes.png").is_file()
    records = {
        name: json.loads((mine / f"labels/mine/{name}/fusion.json").read_text())
        for name in ("consensus", "eight", "eight-test")
    }
    assert not records["consensus"]["used_labels"] and records["consensus"]["threshold"] == 90
    assert len(records["eight"]["labelled_images"]) == 8 and records["eight"]["coverage"] == 1
    assert records["eight-test"]["scores"]
    for image in mine.glob("images/train/*.png"):
        assert read_png(mine / "labels/mine/eight" / image.name).max() < 8
    run = mine / "runs/mine/deeplabv3plus-tiny-eight"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps if "step" in line) in (STEPS - 1, STEPS)
    assert (run / "test-last-test/report.html").is_file()
    assert (mine / "runs/mine/both/last.pt").is_file()


@pytest.mark.slow
def test_shared_parts_make_one_archive(followed: tuple[Path, list[str]]) -> None:
    mine, _ = followed
    with CertaintyReader(mine / "certainty/mine/shared") as archive:
        assert len(archive) == IMAGES["train"]


@pytest.mark.slow
def test_every_command_of_the_page_was_run(followed: tuple[Path, list[str]]) -> None:
    _, lines = followed
    printed = [line for block in blocks(PAGE) if block.language == "bash" for line in block.lines]
    assert lines == [line for line in printed if not line.startswith("cd ")] and len(lines) > 15
