"""``test`` of several at once: teachers, label sets, runs and predictions in one table, and compared."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.archive import CertaintyReader
from tests.support.command_lines import (
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    files_of,
    make_archive,
    make_workspace,
    put_outputs,
    refused,
    result_of,
    succeed,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three archives and a fourth of train images alone, label sets of both splits and a run."""
    root = make_workspace(tmp_path_factory.mktemp("made"))
    here = ("--workspace", root)
    make_archive(root, "mrnet", TRAIN)
    put_outputs(root / "outputs", "crst", VAL)
    succeed("fuse", *here, "--teachers", *TEACHERS, "--rule", "majority", "--threshold", "0")
    succeed("fuse", *here, "--teachers", *TEACHERS, "--rule", "plf", "--split", "val")
    succeed("train", *here, *SIZE_FLAGS, "--labels", "majority", "--steps", "1", "--name", "student")
    return root


@pytest.fixture
def city(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(made)
    return made


def names(table: dict[str, list[dict[str, str]]]) -> set[tuple[str, str]]:
    return {(row["kind"], row["name"]) for row in table["rows"]}


def test_everything_in_one_table(city: Path) -> None:
    outcome = succeed("test", "--all", "--boundaries", "--json")
    table = outcome.result
    assert names(table) == {
        *(("teacher", name) for name in TEACHERS), ("labels", "plf-val"), ("run", "student"),
    }  # fmt: skip
    assert "mrnet: has no labels of 2 of 2 images" in outcome.err and "left out" in outcome.err
    mious = [row["score"]["miou"] for row in table["rows"]]
    assert mious == sorted(mious, reverse=True)
    out = city / "scores/cityscapes-val"
    assert table["report"] == str(out / "report.html")
    kept = json.loads((out / "scores.json").read_text())
    assert [row["name"] for row in kept["rows"]] == [row["name"] for row in table["rows"]]
    page = (out / "report.html").read_text()
    assert "labels plf-val" in page and "mIoU-16: road, " in page
    for row in table["rows"]:
        with np.load(row["score"]["counts"]) as counts:
            assert tuple(counts["images"]) == VAL and counts["pixels"].sum() == len(VAL) * 32 * 64
        assert [score["tolerance"] for score in row["score"]["boundary"]] == [
            "2 px",
            "0.75 % of the diagonal",
        ]
    assert (city / "runs/gta5/student/test-last-val/counts.npz").is_file()


def test_rows_are_what_they_are_alone(city: Path) -> None:
    """One alone is printed and written as ever; an archive's labels score as the same PNGs do."""
    before = files_of(city / "scores") if (city / "scores").exists() else {}
    alone = {
        "crst": result_of("test", "--archive", "crst"),
        "plf-val": result_of("test", "--labels", "plf-val"),
        "outputs": result_of("test", "--predictions", "outputs"),
        "student": result_of("test"),
    }
    assert "rows" not in alone["crst"] and alone["student"]["scored"].endswith("student/last.pt")
    if before:
        assert files_of(city / "scores") == before
    for key in ("miou", "iou", "coverage", "means", "boundary", "intervals"):
        assert alone["crst"][key] == alone["outputs"][key], key
    line = ("test", "--archive", "crst", "--labels", "plf-val", "--predictions", "outputs")
    table = result_of(*line, "--weights", "runs/gta5/student/last.pt")
    rows = {row["name"]: row["score"] for row in table["rows"]}
    rows["student"] = rows.pop("runs/gta5/student/last.pt")
    for name, score in alone.items():
        for key in score:
            if key not in ("counts", "scored", "pictures"):  # paths, as they were given
                assert rows[name][key] == score[key], (name, key)
    eval_json = json.loads((city / "runs/gta5/student/test-last-val/eval.json").read_text())
    assert eval_json["miou"] == alone["student"]["miou"]
    assert alone["plf-val"]["coverage"] < 100 <= alone["crst"]["coverage"]


def test_several_of_one_kind(city: Path) -> None:
    table = result_of("test", "--archive", "crst", "dacs,cbst")
    assert names(table) == {("teacher", name) for name in TEACHERS}
    shutil.copytree(city / "outputs", city / "a,b", dirs_exist_ok=True)
    assert result_of("test", "--predictions", "a,b")["scored"].endswith("a,b")
    shutil.rmtree(city / "a,b")


def test_boundaries_are_asked_for(city: Path) -> None:
    line = ("test", "--archive", "crst", "dacs")
    assert all(row["score"]["boundary"] == [] for row in result_of(*line)["rows"])
    assert "boundary" not in succeed(*line).out
    assert "boundary" in succeed(*line, "--boundaries").out


def test_compare_two(city: Path) -> None:
    table = result_of("test", "--compare", "crst", "plf-val")
    assert names(table) == {("teacher", "crst"), ("labels", "plf-val")}
    own, strict = table["comparisons"]
    rows = {row["name"]: row["score"] for row in table["rows"]}
    assert (own["a"], own["b"], own["measure"], strict["measure"]) == (
        "crst",
        "plf-val",
        "mIoU",
        "strict mIoU",
    )
    assert own["difference"] == pytest.approx(rows["crst"]["miou"] - rows["plf-val"]["miou"])
    assert strict["difference"] == pytest.approx(rows["crst"]["strict_miou"] - rows["plf-val"]["strict_miou"])
    assert own["wins"] + own["losses"] + own["ties"] == len(VAL)
    assert own["intervals"] == [{"over": "images", "units": 2, "low": None, "high": None}]
    assert own["real"] is None
    text = succeed("test", "--compare", "crst", "plf-val").out
    assert f"crst against plf-val: mIoU {own['difference']:+.2f}, better in {own['wins']} images" in text


def test_compare_one_with_all(city: Path) -> None:
    table = result_of("test", "--archive", *TEACHERS, "--compare", "teacher/dacs")
    assert {(one["a"], one["b"]) for one in table["comparisons"]} == {("dacs", "crst"), ("dacs", "cbst")}
    same = result_of("test", "--archive", "crst", "--predictions", "outputs", "--compare", "crst")
    (one,) = same["comparisons"]
    assert (one["difference"], one["wins"], one["losses"], one["ties"], one["sign_p"]) == (0, 0, 0, 2, 1)


def test_compare_with_what_was_published(city: Path) -> None:
    table = result_of("test", "--archive", *TEACHERS, "--compare", "dacs", "published")
    rows = {row["name"]: row["score"] for row in table["rows"]}
    assert table["comparisons"] == []
    published = {one["name"]: one for one in table["published"]}
    assert {"gta5/ours/drn", "dacs", "hrda/gta5", "mic/gta5"} <= set(published)
    assert not any(name.startswith("synthia") for name in published)
    mic = published["mic/gta5"]
    assert (mic["classes"], mic["miou"], mic["page"]) == (19, 75.9, "https://github.com/lhoyer/MIC")
    assert mic["differences"] == {"dacs": pytest.approx(rows["dacs"]["miou"] - 75.9)}
    assert mic["within"] == {"dacs": None}  # two images say nothing
    text = succeed("test", "--archive", *TEACHERS, "--compare", "published").out
    assert "crst - it" in text and "75.90" in text
    assert "not of cityscapes train" in refused("test", "--compare", "published", "--split", "train")


def test_the_published_means_are_over_as_many_classes(city: Path) -> None:
    shutil.copytree(city / "certainty/gta5", city / "certainty/synthia")
    table = result_of("test", "--archive", "crst", "--source", "synthia", "--compare", "published")
    published = {one["name"]: one for one in table["published"]}
    assert {name: published[name]["classes"] for name in ("synthia/ours/drn", "mic/synthia")} == {
        "synthia/ours/drn": 13, "mic/synthia": 16,
    }  # fmt: skip
    (row,) = table["rows"]
    thirteen = row["score"]["subset_miou"]["mIoU-13"]
    assert published["synthia/ours/drn"]["differences"]["crst"] == pytest.approx(thirteen - 59.95)
    assert "synthia/source/resnet" not in published
    paper = published["EnD-UDA (paper)"]
    assert (paper["classes"], paper["miou"]) == (16, 52.58)
    sixteen = next(mean["miou"] for mean in row["score"]["means"] if len(mean["classes"]) == 16)
    assert paper["differences"]["crst"] == pytest.approx(sixteen - 52.58)
    shutil.rmtree(city / "certainty/synthia")


def test_names_that_two_rows_have(city: Path) -> None:
    shutil.copytree(city / "certainty/gta5/dacs", city / "certainty/gta5/plf-val")
    table = result_of("test", "--archive", "plf-val", "--labels", "plf-val", "--compare", "labels/plf-val")
    assert {row["name"] for row in table["rows"]} == {"teacher/plf-val", "labels/plf-val"}
    assert {one["b"] for one in table["comparisons"]} == {"teacher/plf-val"}
    shutil.rmtree(city / "certainty/gta5/plf-val")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--archive", "crts"), "no archive of a teacher 'crts'"),
        (("--archive", "mrnet"), "mrnet: has no labels of 2 of 2 images, first lindau_000000"),
        (
            ("--labels", "plv-val"),
            "--labels plv-val: no such label set; there are majority, plf-val; did you mean",
        ),
        (("--labels", "majority"), "no prediction for 2 of 2 images"),
        (("--compare", "dacs", "nothing"), "--compare nothing: neither a teacher, a label set or a run"),
    ],
)
def test_refusals(city: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("test", *words)


def test_nothing_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_workspace(tmp_path))
    shutil.rmtree(tmp_path / "certainty")
    assert "no archives, label sets of val images or runs of source gta5" in refused("test", "--all")


def test_a_run_that_cannot_be_opened_is_left_out(city: Path) -> None:
    broken = city / "runs/gta5/broken"
    broken.mkdir()
    (broken / "last.pt").write_bytes(b"nothing")
    outcome = succeed("test", "--all", "--boundaries", "--json")
    assert ("run", "broken") not in names(outcome.result) and ("run", "student") in names(outcome.result)
    assert "broken/last.pt" in outcome.err and "left out" in outcome.err
    shutil.rmtree(broken)


def test_archives_of_more_classes_are_read_by_name(city: Path) -> None:
    """Teachers of 19 classes on 16: what was said to be a train is given to the next best."""
    source = city / "certainty/synthia"
    shutil.copytree(city / "certainty/gta5", source)
    result = result_of("test", "--archive", "crst", "--source", "synthia")
    assert len(result["iou"]) == 16
    assert list(result["subset_miou"]) == ["mIoU-13"]
    with CertaintyReader(source / "crst") as reader:
        assert len(reader.classes) == 19
    shutil.rmtree(source)
