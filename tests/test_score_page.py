"""What a page says of scores: which images are shown, what an error map is, and rows of an earlier table."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES
from endauda_cli.image_counts import ImageCounts
from endauda_cli.report import Bars, Confusion, Gallery, Reliability, Table
from endauda_cli.report.components import Budget, draw
from endauda_cli.score_page import (
    NO_PREDICTION,
    NO_TRUTH,
    RIGHT,
    WRONG,
    Scored,
    bars_beside,
    error_map,
    further_sections,
    pictures,
    scores_table,
)
from endauda_cli.score_table import with_intervals
from endauda_cli.scoring import result_of
from tests.support.command_lines import put_image, put_label

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

CLASSES = len(CITYSCAPES.classes)
TO_LABEL_ID = {0: 7, 1: 8}


def made(folder: Path, images: int = 9) -> tuple[Scored, list[Sample]]:
    """A row whose image i is wrong in i of 16 lines."""
    counts, samples, said = ImageCounts(CLASSES), [], {}
    for i in range(images):
        truth = np.zeros((16, 32), np.uint8)
        truth[8:] = 1
        prediction = truth.copy()
        prediction[:i] = 1
        name = f"city_{i:06}_000000"
        put_image(folder / f"{name}.png", truth, i)
        put_label(folder / f"{name}_truth.png", np.vectorize(TO_LABEL_ID.get)(truth).astype(np.uint8))
        samples.append(Sample(name, folder / f"{name}.png", folder / f"{name}_truth.png"))
        said[name] = prediction
        pairs = np.unique(np.stack([truth, prediction]).reshape(2, -1), axis=1, return_counts=True)
        counts.add(name, pairs[0][0], pairs[0][1], pairs[1])
    result = with_intervals(result_of(counts, CITYSCAPES, "mine", "val"), counts, CITYSCAPES)
    return Scored("mine", "predictions", counts, result, lambda sample: said[sample.id]), samples


def test_the_worst_and_the_best_are_shown_once(tmp_path: Path) -> None:
    row, samples = made(tmp_path)
    worst, best = pictures([row], samples, CITYSCAPES)
    assert isinstance(worst, Gallery) and isinstance(best, Gallery)
    assert [one.name for one in worst.rows] == [samples[i].id for i in (8, 7, 6, 5)]
    assert [one.name for one in best.rows] == [samples[i].id for i in (0, 1, 2, 3)]
    assert worst.columns == ["image", "truth", "prediction", "errors"]
    wrong = (worst.rows[0].pictures[3] == np.array(WRONG)).all(2)
    assert wrong[:8].all() and not wrong[8:].any()
    assert "mIoU 100.0" in best.rows[0].note and worst.legend and not best.legend


def test_of_few_images_none_is_shown_twice(tmp_path: Path) -> None:
    for images in (1, 2, 5):
        row, samples = made(tmp_path / str(images), images)
        shown = [one.name for gallery in pictures([row], samples, CITYSCAPES) for one in gallery.rows]  # type: ignore[union-attr]
        assert sorted(shown) == [sample.id for sample in samples]


def test_two_rows_are_pictured_beside_each_other(tmp_path: Path) -> None:
    row, samples = made(tmp_path)
    blind = Scored("blind", "run", row.counts, row.score)
    other = Scored("other", "run", row.counts, row.score, row.labels)
    assert pictures([blind], samples, CITYSCAPES) == []
    worst = pictures([blind, row, other], samples, CITYSCAPES)[0]
    assert isinstance(worst, Gallery)
    assert worst.columns == ["image", "truth", "mine", "errors of mine", "other", "errors of other"]


def test_a_photograph_that_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    row, samples = made(tmp_path, 2)
    samples[0].image.write_bytes(b"no picture")
    assert len(pictures([row], samples, CITYSCAPES)) == 2


def test_error_map() -> None:
    truth, said = np.array([[0, 0, 255, 0]], np.uint8), np.array([[0, 1, 0, 255]], np.uint8)
    assert error_map(truth, said).tolist() == [[list(c) for c in (RIGHT, WRONG, NO_TRUTH, NO_PREDICTION)]]


def test_scores_and_confusion(tmp_path: Path) -> None:
    row, _ = made(tmp_path)
    table = scores_table([row, row], tmp_path / "report.html")
    assert isinstance(table, Table) and table.rows[0].cells[0] == "predictions mine"
    assert "<svg" in table.rows[0].cells[3] and " to " in table.rows[0].cells[2]
    confusion, *others = further_sections([row], CITYSCAPES)
    assert isinstance(confusion, Confusion) and not others
    assert confusion.matrices[0][1].sum() == 9 * 16 * 32


def test_a_calibration_is_drawn_before_and_after(tmp_path: Path) -> None:
    row, _ = made(tmp_path)
    bins = [
        SimpleNamespace(confidence=None, accuracy=None, count=0),
        SimpleNamespace(confidence=0.9, accuracy=0.7, count=5),
    ]
    after = SimpleNamespace(bins=bins, ece=0.1)
    object.__setattr__(
        row.score, "calibration", SimpleNamespace(bins=bins, ece=0.2, temperature=1.5, after=after)
    )
    section = further_sections([row], CITYSCAPES)[-1]
    assert isinstance(section, Reliability)
    assert [(one["name"], one["ece"]) for one in section.diagrams] == [
        ("predictions mine", 0.2), ("predictions mine, temperature 1.5", 0.1),
    ]  # fmt: skip
    assert draw(section, Budget()).count("<circle") == 2


def test_rows_of_an_earlier_table_stand_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row, _ = made(tmp_path)
    iou = dict.fromkeys(CITYSCAPES.classes, 50.0)
    score: dict[str, Any] = {
        "scored": "dacs",
        "iou": iou,
        "iou_intervals": {"road": {"low": 1.0, "high": 2.0}},
    }
    itself = score | {"scored": str(tmp_path / "mine")}
    table: dict[str, Any] = {
        "target": "cityscapes", "split": "val", "images": 9,
        "rows": [{"kind": "teacher", "name": "dacs", "score": score}, {"kind": "run", "name": "x", "score": itself},
                 {"kind": "run", "name": "y", "score": score | {"iou": {"road": 3}}}, 7, {"kind": "run"}],
    }  # fmt: skip
    stored = tmp_path / "scores.json"

    def names() -> list[str]:
        stored.write_text(json.dumps(table))
        bars = bars_beside("run mine", row.score, stored, CITYSCAPES)
        assert isinstance(bars, Bars)
        return [one.name for one in bars.rows]

    assert names() == ["run mine", "teacher dacs"]
    assert bars_beside("run mine", row.score, stored, CITYSCAPES).rows[1].ends[0] == (1.0, 2.0)
    table["images"] = 12
    assert names() == ["run mine"], "other images"
    table["rows"] = None
    assert names() == ["run mine"]
    stored.write_text("{")
    assert len(bars_beside("run mine", row.score, stored, CITYSCAPES).rows) == 1
    assert len(bars_beside("run mine", row.score, tmp_path / "none", CITYSCAPES).rows) == 1
