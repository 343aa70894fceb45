"""Fusion rules against golden files of the reference implementation, and against loops over pixels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.fusion.rules import RULES, Fused, Recipe, cuda, fuse_image, measures
from endauda_cli.fusion.rules.consensus import Consensus, fit
from endauda_cli.types import Border, FusionRule, Unclaimed
from tests import support

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    UInt8 = NDArray[np.uint8]

BACKENDS = ["numpy", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
"""Compiled kernels, and torch's on each device there is."""

DATA = support.DATA / "fusion"
NAMES = sorted(path.stem for path in DATA.glob("*.npz") if path.stem != "policy_selection")
PLF_OUTPUT = re.compile(r"out_plf_rf(\d+)x(\d+)_thr(\d+)")
CERTAINTY_OUTPUT = re.compile(r"out_certainty_thr(\d+)")
SOFT_OUTPUT = re.compile(r"out_softlabel_(?:(.)_)?thr(\d+)")

golden_cases = pytest.mark.parametrize("name", NAMES)
backends = pytest.mark.parametrize("backend", BACKENDS)


def run(backend: str, rule: str, labels: UInt8, certainties: Array, **told: Any) -> Fused:
    """A rule over (T, H, W) labels and (T, H, W, C) certainties, by one of the backends; in NumPy arrays."""
    planes = np.ascontiguousarray(certainties.transpose(0, 3, 1, 2))  # (T, C, H, W)
    recipe = Recipe(certainties.shape[-1], **told)
    labels = np.ascontiguousarray(labels)
    if backend == "numpy":
        return fuse_image(rule, labels, lambda t, classes: planes[t, list(classes)], recipe)
    fused = fuse_image(
        rule,
        torch.from_numpy(labels).to(backend),
        lambda t, classes: torch.from_numpy(planes[t, list(classes)]).to(backend),
        recipe,
    )
    return Fused(*(tensor.cpu().numpy() for tensor in fused))


# ---------------------------------------------------------------------------- golden files


def golden(name: str) -> dict[str, Array]:
    with np.load(DATA / f"{name}.npz") as file:
        content = dict(file)
    if (
        "certainty_u8" in content
    ):  # the follow-up project's renormalisation, as image_fusion.planes_of does it
        percent = content["certainty_u8"].astype(np.float32)
        content["certainty"] = percent * np.float32(100) / percent.sum(-1, keepdims=True)
    return content


def images(content: dict[str, Array]) -> Iterator[tuple[int, UInt8, Array]]:
    """The images of a batch: number, labels (T, H, W), certainties (T, H, W, C)."""
    certainties = content["certainty"]
    labels = content.get(
        "labels", np.zeros(certainties.shape[:-1], np.uint8)
    )  # tiefree_*: no rule needs them
    for b in range(certainties.shape[1]):
        yield b, labels[:, b], certainties[:, b]


def owners(content: dict[str, Array]) -> tuple[int, ...]:
    """(C,) from the pairs (class, teacher), which the golden files list in painting order."""
    pairs = content["extraction_list"]
    return tuple(pairs[np.argsort(pairs[:, 0]), 1].tolist())


def outputs_of(content: dict[str, Array], pattern: re.Pattern[str]) -> list[re.Match[str]]:
    return [match for key in content if (match := pattern.fullmatch(key))]


@golden_cases
@backends
def test_plf_gives_the_published_labels(name: str, backend: str) -> None:
    content = golden(name)
    outputs = outputs_of(content, PLF_OUTPUT)
    assert outputs or name.startswith("tiefree")
    for b, labels, certainties in images(content):
        for output in outputs:
            kh, kw, threshold = map(int, output.groups())
            told = {"owners": owners(content), "window": (kh, kw), "threshold": threshold}
            fused = run(backend, "plf", labels, certainties, **told)
            np.testing.assert_array_equal(fused.label, content[output[0]][b], err_msg=output[0])
            np.testing.assert_array_equal(fused.candidate, content[f"out_plf_rf{kh}x{kw}_thr0"][b])
            np.testing.assert_array_equal(fused.claims, content["out_claim_count"][b])
            if "out_overlap_fraction" in content:
                assert (fused.claims > 1).mean() == content["out_overlap_fraction"][b]


@golden_cases
@backends
def test_certainty_gives_the_published_labels(name: str, backend: str) -> None:
    content = golden(name)
    outputs = outputs_of(content, CERTAINTY_OUTPUT)
    assert outputs
    for b, labels, certainties in images(content):
        for output in outputs:
            fused = run(backend, "certainty", labels, certainties, threshold=int(output[1]))
            np.testing.assert_array_equal(fused.label, content[output[0]][b], err_msg=output[0])


@golden_cases
@backends
def test_soft_label_gives_the_published_labels(name: str, backend: str) -> None:
    """Bytes with ties ranked by class, and floats without ties; both exactly, though a few pixels may differ."""
    content = golden(name)
    outputs = outputs_of(content, SOFT_OUTPUT)
    assert outputs or name.startswith(("adv", "renormalised"))
    for b, labels, certainties in images(content):
        for output in outputs:
            delta = content[f"delta_{output[1]}" if output[1] else "delta"]
            told = {"delta": tuple(delta.tolist()), "threshold": int(output[2])}
            fused = run(backend, "soft-label", labels, certainties, **told)
            np.testing.assert_array_equal(fused.label, content[output[0]][b], err_msg=output[0])


@golden_cases
@backends
def test_majority_gives_the_published_labels(name: str, backend: str) -> None:
    content = golden(name)
    if "out_majority" not in content:
        assert name.startswith(("tiefree", "renormalised"))
        return
    for b, labels, certainties in images(content):
        fused = run(backend, "majority", labels, certainties)
        np.testing.assert_array_equal(fused.label, content["out_majority"][b])


# ---------------------------------------------------------------------------- loops over pixels


def naive_plf(
    labels: UInt8,
    certainties: Array,
    owner: list[int],
    window: tuple[int, int],
    threshold: float,
    inside: bool,
    ignore: bool,
) -> tuple[Array, Array, Array]:
    """Label, label before the threshold, claims: the published formulas word by word."""
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
                size = len(around) if inside else kh * kw
                sure = sum(float(certainties[owner[c], i, j, c]) for i, j in around) / size
            dropped = ignore and not claimed
            candidate[y, x] = 255 if dropped else c
            label[y, x] = c if sure >= threshold and not dropped else 255
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


def naive_soft_label(certainties: Array, delta: list[float], threshold: float) -> tuple[Array, Array]:
    num_teachers, height, width, num_classes = certainties.shape
    candidate, label = np.zeros((height, width), int), np.zeros((height, width), int)
    for y, x in np.ndindex(height, width):
        sums = np.zeros(num_classes, np.float32)
        for t in range(num_teachers):
            in_order = sorted(range(num_classes), key=lambda c: (certainties[t, y, x, c], c))
            for rank, c in enumerate(in_order):
                sums[c] += np.float32(delta[rank])
        means = sums / np.float32(num_teachers)
        c = int(np.argmax(means))
        candidate[y, x] = c
        label[y, x] = c if means[c] >= np.float32(threshold) else 255
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
        # In quarters, whose sums are exact in any order.
        self.delta = (np.sort(generator.integers(0, 401, classes)) / 4).tolist()

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
borders = st.sampled_from(Border)
choices = st.sampled_from(Unclaimed)


@backends
@settings(max_examples=150, deadline=None)
@given(case=cases, window=windows, threshold=thresholds, border=borders, unclaimed=choices)
def test_plf_is_the_loop_over_pixels(
    backend: str, case: Case, window: tuple[int, int], threshold: float, border: Border, unclaimed: Unclaimed
) -> None:
    fused = run(
        backend, "plf", case.labels, case.certainties, owners=tuple(case.owner), window=window,
        threshold=threshold, border=border, unclaimed=unclaimed,
    )  # fmt: skip
    label, candidate, claims = naive_plf(
        case.labels,
        case.certainties,
        case.owner,
        window,
        threshold,
        border == "inside",
        unclaimed == "ignore",
    )
    assert_fused(fused, label, candidate, claims)


@backends
@settings(max_examples=100, deadline=None)
@given(case=cases, threshold=thresholds, unclaimed=choices)
def test_certainty_is_the_loop_over_pixels(
    backend: str, case: Case, threshold: float, unclaimed: Unclaimed
) -> None:
    fused = run(backend, "certainty", case.labels, case.certainties, threshold=threshold, unclaimed=unclaimed)
    assert_mean_rule(fused, case, naive_certainty(case.certainties, threshold), unclaimed)


@backends
@settings(max_examples=100, deadline=None)
@given(case=cases, threshold=thresholds, unclaimed=choices)
def test_soft_label_is_the_loop_over_pixels(
    backend: str, case: Case, threshold: float, unclaimed: Unclaimed
) -> None:
    fused = run(
        backend, "soft-label", case.labels, case.certainties, threshold=threshold, unclaimed=unclaimed,
        delta=tuple(case.delta),
    )  # fmt: skip
    assert_mean_rule(fused, case, naive_soft_label(case.certainties, case.delta, threshold), unclaimed)


@backends
@settings(max_examples=100, deadline=None)
@given(case=cases, unclaimed=choices)
def test_majority_is_the_loop_over_pixels(backend: str, case: Case, unclaimed: Unclaimed) -> None:
    fused = run(backend, "majority", case.labels, case.certainties, unclaimed=unclaimed)
    label = naive_majority(case.labels, case.certainties.shape[-1])
    assert_mean_rule(fused, case, (label, label), unclaimed)


def assert_mean_rule(fused: Fused, case: Case, expected: tuple[Array, Array], unclaimed: Unclaimed) -> None:
    """A rule that looks at all teachers, and leaves pixels without a vote unlabelled if it is told to."""
    distinct = naive_distinct(case.labels, case.certainties.shape[-1])
    label, candidate = (
        np.where((distinct == 0) & (unclaimed == Unclaimed.IGNORE), 255, one) for one in expected
    )
    assert_fused(fused, label, candidate, distinct)


@settings(max_examples=60, deadline=None)
@given(
    case=cases,
    window=windows,
    threshold=st.sampled_from([33.4, 71.3]),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_backends_agree_on_renormalised_certainties(
    case: Case, window: tuple[int, int], threshold: float, zeros: float
) -> None:
    """float32, also where a pixel's certainties are all zero and there is nothing to take a share of."""
    percent = case.certainties.astype(np.float32)
    percent[np.random.default_rng(0).random(percent.shape[:-1]) < zeros] = 0
    with np.errstate(invalid="ignore"):
        scaled = percent * np.float32(100) / percent.sum(-1, keepdims=True)
    told = {"owners": tuple(case.owner), "window": window, "threshold": threshold, "delta": tuple(case.delta)}
    rules = [name for name, rule in RULES.items() if "renormalise" in rule.options]
    for rule in rules:
        one, *others = (run(backend, rule, case.labels, scaled, **told) for backend in BACKENDS)
        for other in others:
            assert all(map(np.array_equal, one, other)), rule


@settings(max_examples=100, deadline=None)
@given(case=cases)
def test_agreement_and_overlaps_are_the_loops_over_pixels(case: Case) -> None:
    num_classes = case.certainties.shape[-1]
    same, both, disputed = measures.agreement(case.labels, num_classes)
    valid = case.labels < num_classes
    for t, u in np.ndindex(same.shape):
        given = valid[t] & valid[u]
        assert both[t, u] == given.sum()
        assert same[t, u] == (given & (case.labels[t] == case.labels[u])).sum()
    assert disputed == (naive_distinct(case.labels, num_classes) > 1).sum()
    truth, prediction = case.labels[0], case.labels[-1]
    hits, unions, labelled = measures.overlaps(truth, prediction, num_classes)
    counted = (truth < num_classes) & (prediction < num_classes)
    for c in range(num_classes):
        assert hits[c] == (counted & (truth == c) & (prediction == c)).sum()
        assert unions[c] == (counted & ((truth == c) | (prediction == c))).sum()
    assert labelled == (prediction < num_classes).sum()


@settings(max_examples=50, deadline=None)
@given(case=cases, threshold=thresholds)
def test_tally_counts(case: Case, threshold: float) -> None:
    num_classes = case.certainties.shape[-1]
    fused = run("numpy", "plf", case.labels, case.certainties, owners=tuple(case.owner), threshold=threshold)
    (given_, kept, overlap), unclaimed = measures.tally(fused, num_classes)
    for c in range(num_classes):
        assert given_[c] == (fused.candidate == c).sum() and kept[c] == (fused.label == c).sum()
        assert overlap[c] == ((fused.candidate == c) & (fused.claims > 1)).sum()
    assert unclaimed == (fused.claims == 0).sum()


@pytest.mark.parametrize("rule", RULES)
def test_bands_make_no_difference(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image tall enough to be shared out to threads is fused as in one piece."""
    case = Case(3, 3, 6, 256, 40, 11)
    told: dict[str, Any] = {"owners": tuple(case.owner), "delta": tuple(case.delta), "threshold": 50}
    told["model"] = model_of(case)
    monkeypatch.setattr("endauda_cli.threads.cores", lambda: 3)
    shared = run("numpy", rule, case.labels, case.certainties, **told)
    monkeypatch.setattr("endauda_cli.threads.cores", lambda: 1)
    assert all(map(np.array_equal, shared, run("numpy", rule, case.labels, case.certainties, **told)))


def assert_fused(fused: Fused, label: Array, candidate: Array, claims: Array) -> None:
    np.testing.assert_array_equal(fused.label, label)
    np.testing.assert_array_equal(fused.candidate, candidate)
    np.testing.assert_array_equal(fused.claims, claims)
    assert {array.dtype for array in fused} == {np.dtype(np.uint8)}


# ---------------------------------------------------------------------------- what a rule may ask for


@settings(max_examples=50, deadline=None)
@given(case=cases, window=windows, threshold=thresholds)
def test_plf_asks_each_owner_once_and_nobody_else(
    case: Case, window: tuple[int, int], threshold: float
) -> None:
    asked: Counter[tuple[int, int]] = Counter()

    def counted(t: int, classes: Sequence[int]) -> Array:
        asked.update((t, c) for c in classes)
        return np.stack([case.certainties[t, ..., c] for c in classes])

    recipe = Recipe(len(case.owner), tuple(case.owner), window, threshold=threshold)
    fused = fuse_image("plf", case.labels, counted, recipe)
    given_classes = {int(c) for c in np.unique(fused.candidate)}
    expected = {(case.owner[c], c) for c in given_classes} if threshold > 0 else set()
    assert set(asked) == expected
    assert set(asked.values()) <= {1}


def model_of(case: Case) -> Consensus:
    num_teachers, num_classes = len(case.labels), case.certainties.shape[-1]
    flat = case.certainties.reshape(num_teachers, -1, num_classes)
    model = fit(case.labels.reshape(num_teachers, -1), flat, num_classes)
    unlike = np.random.default_rng(0).normal(0, 1, model.prior.shape)  # every place is another
    return replace(model, prior=model.prior + unlike.astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("unclaimed", Unclaimed)
@pytest.mark.parametrize(("teachers", "classes", "threshold"), [(1, 2, 80), (4, 19, 14), (9, 5, 32)])
def test_consensus_is_the_same_in_torch(
    backend: str,
    unclaimed: Unclaimed,
    teachers: int,
    classes: int,
    threshold: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But where two classes are worth the same up to the last digits of a float."""
    case = Case(5, teachers, classes, 96, 128, 101)
    monkeypatch.setattr(cuda, "_PIXELS_AT_ONCE", 40 * 128)  # the last band is a smaller one
    told: dict[str, Any] = {"model": model_of(case), "threshold": threshold, "unclaimed": unclaimed}
    one, other = (run(by, "consensus", case.labels, case.certainties, **told) for by in ("numpy", backend))
    np.testing.assert_array_equal(one.claims, other.claims)
    for name in ("candidate", "label"):
        assert np.mean(getattr(one, name) != getattr(other, name)) <= 1e-4
    assert 0.05 < np.mean(one.label == 255) < 0.95


@backends
@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_as_they_were(rule: str, backend: str) -> None:
    case = Case(0, 3, 5, 6, 7, 101)
    labels, certainties = case.labels.copy(), case.certainties.copy()
    told: dict[str, Any] = {"owners": tuple(case.owner), "delta": tuple(case.delta), "threshold": 50}
    run(backend, rule, case.labels, case.certainties, **told, model=model_of(case))
    np.testing.assert_array_equal(case.labels, labels)
    np.testing.assert_array_equal(case.certainties, certainties)


def test_rules_are_the_choices_of_the_command_line_and_written_twice() -> None:
    assert set(RULES) == set(FusionRule) == set(cuda.KERNELS)
    for rule in RULES.values():
        assert rule.options <= {*Recipe.__dataclass_fields__, "renormalise"}
