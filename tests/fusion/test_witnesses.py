"""A copy of a teacher is no second witness; a teacher that merely agrees is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.archive import CertaintyReader, CertaintyWriter
from endauda_cli.fusion import witnesses
from endauda_cli.fusion.policy_files import POLICY_FILE
from endauda_cli.fusion.witnesses import copies, votes_count
from endauda_cli.types import FusionRule
from tests.support.command_lines import TEACHERS, files_of, make_workspace, result_of, succeed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

CLASSES = ("road", "car", "sky", "tree")
IDS = tuple(f"i{n}" for n in range(6))
FUSED = Path("Warehouse/Cityscapes/data/gtFine")


def percent(image: str, temperature: float = 1, seed: int = 0) -> UInt8:
    """(C, H, W) of a teacher, truncated."""
    logits = np.random.default_rng([seed, int(image[1:])]).normal(0, 2, (len(CLASSES), 32, 64))
    p = np.exp((logits - logits.max(0)) / temperature)
    return np.asarray(np.floor(100 * p / p.sum(0)), np.uint8)


def label_of(image: str, seed: int = 0) -> UInt8:
    logits = np.random.default_rng([seed, int(image[1:])]).normal(0, 2, (len(CLASSES), 32, 64))
    return np.asarray(logits.argmax(0), np.uint8)


class Said:
    """Outputs in memory."""

    classes = CLASSES
    ids = IDS

    def __init__(self, said: Mapping[str, tuple[UInt8, UInt8]], name: str = "") -> None:
        self.said, self.name = said, name
        self.asked: list[str] = []

    def __contains__(self, id: object) -> bool:
        return id in self.said

    def size(self, id: str) -> tuple[int, int]:
        height, width = self.said[id][0].shape
        return height, width

    def digest(self, id: str) -> str:
        return f"{self.name} {hash((self.said[id][0].tobytes(), self.said[id][1].tobytes()))}"

    def labels(self, id: str) -> UInt8:
        self.asked.append(id)
        return self.said[id][0]

    def certainty(self, id: str) -> UInt8:
        return self.said[id][1]

    def planes(self, id: str, classes: object) -> UInt8:
        raise AssertionError

    def plane(self, id: str, c: int) -> UInt8:
        raise AssertionError


def teacher(temperature: float = 1, seed: int = 0, name: str = "") -> Said:
    return Said({i: (label_of(i, seed), percent(i, temperature, seed)) for i in IDS}, name)


def agreeing(share: float, same_second: bool) -> Said:
    """As ``teacher()``, but for a share of its labels, and perhaps for what comes second."""
    rng = np.random.default_rng(1)
    said = {}
    for i in IDS:
        label, certainty = label_of(i).copy(), percent(i, 1.5)
        other = rng.random(label.shape) >= share
        label[other] = (label[other] + 1) % len(CLASSES)
        if not same_second:
            top = np.take_along_axis(certainty, label[None].astype(np.intp), 0)
            certainty = rng.permuted(certainty, axis=0)
            np.put_along_axis(certainty, label[None].astype(np.intp), np.maximum(top, 60), 0)
        said[i] = label, certainty
    return Said(said)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (teacher(), "the same labels and certainties"),
        (teacher(name="networks have digests of their own"), "the same label on 100 % of the pixels"),
        (teacher(2), "the same label on 100 % of the pixels"),
        (teacher(0.5), "the same label on 100 % of the pixels"),
        (teacher(0.001), "the same label on 100 % of the pixels"),
        (agreeing(0.9997, same_second=True), "the same label on 99.9"),
    ],
)
def test_copies(other: Said, why: str) -> None:
    found = copies({"a": teacher(), "x": teacher(seed=7), "b": other}, {}, IDS)
    assert list(found) == ["b"] and found["b"][0] == "a" and found["b"][1].startswith(why)


@pytest.mark.parametrize(
    "other",
    [
        teacher(seed=1),
        agreeing(0.995, same_second=True),
        agreeing(0.99, same_second=False),
        agreeing(1, same_second=False),
    ],
)
def test_who_merely_agrees_is_no_copy(other: Said) -> None:
    assert copies({"a": teacher(), "b": other}, {}, IDS) == {}


def test_who_differs_in_one_image_is_no_copy() -> None:
    said = dict(teacher(2).said)
    said["i5"] = label_of("i5", 3), percent("i5", seed=3)
    assert copies({"a": teacher(), "b": Said(said)}, {}, IDS) == {}


def test_few_pixels_say_nothing() -> None:
    pixel = {"i0": (np.zeros((1, 1), np.uint8), np.array([90, 4, 3, 2], np.uint8).reshape(4, 1, 1))}
    assert copies({"a": Said(pixel, "a"), "b": Said(pixel, "b")}, {}, ["i0"]) == {}


def test_who_differs_is_seen_in_one_image() -> None:
    one, other = teacher(), teacher(seed=1)
    copies({"a": one, "b": other}, {}, IDS)
    assert one.asked == other.asked == ["i0"]


def test_the_same_weights_run_the_same_way() -> None:
    readers = {"a": teacher(), "b": teacher(seed=1)}
    facts = {"teacher": "a", "weights_sha256": "12", "scales": [1]}
    same = {**facts, "teacher": "b", "temperature": 2.0, "amp": True}
    assert copies(readers, {"a": facts, "b": same}, IDS) == {"b": ("a", "the same weights, run the same way")}
    for other in ({**same, "weights_sha256": "13"}, {**same, "scales": [0.5, 1]}, {"teacher": "b"}):
        assert copies(readers, {"a": facts, "b": other}, IDS) == {}
    assert copies(readers, {"a": {}, "b": {}}, IDS) == {}


def test_two_classes_have_no_runner_up() -> None:
    said = {i: (label_of(i) % 2, percent(i)[:2]) for i in IDS}
    assert list(copies({"a": Said(said, "a"), "b": Said(said, "b")}, {}, IDS)) == ["b"]


def test_where_owners_are_written_down_nobody_votes() -> None:
    assert not votes_count("plf", "paper") and not votes_count("plf", "mine.json")
    assert (
        votes_count("plf", "auto")
        and votes_count("majority", "mine.json")
        and votes_count("consensus", "x.json")
    )


# ---------------------------------------------------------------------------- through the command


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three teachers, the first of them twice more: copied, and exported again with a temperature."""
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    archives = tmp_path / "certainty/gta5"
    first = sorted(TEACHERS)[0]
    shutil.copytree(archives / first, archives / "x-copy")
    with CertaintyReader(archives / first) as reader:
        with CertaintyWriter(archives / "x-cooler", classes=reader.classes) as writer:
            for image in reader.ids:
                powers = (reader.certainty(image) / 100) ** 1.3
                writer.write(image, reader.labels(image), np.floor(100 * powers).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("rule", FusionRule)
def test_copies_are_counted_once_and_said(city: Path, rule: str) -> None:
    words = ("fuse", "--rule", rule, "--threshold", "0")
    outcome = succeed(*words, "--name", "with", "--quiet", "--json")
    said = [line for line in outcome.err.splitlines() if "says the same as" in line]
    first = sorted(TEACHERS)[0]
    assert [line.split()[1] for line in said] == ["x-cooler", "x-copy"], outcome.err
    assert all(f"as {first} (" in line and f"counted once, as {first}" in line for line in said)
    assert outcome.result["teachers"] == sorted(TEACHERS)
    without = succeed(*words, "--name", "without", "--teachers", *sorted(TEACHERS), "--quiet")
    assert "says the same" not in without.err

    def labels(name: str) -> dict[str, bytes]:
        return {k: v for k, v in files_of(city / FUSED / name).items() if "leftImg8bit" in k}

    assert labels("with") == labels("without")
    record = json.loads((city / FUSED / "with/fusion.json").read_text())
    assert record["copies"] == {"x-copy": first, "x-cooler": first}


def test_a_policy_file_that_names_a_copy_goes_on_working(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by hand, or by an earlier version that counted the copy."""
    (city / "mine.json").write_text(json.dumps([[c, "x-copy"] for c in range(19)]))
    assert result_of("fuse", "--rule", "plf", "--policy", "mine.json")["teachers"] == [
        *sorted(TEACHERS),
        "x-cooler",
        "x-copy",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(witnesses, "copies", lambda *_: {})
        result_of("fuse", "--name", "earlier")
    again = result_of("fuse", "--name", "again", "--policy", city / FUSED / "earlier" / POLICY_FILE)
    assert len(again["teachers"]) == 5
    result_of("fuse", "--name", "now")
    now = result_of("fuse", "--name", "later", "--policy", city / FUSED / "now" / POLICY_FILE)
    assert now["teachers"] == sorted(TEACHERS)
