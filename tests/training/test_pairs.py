"""Before the first step: sizes of images and labels, and what the labels hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from endauda_cli import rasters
from endauda_cli.errors import DataError
from endauda_cli.files import open_regular
from endauda_cli.labels import read_truth
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training import contents
from endauda_cli.training.contents import survey
from endauda_cli.training.data import Stream
from endauda_cli.training.methods import MAIN
from endauda_cli.training.pairs import matched
from tests.support.command_lines import CITIES, SIZE_FLAGS, endauda, make_workspace, refused, succeed
from tests.support.training_runs import make_set

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path


def cut(path: Path, width: int, height: int) -> None:
    with Image.open(path) as image:
        part = image.crop((0, 0, width, height))
    part.save(path)


class Notes(list[str]):
    """The texts that were told."""

    def __call__(self, event: Tick | Note) -> None:
        if isinstance(event, Note):
            self.append(event.text)


def test_a_label_of_another_size_is_refused_or_dropped_and_counted(tmp_path: Path) -> None:
    tiny = make_set(tmp_path)
    streams = {MAIN: Stream(tiny.source_examples(), tiny.domain, read_truth)}
    assert matched(streams, False, 2, silent) == streams
    cut(tmp_path / "truth/train/1.png", 64, 30)
    with pytest.raises(
        DataError, match=r"train/1\.png: 64x30 pixels, but the image .*1\.png has 64x32; .*--drop-mism"
    ):
        matched(streams, False, 2, silent)
    notes = Notes()
    assert [example.id for example in matched(streams, True, 2, notes)[MAIN].examples] == ["0", "2", "3"]
    assert "1 of 4 pairs are left out" in notes[0]
    for i in (0, 2, 3):
        cut(tmp_path / f"truth/train/{i}.png", 64, 30)
    with pytest.raises(DataError, match="none of the 4 pairs fits"):
        matched(streams, True, 2, silent)


def test_files_are_opened_once_for_sizes_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_set(tmp_path)
    domain = replace(tiny.domain, others_ignored=False)  # no look at values
    stream, opened = Stream(tiny.source_examples(), domain, read_truth), []

    def counted(path: Path, most: int | None) -> BufferedReader:
        opened.append(path)
        return open_regular(path, most)

    expected = survey(stream, 2, silent)
    monkeypatch.setattr(rasters, "open_regular", counted)
    monkeypatch.setattr(contents, "open_regular", counted)
    found = matched({MAIN: stream}, False, 2, silent)[MAIN]
    assert survey(found, 2, silent) == expected
    assert sorted(opened) == sorted(path for e in stream.examples for path in (e.image, e.label) if path)
    cut(tmp_path / "truth/train/1.png", 64, 30)
    kept = matched({MAIN: stream}, True, 2, silent)[MAIN]
    assert survey(kept, 2, silent) == survey(replace(kept, contents=None), 2, silent) != expected


def test_the_command_asks_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_workspace(tmp_path))
    succeed("fuse", "--rule", "majority")
    label = sorted((tmp_path / CITIES / "gtFine/majority").glob("*leftImg8bit.png"))[0]
    cut(label, 60, 32)
    line = ("train", *SIZE_FLAGS, "--steps", "1")
    assert f"{label.name}: 60x32 pixels, but the image" in refused(*line)
    assert not (tmp_path / "runs").exists()
    assert "1 of 5 pairs are left out" in succeed(*line, "--drop-mismatched").err


def test_values_without_a_name_are_told(tmp_path: Path) -> None:
    tiny, notes = make_set(tmp_path), Notes()
    stream = Stream(tiny.source_examples(), tiny.domain, read_truth)
    with Image.open(stream.examples[0].label or "") as image:
        label = np.array(image)
    label[:8] = 85
    Image.fromarray(label).save(stream.examples[0].label or "")
    matched({MAIN: stream}, False, 2, notes)
    assert "values without a name in label_ids" in notes[0] and "85 (6.2 %)" in notes[0]
    assert "(seen in 4 of 4 label files)" in notes[0]


def test_truth_without_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_workspace(tmp_path))
    succeed("fuse", "--rule", "majority")
    for path in (tmp_path / CITIES / "gtFine/val").rglob("*labelIds.png"):
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(path)
    sentence = "the truth of all 2 images holds no class at all"
    assert sentence in refused("fuse", "--policy", "val", "--name", "other")
    assert sentence in refused("test", "--predictions", ".")
    found = refused("fuse", "--policy", "few-shot", "--few-shot", "1", "--name", "other")
    assert "the truth of all 1 images holds no class at all" in found
    assert endauda("fuse", "--policy", "auto", "--name", "third").code == 0
