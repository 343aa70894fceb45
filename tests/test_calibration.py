"""Temperatures from labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from endauda_cli import calibration
from endauda_cli.archive import CertaintyReader
from endauda_cli.calibration import fit_temperature
from endauda_cli.config import InferenceConfig
from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES, Domain, Layout
from endauda_cli.errors import DataError
from endauda_cli.progress import silent
from endauda_cli.segmenter import ClassMap, Procedure, Segmenter
from endauda_cli.teachers import Teacher
from endauda_cli.transforms import Preprocessing
from tests.support.command_lines import TRAIN, make_cityscapes, refused, result_of, succeed

OWN = Preprocessing(size=None, bgr=False, divisor=1, mean=(0.0, 0.0, 0.0))
DOMAIN = Domain(
    "three", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), {0: "a", 1: "b", 2: "c"},
    (Layout(("*.png",)),), (".",), "labels", others_ignored=True,
)  # fmt: skip


class Red(nn.Module):
    """Logits that are the truth's own, times ``sharpness``: red is the log odds of the first class, in tenths."""

    def __init__(self, sharpness: float, probabilities: bool = False) -> None:
        super().__init__()
        self.sharpness, self.probabilities = sharpness, probabilities

    def forward(self, images: Tensor) -> Tensor:
        first = (images[:, :1] - 100) / 10
        second = (images[:, 1:2] - 100) / 10
        logits = torch.cat([first, second, torch.zeros_like(first)], 1) * self.sharpness
        return logits.softmax(1) if self.probabilities else logits


def street(folder: Path, count: int = 6, side: int = 64) -> list[Sample]:
    """Images whose labels are drawn from what the colours say."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        image = rng.integers(80, 121, (side, side, 3), dtype=np.uint8)
        logits = np.stack(
            [(image[..., 0] - 100.0) / 10, (image[..., 1] - 100.0) / 10, np.zeros((side, side))]
        )
        p = np.exp(logits) / np.exp(logits).sum(0)
        label = (rng.random((side, side)) > np.cumsum(p, 0)[:2]).sum(0).astype(np.uint8)
        label[:4] = 77  # ignored
        paths = folder / f"{i}.png", folder / f"{i}_label.png"
        Image.fromarray(image).save(paths[0])
        Image.fromarray(label).save(paths[1])
        samples.append(Sample(str(i), *paths))
    return samples


def fit(teacher: Teacher, samples: list[Sample]) -> calibration.Fit:
    return fit_temperature(
        teacher, samples, DOMAIN, "val", InferenceConfig(batch_size=2), torch.device("cpu"), silent
    )


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("probabilities", [False, True])
def test_sharpness_is_undone(sharpness: float, probabilities: bool, tmp_path: Path) -> None:
    procedure = Procedure(softmax="none") if probabilities else Procedure()
    found = fit(Teacher(Segmenter(Red(sharpness, probabilities), OWN, procedure)), street(tmp_path))
    assert found.temperature == pytest.approx(sharpness, rel=0.06)
    assert found.loss_after <= found.loss_before
    assert (found.on, found.images) == ("three val", 6)
    assert 0 < found.pixels < 6 * 4096  # without the ignored ones
    assert json.loads(json.dumps(found.facts())) == found.facts()


def test_merged_and_absent_classes(tmp_path: Path) -> None:
    """b and c are one output to the teacher's b; what is labelled c cannot be judged."""
    joined = ClassMap(("a", "b", "c"), (0, 1, 1), 3)
    found = fit(Teacher(Segmenter(Red(2.0), OWN, class_map=joined)), street(tmp_path))
    assert 0.5 < found.temperature < 8
    assert found.loss_after < found.loss_before


def test_images_without_a_known_class_are_no_ground(tmp_path: Path) -> None:
    samples = street(tmp_path, 1)
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(samples[0].label or Path())
    with pytest.raises(DataError, match="three val: no labelled pixel of a class that the teacher knows"):
        fit(Teacher(Segmenter(Red(1.0), OWN)), samples)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(samples[0].label or Path())
    with pytest.raises(DataError, match=r"0_label\.png: 8x8 pixels, but .*0\.png has 4,096 in all"):
        fit(Teacher(Segmenter(Red(1.0), OWN)), samples)


def test_every_second_image_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images that are drawn are all unlabelled; the others are looked at then."""
    monkeypatch.setattr(calibration, "MOST_IMAGES", 3)
    samples = street(tmp_path)
    for sample in samples[::2]:
        assert sample.label is not None
        Image.fromarray(np.full((64, 64), 77, np.uint8)).save(sample.label)
    assert fit(Teacher(Segmenter(Red(1.0), OWN)), samples).images == 3
    assert fit(Teacher(Segmenter(Red(1.0), OWN)), samples[1::2]).images == 3
    for sample in samples:
        Image.fromarray(np.full((64, 64), 77, np.uint8)).save(sample.label or Path())
    with pytest.raises(DataError, match="in the 3 of 6 images that were looked at"):
        fit(Teacher(Segmenter(Red(1.0), OWN)), samples)


def test_truth_that_lies_on_its_side(tmp_path: Path) -> None:
    (sample,) = street(tmp_path, 1)
    Image.fromarray(np.zeros((32, 128), np.uint8)).save(sample.label or Path())
    with pytest.raises(DataError, match=r"0_label\.png: 128x32 pixels, but .*0\.png has 64x64"):
        fit(Teacher(Segmenter(Red(1.0), OWN)), [sample])


def test_no_more_images_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_IMAGES", 3)
    assert fit(Teacher(Segmenter(Red(1.0), OWN)), street(tmp_path, 7)).images == 3


# ---------------------------------------------------------------------------- on the command line


def test_temperature_is_stored_and_kept(tmp_path: Path, tiny_weights: Path) -> None:
    make_cityscapes(tmp_path)
    line = ("export-teacher", "mine", "--weights", tiny_weights, "--workspace", tmp_path)
    outcome = succeed(*line, "--temperature", "auto")
    assert "labelled pixels of 2 images of cityscapes val" in outcome.err
    archive = tmp_path / "certainty/gta5/mine"
    with CertaintyReader(archive) as reader:
        attributes: Any = dict(reader.attributes)
    assert attributes["temperature_fit"]["on"] == "cityscapes val"
    before, after = attributes["temperature_fit"]["log_loss"]
    assert after <= before
    # A rerun goes on with what is stored, and without a temperature it is another archive.
    again = result_of(*line, "--temperature", "auto", "--split", "val")
    assert again["skipped"] == 0
    assert "temperature" in refused(*line)
    plain = result_of("export-teacher", "plain", "--weights", tiny_weights, "--workspace", tmp_path)
    with CertaintyReader(archive) as soft, CertaintyReader(plain["archive"]) as hard:
        assert "temperature" not in hard.attributes
        assert np.array_equal(soft.labels(TRAIN[0]), hard.labels(TRAIN[0]))
        if attributes["temperature"] != 1:
            assert not np.array_equal(soft.certainty(TRAIN[0]), hard.certainty(TRAIN[0]))


def test_temperatures_that_cannot_be(tmp_path: Path, tiny_weights: Path) -> None:
    make_cityscapes(tmp_path)
    line = ("export-teacher", "mine", "--weights", tiny_weights, "--workspace", tmp_path, "--temperature")
    for text in ("0", "hot", "nan", "-1"):
        assert f"--temperature {text}: expected auto, val, source or a number" in refused(*line, text)
    assert "--temperature source: no labelled images (gta5: no image of split 'train'" in refused(
        *line, "source"
    )
    assert result_of(*line, "1.5")["images"] == len(TRAIN)
    assert CITYSCAPES.name == "cityscapes"


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from endauda_cli import checkpoint
    from endauda_cli.domains import CITYSCAPES_CLASSES
    from endauda_cli.models import build_student

    torch.manual_seed(0)
    student = build_student("deeplabv2", "tiny", len(CITYSCAPES_CLASSES))
    nn.init.normal_(student.get_parameter("head.conv2d_list.0.weight"), std=0.5)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    meta = {"arch": "deeplabv2", "backbone": "tiny", "classes": list(CITYSCAPES_CLASSES), "size": [64, 32]}
    checkpoint.save(path, {"weights": student.state_dict(), "meta": meta})
    return path
