"""Policies: who owns which class, from files, from the paper, from labels and from the teachers alone."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.domains import DOMAINS
from endauda_cli.errors import PolicyError
from endauda_cli.fusion.choosing import POLICIES
from endauda_cli.fusion.policy_files import policy_record, read_consensus, read_policy, write_consensus
from endauda_cli.fusion.rules.consensus import Consensus, fit
from endauda_cli.fusion.rules.policies import (
    PAPER,
    Policy,
    _shift,
    annotators,
    auto_scores,
    dawid_skene,
    make_policy,
    owners_by_certainty,
    owners_by_score,
    paper_policy,
    scaled_certainty,
    soft_iou,
)
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.types import PolicyKind
from tests import support

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Float = NDArray[np.float64]
    UInt8 = NDArray[np.uint8]

DATA = support.DATA / "fusion"
NAN = float("nan")


def test_policies_are_the_choices_of_the_command_line() -> None:
    assert set(POLICIES) == set(PolicyKind)


# ---------------------------------------------------------------------------- written by somebody


def test_make_policy_keeps_the_order_and_sorts_the_owners() -> None:
    policy = make_policy([(2, 0), (0, 1), (1, 1)], 3, 2, "mine.json")
    assert policy.pairs == ((2, 0), (0, 1), (1, 1))
    assert policy.owners == (1, 1, 0)
    assert policy.kind == "mine.json"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(0, 0), (3, 0)], "mine.json: class 3, but classes are 0 to 2"),
        ([(-1, 0)], "mine.json: class -1, but classes are 0 to 2"),
        ([(0, 2)], "mine.json: teacher 2 for class 0, but teachers are 0 to 1"),
        ([(0, -1)], "mine.json: teacher -1 for class 0"),
        ([(0, 0), (1, 0), (0, 1), (2, 0)], "mine.json: class 0 has two owners"),
        ([(0, 0), (2, 0)], "mine.json: no owner for class 1"),
        ([], "mine.json: no owner for class 0"),
    ],
)
def test_make_policy_refuses(pairs: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)):
        make_policy(pairs, 3, 2, "mine.json")


CLASSES = ("road", "car", "sky")
TEACHERS = ("dacs", "crst")


@pytest.mark.parametrize(
    "content",
    [
        [["sky", "crst"], ["road", "dacs"], ["car", "crst"]],
        [[2, 1], [0, 0], [1, 1]],
        [["sky", 1], [0, "dacs"], [1.0, 1]],
        {"kind": "auto", "pairs": [["sky", "crst"], ["road", "dacs"], ["car", "crst"]]},
    ],
)
def test_policy_file_by_names_and_numbers(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(content))
    policy = read_policy(path, CLASSES, TEACHERS)
    assert policy == Policy(((2, 1), (0, 0), (1, 1)), str(path))


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8])
def test_policy_file_of_the_follow_up_project(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "list.npy"
    np.save(path, np.array([[0, 1], [1, 0], [2, 1]], dtype))
    assert read_policy(path, CLASSES, TEACHERS).owners == (1, 0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[["tree", "dacs"]]', "class 'tree' is not one of road, car, sky"),
        ('[["road", "cbst"]]', "teacher 'cbst' is not one of dacs, crst"),
        ('[["road", null]]', "teacher None is not one of"),
        ('[["road", true]]', "teacher True is not one of"),
        ('[["road", ["dacs"]]]', r"teacher \['dacs'\] is not one of"),
        ("[[NaN, 0]]", "class nan is not one of"),
        ("[[Infinity, 0]]", "class inf is not one of"),
        ("[[0.5, 0]]", "class 0.5 is not one of"),
        ("[[7, 0]]", "class 7, but classes are 0 to 2"),
        ('[["road", "dacs"], ["road", "crst"]]', "class 0 has two owners"),
        ('[["road", "dacs"]]', "no owner for class 1"),
        ('["road", "dacs"]', "expected a list of pairs"),
        ('[["road", "dacs", "crst"]]', "expected a list of pairs"),
        ('{"owners": []}', "expected a list of pairs"),
        ("7", "expected a list of pairs"),
        ("[[", "neither JSON nor a NumPy file"),
        ("", "neither JSON nor a NumPy file"),
        ("\x93NUMPY", "neither JSON nor a NumPy file"),
        ("[" * 100_000, "neither JSON nor a NumPy file"),
        (f"[[{'9' * 400}, 0]]", "class 9{80}…, but classes are 0 to 2"),
        (f"[[0, -{'9' * 400}]]", "teacher -9{79}…, but teachers are 0 to 1"),
        (f"[[{'9' * 5000}, 0]]", "neither JSON nor a NumPy file"),
        ("[[1e308, 0]]", "class 1e.308, but classes are 0 to 2"),
        (f'[["{"x" * 5000}", "dacs"]]', "class 'x{79}… is not one of"),
        ('[["road\\u0000", "dacs"]]', r"class 'road.x00' is not one of"),
    ],
)
def test_policy_file_that_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(PolicyError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_policy(path, CLASSES, TEACHERS)


@pytest.mark.parametrize("cut", [0, 4, 60, 130])
def test_damaged_numpy_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "list.npy"
    np.save(path, np.array([[0, 1], [1, 0], [2, 1]]))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PolicyError, match="neither JSON nor a NumPy file"):
        read_policy(path, CLASSES, TEACHERS)


def test_numpy_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.npy"
    for array in (np.zeros(6), np.array(3), np.zeros((3, 3))):
        np.save(path, array)
        with pytest.raises(PolicyError, match="expected a list of pairs"):
            read_policy(path, CLASSES, TEACHERS)
    np.save(path, np.array([object()]), allow_pickle=True)
    with pytest.raises(PolicyError, match="neither JSON nor a NumPy file"):
        read_policy(path, CLASSES, TEACHERS)


def npy(shape: str, dtype: str = "<i8") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [npy("(1000000000, 2)"), npy("(-1, 2)"),
     npy("(3, 2)", "|O"), npy("(" * 5000), npy("(2,) * 10**9"), npy("()", "|V0"),
     b"\x93NUMPY\x09\x00", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff{"],
)  # fmt: skip
def test_numpy_file_that_declares_what_it_has_not(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.npy"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match="neither JSON nor a NumPy file"):
        read_policy(path, CLASSES, TEACHERS)


def test_many_pairs_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps([[0, 0]] * 300_000))
    with pytest.raises(PolicyError, match="class 0 has two owners"):
        read_policy(path, CLASSES, TEACHERS)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("policy.json", "list.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(PolicyError, match="a named pipe, where a regular file is expected"):
            read_policy(tmp_path / name, CLASSES, TEACHERS)


def test_absent_policy_file_is_answered_with_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="neither one of auto, few-shot, val, certainty, paper nor a file"):
        read_policy(tmp_path / "auot", CLASSES, TEACHERS)
    with pytest.raises(PolicyError, match="a folder, where a regular file is expected"):
        read_policy(tmp_path, CLASSES, TEACHERS)


def test_record_is_read_back(tmp_path: Path) -> None:
    policy = Policy(((2, 1), (0, 0), (1, 1)), "auto", ((0.5, NAN, 0.25), (0.1, 1.0, 0.75)))
    record = policy_record(policy, CLASSES, TEACHERS)
    assert record["scores"] == {
        "dacs": {"road": 0.5, "car": None, "sky": 0.25},
        "crst": {"road": 0.1, "car": 1.0, "sky": 0.75},
    }
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(record, allow_nan=False))
    assert read_policy(path, CLASSES, TEACHERS).pairs == policy.pairs


# ---------------------------------------------------------------------------- the paper's

GTA5_BY_NAME = {
    "mrnet": ("wall", "traffic light", "bus"),
    "dacs": (
        "rider", "fence", "terrain", "bicycle", "traffic sign", "truck", "sidewalk", "person", "vegetation",
        "building", "sky", "car", "road",
    ),
    "crst": ("pole", "motorcycle"),
    "cbst": ("train",),
}  # fmt: skip
SYNTHIA_BY_NAME = {
    "crst": ("fence", "wall", "traffic sign"),
    "cbst": ("sky",),
    "mrnet": (
        "rider", "motorcycle", "traffic light", "pole", "bus", "sidewalk", "bicycle", "person", "vegetation",
        "building", "car", "road",
    ),
}  # fmt: skip
FUSION_MD = {
    "gta5": "(16,3) (3,0) (12,1) (4,1) (9,1) (5,2) (17,2) (6,0) (18,1) (7,1) (15,0) (14,1) (1,1) (11,1) "
    "(8,1) (2,1) (10,1) (13,1) (0,1)",
    "synthia": "(4,0) (3,0) (11,2) (14,2) (6,2) (7,0) (5,2) (13,2) (1,2) (15,2) (10,2) (8,2) (2,2) (9,1) "
    "(12,2) (0,2)",
}


@pytest.mark.parametrize(
    ("source", "golden"), [("gta5", "smooth_gta_T4_C19"), ("synthia", "smooth_synthia_T3_C16")]
)
def test_paper_lists_are_the_published_ones(source: str, golden: str) -> None:
    published, pairs = PAPER[source]
    assert " ".join(f"({c},{t})" for c, t in pairs) == FUSION_MD[source]
    with np.load(DATA / f"{golden}.npz") as file:
        np.testing.assert_array_equal(pairs, file["extraction_list"])
    assert paper_policy(source, published).pairs == pairs


@pytest.mark.parametrize(("source", "owned"), [("gta5", GTA5_BY_NAME), ("synthia", SYNTHIA_BY_NAME)])
def test_paper_policy_follows_names_not_places(source: str, owned: dict[str, tuple[str, ...]]) -> None:
    classes = DOMAINS[source].classes
    for teachers in (sorted(owned), sorted(owned, reverse=True)):
        owners = paper_policy(source, teachers).owners
        found = {t: {c for i, c in enumerate(classes) if teachers[owners[i]] == t} for t in teachers}
        assert found == {t: set(names) for t, names in owned.items()}


@pytest.mark.parametrize(
    ("source", "teachers", "message"),
    [
        ("camvid", ["dacs"], "no policy for source camvid, only for gta5 and synthia"),
        ("synthia-19", ["crst", "cbst", "mrnet"], "no policy for source synthia-19"),
        ("gta5", ["crst", "cbst", "mrnet"], "for the teachers mrnet dacs crst cbst, not for crst cbst mrnet"),
        ("gta5", ["mrnet", "dacs", "crst", "cbst", "mine"], "use --policy auto, or a file"),
    ],
)
def test_paper_policy_is_refused(source: str, teachers: list[str], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        paper_policy(source, teachers)


# ---------------------------------------------------------------------------- fitted rules


def model_of_nothing() -> Consensus:
    labels = np.random.default_rng(0).integers(0, 3, (2, 300)).astype(np.uint8)
    certainties = np.random.default_rng(1).integers(0, 100, (2, 300, 3)).astype(np.uint8)
    return fit(labels, certainties, 3)


def test_fitted_rule_is_read_back(tmp_path: Path) -> None:
    model = model_of_nothing()
    write_consensus(tmp_path / "policy.json", model, CLASSES, TEACHERS)
    found = read_consensus(tmp_path / "policy.json", CLASSES, TEACHERS)
    for name, array in vars(model).items():
        np.testing.assert_array_equal(getattr(found, name), array)
    with pytest.raises(
        PolicyError, match="fitted to the teachers dacs crst and 3 classes, not to dacs and 3"
    ):
        read_consensus(tmp_path / "policy.json", CLASSES, TEACHERS[:1])


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("evidence", np.zeros((2, 3, 3), np.float32)),
        ("evidence", np.zeros((2, 37, 3), np.int64)),
        ("edges", np.zeros((2, 3, 300), np.uint8)),
        ("prior", np.full(3, np.nan, np.float32)),
        ("prior", np.zeros(3, np.float32)),  # as before classes had places
        ("powers", np.zeros(1)),
        ("classes", np.zeros(3)),
        ("teachers", np.zeros((2, 2), "U4")),
        ("iou", None),
        ("weights", None),  # as of 0.1, which fitted another rule
        ("weights", np.zeros(2)),
    ],
)
def test_fitted_rule_of_other_shapes_is_refused(tmp_path: Path, name: str, array: Any) -> None:
    """Compiled loops go by these shapes, and would read beyond them."""
    arrays = {
        **vars(model_of_nothing()),
        "classes": np.array(CLASSES),
        "teachers": np.array(TEACHERS),
        name: array,
    }
    np.savez(tmp_path / "consensus.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(PolicyError, match=f"consensus.npz: cannot be read .*{name}"):
        read_consensus(tmp_path / "policy.json", CLASSES, TEACHERS)


def test_fitted_rule_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    write_consensus(tmp_path / "policy.json", model_of_nothing(), CLASSES, TEACHERS)
    with zipfile.ZipFile(tmp_path / "consensus.npz") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "consensus.npz", "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, npy("(200000000,)", "<f8") + bytes(10**8) if name == "powers.npy" else content)
    tracemalloc.start()
    with pytest.raises(PolicyError, match="powers declares 100,000,"):
        read_consensus(tmp_path / "policy.json", CLASSES, TEACHERS)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


# ---------------------------------------------------------------------------- by tables


@pytest.mark.parametrize("size", ["T4_C19", "T3_C16", "T7_C19", "T7_C16"])
def test_certainty_policy_is_the_follow_up_projects(size: str) -> None:
    with np.load(DATA / "policy_selection.npz") as file:
        table, expected = file[f"table_{size}"], file[f"out_list_{size}"]
    np.testing.assert_array_equal(list(enumerate(owners_by_certainty(table))), expected)


def test_certainty_policy_at_ties_and_gaps() -> None:
    table = np.array([[0.5, NAN, 0.0, -1.0, 0.9], [0.5, NAN, 0.0, -2.0, NAN], [0.4, 0.0, 0.0, NAN, 0.8]])
    assert owners_by_certainty(table) == [1, 2, 2, 0, 0]


def test_score_policy_at_ties_and_gaps() -> None:
    table = np.array([[0.5, NAN, NAN, 0.2], [0.5, 0.0, NAN, 0.1], [0.9, NAN, NAN, 0.9]])
    # Class 2 has no score anywhere, so the best teacher on the whole takes it; ties go to the first.
    assert owners_by_score(table) == [2, 1, 2, 2]
    assert owners_by_score(np.array([[0.5, 0.7], [0.5, 0.7]])) == [0, 0]
    assert owners_by_score(np.full((2, 2), NAN)) == [0, 0]


# ---------------------------------------------------------------------------- without labels


def annotate(truth: UInt8, confusions: Float, generator: np.random.Generator) -> UInt8:
    """(T, S) votes of annotators with confusion matrices (T, true, given)."""
    num_classes = confusions.shape[-1]
    rows = confusions[:, truth]  # (T, S, C)
    uniform = generator.random(rows.shape[:2])
    votes = (rows.cumsum(-1) < uniform[..., None]).sum(-1)
    return np.asarray(np.minimum(votes, num_classes - 1), np.uint8)


def even_confusion(accuracy: float, num_classes: int) -> Float:
    off = (1 - accuracy) / (num_classes - 1)
    return np.full((num_classes, num_classes), off) + (accuracy - off) * np.eye(num_classes)


def combinations(votes: UInt8) -> tuple[UInt8, Float, NDArray[np.intp]]:
    found, inverse, counts = np.unique(votes, axis=1, return_inverse=True, return_counts=True)
    return found, counts.astype(np.float64), inverse.ravel()


def test_dawid_skene_finds_the_few_good_annotators() -> None:
    """Two good annotators against three poor ones: the vote follows the many, the model follows the good."""
    generator = np.random.default_rng(0)
    num_classes = 5
    accuracies = [0.95, 0.35, 0.9, 0.35, 0.35]
    truth = generator.choice(num_classes, 20_000, p=[0.4, 0.3, 0.15, 0.1, 0.05]).astype(np.uint8)
    votes = annotate(truth, np.stack([even_confusion(a, num_classes) for a in accuracies]), generator)
    distinct, counts, inverse = combinations(votes)
    posterior = dawid_skene(distinct, counts, num_classes)
    np.testing.assert_allclose(posterior.sum(1), 1)

    one_hot = votes[..., None] == np.arange(num_classes)  # (T, S, C)
    vote = one_hot.sum(0).argmax(1)
    model = posterior[inverse].argmax(1)
    assert np.mean(vote == truth) < 0.9
    assert np.mean(model == truth) > 0.95

    estimated = (posterior[inverse] * one_hot).sum(2).mean(1)  # expected accuracy of each annotator
    np.testing.assert_allclose(estimated, accuracies, atol=0.02)


def test_dawid_skene_finds_a_habit_that_most_annotators_share() -> None:
    """Three of four call half of class 1 class 0; the fourth's word is worth more there, and is given more."""
    generator = np.random.default_rng(1)
    habit = np.array([[0.95, 0.03, 0.02], [0.5, 0.48, 0.02], [0.04, 0.01, 0.95]])
    truth = generator.choice(3, 20_000, p=[0.5, 0.25, 0.25]).astype(np.uint8)
    votes = annotate(truth, np.stack([habit, habit, even_confusion(0.95, 3), habit]), generator)
    distinct, counts, _ = combinations(votes)
    agreement = soft_iou(distinct, counts, dawid_skene(distinct, counts, 3))
    assert owners_by_score(agreement)[1] == 2
    true_iou = np.stack([iou_of(truth, given, 3) for given in votes])
    np.testing.assert_allclose(agreement, true_iou, atol=0.03)


def test_dawid_skene_does_not_believe_a_class_that_is_hardly_ever_seen() -> None:
    """Two pixels that one annotator calls class 2: without smoothing, nobody could say it is wrong."""
    votes = np.array([[0, 1, 2], [0, 1, 1]], np.uint8)
    posterior = dawid_skene(votes, np.array([5000.0, 5000.0, 2.0]), 3)
    assert posterior[2, 1] > 0.95


def test_no_class_drifts_out_of_bounds() -> None:
    generator = np.random.default_rng(4)
    posterior, counts = generator.dirichlet([8, 1, 1], 200), generator.integers(1, 9, 200).astype(float)
    bounds = np.array([0.1, 0.2, 0.1]), np.array([0.5, 0.6, 0.6])

    def share(shift: Any) -> Any:
        moved = posterior * np.exp(shift)
        return counts @ (moved / moved.sum(1, keepdims=True)) / counts.sum()

    shift = _shift(posterior, counts, bounds)
    assert share(0)[0] > 0.7
    assert (share(shift) < 1.05 * bounds[1]).all() and (share(shift) > bounds[0] / 1.05).all()
    assert not _shift(posterior, counts, (np.zeros(3), np.ones(3))).any()


def test_a_teacher_of_no_weight_is_not_heard() -> None:
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 3, (4, 500)).astype(np.uint8)
    votes, counts, _ = combinations(labels)
    weights = np.array([1.0, 1.0, 1.0, 0.0])
    found = annotators(votes, counts, 3, weights).posterior(votes, weights)
    expected = annotators(votes[:3], counts, 3).posterior(votes[:3])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dawid_skene_leaves_out_who_does_not_vote() -> None:
    votes = np.array([[0, 1, 255, 255], [0, 1, 1, 255]], np.uint8)
    posterior = dawid_skene(votes, np.array([10.0, 10.0, 1.0, 1.0]), 2)
    assert posterior[0, 0] > 0.99
    assert posterior[1, 1] > 0.99
    assert posterior[2, 1] > 0.95
    np.testing.assert_allclose(posterior[3], 0.5, atol=0.05)  # nobody voted: the prior
    assert np.isfinite(posterior).all()


def iou_of(truth: UInt8, given: UInt8, num_classes: int) -> Float:
    confusion = ConfusionMatrix(num_classes)
    confusion.update(truth[None], given[None])
    return confusion.iou()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), teachers=st.integers(1, 4), num_classes=st.integers(2, 6))
def test_soft_iou_of_a_certain_posterior_is_the_iou(seed: int, teachers: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, num_classes, 60).astype(np.uint8)
    votes = generator.integers(0, num_classes, (teachers, 60)).astype(np.uint8)
    table = soft_iou(votes, np.ones(60), np.eye(num_classes)[truth])
    for t in range(teachers):
        given_at_all = np.isin(np.arange(num_classes), votes[t])
        expected = np.where(given_at_all, iou_of(truth, votes[t], num_classes), NAN)
        np.testing.assert_allclose(table[t], expected)


def softmax_bytes(logits: Float) -> UInt8:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(100 * shifted / shifted.sum(-1, keepdims=True), np.uint8)


def test_scaled_certainty_forgets_a_teachers_temperature() -> None:
    """A teacher that is merely more sure of everything scores as its sober twin does."""
    generator = np.random.default_rng(0)
    strength = np.array([0.5, 2.0, 1.0])  # how sure of each class: the order must survive
    labels = generator.integers(0, 3, 5000)
    logits = generator.normal(0, 0.5, (5000, 3)) + strength[labels][:, None] * np.eye(3)[labels]
    labels = logits.argmax(1)
    given_twice = np.stack([labels, labels]).astype(np.uint8)
    certainties = np.stack([softmax_bytes(logits), softmax_bytes(2 * logits)])
    raw = [[certainties[t].max(1)[labels == c].mean() for c in range(3)] for t in range(2)]
    assert np.abs(np.diff(raw, axis=0)).max() > 15  # percent
    table = scaled_certainty(given_twice, certainties, 3)
    np.testing.assert_allclose(table[0], table[1], atol=0.01)
    assert list(table.argsort(1)[0]) == list(table.argsort(1)[1]) == [0, 2, 1]


def test_scaled_certainty_of_classes_that_are_not_given_is_nan() -> None:
    certainties = np.full((1, 4, 3), 33, np.uint8)
    table = scaled_certainty(np.array([[0, 0, 255, 2]], np.uint8), certainties, 3)
    np.testing.assert_array_equal(np.isnan(table), [[False, True, False]])


def test_auto_prefers_the_good_teacher_over_the_loud_one() -> None:
    """Three teachers: the worst is sure of everything. Mean certainty falls for it, auto does not."""
    generator = np.random.default_rng(2)
    num_classes, pixels = 4, 4000
    truth = generator.integers(0, num_classes, pixels).astype(np.uint8)
    votes = annotate(truth, np.stack([even_confusion(a, num_classes) for a in (0.9, 0.75, 0.5)]), generator)
    margins = (3.0, 3.0, 9.0)
    logits = [
        m * np.eye(num_classes)[v] + generator.normal(0, 0.3, (pixels, num_classes))
        for m, v in zip(margins, votes, strict=True)
    ]
    certainties = np.stack([softmax_bytes(one) for one in logits])
    top = certainties.max(2)
    by_certainty = np.array([[top[t][votes[t] == c].mean() for c in range(num_classes)] for t in range(3)])
    assert owners_by_certainty(by_certainty) == [2, 2, 2, 2]
    assert owners_by_score(auto_scores(votes, certainties, num_classes)) == [0, 0, 0, 0]
