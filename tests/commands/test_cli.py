"""The commands end to end, as users type them, on real files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endauda_cli import __version__
from endauda_cli.archive import CertaintyReader, CertaintyWriter
from endauda_cli.config import FuseConfig, InferenceConfig, TrainConfig
from endauda_cli.domains import CITYSCAPES, CITYSCAPES_CLASSES, DOMAINS
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    VAL,
    contents,
    endauda,
    files_of,
    make_archive,
    make_cityscapes,
    make_workspace,
    opinion,
    put_label,
    put_outputs,
    read_png,
    refused,
    result_of,
    scene,
    seed_of,
    succeed,
    without_superpowers,
)
from tests.support.processes import running

FUSED = CITIES / "gtFine"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after fuse, train and test; read only."""
    root = make_workspace(tmp_path_factory.mktemp("trained"))
    succeed("fuse", "--workspace", root, "--teachers", *TEACHERS, "--rule", "plf")
    succeed("train", "--workspace", root, *SIZE_FLAGS, "--steps", "2", "--name", "student")
    succeed("test", "--workspace", root)
    return root


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of this test's own, the current folder."""
    monkeypatch.chdir(make_workspace(tmp_path))
    return tmp_path


# ---------------------------------------------------------------------------- the three lines


def test_the_three_lines_as_typed(city: Path) -> None:
    """On DRN-D-54; endauda.toml only makes it small, for 1024x512 would take minutes."""
    (city / "endauda.toml").write_text(
        '[train]\nsize = "64x32"\ncrop = "32x16"\nbatch-size = 2\nworkers = 1\n'
    )
    fused = succeed("fuse", "--teachers", "dacs", "crst", "cbst")
    assert "consensus of dacs crst cbst, policy auto, threshold 90: 5 images" in fused.out
    trained = succeed("train", "--backbone", "drn", "--steps", "2")
    assert "deeplabv3plus on drn: 2 steps on 5 images" in trained.out
    assert (city / "runs/gta5/deeplabv3plus-drn-consensus/last.pt").is_file()
    tested = succeed("test")
    assert "runs/gta5/deeplabv3plus-drn-consensus/last.pt on 2 images of cityscapes val" in tested.out
    assert {p.name for p in (city / "runs/gta5/deeplabv3plus-drn-consensus/test-last-val").glob("*.png")} == {
        f"{id}{kind}.png" for id in VAL for kind in ("", "_color")
    }  # fmt: skip


def test_plain_lines_mean_the_reference_recipe() -> None:
    """What ``train --backbone drn`` and ``fuse`` leave out; their options are the engines' own fields."""
    recipe, rule = TrainConfig(), FuseConfig(teachers=("dacs",))
    assert (recipe.size, recipe.crop, recipe.balance_area) == ((1024, 512), (512, 256), 512 * 256 // 32)
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (100_001, 10, 1e-4)
    assert (recipe.class_balance, recipe.often_balance, recipe.hard_percentile) == (True, True, 80)
    assert (recipe.power, recipe.momentum, recipe.weight_decay) == (0.9, 0.9, 5e-4)
    assert (rule.window, rule.threshold, rule.border, rule.unclaimed) == ((5, 5), 90, "reference", "vote")
    assert InferenceConfig().batch_size is None


def test_what_is_not_named_is_the_newest(trained: Path) -> None:
    """``train`` takes the label set fused last, ``test`` the run trained last."""
    score = json.loads((trained / "runs/gta5/student/test-last-val/eval.json").read_text())
    assert score["scored"] == str(trained / "runs/gta5/student/last.pt")
    config = json.loads((trained / "runs/gta5/student/config.json").read_text())
    assert config["config"]["backbone"] == "tiny"


def test_train_again_has_nothing_left_and_fewer_steps_are_another_run(trained: Path) -> None:
    again = result_of("train", "--workspace", trained, *SIZE_FLAGS, "--steps", "2", "--name", "student")
    assert (again["steps"], again["resumed_from"]) == (2, 2)
    message = refused("train", "--workspace", trained, *SIZE_FLAGS, "--steps", "1", "--name", "student")
    assert "runs/gta5/student holds a run with --steps 2, not 1; name another with --name" in message


# ---------------------------------------------------------------------------- export-teacher


def test_export_from_checkpoint_and_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_cityscapes(tmp_path))
    weights = trained / "runs/gta5/student/last.pt"
    train = result_of("export-teacher", "mine", "--weights", weights)
    assert (train["images"], train["skipped"]) == (len(TRAIN), 0)
    assert train["raw_bytes"] == len(TRAIN) * 32 * 64 * 20
    val = result_of("export-teacher", "mine", "--weights", weights, "--split", "val", "--batch-size", "2")
    assert (val["images"], val["skipped"]) == (len(VAL), 0)
    archive = tmp_path / "certainty/gta5/mine"
    before = files_of(archive)
    again = result_of("export-teacher", "mine", "--weights", weights)
    assert (again["images"], again["skipped"], again["raw_bytes"]) == (len(TRAIN), len(TRAIN), 0)
    assert files_of(archive) == before
    with CertaintyReader(archive) as reader:
        assert set(reader.ids) == {*TRAIN, *VAL}
        assert reader.classes == CITYSCAPES_CLASSES
        assert reader.attributes["backbone"] == "tiny"
        certainty = reader.certainty(VAL[0]).astype(int)
        # Truncation takes less than one percent per class.
        assert ((certainty.sum(0) > 100 - 19) & (certainty.sum(0) <= 100)).all()
        for id in TRAIN:
            assert (certainty.max(0) >= 0).all() and reader.labels(id).max() < 19


def test_shards_are_the_whole(trained: Path, tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    line = ("export-teacher", "--workspace", tmp_path, "--weights", trained / "runs/gta5/student/last.pt")
    succeed(*line, "whole")
    first = result_of(*line, "parts", "--shard", "1/2")
    assert set(contents(Path(first["archive"]))) == set(TRAIN[::2])
    second = result_of(*line, "parts", "--shard", "2/2")
    assert (first["images"], second["images"], second["skipped"]) == (3, 2, 0)
    assert contents(tmp_path / "certainty/gta5/parts") == contents(tmp_path / "certainty/gta5/whole")


@pytest.mark.slow
def test_a_checkpoint_in_a_folder_that_may_not_be_written(trained: Path, tmp_path: Path) -> None:
    """A colleague's, on a share: its score goes to the workspace."""
    shared = tmp_path / "theirs"
    shared.mkdir()
    shutil.copy(trained / "runs/gta5/student/last.pt", shared)
    shared.chmod(0o500)
    words = [sys.executable, "-m", "endauda_cli", "test", "--weights", f"{shared}/last.pt"]
    line = [*without_superpowers(), *words]
    done = subprocess.run(line, cwd=trained, capture_output=True, text=True, timeout=120, check=False)
    shared.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert f"{shared} cannot be written, so the report goes to " in done.stderr
    score = json.loads((trained / "scores/theirs-test-last-val/eval.json").read_text())
    assert score["scored"] == str(shared / "last.pt")
    shutil.rmtree(trained / "scores")


def test_import_of_both_layouts_is_the_same_archive(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    for kind in ("npy", "npz"):
        put_outputs(tmp_path / "outputs" / kind, "dacs", TRAIN + VAL, kind)
        for split in ("train", "val"):
            succeed(
                "export-teacher",
                kind,
                "--import",
                f"outputs/{kind}",
                "--split",
                split,
                "--workspace",
                tmp_path,
            )
    imported = contents(tmp_path / "certainty/gta5/npy")
    assert imported == contents(tmp_path / "certainty/gta5/npz")
    label, certainty = opinion("dacs", scene(seed_of(VAL[1])), seed_of(VAL[1]))
    assert imported[VAL[1]] == (label.tobytes(), certainty.transpose(2, 0, 1).tobytes())
    digests = []
    for kind in ("npy", "npz"):
        with CertaintyReader(tmp_path / "certainty/gta5" / kind) as reader:
            digests.append([reader.digest(id) for id in reader.ids])
    assert digests[0] == digests[1]


def test_import_without_images_takes_all_outputs(tmp_path: Path) -> None:
    put_outputs(tmp_path / "outputs" / "lindau", "dacs", VAL)
    line = ("export-teacher", "dacs", "--import", tmp_path / "outputs", "--workspace", tmp_path)
    outcome = succeed(*line)
    assert "warning: cityscapes: no image of split 'train'" in outcome.err
    assert "importing all outputs of the folder instead" in outcome.err
    assert set(contents(tmp_path / "certainty/gta5/dacs")) == set(VAL)


@pytest.mark.parametrize("codec", ["jpegls", "zstd", "gzip"])
def test_codecs_hold_the_same(tmp_path: Path, codec: str) -> None:
    put_outputs(tmp_path / "outputs", "dacs", VAL)
    succeed("export-teacher", codec, "--import", "outputs", "--codec", codec, "--workspace", tmp_path)
    assert contents(tmp_path / "certainty/gta5" / codec) == contents(make_archive(tmp_path, "dacs", VAL))


# ---------------------------------------------------------------------------- fuse


def test_what_fuse_leaves(trained: Path) -> None:
    folder = trained / FUSED / "plf"
    labels = {image: read_png(folder / f"{image}.png") for image in TRAIN}
    assert {path.name for path in folder.iterdir()} == {
        *(f"{image}.png" for image in TRAIN), *(f"{image}_color.png" for image in TRAIN),
        "fusion.json", "fusion.jsonl", "policy.json", "report.html", "report",
    }  # fmt: skip
    assert {path.name for path in (folder / "report").iterdir()} == {
        "gallery.png",
        "agreement.png",
        "classes.png",
    }
    everything = np.stack(list(labels.values()))
    assert everything.dtype == np.uint8 and set(np.unique(everything)) <= {*range(19), 255}
    record = json.loads((folder / "fusion.json").read_text())
    assert record["coverage"] == pytest.approx((everything != 255).mean(), abs=1e-12)
    assert record["images"] == len(TRAIN) and record["skipped"] == 0
    assert (record["rule"], record["policy"], record["used_labels"]) == ("plf", "auto", False)
    assert (record["source"], record["target"], record["endauda"]) == ("gta5", "cityscapes", __version__)
    assert record["teachers"] == list(TEACHERS) and record["config"]["window"] == [5, 5]
    kept = (everything != 255).sum()
    for c, entry in enumerate(record["classes"]):
        assert entry["share"] == pytest.approx((everything == c).sum() / kept, abs=1e-12)
    policy = json.loads((folder / "policy.json").read_text())
    assert [name for name, _ in policy["pairs"]] == list(CITYSCAPES_CLASSES)
    assert [owner for _, owner in policy["pairs"]] == [entry["owner"] for entry in record["classes"]]
    report = (folder / "report.html").read_text()
    assert f"{100 * record['coverage']:.1f}" in report
    assert all(image in report for image in TRAIN)


def test_previews_are_the_labels_in_colour(trained: Path) -> None:
    from PIL import Image

    colours = np.zeros((256, 3), np.uint8)
    colours[:19] = CITYSCAPES.palette
    for image in TRAIN:
        with Image.open(trained / FUSED / "plf" / f"{image}_color.png") as preview:
            shown = np.asarray(preview.convert("RGB"))
        assert np.array_equal(shown, colours[read_png(trained / FUSED / "plf" / f"{image}.png")])


def test_fuse_again_does_only_what_has_changed(city: Path) -> None:
    line = ("fuse", "--teachers", *TEACHERS, "--rule", "plf")
    first = result_of(*line)
    stamps = {p: p.stat().st_mtime_ns for p in (city / FUSED / "plf").glob("*leftImg8bit*.png")}
    second = result_of(*line)
    assert (first["skipped"], second["skipped"]) == (0, len(TRAIN))
    assert {k: v for k, v in second.items() if k != "skipped"} == {
        k: v for k, v in first.items() if k != "skipped"
    }
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    # A label that is gone comes back, alone.
    (city / FUSED / "plf" / f"{TRAIN[2]}.png").unlink()
    assert result_of(*line)["skipped"] == len(TRAIN) - 1
    # Other settings are another set of labels, in the same folder.
    assert result_of(*line, "--threshold", "80")["skipped"] == 0
    assert result_of(*line, "--threshold", "80", "--window", "3")["skipped"] == 0
    (city / "mine.json").write_text(json.dumps([[name, "dacs"] for name in CITYSCAPES_CLASSES]))
    assert result_of(*line, "--policy", "mine.json")["skipped"] == 0
    assert result_of(*line, "--policy", "mine.json")["skipped"] == len(TRAIN)


def test_fuse_again_after_a_teacher_changed(city: Path) -> None:
    """One image of one archive is another; majority asks labels alone, so no policy moves."""
    line = ("fuse", "--rule", "majority")
    result_of(*line)
    other = city / "other"
    for image in TRAIN:
        seed = seed_of(image) + (100 if image == TRAIN[1] else 0)
        label, certainty = opinion("dacs", scene(seed), seed)
        put_label(other / f"{image}.png", label)
        np.save(other / f"{image}.npy", certainty)
    shutil.rmtree(city / "certainty/gta5/dacs")
    succeed("export-teacher", "dacs", "--import", "other")
    before = files_of(city / FUSED / "majority")
    assert result_of(*line)["skipped"] == len(TRAIN) - 1
    after = files_of(city / FUSED / "majority")
    changed = {name for name in before if name.endswith(".png") and before[name] != after[name]}
    assert {f"{TRAIN[1]}.png", f"{TRAIN[1]}_color.png"} <= changed <= {
        f"{TRAIN[1]}.png", f"{TRAIN[1]}_color.png", "report/gallery.png", "report/agreement.png", "report/classes.png",
    }  # fmt: skip


def test_interrupted_fuse_goes_on(city: Path) -> None:
    """As a kill leaves it: two images done, the third's journal line torn, no record."""
    whole = result_of("fuse", "--name", "whole")
    result_of("fuse", "--name", "torn")
    folder = city / FUSED / "torn"
    lines = (folder / "fusion.jsonl").read_text().splitlines()
    (folder / "fusion.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])
    (folder / "fusion.json").unlink()
    for image in TRAIN[3:]:
        (folder / f"{image}.png").unlink()
    on = result_of("fuse", "--name", "torn")
    assert on["skipped"] == 2
    same = ("coverage", "overlap", "unclaimed", "classes", "images")
    assert [on[key] for key in same] == [whole[key] for key in same]
    assert {n: b for n, b in files_of(folder).items() if n.endswith("8bit.png")} == {
        n: b for n, b in files_of(city / FUSED / "whole").items() if n.endswith("8bit.png")
    }


def owners(result: Any) -> list[str]:
    return [entry["owner"] for entry in result["classes"]]


def test_policies(city: Path) -> None:
    auto = result_of("fuse", "--teachers", *TEACHERS, "--rule", "plf", "--name", "auto")
    assert not auto["used_labels"]
    val = result_of("fuse", "--teachers", *TEACHERS, "--rule", "plf", "--policy", "val", "--name", "by-val")
    assert val["used_labels"] and val["policy"] == "val"
    by_class = dict(zip(CITYSCAPES_CLASSES, owners(val), strict=True))
    assert {name: by_class[name] for name in ("car", "building", "sky", "road", "vegetation")} == {
        "car": "dacs", "building": "crst", "sky": "crst", "road": "cbst", "vegetation": "cbst",
    }  # fmt: skip
    outcome = succeed(
        "fuse", "--teachers", *TEACHERS, "--policy", "certainty", "--name", "certainty", "--quiet"
    )
    assert "warning: policy certainty compares teachers by certainty" in outcome.err
    # The policy written beside the labels, the same as names, and as the follow-up's numbers.
    record = json.loads((city / FUSED / "by-val/policy.json").read_text())
    (city / "names.json").write_text(json.dumps(record["pairs"]))
    numbers = [[c, TEACHERS.index(owner)] for c, owner in enumerate(owners(val))]
    np.save(city / "numbers.npy", np.array(numbers))
    for file in (city / FUSED / "by-val/policy.json", "names.json", "numbers.npy"):
        again = result_of("fuse", "--teachers", *TEACHERS, "--policy", file, "--name", "again")
        assert owners(again) == owners(val) and again["policy"] == str(file)
        for image in TRAIN:
            assert np.array_equal(
                read_png(city / FUSED / "again" / f"{image}.png"),
                read_png(city / FUSED / "by-val" / f"{image}.png"),
            )


def test_paper_policy(city: Path) -> None:
    message = refused("fuse", "--teachers", *TEACHERS, "--policy", "paper")
    assert "is for the teachers mrnet dacs crst cbst, not for dacs crst cbst" in message
    make_archive(city, "mrnet", TRAIN)
    paper = result_of("fuse", "--teachers", "cbst,mrnet", "--teachers", "dacs", "crst", "--policy", "paper")
    by_class = dict(zip(CITYSCAPES_CLASSES, owners(paper), strict=True))
    assert {by_class[name] for name in ("road", "car", "rider", "sky")} == {"dacs"}
    assert (by_class["train"], by_class["wall"], by_class["bus"], by_class["pole"]) == (
        "cbst", "mrnet", "mrnet", "crst",
    )  # fmt: skip


def test_fuse_of_the_other_split(city: Path) -> None:
    """It gets a folder of its own, and is nothing to train on."""
    train = result_of("fuse")
    fused = result_of("fuse", "--split", "val")
    assert fused["images"] == len(VAL) and fused["labels"] == str(city / FUSED / "consensus-val")
    assert (city / FUSED / "consensus-val" / f"{VAL[0]}.png").is_file()
    trained = result_of("train", *SIZE_FLAGS, "--steps", "1", "--name", "newest")
    assert (
        json.loads((city / "runs/gta5/newest/config.json").read_text())["data"]["labels"] == train["labels"]
    )
    assert trained["images"] == len(TRAIN)


def test_other_options_replace_all_labels_of_a_set(city: Path) -> None:
    """No label of the old options survives a run that was stopped, and nobody trains on half a set."""
    result_of("fuse", "--rule", "plf", "--threshold", "0")
    folder = city / FUSED / "plf"
    old = files_of(folder)
    (city / "certainty/gta5/cbst").rename(city / "away")
    make_archive(city, "cbst", TRAIN[:2])  # so that the next run is refused, before it touches anything
    assert "its archive lacks 3 of 5 images" in refused("fuse", "--rule", "plf", "--threshold", "95")
    assert files_of(folder) == old
    shutil.rmtree(city / "certainty/gta5/cbst")
    (city / "away").rename(city / "certainty/gta5/cbst")
    broken = next((city / "certainty/gta5/cbst").glob("*.h5"))
    good = broken.read_bytes()
    broken.write_bytes(good[:-1])
    refused("fuse", "--threshold", "95", "--policy", mine(city))
    assert not list(folder.glob("*8bit.png"))
    assert "fusing these labels was not finished" in refused("train", *SIZE_FLAGS, "--labels", "plf")
    broken.write_bytes(good)
    assert result_of("fuse", "--threshold", "95", "--policy", mine(city))["images"] == len(TRAIN)


def mine(city: Path) -> str:
    """A policy that asks no archive."""
    (city / "mine.json").write_text(json.dumps([[name, "dacs"] for name in CITYSCAPES_CLASSES]))
    return "mine.json"


def test_label_sets_of_two_sources_do_not_mix(city: Path) -> None:
    result_of("fuse", "--rule", "majority")
    (city / "mine.toml").write_text(
        f'name = "mine"\nclasses = {json.dumps(CITYSCAPES_CLASSES)}\n[train]\nimages = "mine/*.png"\n'
    )
    (city / "certainty/mine").mkdir()
    for teacher in TEACHERS:
        (city / "certainty/gta5" / teacher).rename(city / "certainty/mine" / teacher)
    message = refused("fuse", "--rule", "majority", "--source", "mine.toml")
    assert "majority: holds labels of source gta5, not mine; give these another --name" in message
    assert result_of("fuse", "--rule", "majority", "--source", "mine.toml", "--name", "m")["images"] == len(
        TRAIN
    )
    found = refused("train", *SIZE_FLAGS, "--labels", "majority", "--source", "synthia")
    assert "labels of 19 classes, fused with --source gta5, but --source synthia has 16" in found


def test_damaged_label_is_fused_again(city: Path) -> None:
    result_of("fuse")
    path = city / FUSED / "consensus" / f"{TRAIN[1]}.png"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    (city / FUSED / "consensus" / f"{TRAIN[2]}_color.png").unlink()
    assert result_of("fuse")["skipped"] == len(TRAIN) - 2
    assert path.read_bytes() == good
    assert (city / FUSED / "consensus" / f"{TRAIN[2]}_color.png").exists()


def test_empty_split_is_refused_where_others_have_images(city: Path) -> None:
    assert "no image of split 'test'" in refused("fuse", "--split", "test")
    assert "no image of split 'test'" in refused("export-teacher", "x", "--import", "x", "--split", "test")


def test_training_goes_on_only_with_the_same_data(city: Path) -> None:
    train = ("train", *SIZE_FLAGS, "--name", "run", "--steps", "1")
    result_of("fuse", "--threshold", "0")
    result_of(*train)
    assert result_of(*train)["resumed_from"] == 1
    result_of("fuse", "--threshold", "95")
    assert "runs/gta5/run holds a run on other images or labels" in refused(*train)
    result_of("fuse", "--threshold", "0")
    assert result_of(*train)["resumed_from"] == 1
    result_of(*train[:-2], "--steps", "1", "--name", "other")
    message = refused(*train, "--init", "runs/gta5/other/last.pt")
    assert "holds a run from random weights, not" in message and "other/last.pt" in message
    assert "nothing.pth: no such file of weights" in refused(*train, "--init", "nothing.pth")

    # A run goes by its name too, as long as no path does.
    assert "runs/gta5/other/last.pt" in refused(*train, "--init", "other")
    Path("other").mkdir()
    assert refused(*train, "--init", "other").startswith("other: a run and a path too; name ")
    for words in (("export-teacher", "x", "--weights"), ("deploy",), ("merge", "run", "--into", "x")):
        assert "other: a run and a path too" in refused(*words, "other")
    Path("other").rmdir()


# ---------------------------------------------------------------------------- test


def test_evaluation_of_predictions_with_holes(city: Path) -> None:
    """255 is left out of the confusion, and said as coverage."""
    truth = np.stack([scene(seed_of(image)) for image in VAL])
    predicted = truth.copy()
    predicted[:, :, :8] = 255
    predicted[:, 28:, 32:] = CITYSCAPES_CLASSES.index("sidewalk")
    for image, label in zip(VAL, predicted, strict=True):
        put_label(city / "mine" / "lindau" / f"{image}.png", label)
    score = result_of("test", "--predictions", "mine")
    assert score["coverage"] == pytest.approx(100 * 56 / 64)
    shown = predicted != 255
    for c, name in enumerate(CITYSCAPES_CLASSES):
        union = (shown & ((truth == c) | (predicted == c))).sum()
        expected = 100 * (shown & (truth == c) & (predicted == c)).sum() / union if union else None
        assert score["iou"][name] == (pytest.approx(expected) if union else None)
    assert score["iou"]["sidewalk"] == 0 and score["iou"]["train"] is None
    known = [v for v in score["iou"].values() if v is not None]
    assert score["miou"] == pytest.approx(sum(known) / len(known))
    table = succeed("test", "--predictions", "mine").out
    assert f"mIoU over {len(known)} of 19 classes" in table and "coverage 87.50 %" in table


def test_perfect_predictions(city: Path) -> None:
    for image in VAL:
        put_label(city / "mine" / f"{image}.png", scene(seed_of(image)))
    score = result_of("test", "--predictions", "mine")
    assert (score["miou"], score["coverage"], score["images"]) == (100, 100, 2)


def test_evaluation_leaves_a_report(trained: Path) -> None:
    folder = trained / "runs/gta5/student/test-last-val"
    score = json.loads((folder / "eval.json").read_text())
    assert f"mIoU {score['miou']:.2f}" in (folder / "report.html").read_text()
    # What was scored is what was written.
    again = result_of("test", "--workspace", trained, "--predictions", folder)
    assert again["iou"] == pytest.approx(score["iou"]) and again["miou"] == pytest.approx(score["miou"])


def test_no_images_are_saved_if_not_wanted(trained: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.pt"
    weights.write_bytes((trained / "runs/gta5/student/last.pt").read_bytes())
    succeed("test", "--workspace", trained, "--weights", weights, "--no-save-images")
    assert {p.name for p in (tmp_path / "test-mine-val").iterdir()} == {
        "counts.npz", "eval.json", "report.html",
    }  # fmt: skip


def test_sixteen_classes_of_synthia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused, trained and scored over 16 classes, with the mean over 13 beside it."""
    monkeypatch.chdir(make_cityscapes(tmp_path))
    classes = DOMAINS["synthia"].classes
    of_19 = [CITYSCAPES_CLASSES.index(name) for name in classes]
    table = np.full(256, 255, np.uint8)
    table[of_19] = np.arange(16)
    for teacher in ("crst", "cbst", "mrnet"):
        for image in TRAIN:
            label, certainty = opinion(teacher, scene(seed_of(image)), seed_of(image))
            put_label(tmp_path / "outputs" / teacher / f"{image}.png", table[label])
            np.savez(tmp_path / "outputs" / teacher / f"{image}.npz", certainty[..., of_19])
        succeed("export-teacher", teacher, "--import", f"outputs/{teacher}", "--source", "synthia")
    fused = result_of("fuse", "--source", "synthia", "--policy", "paper")
    assert fused["policy"] == "paper" and [entry["name"] for entry in fused["classes"]] == list(classes)
    assert fused["labels"] == str(tmp_path / FUSED / "plf")
    assert read_png(tmp_path / FUSED / "plf" / f"{TRAIN[0]}.png").max() in (*range(16), 255)
    # The same folder name belongs to one source at a time; GTA5 has no labels here.
    assert "no fused labels of source gta5" in refused("train", *SIZE_FLAGS)
    for image in VAL:
        put_label(tmp_path / "mine" / f"{image}.png", table[scene(seed_of(image))])
    outcome = succeed("test", "--predictions", "mine", "--source", "synthia")
    assert "mIoU over 5 of 16 classes" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("mIoU-13")]
    assert line.split()[-1] == "100.00"
    score = result_of("test", "--predictions", "mine", "--source", "synthia")
    assert score["subset_miou"] == {"mIoU-13": 100} and len(score["iou"]) == 16


# ---------------------------------------------------------------------------- what all commands share


def test_json_of_every_command(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    lines = {
        "export-teacher": ("mine", "--weights", "runs/gta5/student/last.pt"),
        "fuse": ("--teachers", *TEACHERS, "--rule", "plf"),
        "train": (*SIZE_FLAGS, "--steps", "2", "--name", "student"),
        "test": (),
        "inspect": ("dacs", "--verify"),
        "download-weights": ("--list", "dacs", "crst"),
    }
    documents = {}
    for command, words in lines.items():
        outcome = succeed(command, *words, "--json", "--workspace", root)
        documents[command] = json.loads(outcome.out)
        assert documents[command].keys() == {"schema", "command", "result"}
        assert (documents[command]["schema"], documents[command]["command"]) == (1, command)
    assert documents["export-teacher"]["result"]["images"] == len(TRAIN)
    assert documents["fuse"]["result"]["skipped"] == len(TRAIN)
    assert documents["train"]["result"]["checkpoint"] == str(root / "runs/gta5/student/last.pt")
    assert documents["test"]["result"]["images"] == len(VAL)
    assert documents["inspect"]["result"]["intact"] is True
    assert [a["name"] for a in documents["download-weights"]["result"]["artefacts"]] == ["dacs", "crst"]


def test_quiet_leaves_only_warnings(city: Path) -> None:
    assert "warning: --threshold 90 takes more than 90% of the labels of " in succeed("fuse", "--quiet").err
    assert succeed("fuse", "--threshold", "0", "--quiet").err == ""
    train = ("train", *SIZE_FLAGS, "--steps", "1")
    loud, quiet = succeed(*train, "--name", "a").err, succeed(*train, "--name", "b", "-q").err
    assert "labels in percent of pixels" in loud and "labels in percent of pixels" not in quiet
    assert "warning: no --init" in loud and "warning: no --init" in quiet
    assert all(line.startswith("warning: ") for line in quiet.splitlines())


def test_exit_codes(city: Path) -> None:
    assert endauda("fuse", "--teachers", "dacs").code == 0
    assert endauda("fuse", "--teachers", "nobody").code == 1
    for usage in (
        ("fuse", "--nothing"),
        ("fuse", "--rule", "best"),
        ("nothing",),
        ("train", "--batch-size", "x"),
    ):
        outcome = endauda(*usage)
        assert outcome.code == 2 and outcome.out == ""
        assert "Usage: endauda" in outcome.err
    assert "No such option: --teacher; did you mean --teachers?" in endauda("fuse", "--teacher", "dacs").err
    assert "completion" not in endauda("config", "--help").out, "of the whole program alone"


@pytest.mark.slow
def test_interrupt_ends_with_130_and_is_gone_on_with(city: Path) -> None:
    """A real SIGINT in the middle of training: the run is saved at the step it came in, and gone on with."""
    succeed("fuse")
    train = ("train", *SIZE_FLAGS, "--save-every", "99999", "--steps", "100000", "--name", "long")
    metrics, saved = city / "runs/gta5/long/metrics.jsonl", city / "runs/gta5/long/last.pt"
    for _ in range(2):
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        with running(sys.executable, "-m", "endauda_cli", *train, cwd=city) as process:
            end = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
                if metrics.exists() and metrics.read_text().count("\n") >= lines + 2:
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, ""), err
        assert "Traceback" not in err
        assert saved.exists()
    assert "goes on at step " in err and "goes on at step 0" not in err
    score = result_of("test", "--no-save-images")
    assert score["scored"].endswith("long/last.pt")


LAZY = """
import sys
sys.argv = ["endauda", *sys.argv[1:]]
from endauda_cli.cli import main
code = main()
heavy = {"torch", "torchvision", "numpy", "h5py", "PIL", "hdf5plugin", "jinja2"} & set(sys.modules)
print("\\nLOADED", code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["fuse", "--help"], {}),
        ([], {"_ENDAUDA_COMPLETE": "bash", "_ENDAUDA_LINE": "endauda fuse --teachers "}),
    ],
    ids=["help", "version", "help of a command", "completion"],
)
def test_nothing_heavy_is_loaded(trained: Path, words: list[str], environment: dict[str, str]) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-c", LAZY, *words], cwd=trained, env=os.environ | environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stderr.endswith("LOADED 0 []\n"), done.stderr
    if environment:
        assert done.stdout.split() == ["values", *sorted(TEACHERS)]


def test_version_and_module() -> None:
    assert succeed("--version").out == f"endauda {__version__}\n"
    assert "Usage: endauda" in endauda().out + endauda().err


def test_result_into_a_closed_pipe(city: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m endauda_cli download-weights | head -1", shell=True, cwd=city, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("name")


# ---------------------------------------------------------------------------- words


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1), ("float16", 1), ("float32", 100)])
def test_a_softmax_as_it_is(city: Path, dtype: str, scale: int) -> None:
    """Floats become what a teacher's own export truncates them to."""
    folder = put_outputs(city / "outputs", "dacs", VAL)
    for path in folder.glob("*.npy"):
        percent = (
            np.load(path).astype(np.float64) + 0.5
        )  # in the midst of a step, so that no rounding matters
        np.save(path, (percent / percent.sum(2, keepdims=True) * scale).astype(dtype))
    succeed("export-teacher", "soft", "--import", "outputs", "--split", "val")
    with CertaintyReader(city / "certainty/gta5/soft") as archive:
        for image in VAL:
            softmax = np.load(folder / f"{image}.npy").astype(np.float32) / np.float32(scale)
            expected = np.asarray(softmax * np.float32(100), np.uint8).transpose(2, 0, 1)
            assert np.abs(archive.certainty(image).astype(int) - expected).max() <= 1
            assert np.mean(archive.certainty(image) != expected) < 0.01


def test_several_splits_at_once(city: Path) -> None:
    put_outputs(city / "outputs", "dacs", (*TRAIN, *VAL))
    line = ("export-teacher", "mine", "--import", "outputs", "--split")
    assert result_of(*line, "train", "val", "train")["images"] == len(TRAIN) + len(VAL)
    assert result_of(*line, "val,train")["skipped"] == len(TRAIN) + len(VAL)
    assert "Did you mean val?" in endauda(*line, "train", "vall").err


@pytest.mark.parametrize(
    "words",
    [
        ("--teachers", "dacs", "crst"), ("--teachers", "dacs,crst"), ("--teachers=dacs", "crst"),
        ("--teachers", "dacs", "--teachers", "crst"), ("-t", "dacs", "crst"), ("-t", "dacs", "-t", "crst"),
    ],
)  # fmt: skip
def test_several_values_as_people_type_them(city: Path, words: tuple[str, ...]) -> None:
    assert result_of("fuse", *words)["teachers"] == ["dacs", "crst"]


def test_data_set_of_the_workspace_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """endauda.toml may name a data set beside it, also if the command runs further down."""
    classes = "classes = ['road', 'sky']\n[train]\nimages = 'images/*.png'\n"
    (tmp_path / "street.toml").write_text(f"name = 'street'\n{classes}")
    (tmp_path / "endauda.toml").write_text(
        "[export-teacher]\ntarget = 'street.toml'\n[fuse]\ntarget = 'street.toml'\n"
    )
    label = np.tile(np.array([0, 1], np.uint8), (8, 4))
    put_label(tmp_path / "outputs/a.png", label)
    np.save(tmp_path / "outputs/a.npy", np.stack([100 - 100 * label, 100 * label], 2))
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    succeed("export-teacher", "one", "--import", "../outputs")
    fused = result_of("fuse")
    assert fused["labels"] == str(tmp_path / "labels/street/consensus") and fused["images"] == 1
    assert np.array_equal(read_png(tmp_path / "labels/street/consensus/a.png"), label)


# ---------------------------------------------------------------------------- download-weights


def test_list_of_weights(tmp_path: Path) -> None:
    everything = result_of("download-weights", "--workspace", tmp_path)["artefacts"]
    names = [entry["name"] for entry in everything]
    assert {"gta5/ours/drn", "synthia/ours/drn", "dacs", "crst", "cbst", "mrnet"} <= set(names)
    assert {entry["state"] for entry in everything} == {"absent"}
    assert all(entry["page"].startswith("https://") for entry in everything)
    place = tmp_path / next(entry["path"] for entry in everything if entry["name"] == "dacs")
    place.mkdir(parents=True)
    (place / "model.pth").touch()
    (found,) = result_of("download-weights", "--list", "dacs", "--workspace", tmp_path)["artefacts"]
    assert found["state"] == "foreign"
    assert "; did you mean dacs?" in refused("download-weights", "dac", "--workspace", tmp_path)
    table = succeed("download-weights", "--workspace", tmp_path).out
    assert all(name in table for name in names)


# ---------------------------------------------------------------------------- few labels, and statistics that are kept


def test_few_shot_says_which_images_it_looked_at(city: Path) -> None:
    for rule in ("plf", "consensus"):
        fused = result_of(
            "fuse", "--rule", rule, "--policy", "few-shot", "--few-shot", "1", "--threshold", "0"
        )
        assert fused["used_labels"] and fused["labelled_images"] == [VAL[1]]
        assert all(0 <= c["sureness"] <= 1 for c in fused["classes"])
        record = json.loads((city / FUSED / rule / "policy.json").read_text())
        assert record["labelled_images"] == [VAL[1]] and set(record["sureness"]) == set(CITYSCAPES_CLASSES)
        assert VAL[1] in (city / FUSED / rule / "report.html").read_text()
    named = succeed("fuse", "--policy", "few-shot", "--few-shot", f"{VAL[0]},{VAL[1]}")
    assert f"labels of 2 images, do not score on them: {VAL[0]}, {VAL[1]}" in named.out
    assert "--few-shot 3: the target has 2 labelled images" in refused(
        "fuse", "--policy", "few-shot", "--few-shot", "3"
    )
    assert "'nowhere' is not a labelled image" in refused(
        "fuse", "--policy", "few-shot", "--few-shot", "nowhere"
    )


def test_consensus_is_fused_and_its_fit_serves_other_images(city: Path) -> None:
    train = result_of("fuse", "--rule", "consensus", "--threshold", "0")
    assert (train["policy"], train["used_labels"], train["coverage"]) == ("auto", False, 1)
    again = result_of("fuse", "--rule", "consensus", "--threshold", "0")
    assert again["skipped"] == len(TRAIN)
    policy = Path(train["labels"]) / "policy.json"
    val = result_of("fuse", "--rule", "consensus", "--threshold", "0", "--split", "val", "--policy", policy)
    assert val["images"] == len(VAL)
    right = [(read_png(Path(val["labels"]) / f"{i}.png") == scene(seed_of(i))).mean() for i in VAL]
    assert np.mean(right) > 0.88  # the best teacher: 0.875
    assert "has no use for" in refused("fuse", "--rule", "consensus", "--policy", "paper")
    assert "no consensus.npz beside it" in refused("fuse", "--rule", "consensus", "--policy", mine(city))
    assert "fitted to the teachers" in refused(
        "fuse", "--rule", "consensus", "--policy", policy, "--teachers", "dacs", "crst", "cbst"
    )


def test_statistics_are_kept_until_an_archive_changes(city: Path) -> None:
    result_of("fuse")
    folder = city / "certainty/gta5/.agreement"
    (kept,) = folder.iterdir()
    stamp = kept.stat().st_mtime_ns
    result_of("fuse", "--rule", "consensus")  # the same statistics serve both rules
    assert [(p, p.stat().st_mtime_ns) for p in folder.iterdir()] == [(kept, stamp)]
    kept.write_bytes(kept.read_bytes()[:100])  # cut short: computed again
    first = result_of("fuse", "--name", "other")
    assert kept.stat().st_size > 100
    assert first["classes"] == result_of("fuse")["classes"]
    shutil.rmtree(city / "certainty/gta5/cbst")
    with CertaintyWriter(city / "certainty/gta5/cbst", classes=CITYSCAPES_CLASSES, attributes={}) as writer:
        for image in TRAIN:
            label, certainty = opinion("crst", scene(seed_of(image)), seed_of(image))
            writer.write(image, label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
    result_of("fuse")
    assert len(list(folder.iterdir())) == 2


def test_archive_of_more_classes_in_another_order_is_joined_by_name(city: Path) -> None:
    """A 19-class teacher serves SYNTHIA's 16 classes: planes by name, and its next best class for the others."""
    order = tuple(reversed(CITYSCAPES_CLASSES))
    for teacher in ("dacs", "crst"):
        with CertaintyWriter(city / "certainty/synthia" / teacher, classes=order, attributes={}) as writer:
            for image in TRAIN:
                label, certainty = opinion(teacher, scene(seed_of(image)), seed_of(image))
                writer.write(image, 18 - label, np.ascontiguousarray(certainty.transpose(2, 0, 1)[::-1]))
    fused = result_of("fuse", "--source", "synthia", "--rule", "majority", "--teachers", "dacs")
    kept = [CITYSCAPES_CLASSES.index(c["name"]) for c in fused["classes"]]
    assert len(kept) == 16
    for image in TRAIN:
        label, certainty = opinion("dacs", scene(seed_of(image)), seed_of(image))
        expected = np.where(np.isin(label, kept), label, np.array(kept)[certainty[..., kept].argmax(-1)])
        found = np.array(kept)[read_png(Path(fused["labels"]) / f"{image}.png")]
        assert np.array_equal(found, expected)
    assert result_of("fuse", "--source", "synthia", "--rule", "consensus")["images"] == len(TRAIN)
