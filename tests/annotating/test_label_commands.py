"""From disputed labels to people and back into training, as command lines."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from endauda_cli.domains import CITYSCAPES
from endauda_cli.labels import read_train_ids, write_label
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TRAIN,
    VAL,
    make_workspace,
    refused,
    result_of,
    succeed,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_workspace(tmp_path))
    succeed("fuse", "--rule", "majority", "--name", "voted")
    return tmp_path


def disputed_shares(root: Path) -> dict[str, float]:
    lines = [
        json.loads(line)
        for line in (root / CITIES / "gtFine/voted/fusion.jsonl").read_text().splitlines()[1:]
    ]
    return {line["id"]: line["disputed"] / line["pixels"] for line in lines}


def test_the_most_disputed_are_corrected_and_learnt_from(fused: Path) -> None:
    shares = disputed_shares(fused)
    expected = sorted(shares, key=lambda image: (-shares[image], image))[:2]
    said = result_of("export-labels", "--format", "cvat", "--most-disputed", "2")
    assert [one["image"] for one in said["disputed"]] == expected
    assert [one["disputed"] for one in said["disputed"]] == [shares[image] for image in expected]
    out = fused / "exported/voted-cvat"
    assert {path.stem for path in (out / "images").iterdir()} == set(expected)
    assert said["commands"] == [
        "endauda import-labels FILE --format cvat",
        "endauda train --labelled corrected/cityscapes",
    ]
    text = (out / "annotations.xml").read_text()
    (fused / "task.xml").write_text(text.replace('label="road"', 'label="sidewalk"'))
    back = result_of("import-labels", "task.xml", "--format", "cvat")
    assert (back["images"], back["empty"]) == (2, 0)
    for image in expected:
        before = read_train_ids(fused / CITIES / f"gtFine/voted/{image}.png", 19)
        after = read_train_ids(fused / f"corrected/cityscapes/{image}.png", 19)
        assert np.array_equal(after, np.where(before == 0, 1, before)) and (before == 0).any()
    (line,) = back["commands"]
    words = [
        *shlex.split(line)[1:],
        *SIZE_FLAGS,
        "--steps",
        "1",
        "--labelled-share",
        "0.5",
        "--name",
        "taught",
    ]
    trained = result_of(*words)
    assert (trained["images"], trained["labelled_images"]) == (len(TRAIN) - 2, 2)
    assert 'labelled = "corrected/cityscapes"' in (fused / "runs/gta5/taught/config.toml").read_text()


def test_the_text_says_which_images_and_why(fused: Path) -> None:
    said = succeed("export-labels", "--format", "label-studio", "--most-disputed", "1").out
    image, share = max(disputed_shares(fused).items(), key=lambda pair: pair[1])
    assert image in said and f"{100 * share:.1f}" in said and "teachers disagree on %" in said
    assert "endauda import-labels FILE --format label-studio" in said


def test_predictions_and_archives_are_handed_out_too(fused: Path) -> None:
    """Of the val split; an archive is how a student's labels of any split become a submission."""
    labels = {image: np.full((32, 64), number, np.uint8) for number, image in enumerate(VAL)}
    for image, label in labels.items():
        (fused / "said").mkdir(exist_ok=True)
        write_label(fused / "said" / f"{image}.png", label)
    said = result_of("export-labels", "--format", "cityscapes", "--predictions", "said")
    assert (said["split"], said["images"], said["commands"], said["disputed"]) == ("val", 2, [], [])
    results = fused / "exported/said-cityscapes/results"
    assert [np.unique(np.asarray(Image.open(results / f"{image}.png"))).tolist() for image in VAL] == [
        [7],
        [8],
    ]
    said = result_of("export-labels", "--format", "coco-panoptic", "--archive", "dacs", "--split", "train")
    assert (said["labels"], said["images"]) == ("dacs", len(TRAIN))
    line = said["commands"][0]
    back = result_of(*shlex.split(line)[1:], "--out", "again")
    assert back["images"] == len(TRAIN)


def test_what_was_typed_is_typed_again(fused: Path, tmp_path: Path) -> None:
    said = result_of("export-labels", "--format", "cvat", "--workspace", ".", "--target", "cityscapes")
    assert said["commands"][0] == "endauda import-labels FILE --format cvat --workspace . --target cityscapes"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("export-labels --format cvat --most-disputed 0", "must be at least 1"),
        ("export-labels --format cvat --labels voted --archive dacs", "--labels and --archive: one of them"),
        ("export-labels --format cvat --most-disputed 3 --archive dacs", "only a label set knows"),
        ("export-labels --format cvat --predictions nothing", "no such folder of label PNGs"),
        ("export-labels --format cvat --labels voted --split val", "no labels of 2 of 2 images"),
        ("export-labels --format cvat --out endauda.toml", "a file stands there"),
        ("import-labels nothing.zip --format cvat", "nothing.zip: cannot be read"),
        ("import-labels nothing --format ultralytics", "no such folder"),
        (
            f"import-labels . --format ultralytics --out {CITIES}/gtFine/voted",
            "labels of 'endauda fuse' lie there",
        ),
        ("train --labelled targte", "neither target nor source nor a folder; did you mean target?"),
        ("train --labelled runs", "no label PNG of any of the 5 train images"),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, told: str, fused: Path) -> None:
    (fused / "endauda.toml").touch()
    (fused / "runs").mkdir()
    assert told in refused(*words.split())


def test_one_teacher_disputes_nothing(fused: Path) -> None:
    succeed("fuse", "--teachers", "dacs", "--rule", "majority", "--name", "alone")
    assert "no pixel that teachers disagree on" in refused(
        "export-labels", "--format", "cvat", "--most-disputed", "2"
    )
    assert len(result_of("export-labels", "--format", "cvat")["disputed"]) == len(TRAIN)


def test_a_16_class_submission_has_cityscapes_ids(fused: Path) -> None:
    """Of a source without some of the classes, by their names."""
    from endauda_cli.annotating.cityscapes import id_table
    from endauda_cli.datasets import load_task

    task = load_task("synthia", "cityscapes", fused)
    table = id_table(task.target)
    assert [CITYSCAPES.label_ids[int(number)] for number in table[: len(task.classes)]] == list(task.classes)
    assert set(table[len(task.classes) :].tolist()) == {0}
