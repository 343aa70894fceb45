"""``endauda fuse`` in parts, straight from networks, scored; and what it does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from endauda_cli.domains import CITYSCAPES_CLASSES
from endauda_cli.models import build_student
from endauda_cli.types import FusionRule
from tests.support.command_lines import (
    TEACHERS,
    TRAIN,
    VAL,
    endauda,
    files_of,
    make_cityscapes,
    make_workspace,
    put_image,
    read_png,
    refused,
    result_of,
    scene,
    seed_of,
    shell,
    succeed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

FUSED = Path("Warehouse/Cityscapes/data/gtFine")


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with three teachers' archives, and the current folder."""
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if "leftImg8bit" in name}


# ---------------------------------------------------------------------------- options


def test_soft_label_estimates_delta_and_reads_it_back(city: Path) -> None:
    first = result_of("fuse", "--rule", "soft-label", "--threshold", "30")
    folder = city / FUSED / "soft-label"
    delta = json.loads((folder / "delta.json").read_text())["delta"]
    columns = []
    for teacher in TEACHERS:
        with CertaintyReader(city / "certainty/gta5" / teacher) as reader:
            columns += [np.sort(reader.certainty(i)[:, ::4, ::4].reshape(19, -1), 0) for i in TRAIN]
    assert delta == pytest.approx(np.concatenate(columns, 1).mean(1), abs=1e-12)
    (city / "delta.json").write_text(json.dumps(delta))
    again = result_of(
        "fuse", "--rule", "soft-label", "--threshold", "30", "--delta", "delta.json", "--name", "read"
    )
    assert again["coverage"] == first["coverage"]
    assert labels_of(city / FUSED / "read") == labels_of(folder)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([1, 2, 3], "3 values, but there are 19 classes"),
        (list(range(19, 0, -1)), "values must ascend"),
        ([*range(18), 101], "values must be percent, 0 to 100"),
        ([0.0] * 18 + [1.0], "not 0 to 1"),
        ("text", "neither a NumPy file nor a JSON list"),
        ([[1, 2]], "an array of shape (1, 2)"),
    ],
)
def test_wrong_delta_is_refused(city: Path, values: Any, complaint: str) -> None:
    (city / "delta.json").write_text(json.dumps(values))
    assert complaint in refused("fuse", "--rule", "soft-label", "--delta", "delta.json")
    assert "no such file" in refused("fuse", "--rule", "soft-label", "--delta", "none.npy")


def test_border_and_unclaimed(city: Path) -> None:
    published = result_of("fuse", "--rule", "plf", "--window", "9")
    inside = result_of("fuse", "--rule", "plf", "--window", "9", "--border", "inside")
    assert inside["skipped"] == 0 and inside["coverage"] >= published["coverage"]
    voted = result_of("fuse", "--rule", "plf", "--threshold", "0")
    left = result_of("fuse", "--rule", "plf", "--threshold", "0", "--unclaimed", "ignore")
    assert voted["coverage"] == 1 and voted["unclaimed"] > 0
    assert left["coverage"] == pytest.approx(1 - voted["unclaimed"], abs=1e-12)


@pytest.mark.slow
def test_no_torch_is_loaded_on_the_cpu(city: Path) -> None:
    """It would cost seconds and half a gigabyte."""
    program = (
        "import sys; from endauda_cli.cli import main; code = main(sys.argv[1:]); "
        "print(code, *({'torch', 'torchvision'} & set(sys.modules)))"
    )
    words = ["fuse", "--rule", "soft-label", "--quiet", "--split", "val", "--score"]
    finished = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120, check=True
    )
    assert finished.stdout.splitlines()[-1].split() == ["0"], finished.stderr


@pytest.mark.slow
def test_device_of_choice_gives_the_same_labels(city: Path) -> None:
    """The torch kernels, here on the CPU under another name for it, so that they and not the compiled ones run."""
    for rule in FusionRule:
        one = result_of("fuse", "--rule", rule, "--threshold", "60")
        other = result_of("fuse", "--rule", rule, "--threshold", "60", "--device", "cpu:0", "--name", "other")
        assert one["coverage"] == other["coverage"]
        assert labels_of(city / FUSED / rule) == labels_of(city / FUSED / "other")


# ---------------------------------------------------------------------------- scores


def test_scores_stand_side_by_side_and_change_nothing(city: Path) -> None:
    plain = result_of(
        "fuse", "--rule", "plf", "--split", "val", "--no-score", "--name", "plain", "--threshold", "80"
    )
    assert plain["scores"] == []
    scored = result_of("fuse", "--rule", "plf", "--split", "val", "--threshold", "80")
    assert labels_of(city / FUSED / "plain") == labels_of(city / FUSED / "plf-val")
    assert [s["name"] for s in scored["scores"]] == [*sorted(TEACHERS), *FusionRule]
    tested = result_of("test", "--predictions", city / FUSED / "plf-val")
    plf = next(s for s in scored["scores"] if s["name"] == "plf")
    assert plf["kept_miou"] == pytest.approx(tested["miou"], abs=1e-9)
    assert plf["coverage"] == pytest.approx(tested["coverage"], abs=1e-9)
    for rule in FusionRule:
        result_of("fuse", "--split", "val", "--no-score", "--rule", rule, "--threshold", "0", "--name", "all")
        score = next(s for s in scored["scores"] if s["name"] == rule)
        assert score["miou"] == pytest.approx(
            result_of("test", "--predictions", city / FUSED / "all")["miou"], abs=1e-9
        )
    report = (city / FUSED / "plf-val/report.html").read_text()
    assert "They only score" in report and f"{plf['miou']:.2f}" in report
    assert result_of("fuse", "--rule", "plf", "--split", "val", "--threshold", "80")["skipped"] == len(VAL)


def test_labels_of_train_are_not_opened_unasked(city: Path) -> None:
    """Cityscapes has them; a damaged one shows who looks."""
    for image in TRAIN:
        city_name, stem = image.partition("_")[0], image.replace("leftImg8bit", "gtFine_labelIds")
        path = city / FUSED / "train" / city_name / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    assert result_of("fuse")["scores"] == []
    assert "gtFine_labelIds.png" in refused("fuse", "--score")


def test_agreement_is_counted(city: Path) -> None:
    result = result_of("fuse", "--rule", "majority", "--teachers", *TEACHERS)
    maps: list[NDArray[np.uint8]] = []
    for teacher in TEACHERS:
        with CertaintyReader(city / "certainty/gta5" / teacher) as reader:
            maps.append(np.stack([reader.labels(image) for image in TRAIN]))
    for t, u in np.ndindex(3, 3):
        assert result["agreement"][t][u] == pytest.approx((maps[t] == maps[u]).mean(), abs=1e-12)
    disputed = ~((maps[0] == maps[1]) & (maps[0] == maps[2]))
    assert result["disputed"] == pytest.approx(disputed.mean(), abs=1e-12)
    report = (city / FUSED / "majority/report.html").read_text()
    order = sorted(TRAIN, key=lambda image: -disputed[TRAIN.index(image)].mean())
    places = [report.index(image) for image in order]
    assert places == sorted(places)


# ---------------------------------------------------------------------------- parts


def test_parts_make_the_same_set(city: Path) -> None:
    whole = result_of("fuse", "--name", "whole")
    first = result_of("fuse", "--name", "parts", "--shard", "1/2")
    folder = city / FUSED / "parts"
    assert (first["images"], first["waiting_for"]) == (3, 2) and not (folder / "fusion.json").exists()
    assert "was not finished" in refused("train", "--labels", "parts", "--backbone", "tiny")
    last = result_of("fuse", "--name", "parts", "--shard", "2/2")
    assert (last["images"], last["skipped"], last["waiting_for"]) == (5, 3, 0)
    ignored = {"labels", "skipped"}
    assert {k: v for k, v in last.items() if k not in ignored} == {
        k: v for k, v in whole.items() if k not in ignored
    }
    assert labels_of(folder) == labels_of(city / FUSED / "whole")
    assert [path.name for path in sorted(folder.glob("fusion*"))] == ["fusion.json", "fusion.jsonl"]
    assert result_of("fuse", "--name", "parts")["skipped"] == len(TRAIN)


@pytest.mark.slow
def test_parts_go_on_after_other_options_and_another_number_of_parts(city: Path) -> None:
    result_of("fuse", "--name", "it", "--threshold", "50")
    for part in ("1/3", "3/3", "2/3"):
        result = result_of("fuse", "--name", "it", "--shard", part)
    assert result["waiting_for"] == 0 and result["threshold"] == 90
    result_of("fuse", "--name", "again", "--shard", "2/2")
    on = result_of("fuse", "--name", "again")
    assert (on["images"], on["skipped"]) == (5, 2)
    assert labels_of(city / FUSED / "it") == labels_of(city / FUSED / "again")


@pytest.mark.slow
def test_parts_at_once_do_not_clash(city: Path) -> None:
    """Four processes, over a finished set of other options."""
    result_of("fuse", "--name", "it", "--threshold", "50")
    whole = result_of("fuse", "--name", "whole")
    words = [
        sys.executable,
        "-m",
        "endauda_cli",
        "fuse",
        "--name",
        "it",
        "--quiet",
        "--json",
        "--workers",
        "1",
    ]
    parts = [
        subprocess.Popen(
            [*words, "--shard", f"{i}/4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(1, 5)
    ]
    ended = [part.communicate(timeout=240) for part in parts]
    assert [part.returncode for part in parts] == [0] * 4, ended
    results = [json.loads(out)["result"] for out, _ in ended]
    assert min(result["waiting_for"] for result in results) == 0
    record = json.loads((city / FUSED / "it/fusion.json").read_text())
    assert record["coverage"] == whole["coverage"] and record["images"] == len(TRAIN)
    assert labels_of(city / FUSED / "it") == labels_of(city / FUSED / "whole")


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_images(city: Path) -> None:
    whole = result_of("fuse", "--name", "whole")
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "endauda_cli",
         "fuse", "--name", "it", "--quiet", "--json"],
        cwd=city, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)["result"]
    assert (result["images"], result["waiting_for"]) == (5, 0) and result["coverage"] == whole["coverage"]
    assert labels_of(city / FUSED / "it") == labels_of(city / FUSED / "whole")


def test_wrong_parts_are_refused(city: Path) -> None:
    assert "--shard 3/2" in refused("fuse", "--shard", "3/2")
    ended = shell("fuse", "--shard", "1/2", "--quiet", cwd=city, WORLD_SIZE="2", RANK="0")
    assert ended.returncode == 1 and "--shard and torchrun both split the images" in ended.stderr


# ---------------------------------------------------------------------------- networks


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the target's images and two networks of random weights, and no archives."""
    root = tmp_path_factory.mktemp("nets")
    make_cityscapes(root)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        student = build_student("deeplabv3plus", "tiny", 19)
        meta = {
            "arch": "deeplabv3plus", "backbone": "tiny", "classes": list(CITYSCAPES_CLASSES), "size": [64, 32]
        }  # fmt: skip
        checkpoint.save(root / f"{name}.pth", {"weights": student.state_dict(), "meta": meta})
    return root


@pytest.mark.slow
@pytest.mark.parametrize("rule", FusionRule)
def test_networks_fuse_as_their_archives_do(
    nets: Path, rule: FusionRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nets)
    words = ("--rule", rule, "--threshold", "5", "--device", "cpu")
    outcome = succeed("fuse", "--teachers", "one=one.pth", "two=two.pth", "--name", f"live-{rule}", *words)
    assert not (nets / "certainty").exists(), outcome.out
    again = result_of("fuse", "--teachers", "one=one.pth", "two=two.pth", "--name", f"live-{rule}", *words)
    assert again["skipped"] == len(TRAIN)
    try:
        for name in ("one", "two"):
            succeed("export-teacher", name, "--weights", f"{name}.pth", "--device", "cpu")
        result_of("fuse", "--teachers", "one", "two", "--name", f"stored-{rule}", *words)
        mixed = result_of("fuse", "--teachers", "one", "two=two.pth", "--name", f"mixed-{rule}", *words)
        assert mixed["teachers"] == ["one", "two"]
        assert "of another network" in refused("fuse", "--teachers", "one=two.pth", "--name", "x", *words)
    finally:
        (nets / "certainty").rename(tmp_path / "certainty")
    live, stored, mix = (labels_of(nets / FUSED / f"{how}-{rule}") for how in ("live", "stored", "mixed"))
    assert live == stored == mix and len(live) == 2 * len(TRAIN)
    assert len(np.unique(read_png(nets / FUSED / f"live-{rule}" / f"{TRAIN[0]}.png"))) > 1


def test_an_image_that_changes_is_fused_again(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets)
    words = ("fuse", "--teachers", "one=one.pth", "--rule", "majority", "--name", "change")
    result_of(*words)
    image = nets / f"Warehouse/Cityscapes/data/leftImg8bit/train/aachen/{TRAIN[1]}.png"
    put_image(image, scene(seed_of(TRAIN[1])), 99)
    assert result_of(*words)["skipped"] == len(TRAIN) - 1


def test_policy_by_labels_runs_the_networks_over_them(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets)
    result = result_of(
        "fuse", "--teachers", "one=one.pth", "two=two.pth", "--policy", "val", "--name", "by-val"
    )
    assert result["used_labels"] and result["policy"] == "val"


def test_wrong_networks_are_refused(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets)
    assert "none.pth: no such file, but a checkpoint was expected" in refused(
        "fuse", "--teachers", "x=none.pth"
    )
    (nets / "text.pth").write_text("no weights")
    assert "text.pth" in refused("fuse", "--teachers", "x=text.pth")
    assert "19 classes" in refused("fuse", "--teachers", "x=one.pth", "--source", "synthia")
    assert "names one twice" in refused("fuse", "--teachers", "one=one.pth", "one=two.pth")
    assert endauda("fuse", "--teachers", "=one.pth", "--quiet").code == 1
