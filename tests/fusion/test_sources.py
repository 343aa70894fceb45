"""What labels are made from: ids, tables, truth; and that they are made again when that changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from endauda_cli.archive import CertaintyReader, CertaintyWriter
from endauda_cli.types import FusionRule
from tests.support.command_lines import files_of, read_png, refused, result_of, succeed
from tests.support.training_runs import CLASSES, TOML, make_set

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

TRAIN, VAL = ("0", "1", "2", "3"), ("4", "5")
TEACHERS = ("good", "poor")
HERE = ("--target", "tiny.toml")


def said(image: str, teacher: str) -> tuple[UInt8, UInt8]:
    """Labels and certainties; ``poor`` errs in a third of the pixels."""
    rng = np.random.default_rng([sum(image.encode()), len(teacher), TEACHERS.index(teacher)])
    truth = np.zeros((32, 64), np.uint8)
    truth[:14] = 2
    wrong = rng.random(truth.shape) < (0.33 if teacher == "poor" else 0.02)
    label = np.where(wrong, rng.integers(0, 3, truth.shape), truth).astype(np.uint8)
    certainty = np.full((3, 32, 64), 5, np.uint8)
    np.put_along_axis(certainty, label[None].astype(np.intp), 90, 0)
    return label, certainty


def put_archives(root: Path, images: tuple[str, ...]) -> None:
    for teacher in TEACHERS:
        with CertaintyWriter(root / "certainty/tiny" / teacher, classes=CLASSES) as writer:
            for image in images:
                writer.write(image, *said(image, teacher))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_set(tmp_path)
    put_archives(tmp_path, TRAIN + VAL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------- ids


def test_ids_with_folders_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.toml").write_text(TOML)
    put_archives(tmp_path, ("ulm/0003", "bonn/a b/0001", "0002", "report/gallery"))
    monkeypatch.chdir(tmp_path)
    result = result_of("fuse", *HERE, "--rule", "majority")
    folder = tmp_path / "labels/tiny/majority"
    for image in ("ulm/0003", "bonn/a b/0001", "0002"):
        with CertaintyReader(tmp_path / "certainty/tiny/good") as reader:
            assert read_png(folder / f"{image}.png").shape == reader.size(image)
        assert (folder / f"{image}_color.png").exists()
    assert result["images"] == 4 and result_of("fuse", *HERE, "--rule", "majority")["skipped"] == 4
    result_of("fuse", *HERE, "--rule", "certainty", "--name", "majority")
    assert not list(folder.glob(".*"))


def test_an_image_whose_labels_would_lie_on_anothers_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(TOML)
    put_archives(tmp_path, ("a", "a_color"))
    monkeypatch.chdir(tmp_path)
    said = refused("fuse", *HERE)
    assert (
        "a_color: the labels of the second would be written where the colour preview of the first goes"
        in said
    )


def test_ids_of_an_archive_that_lead_out_write_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reader lets pass."""
    (tmp_path / "tiny.toml").write_text(TOML)
    put_archives(tmp_path, ("a",))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(CertaintyReader, "ids", property(lambda self: ("../../../../out",)))
    assert "'../../../../out' is no image id, it leads to another folder" in refused("fuse", *HERE)
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()


# ---------------------------------------------------------------------------- what they were made from


@pytest.mark.parametrize("rule", [FusionRule.CONSENSUS, FusionRule.PLF])
@pytest.mark.parametrize("policy", ["auto", "val", "few-shot"])
def test_a_corrected_table_scores_and_fits_anew(tiny: Path, rule: str, policy: str) -> None:
    """``[label_ids]`` with two classes mixed up, then mended."""
    words = (
        "fuse",
        *HERE,
        "--rule",
        rule,
        "--policy",
        policy,
        "--few-shot",
        "2",
        "--split",
        "val",
        "--name",
        "it",
    )
    right = (tiny / "tiny.toml").read_text()
    (tiny / "tiny.toml").write_text(
        right.replace('"7" = "road"', '"7" = "sky"').replace('"23" = "sky"', '"23" = "road"')
    )
    wrong = result_of(*words)
    (tiny / "tiny.toml").write_text(right)
    again = result_of(*words)
    assert again["skipped"] == 0
    anew = result_of(*words[:-1], "anew")
    for key in ("scores", "coverage", "classes"):
        assert again[key] == anew[key]
    good = {result["scores"][0]["name"]: result["scores"][0]["miou"] for result in (again,)}["good"]
    assert good > 60 > wrong["scores"][0]["miou"]
    assert result_of(*words)["skipped"] == len(VAL)


def test_corrected_truth_and_corrected_outputs(tiny: Path) -> None:
    words = ("fuse", *HERE, "--rule", "majority", "--split", "val", "--name", "it")
    result_of(*words)
    path = tiny / "truth/val/4.png"
    label = read_png(path).copy()
    label[:3] = 7
    Image.fromarray(label).save(path)
    assert result_of(*words)["skipped"] == len(VAL) - 1


def test_other_colours_are_drawn(tiny: Path) -> None:
    words = ("fuse", *HERE, "--rule", "majority", "--name", "it")
    result_of(*words)
    before = files_of(tiny / "labels/tiny/it")
    palette = "palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]\n"
    (tiny / "tiny.toml").write_text(palette + (tiny / "tiny.toml").read_text())
    result_of(*words)
    after = files_of(tiny / "labels/tiny/it")
    for image in TRAIN:
        assert before[f"{image}.png"] == after[f"{image}.png"]
        assert before[f"{image}_color.png"] != after[f"{image}_color.png"]


@pytest.mark.parametrize(
    "damage", ["[]", '{"delta": 3}', '{"delta": [1, 2]}', '{"delta": [9, 1, 2]}', '{"delta": "x"}']
)
def test_a_damaged_estimate_is_made_again(tiny: Path, damage: str) -> None:
    words = ("fuse", *HERE, "--rule", "soft-label", "--name", "it")
    result_of(*words)
    path = tiny / "labels/tiny/it/delta.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, **dict(json.loads(damage) or {"delta": None})}))
    assert result_of(*words)["skipped"] == len(TRAIN)
    assert json.loads(path.read_text()) == good


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", "shapes"])
def test_a_damaged_fit_is_made_again(tiny: Path, damage: bytes | str) -> None:
    first = result_of("fuse", *HERE, "--name", "one")
    (fit,) = (tiny / "certainty/tiny/.agreement").glob("*.npz")
    if isinstance(damage, bytes):
        fit.write_bytes(damage)
    else:
        with np.load(fit) as stored:
            arrays = dict(stored)
        np.savez(fit, **{**arrays, "evidence": arrays["evidence"][:, :2]})
    second = result_of("fuse", *HERE, "--name", "two")
    assert {**second, "labels": ""} == {**first, "labels": ""}


# ---------------------------------------------------------------------------- truth without a class


@pytest.mark.parametrize("rule", [FusionRule.CONSENSUS, FusionRule.PLF])
@pytest.mark.parametrize("policy", ["val", "few-shot"])
def test_truth_without_any_class_chooses_nobody(tiny: Path, rule: str, policy: str) -> None:
    """As Cityscapes' own test labels are: every pixel is ignored."""
    (tiny / "tiny.toml").write_text("ignore_ids = [0]\n" + (tiny / "tiny.toml").read_text())
    for image in VAL:
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(tiny / f"truth/val/{image}.png")
    words = ("fuse", *HERE, "--rule", rule, "--policy", policy, "--few-shot", "2")
    said = refused(*words)
    assert "the truth of all 2 images holds no class at all (first" in said
    assert "use --policy auto" in said
    result_of("fuse", *HERE, "--rule", rule)  # the advice
    scored = succeed("fuse", *HERE, "--rule", rule, "--split", "val", "--quiet")
    assert "nothing is scored" in scored.err
    label = np.zeros((32, 64), np.uint8)
    label[0, 0] = 7
    Image.fromarray(label).save(tiny / f"truth/val/{VAL[1]}.png")  # one pixel is enough not to be empty
    assert result_of(*words)["used_labels"]


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--window", str(10**23 + 1)), "--window"),
        (("--window", "9" * 5000), "--window"),
        (("--window", "65537"), "--window: a side is above 65,535"),
        (("--policy", "few-shot", "--few-shot", "9" * 5000), "the target has 2 labelled images, so 1 to 2"),
        (("--policy", "few-shot", "--few-shot", "²"), "is not a labelled image"),
        (("--policy", "few-shot", "--few-shot", "../4"), "is not a labelled image"),
    ],
)
def test_numbers_beyond_all_bounds(tiny: Path, words: tuple[str, ...], complaint: str) -> None:
    said = refused("fuse", *HERE, "--rule", "plf", *words)
    assert complaint in said and len(said) < 500


def test_the_widest_window(tiny: Path) -> None:
    assert result_of("fuse", *HERE, "--rule", "plf", "--window", "65535")["coverage"] >= 0


def test_windows_of_the_configuration(tiny: Path) -> None:
    for value in ("10" + "0" * 22 + "1", '"' + "9" * 400 + '"', "[1, 2]"):
        (tiny / "endauda.toml").write_text(f"[fuse]\nwindow = {value}\n")
        assert "window" in refused("fuse", *HERE, "--rule", "plf")


# ---------------------------------------------------------------------------- ranks


@pytest.mark.slow
def test_a_fresh_set_under_torchrun_is_not_unchanged(tiny: Path) -> None:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "endauda_cli",
            "fuse", *HERE, "--name", "it", "--quiet", "--json"]  # fmt: skip
    skipped = []
    for _ in range(2):
        done = subprocess.run(
            line, cwd=tiny, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        skipped.append(json.loads(done.stdout)["result"]["skipped"])
    assert skipped == [0, len(TRAIN)]
