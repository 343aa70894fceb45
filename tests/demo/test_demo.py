"""The demo from end to end, so small that nothing is learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from endauda_cli.demo import full, translated
from endauda_cli.demo import story as demo
from endauda_cli.domains import CITYSCAPES_CLASSES
from endauda_cli.workspace import Workspace
from tests.support.command_lines import files_of, read_png, refused, result_of, succeed
from tests.support.pages import assert_self_contained
from tests.support.small_demo import IMAGES, STEPS, shrink


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished demo and its ``--json`` result; read only."""
    out = tmp_path_factory.mktemp("demo") / "world"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return out, result_of("demo", "--out", out, "--seed", "3", "--device", "cpu")


def test_every_row_of_the_table_is_there(shown: tuple[Path, Any]) -> None:
    out, result = shown
    names = [score["name"] for score in result["scores"]]
    assert names == [
        *(f"teacher {name}" for name in translated.TEACHERS),
        *("plf labels", "certainty labels", "majority labels"),
        *("soft-label labels", "consensus labels", "student"),
    ]  # fmt: skip
    for score in result["scores"]:
        assert 0 <= score["miou"] <= 100 and score["coverage"] == 100
        assert list(score["iou"]) == list(CITYSCAPES_CLASSES)
    assert [score["name"] for score in result["scores"] if score["ours"]] == ["consensus labels", "student"]
    assert (result["seed"], Path(result["workspace"]), Path(result["report"])) == (
        3,
        out,
        out / "report.html",
    )


def test_workspace_has_the_usual_tree(shown: tuple[Path, Any]) -> None:
    out, _ = shown
    assert {"noon.toml", "dusk.toml", "endauda.toml", "report.html"} <= {p.name for p in out.iterdir()}
    for split, count in IMAGES.items():
        assert len(list((out / f"Warehouse/dusk/images/{split}").glob("*.png"))) == count
    assert not (out / "Warehouse/dusk/labels/train").exists(), "the target's train images have no labels"
    for teacher in translated.TEACHERS:
        assert (out / f"runs/noon/teacher-{teacher}/last.pt").is_file()
        with CertaintyReader(out / "certainty/noon" / teacher) as reader:
            assert len(reader) == sum(IMAGES.values()) and reader.classes == CITYSCAPES_CLASSES
    for rule in ("plf", "certainty", "majority", "consensus"):
        record = json.loads((out / f"labels/dusk/{rule}/fusion.json").read_text())
        assert (record["rule"], record["images"], record["used_labels"]) == (rule, IMAGES["train"], False)
    assert json.loads((out / "labels/dusk/plf/policy.json").read_text())["kind"] == "auto"
    assert (out / "runs/noon/student/test-last-val/report.html").is_file()


def test_report_needs_no_other_file(shown: tuple[Path, Any]) -> None:
    out, result = shown
    page = (out / "report.html").read_text()
    assert_self_contained(page)
    for score in result["scores"]:
        assert score["name"] in page and f"{score['miou']:.2f}" in page
    # At least image, teachers, rules, student and truth of each scene.
    assert page.count("data:image/") >= 2 * (1 + 3 + 3 + 1 + 1)
    assert list(out.glob("report/*.png"))


def test_plain_commands_go_on_from_there(
    shown: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """endauda.toml of the demo makes the usual lines work in its folder, and they say the same scores."""
    out, result = shown
    monkeypatch.chdir(out)
    student = next(score for score in result["scores"] if score["name"] == "student")
    tested = result_of(
        "test", "--weights", "runs/noon/student/last.pt", "--no-save-images", "--batch-size", "4"
    )
    assert tested["miou"] == pytest.approx(student["miou"], abs=0.3)
    scored = result_of("test", "--predictions", "labels/dusk/plf-val")
    plf = next(score for score in result["scores"] if score["name"] == "plf labels")
    assert scored["miou"] == pytest.approx(plf["miou"])
    fused = result_of(
        "fuse", "--teachers", *translated.TEACHERS, "--rule", "plf", "--threshold", "0", "--name", "mine"
    )
    assert fused["policy"] == "auto" and fused["images"] == IMAGES["train"]
    for path in (out / "labels/dusk/plf").glob("dusk_train_*[0-9].png"):
        assert np.array_equal(read_png(path), read_png(out / "labels/dusk/mine" / path.name))
    assert result_of("fuse", "--rule", "certainty")["skipped"] == IMAGES["train"], "as the demo itself fused"
    assert "all 6 images are intact" in succeed("inspect", "places", "--verify").out
    assert (
        result_of("train", "--steps", "2", "--size", "64x32", "--crop", "48x24")["images"] == IMAGES["train"]
    )


def test_only_its_own_folder_is_written_to(shown: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = shown
    before = files_of(out)
    assert "holds the demo with --seed 3; name another folder with --out" in refused("demo", "--out", out)
    assert files_of(out) == before
    (tmp_path / "endauda.toml").write_text("[fuse]\nthreshold = 70\n")
    assert "not an empty folder; name a new one with --out" in refused("demo", "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["endauda.toml"]
    assert (tmp_path / "endauda.toml").read_text() == "[fuse]\nthreshold = 70\n"


def test_seed_makes_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed paints the same images and labels, another seed others."""
    shrink(monkeypatch)
    worlds = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        demo.write_world(Workspace(tmp_path / name), seed, lambda event: None, translated.TRANSLATIONS)
        worlds[name] = files_of(tmp_path / name / "Warehouse")
    assert worlds["a"] == worlds["b"] and worlds["a"].keys() == worlds["c"].keys()
    assert all(worlds["a"][path] != worlds["c"][path] for path in worlds["a"])


# ---------------------------------------------------------------------------- the published methods


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The same of ``--full``."""
    out = tmp_path_factory.mktemp("demo") / "full"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return out, result_of("demo", "--full", "--out", out, "--device", "cpu")


@pytest.mark.slow
def test_four_methods_are_an_ensemble(adapted: tuple[Path, Any]) -> None:
    out, result = adapted
    names = [score["name"] for score in result["scores"]]
    teachers = ["dacs", "cbst", "crst", "mrnet"]
    assert names[:6] == [full.SOURCE, full.TWO_HEADS, *(f"teacher {name}" for name in teachers)]
    assert names[-1] == "student"
    assert [score["name"] for score in result["scores"] if score["ours"]] == ["consensus labels", "student"]
    for name in teachers:
        meta = checkpoint.read_meta(out / f"runs/noon/teacher-{name}/last.pt")
        before = "source-only-two-heads" if name == "mrnet" else "source-only"
        assert (meta["config"]["method"], meta["step"]) == (name, STEPS)
        assert Path(meta["initialised_from"]).parent.name == before
        with CertaintyReader(out / "certainty/noon" / name) as reader:
            assert len(reader) == sum(IMAGES.values())
    record = json.loads((out / "labels/dusk/consensus/fusion.json").read_text())
    assert (record["teachers"], record["used_labels"]) == (teachers, False)
    assert not list(out.glob("noon-*.toml")), "nothing is translated"
    page = (out / "report.html").read_text()
    assert_self_contained(page)
    assert "by a published method (DACS, CBST, CRST, R-MRNet)" in page
    student = checkpoint.read_meta(out / "runs/noon/student/last.pt")
    assert Path(student["initialised_from"]).parent.name == "source-only"


@pytest.mark.slow
def test_the_two_demos_do_not_share_a_folder(adapted: tuple[Path, Any], shown: tuple[Path, Any]) -> None:
    assert "holds the demo with --full" in refused("demo", "--out", adapted[0])
    assert "holds the demo without --full" in refused("demo", "--full", "--out", shown[0], "--seed", "3")


def test_settings_are_of_the_methods() -> None:
    assert full.TEACHERS == ("dacs", "cbst", "crst", "mrnet")
    for name, run in full.RUNS.items():
        replace(full.BASE, method=run.method, **run.changes)  # each is an option with a value that it takes
        assert run.after is None or list(full.RUNS).index(run.after) < list(full.RUNS).index(name)
