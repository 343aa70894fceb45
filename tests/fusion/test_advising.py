"""Advice on ensembles: teachers whose worth is known, with and without labels, and through the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli.domains import CITYSCAPES, make_task
from endauda_cli.fusion import advising
from endauda_cli.fusion.advising import Trial, advise
from endauda_cli.fusion.candidates import Sight, Thinned, against_truth, look, make, mean_iou, witnesses
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.progress import silent
from tests.support.command_lines import (  # fmt: skip
    TEACHERS,
    VAL,
    files_of,
    make_archive,
    make_workspace,
    refused,
    result_of,
    succeed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

SIZE, IMAGES, CLASSES = (24, 32), 12, 19


def world(seed: int = 0) -> dict[str, UInt8]:
    """True labels in blocks, image by image."""
    rng = np.random.default_rng(seed)
    return {
        f"{n:02}": np.kron(rng.integers(0, 5, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        for n in range(IMAGES)
    }


def teacher(truth: dict[str, UInt8], right: float, seed: int, sure: int = 70) -> Thinned:
    """Right on so many of the blocks, each on others; a wrong block is of a class of its own choice."""
    rng = np.random.default_rng(seed)
    own = Thinned(tuple(CITYSCAPES.classes))
    for image, true in truth.items():
        wrong = np.kron(rng.random((6, 8)) > right, np.ones((4, 4))).astype(bool)
        other = np.kron(rng.integers(0, 5, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        label = np.where(wrong, other, true).astype(np.uint8)
        planes = np.full((CLASSES, *SIZE), (100 - sure) // (CLASSES - 1), np.uint8)
        np.put_along_axis(planes, label[None].astype(np.intp), np.uint8(sure), 0)
        planes[rng.integers(0, CLASSES, SIZE), np.arange(SIZE[0])[:, None], np.arange(SIZE[1])] += 5
        own.label[image], own.planes_of[image] = label, planes
    return own


def sight_of(rights: dict[str, float], labelled: Sequence[str] = ()) -> Sight:
    truth = world()
    teachers = {name: teacher(truth, right, n) for n, (name, right) in enumerate(rights.items(), 1)}
    task = make_task(CITYSCAPES, CITYSCAPES)
    return Sight(task, teachers, list(truth), {image: truth[image] for image in labelled})


GOOD = {"one": 0.8, "two": 0.8, "three": 0.75}


def test_without_labels_all_by_consensus() -> None:
    trial = Trial.of(sight_of(GOOD), silent)
    assert len(trial.candidates) == 7 * 5 and trial.true is None
    found, sure = trial.advised()
    assert (found.teachers, found.rule, found.miou) == (tuple(GOOD), "consensus", None) and sure == 1
    assert found.low is not None and found.high is not None and found.low <= found.expected <= found.high
    assert min(trial.adds(name) for name in GOOD) > 1


def test_a_bad_teacher_is_shown_by_labels_alone() -> None:
    """Two that are always right and one that never is: labels on all images show that it is better left out of the
    vote; what is expected without labels ranks it last."""
    sight = sight_of({"one": 0.97, "two": 0.97, "bad": 0.1}, [f"{n:02}" for n in range(IMAGES)])
    trial = Trial.of(sight, silent)
    assert trial.true is not None
    alone = {
        name: trial.expected[trial.candidates.index(((name,), "majority")), 0] for name in sight.teachers
    }
    assert min(alone, key=alone.__getitem__) == "bad"
    fewer, _ = trial.smaller()
    assert "bad" not in fewer.teachers
    found, _ = trial.advised()
    assert found.miou is not None and found.miou >= trial.figure((trial.every, "consensus"))


def test_true_figures_are_the_scores() -> None:
    sight = sight_of(GOOD, ["03", "07"])
    made = make(sight, ("one", "three"))
    found = mean_iou(against_truth(made.labels["majority"], sight), np.ones((1, 2)))
    confusion = ConfusionMatrix(CLASSES)
    for image in ("03", "07"):
        confusion.update(sight.truths[image], made.labels["majority"][image])
    assert found == pytest.approx([100 * confusion.mean_iou()])
    twice = mean_iou(against_truth(made.labels["majority"], sight), np.array([[2.0, 0.0]]))
    alone = ConfusionMatrix(CLASSES)
    alone.update(sight.truths["03"], made.labels["majority"]["03"])
    assert twice == pytest.approx([100 * alone.mean_iou()])


def test_labels_have_to_show_more_than_chance() -> None:
    """Candidate 1 is ahead of the default by one standard error, candidate 2 by three."""
    every = ("a", "b")
    keys = [(every, "consensus"), (every, "plf"), (("a",), "consensus")]
    noise = np.random.default_rng(0).normal(0, 1, 400)
    noise = (noise - noise.mean()) / noise.std()
    default = np.full(401, 50.0)

    def ahead(by: float) -> Any:
        return np.concatenate([[50 + by], 50 + by + noise])

    assert Trial(keys[:2], np.ones((2, 401)), np.stack([default, ahead(1)])).advised()[0].teachers == every
    shown, sure = Trial(keys, np.ones((3, 401)), np.stack([default, ahead(1), ahead(3)])).advised()
    assert (shown.teachers, shown.miou) == (("a",), 53) and 0.5 < sure < 1


def test_fewer_within_the_tolerance() -> None:
    every = ("a", "b", "c")
    keys = [(every, "consensus"), (("a", "b"), "plf"), (("b", "c"), "plf"), (("a",), "plf")]
    expected = np.array([[70.0, 70], [69.6, 69], [69.7, 69.9], [69.0, 69.0]])
    found, sure = Trial(keys, expected, None).smaller()
    assert (found.teachers, sure) == (("b", "c"), 1)
    assert Trial(keys[:1], expected[:1], None).smaller()[0].teachers == every


def test_many_teachers_are_dropped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advising, "ALL_SUBSETS", 3)
    sight = sight_of({"bad": 0.15, "one": 0.8, "two": 0.8, "three": 0.7})
    trial = Trial.of(sight, silent)
    tried = list(dict.fromkeys(ensemble for ensemble, _ in trial.candidates))
    assert len(tried) == advising._searches(4) == 12
    assert {(name,) for name in sight.teachers} <= set(tried)
    pairs = [ensemble for ensemble in tried if len(ensemble) == 2]
    assert len(pairs) == 3 and not any("bad" in pair for pair in pairs)


def test_near_copies_share_a_witness() -> None:
    sight = sight_of(GOOD)
    copy = Thinned(tuple(CITYSCAPES.classes), dict(sight.teachers["one"].label))
    for i, plane in sight.teachers["one"].planes_of.items():
        copy.planes_of[i] = (plane.astype(int) * 9 // 10).astype(np.uint8)
    found = witnesses(Sight(sight.task, {**sight.teachers, "copy": copy}, sight.ids, {}))
    assert found["copy"] == pytest.approx(found["one"]) and found["one"] < 0.6 < found["two"]


def test_images_are_thinned_and_few(tmp_path: Path) -> None:
    truth = world()
    readers = {name: teacher(truth, 0.8, n) for n, name in enumerate("ab")}
    seen = look(make_task(CITYSCAPES, CITYSCAPES), readers, ["00", "05"], [], silent)
    assert seen.teachers["a"].ids == ("00", "05") and seen.teachers["a"].size("00") == SIZE
    found = advise(seen.task, readers, {"c": "a"}, list(truth), [], silent)
    assert found.images == IMAGES and found.teachers[-1].copy_of == "a" and found.tried == 3
    assert found.command == "endauda fuse --teachers a b" and found.by == "agreement"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("advice"))
    make_archive(root, "mrnet", VAL)
    return root


def test_through_the_command_line(made: Path) -> None:
    here = ("fuse", "--workspace", made, "--teachers", *TEACHERS, "--advise")
    before = files_of(made)
    free = result_of(*here)
    assert files_of(made) == before, "advice writes nothing"
    assert free["by"] == "agreement" and free["labelled_images"] == [] and free["advised"]["miou"] is None
    assert [one["name"] for one in free["teachers"]] == list(TEACHERS) and free["tried"] == 7
    told = result_of(*here, "--policy", "few-shot", "--few-shot", VAL[0])
    assert told["labelled_images"] == [VAL[0]] and told["by"] == "labels"
    assert all(0 <= rule["miou"] <= 100 for rule in told["rules"]) and len(told["rules"]) == 5
    text = succeed(*here, "--policy", "val").out
    assert "do not score on them" in text and "advised, and the same in" in text
    assert json.dumps(free)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("--rule", "plf"), "tries every rule"),
        (("--policy", "paper"), "auto looks at no label"),
        (("--shard", "1/2"), "one process"),
        (("--teachers", "crst"), "two or more"),
        (("--teachers", "crst", "mrnet"), "lacks"),
    ],
)
def test_refused(made: Path, line: tuple[str, ...], words: str) -> None:
    assert words in refused("fuse", "--workspace", made, "--advise", *line)
