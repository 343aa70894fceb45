"""Fusion rules against golden files of the reference implementation, and against loops over pixels."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.consensus import Consensus, fit
from endauda_cli.fusion import RULES, Fused, Inputs, certainty, consensus, majority, plf
from endauda_cli.types import FusionRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from endauda_cli.fusion import Planes

    Array = NDArray[np.generic]
    UInt8 = NDArray[np.uint8]

DATA = Path(__file__).parent / "data" / "fusion"
NAMES = sorted(path.stem for path in DATA.glob("*.npz") if path.stem != "policy_selection")
PLF_OUTPUT = re.compile(r"out_plf_rf(\d+)x(\d+)_thr(\d+)")
CERTAINTY_OUTPUT = re.compile(r"out_certainty_thr(\d+)")

golden_cases = pytest.mark.parametrize("name", NAMES)


# ---------------------------------------------------------------------------- golden files


def golden(name: str) -> dict[str, Array]:
    with np.load(DATA / f"{name}.npz") as file:
        content = dict(file)
    if "certainty_u8" in content:  # the follow-up project's renormalisation, as fusing._load does it
        percent = content["certainty_u8"].astype(np.float32)
        content["certainty"] = percent * np.float32(100) / percent.sum(-1, keepdims=True)
    return content


def planes_of(certainties: Array) -> Planes:
    """``plane(t, c)`` over (T, H, W, C)."""
    return lambda t, c: torch.from_numpy(np.ascontiguousarray(certainties[t, ..., c]))


def images(content: dict[str, Array]) -> Iterator[tuple[int, torch.Tensor, Planes]]:
    """The images of a batch: number, labels (T, H, W), certainties."""
    certainties = content["certainty"]
    labels = content.get(
        "labels", np.zeros(certainties.shape[:-1], np.uint8)
    )  # tiefree_*: no rule needs them
    for b in range(certainties.shape[1]):
        yield b, torch.from_numpy(labels[:, b]), planes_of(certainties[:, b])


def owners(content: dict[str, Array]) -> torch.Tensor:
    """(C,) from the pairs (class, teacher), which the golden files list in painting order."""
    pairs = content["extraction_list"]
    return torch.from_numpy(pairs[np.argsort(pairs[:, 0]), 1])


@golden_cases
def test_plf_gives_the_published_labels(name: str) -> None:
    content = golden(name)
    outputs = [match for key in content if (match := PLF_OUTPUT.fullmatch(key))]
    assert outputs or name.startswith("tiefree")
    for b, labels, plane in images(content):
        for output in outputs:
            kh, kw, threshold = map(int, output.groups())
            fused = plf(labels, plane, owners(content), window=(kh, kw), threshold=threshold)
            np.testing.assert_array_equal(fused.label, content[output[0]][b], err_msg=output[0])
            np.testing.assert_array_equal(fused.candidate, content[f"out_plf_rf{kh}x{kw}_thr0"][b])
            np.testing.assert_array_equal(fused.claims, content["out_claim_count"][b])
            if "out_overlap_fraction" in content:
                assert (fused.claims > 1).double().mean() == content["out_overlap_fraction"][b]


@golden_cases
def test_certainty_gives_the_published_labels(name: str) -> None:
    content = golden(name)
    outputs = [match for key in content if (match := CERTAINTY_OUTPUT.fullmatch(key))]
    assert outputs
    num_classes = content["certainty"].shape[-1]
    for b, labels, plane in images(content):
        for output in outputs:
            fused = certainty(labels, plane, num_classes, threshold=int(output[1]))
            np.testing.assert_array_equal(fused.label, content[output[0]][b], err_msg=output[0])


@golden_cases
def test_majority_gives_the_published_labels(name: str) -> None:
    content = golden(name)
    if "out_majority" not in content:
        assert name.startswith(("tiefree", "renormalised"))
        return
    for b, labels, _ in images(content):
        fused = majority(labels, content["certainty"].shape[-1])
        np.testing.assert_array_equal(fused.label, content["out_majority"][b])


# ---------------------------------------------------------------------------- loops over pixels


def naive_plf(
    labels: UInt8, certainties: Array, owner: list[int], window: tuple[int, int], threshold: float
) -> tuple[Array, Array, Array]:
    """Label, label before the threshold, claims: FUSION.md word by word."""
    _, height, width = labels.shape
    num_classes = len(owner)
    candidate, label, claims = (np.zeros((height, width), int) for _ in range(3))
    kh, kw = window
    for y in range(height):
        for x in range(width):
            claimed = [c for c in range(num_classes) if labels[owner[c], y, x] == c]
            claims[y, x] = len(claimed)
            rows = range(max(0, y - kh // 2), min(height, y + kh // 2 + 1))
            columns = range(max(0, x - kw // 2), min(width, x + kw // 2 + 1))
            around = [(i, j) for i in rows for j in columns]
            if len(claimed) == 1:
                c = claimed[0]
                sure = float(certainties[owner[c], y, x, c])
            else:
                shares = [sum(labels[owner[k], i, j] == k for i, j in around) for k in range(num_classes)]
                c = int(np.argmax(shares))
                sure = sum(float(certainties[owner[c], i, j, c]) for i, j in around) / (kh * kw)
            candidate[y, x] = c
            label[y, x] = c if sure >= threshold else 255
    return label, candidate, claims


def naive_certainty(certainties: Array, threshold: float) -> tuple[Array, Array]:
    num_teachers, height, width, num_classes = certainties.shape
    candidate, label = np.zeros((height, width), int), np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            sums = [
                sum(int(certainties[t, y, x, c]) for t in range(num_teachers)) for c in range(num_classes)
            ]
            c = int(np.argmax(sums))
            candidate[y, x] = c
            label[y, x] = c if sums[c] >= threshold * num_teachers else 255
    return label, candidate


def naive_majority(labels: UInt8, num_classes: int) -> Array:
    label = np.zeros(labels.shape[1:], int)
    for y, x in np.ndindex(*label.shape):
        votes = Counter(int(v) for v in labels[:, y, x] if v < num_classes)
        label[y, x] = min((c for c in votes if votes[c] == max(votes.values())), default=0)
    return label


def naive_distinct(labels: UInt8, num_classes: int) -> Array:
    distinct = np.zeros(labels.shape[1:], int)
    for y, x in np.ndindex(*distinct.shape):
        distinct[y, x] = len({int(v) for v in labels[:, y, x] if v < num_classes})
    return distinct


class Case:
    """A small image by several teachers; ties, 255 and certainties at the threshold are likely."""

    def __init__(self, seed: int, teachers: int, classes: int, height: int, width: int, levels: int) -> None:
        generator = np.random.default_rng(seed)
        values = np.append(np.arange(classes), 255)
        shape = (teachers, height, width)
        self.labels = generator.choice(values[: int(generator.integers(1, classes + 2))], shape).astype(
            np.uint8
        )
        if generator.random() < 0.5:
            self.labels[generator.random(shape) < 0.3] = 255
        steps = np.linspace(0, 100, levels).astype(np.uint8)
        self.certainties = generator.choice(steps, (*shape, classes)).astype(np.uint8)
        self.owner = [int(t) for t in generator.integers(0, teachers, classes)]

    def __repr__(self) -> str:
        return f"labels={self.labels.tolist()} certainties={self.certainties.tolist()} owner={self.owner}"


cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    teachers=st.integers(1, 5),
    classes=st.integers(2, 8),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    levels=st.sampled_from([2, 3, 11, 101]),
)
thresholds = st.sampled_from([0, 1, 33.5, 50, 70, 90, 100])
windows = st.tuples(st.sampled_from([1, 3, 5, 15]), st.sampled_from([1, 3, 7, 9]))


@settings(max_examples=150, deadline=None)
@given(case=cases, window=windows, threshold=thresholds)
def test_plf_is_the_loop_over_pixels(case: Case, window: tuple[int, int], threshold: float) -> None:
    fused = plf(
        torch.from_numpy(case.labels),
        planes_of(case.certainties),
        torch.tensor(case.owner),
        window=window,
        threshold=threshold,
    )
    label, candidate, claims = naive_plf(case.labels, case.certainties, case.owner, window, threshold)
    assert_fused(fused, label, candidate, claims)


@settings(max_examples=100, deadline=None)
@given(case=cases, threshold=thresholds)
def test_certainty_is_the_loop_over_pixels(case: Case, threshold: float) -> None:
    num_classes = case.certainties.shape[-1]
    fused = certainty(
        torch.from_numpy(case.labels), planes_of(case.certainties), num_classes, threshold=threshold
    )
    label, candidate = naive_certainty(case.certainties, threshold)
    assert_fused(fused, label, candidate, naive_distinct(case.labels, num_classes))


@settings(max_examples=100, deadline=None)
@given(case=cases)
def test_majority_is_the_loop_over_pixels(case: Case) -> None:
    num_classes = case.certainties.shape[-1]
    fused = majority(torch.from_numpy(case.labels), num_classes)
    label = naive_majority(case.labels, num_classes)
    assert_fused(fused, label, label, naive_distinct(case.labels, num_classes))


def assert_fused(fused: Fused, label: Array, candidate: Array, claims: Array) -> None:
    np.testing.assert_array_equal(fused.label, label)
    np.testing.assert_array_equal(fused.candidate, candidate)
    np.testing.assert_array_equal(fused.claims, claims)
    assert {tensor.dtype for tensor in fused} == {torch.uint8}


# ---------------------------------------------------------------------------- what a rule may ask for


@settings(max_examples=50, deadline=None)
@given(case=cases, window=windows, threshold=thresholds)
def test_plf_asks_each_owner_once_and_nobody_else(
    case: Case, window: tuple[int, int], threshold: float
) -> None:
    asked: Counter[tuple[int, int]] = Counter()
    plane = planes_of(case.certainties)

    def counted(t: int, c: int) -> torch.Tensor:
        asked[t, c] += 1
        return plane(t, c)

    fused = plf(
        torch.from_numpy(case.labels),
        counted,
        torch.tensor(case.owner),
        window=window,
        threshold=threshold,
    )
    given_classes = {int(c) for c in np.unique(fused.candidate.numpy())}
    expected = {(case.owner[c], c) for c in given_classes} if threshold > 0 else set()
    assert set(asked) == expected
    assert set(asked.values()) <= {1}


def model_of(case: Case) -> Consensus:
    num_teachers, num_classes = len(case.labels), case.certainties.shape[-1]
    flat = case.certainties.reshape(num_teachers, -1, num_classes)
    return fit(case.labels.reshape(num_teachers, -1), flat, num_classes)


def test_inputs_are_left_as_they_were() -> None:
    case = Case(0, 3, 5, 6, 7, 101)
    model = model_of(case)
    labels, certainties = case.labels.copy(), case.certainties.copy()
    inputs = Inputs(
        torch.from_numpy(case.labels),
        planes_of(case.certainties),
        torch.tensor(case.owner),
        (5, 5),
        50,
        model,
    )
    for rule in RULES.values():
        rule(inputs)
    np.testing.assert_array_equal(case.labels, labels)
    np.testing.assert_array_equal(case.certainties, certainties)


def test_rules_are_the_choices_of_the_command_line() -> None:
    assert set(RULES) == set(FusionRule)


def test_rules_take_their_part_of_the_inputs() -> None:
    case = Case(1, 4, 6, 9, 8, 11)
    labels, plane, owner = (
        torch.from_numpy(case.labels),
        planes_of(case.certainties),
        torch.tensor(case.owner),
    )
    model = model_of(case)
    inputs = Inputs(labels, plane, owner, (3, 7), 50, model)
    expected = {
        FusionRule.PLF: plf(labels, plane, owner, window=(3, 7), threshold=50),
        FusionRule.CERTAINTY: certainty(labels, plane, 6, threshold=50),
        FusionRule.MAJORITY: majority(labels, 6),
        FusionRule.CONSENSUS: consensus(labels, plane, model, threshold=50),
    }
    for name, rule in RULES.items():
        assert all(map(torch.equal, rule(inputs), expected[FusionRule(name)]))
