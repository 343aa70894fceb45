"""``endauda report``: what a workspace holds on one page, whole, partial, empty or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command_lines import (
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    files_of,
    make_workspace,
    refused,
    result_of,
    succeed,
)
from tests.support.pages import assert_self_contained

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = "Warehouse/Cityscapes/data/gtFine"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every command ran."""
    root = make_workspace(tmp_path_factory.mktemp("whole"))
    here = ("--workspace", root)
    succeed("fuse", *here, "--teachers", *TEACHERS[:2], "--rule", "plf")
    succeed("fuse", *here, "--teachers", *TEACHERS, "--rule", "majority", "--split", "val")
    succeed("train", *here, *SIZE_FLAGS, "--labels", "plf", "--steps", "4", "--name", "student",
            "--validate-every", "2")  # fmt: skip
    succeed("train", *here, *SIZE_FLAGS, "--labels", "plf", "--steps", "1", "--name", "second",
            "--init", root / "runs/gta5/student/last.pt")  # fmt: skip
    succeed("test", *here, "--weights", root / "runs/gta5/student/last.pt")
    succeed("test", *here, "--all")
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """One to damage: records as files of their own, all else as links."""
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(made, root)
    return root


def test_what_is_made_of_what(made: Path) -> None:
    before = files_of(made)
    found = result_of("report", "--workspace", made)
    after = files_of(made)
    assert set(after) - set(before) == {"workspace.html"}
    assert {name: after[name] for name in before} == before, "nothing else is written"
    assert {t["name"] for t in found["teachers"]} == set(TEACHERS)
    for teacher in found["teachers"]:
        assert (teacher["source"], teacher["images"], teacher["classes"]) == ("gta5", len(TRAIN + VAL), 19)
        assert teacher["bytes"] > 0 and teacher["scores"][0]["miou"] > 0
    plf, majority = found["label_sets"]
    assert (plf["name"], plf["split"], plf["teachers"]) == ("plf", "train", list(TEACHERS[:2]))
    record = json.loads((made / LABELS / "plf/fusion.json").read_text())
    assert (plf["coverage"], plf["images"]) == (record["coverage"], record["images"])
    assert majority["name"] == "majority-val"
    own = json.loads((made / LABELS / "majority-val/fusion.json").read_text())["scores"]
    assert majority["miou"] == next(s["miou"] for s in own if s["is_rule"] and s["name"] == "majority")
    student, second = found["runs"]
    assert (student["labels"], student["teachers"]) == ("plf", list(TEACHERS[:2]))
    assert (student["step"], student["steps"], student["method"]) == (4, 4, "distill")
    lines = [json.loads(line) for line in (made / "runs/gta5/student/metrics.jsonl").read_text().splitlines()]
    seen = [line["val_miou"] for line in lines if "val_miou" in line]
    assert student["best_miou"] == max(seen) and [v for _, v in student["val_miou"]] == seen
    assert (
        student["scores"][0]["miou"]
        == json.loads((made / "runs/gta5/student/test-last-val/eval.json").read_text())["miou"]
    )
    assert second["init"].endswith("student/last.pt")
    table = json.loads((made / "scores/cityscapes-val/scores.json").read_text())
    assert [s["miou"] for s in found["scores"]] == [row["score"]["miou"] for row in table["rows"]]
    assert found["missing"] == [] and found["unreadable"] == []


def test_the_page(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages/overview.html"
    told = succeed("report", "--workspace", made, "--out", out).out
    assert "student" in told and "overview.html" in told
    page = out.read_text()
    assert_self_contained(page, links=True)
    for text in (
        "dacs",
        "majority-val",
        "second",
        "Scores on cityscapes val",
        "IoU per class",
        'href="#labels-gta5-plf"',
    ):
        assert text in page
    hrefs = [part.partition('"')[0] for part in page.split('href="')[1:]]
    files = [href for href in hrefs if not href.startswith("#")]
    assert files and all((out.parent / href).resolve().is_file() for href in files)
    assert any(href.endswith("runs/gta5/student/report.html") for href in files)


def test_an_empty_workspace_says_what_to_do(tmp_path: Path) -> None:
    found = result_of("report", "--workspace", tmp_path)
    lines = [lack["command"] for lack in found["missing"]]
    assert [line.split()[1] for line in lines] == ["export-teacher", "fuse", "train", "test"]
    assert found["teachers"] == found["runs"] == found["scores"] == []
    page = (tmp_path / "workspace.html").read_text()
    assert_self_contained(page)
    assert "endauda export-teacher NAME --weights FILE" in page


def test_a_partial_workspace(tmp_path: Path) -> None:
    root = make_workspace(tmp_path)
    found = result_of("report", "--workspace", root)
    assert found["missing"][0]["command"] == "endauda fuse --teachers cbst crst dacs"
    assert len(found["teachers"]) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_text('{"rows": [1, {"score": 3}], "scores": 7, "teachers": 5, "config": [], "parents": "x"}')


@pytest.mark.parametrize("harm", [cut, empty])
@pytest.mark.parametrize(
    ("file", "lost"),
    [
        (f"{LABELS}/plf/fusion.json", ("label_sets", 1)),
        ("scores/cityscapes-val/scores.json", ("scores", 0)),
        ("certainty/gta5/dacs/archive.json", ("teachers", 2)),
        ("runs/gta5/student/config.json", ("runs", 2)),
        ("runs/gta5/student/test-last-val/eval.json", ("runs", 2)),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_goes_on(
    copy: Path, file: str, lost: tuple[str, int], harm: Callable[[Path], None]
) -> None:
    harm(copy / file)
    found = result_of("report", "--workspace", copy)
    named = [str(Path(one["file"]).relative_to(copy)) for one in found["unreadable"]]
    assert len(named) == 1 and file.startswith(named[0])
    assert len(found[lost[0]]) == lost[1]
    page = (copy / "workspace.html").read_text()
    assert_self_contained(page, links=True)
    assert "What could not be read" in page and named[0] in page


def test_files_that_say_something_else(copy: Path) -> None:
    """Valid JSON of other kinds: nothing falls over, figures are left blank."""
    for file in (
        f"{LABELS}/plf/fusion.json", "scores/cityscapes-val/scores.json", "runs/gta5/student/config.json",
        "runs/gta5/student/test-last-val/eval.json",
    ):  # fmt: skip
        other(copy / file)
    found = result_of("report", "--workspace", copy)
    assert len(found["runs"]) == len(found["label_sets"]) == 2 and found["scores"] == []
    assert sum("row without a score" in one["reason"] for one in found["unreadable"]) == 2
    assert_self_contained((copy / "workspace.html").read_text(), links=True)


def test_lines_of_metrics_that_are_none(copy: Path) -> None:
    path = copy / "runs/gta5/student/metrics.jsonl"
    with path.open("ab") as file:
        file.write(
            b'{"step": 9, "loss": NaN}\nnonsense\n[1]\n{"loss": 3}\n{"step": 10, "loss": 1e999}\n\xff\n'
        )
    found = result_of("report", "--workspace", copy)
    assert [one["reason"] for one in found["unreadable"]] == ["4 lines are no figures of a step"]
    (student,) = [run for run in found["runs"] if run["name"] == "student"]
    assert student["step"] == 4 and student["last_loss"] is not None


def test_names_of_folders_are_text_and_nothing_else(copy: Path) -> None:
    hostile = '<img src=x onerror="alert(1)">: &#x'
    (copy / "runs/gta5/second").rename(copy / "runs/gta5" / hostile)
    (copy / LABELS / "plf").rename(copy / LABELS / "javascript:alert(1)")
    result_of("report", "--workspace", copy)
    page = (copy / "workspace.html").read_text()
    assert_self_contained(page, links=True)
    assert "<img" not in page and 'href="javascript:' not in page


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert "there" in refused("report", "--workspace", tmp_path, "--out", tmp_path / "there")


def test_runs_of_one_name_have_places_of_their_own(copy: Path) -> None:
    import shutil

    for name in ("a b", "a-b"):
        shutil.copytree(copy / "runs/gta5/second", copy / "runs/gta5" / name)
    shutil.copytree(copy / "runs/gta5", copy / "runs/synthia")
    assert len(result_of("report", "--workspace", copy)["runs"]) == 8
    assert_self_contained((copy / "workspace.html").read_text(), links=True)
