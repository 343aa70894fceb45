"""Losses that learn from the teachers' certainties: against the follow-up's own, and straight from archives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyWriter
from endauda_cli.config import TrainConfig
from endauda_cli.domains import CITYSCAPES, CITYSCAPES_CLASSES, GTA5, IGNORE, make_task
from endauda_cli.errors import ConfigError
from endauda_cli.losses import TRUE, DistillationLoss, soft_divergence, soft_targets
from endauda_cli.training.certainties import OfClasses, OfLabels, with_certainties
from endauda_cli.training.data import MAIN, Example, Rows, Stream, crop_at
from endauda_cli.training.methods import Material
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.types import Loss, Method
from endauda_cli.workspace import Workspace
from tests import support
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    make_archive,
    make_workspace,
    opinion,
    put_label,
    refused,
    result_of,
    scene,
    succeed,
)
from tests.support.training_runs import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# ---------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("case", [0, 1])
def test_divergence_is_the_follow_ups(case: int) -> None:
    golden = np.load(support.DATA / "training/soft_kl.npz")
    logits = torch.from_numpy(golden[f"logits_{case}"]).requires_grad_()
    loss = soft_divergence(logits, torch.from_numpy(golden[f"teacher_u8_{case}"]).float() / 100)
    assert loss.item() == pytest.approx(float(golden[f"out_loss_{case}"]), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, golden[f"out_grad_{case}"], rtol=1e-4, atol=1e-9)


def test_divergence_of_a_coarse_network_is_taken_at_the_targets_size() -> None:
    coarse, target = torch.randn(1, 3, 4, 8), torch.rand(1, 3, 16, 32)
    fine = torch.nn.functional.interpolate(coarse, (16, 32), mode="bilinear", align_corners=True)
    assert torch.equal(soft_divergence(coarse, target), soft_divergence(fine, target))


def test_targets_are_enlarged_and_true_labels_are_exact() -> None:
    percent = torch.full((2, 3, 2, 2), TRUE, dtype=torch.uint8)
    percent[0] = torch.tensor([50, 30, 20])[:, None, None]
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[1, :4], labels[1, 4:, 3] = 2, IGNORE
    soft, hard = soft_targets(percent, labels)
    assert torch.allclose(soft, torch.tensor([0.5, 0.3, 0.2])[:, None, None].expand(3, 8, 8))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert bool((hard[2, :4] == 1).all())
    assert hard[:, 5, 3].tolist() == [0, 0, 0], "nothing is known there"
    assert hard[:, 5, 2].tolist() == [1, 0, 0]


def test_certainty_multiplies_the_loss_before_mining() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    certainty = torch.rand(2, 8, 8, generator=generator)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none") * certainty
    plain = DistillationLoss(3, hard_percentile=0)
    assert float(plain(logits, labels, certainty)) == pytest.approx(float(each.mean()), rel=1e-6)
    mined = DistillationLoss(3, hard_percentile=50)
    kept = each >= np.percentile(each.numpy(), 50)
    assert float(mined(logits, labels, certainty)) == pytest.approx(float(each[kept].mean()), rel=1e-6)
    for criterion in (plain, mined):
        assert torch.equal(criterion(logits, labels, torch.ones(2, 8, 8)), criterion(logits, labels))


# ---------------------------------------------------------------------------- rows and crops


class Says:
    """A teacher of one image."""

    classes = ("road", "car", "sky")

    def __init__(self, certainty: NDArray[np.uint8]) -> None:
        self.all = certainty

    def plane(self, id: str, c: int) -> NDArray[np.uint8]:
        plane: NDArray[np.uint8] = self.all[c]
        return plane

    def certainty(self, id: str) -> NDArray[np.uint8]:
        return self.all


def test_rows_are_means_over_the_teachers() -> None:
    generator = np.random.default_rng(0)
    said = [generator.integers(0, 101, (3, 64, 128)).astype(np.uint8) for _ in range(3)]
    teachers: Any = [Says(one) for one in said]
    labels = generator.integers(0, 3, (32, 64)).astype(np.uint8)
    labels[:4] = IGNORE
    mean = np.mean(said, 0)
    of_classes = OfClasses(teachers)
    assert of_classes.shape((32, 64)) == (3, 8, 16)
    expected = mean.reshape(3, 8, 8, 16, 8).mean((2, 4))
    assert np.abs(of_classes.row("it", labels) - expected).max() <= 0.5 + 1e-4
    found = OfLabels(teachers).row("it", labels)
    assert (found[:4] == 0).all()
    # Pillow's nearest takes the second of two.
    chosen = np.take_along_axis(mean[:, 1::2, 1::2], labels.clip(max=2)[None], 0)[0]
    assert np.abs(found[4:] - chosen[4:]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("loss", [Loss.SOFT, Loss.WEIGHTED])
def test_certainties_are_cut_with_the_labels(loss: str) -> None:
    """Labels that say where they are, and certainties that say the same."""
    config = dataclasses.replace(CONFIG, loss=loss, augment=())
    place = np.arange(64, dtype=np.uint8)[None, None].repeat(32, 1)  # the column
    coarse = np.stack([place[0, ::4, ::4], np.arange(8, dtype=np.uint8)[:, None].repeat(16, 1)])[None]
    rows = Rows(np.zeros((1, 32, 64, 3), np.uint8), place, coarse if loss == Loss.SOFT else place)
    mirrored = set()
    for position in range(20):
        _, labels, _, percent = crop_at(config, rows, position)
        assert percent is not None
        mirrored.add(bool(labels[0, 0] > labels[0, 1]))
        if loss == Loss.WEIGHTED:
            assert torch.equal(labels, percent)
        else:
            assert percent.shape == (2, 4, 8)
            assert torch.equal(percent[0], labels[::4, ::4] // 4 * 4)
    assert mirrored == {True, False}


# ---------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("soft"))
    succeed(
        "fuse", "--teachers", *TEACHERS, "--rule", "plf", "--threshold", "50", "--policy", "auto", "--name",
        "plf", "--workspace", root,
    )  # fmt: skip
    return root


def line(root: Path, loss: str, *more: str) -> tuple[str | Path, ...]:
    return (
        "train", *SIZE_FLAGS, "--labels", "plf", "--device", "cpu", "--steps", "3", "--save-every", "2", "--loss",
        loss, "--name", loss, "--workspace", root, *more,
    )  # fmt: skip


@pytest.mark.parametrize("loss", [Loss.SOFT, Loss.WEIGHTED])
def test_a_run_learns_from_archives(fused: Path, loss: str) -> None:
    def weights(loss: str, name: str, *more: str) -> dict[str, torch.Tensor]:
        result = result_of(*line(fused, loss, "--name", name, *more))
        assert (result["images"], result["steps"]) == (len(TRAIN), 3)
        found: dict[str, torch.Tensor] = checkpoint.load(fused / "runs/gta5" / name / "last.pt")["weights"]
        return found

    one, hard = weights(loss, loss), weights("hard", f"hard-{loss}")
    again = weights(loss, f"{loss}-again", "--workers", "1")
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], hard[key]) for key in one)
    metrics = (fused / "runs/gta5" / loss / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(text)["loss"] > 0 for text in metrics)


@pytest.mark.parametrize("loss", [Loss.SOFT, Loss.WEIGHTED])
def test_true_labels_beside_certainties(fused: Path, loss: str) -> None:
    image = TRAIN[0]
    label = fused / CITIES / "gtFine/train/aachen" / f"{image.replace('leftImg8bit', 'gtFine_labelIds')}.png"
    put_label(label, np.full((32, 64), 7, np.uint8))
    try:
        true = ("--labelled", "target", "--labelled-share", "0.5")
        result = result_of(*line(fused, loss, *true, "--name", f"true-{loss}"))
    finally:
        label.unlink()
    assert (result["images"], result["labelled_images"]) == (len(TRAIN) - 1, 1)


def put_archive(root: Path, teacher: str, images: tuple[str, ...], says: str) -> None:
    """In place of the teacher's own archive, one that says what another teacher does."""
    shutil.rmtree(root / "certainty/gta5" / teacher)
    make_archive(root, says, images, source="aside").rename(root / "certainty/gta5" / teacher)


def test_what_the_teachers_said_is_part_of_the_run(tmp_path: Path) -> None:
    root = make_workspace(tmp_path)
    words = ("--rule", "plf", "--threshold", "50", "--name", "plf", "--workspace", root)
    succeed("fuse", "--teachers", *TEACHERS, *words)
    succeed(*line(root, "soft"))
    assert result_of(*line(root, "soft"))["resumed_from"] == 3
    put_archive(root, "dacs", TRAIN, says="cbst")
    assert "holds a run on other images or labels" in refused(*line(root, "soft"))
    put_archive(root, "dacs", TRAIN[1:], says="dacs")
    assert f"lacks 1 of 5 images, first {TRAIN[0]}; run 'endauda export-teacher dacs'" in refused(
        *line(root, "soft")
    )
    shutil.rmtree(root / "certainty/gta5/dacs")
    assert "holds no archive, but these labels were fused from dacs's" in refused(*line(root, "soft"))


def test_images_in_folders_have_the_teachers_of_their_label_set(tmp_path: Path) -> None:
    """Ids with a folder, whose labels lie deeper than the set's record."""
    workspace, folder = Workspace(tmp_path), tmp_path / "labels"
    label, certainty = opinion("dacs", scene(0), 0)
    with CertaintyWriter(workspace.archive("gta5", "dacs"), classes=CITYSCAPES_CLASSES) as writer:
        writer.write("ulm/0", label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
    folder.mkdir()
    (folder / "fusion.json").write_text(json.dumps({"source": "gta5", "teachers": ["dacs"]}))
    examples = [Example("ulm/0", tmp_path / "ulm/0.png", folder / "ulm/0.png")]
    streams = {MAIN: Stream(examples, CITYSCAPES, read_fused, label_ids=False, labels=folder)}
    material = Material(make_task(GTA5, CITYSCAPES), workspace, (), ())
    found = with_certainties(streams, Loss.WEIGHTED, material)[MAIN].certainties
    assert found is not None and found.digest("ulm/0")


def test_labels_without_known_teachers_are_refused(fused: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for path in (fused / CITIES / "gtFine/plf").glob("*leftImg8bit.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    words = list(line(fused, "weighted", "--name", "foreign"))
    words[words.index("plf")] = folder
    assert "fusion.json does not say which teachers these labels were fused from" in refused(*words)
    record = json.loads((fused / CITIES / "gtFine/plf/fusion.json").read_text())
    for names in (["../../x"], [3], [], "dacs"):
        (folder / "fusion.json").write_text(json.dumps(record | {"teachers": names}))
        assert "does not say which teachers" in refused(*words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": Loss.SOFT, "method": Method.SOURCE},
            "--loss soft: there are no teachers with --method source",
        ),
        (
            {"loss": Loss.SOFT, "size": (66, 32), "crop": (32, 16)},
            "--size 66x32: both sides must be multiples of 4",
        ),
        (
            {"loss": Loss.SOFT, "size": (64, 32), "crop": (30, 16)},
            "--crop 30x16: both sides must be multiples of 4",
        ),
    ],
)
def test_recipes_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
