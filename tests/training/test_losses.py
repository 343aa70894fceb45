"""The distillation loss against sequences recorded from the reference, NumPy's percentile, and plain torch."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator, Philox

from endauda_cli.losses import DistillationLoss, Ranks, percentile
from tests import support

if TYPE_CHECKING:
    from torch import Tensor

DATA = support.DATA / "training"
SEQUENCES = sorted(path.stem for path in DATA.glob("loss_*.json"))


def recipe_logits(step: dict[str, Any], size: tuple[int, int, int, int], labels: Tensor) -> Tensor:
    """(B, C, h, w): noise, leaning to the true class where logits and labels have one size."""
    noise = 2 * Generator(Philox(step["logit_seed"])).standard_normal(size)
    logits = torch.from_numpy(noise.astype(np.float32))
    if labels.shape[1:] == size[2:]:
        for c in range(size[1]):
            logits[:, c][labels == c] += 3
    np.testing.assert_allclose(logits.flatten()[:3], step["logits_first3"], rtol=1e-6)
    assert float(logits.double().sum()) == pytest.approx(step["logits_sum"], rel=1e-9)
    return logits


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_of_the_reference(name: str) -> None:
    """Several steps of one loss, whose weights remember the steps before."""
    golden = json.loads((DATA / f"{name}.json").read_text())
    criterion = DistillationLoss(
        golden["C"],
        class_balance=golden["class_balance"],
        often_balance=golden["often_balance"],
        hard_percentile=golden["only_hard_label"],
        max_value=golden["max_value"],
    )
    arrays = np.load(DATA / f"{name}.npz")
    for step in golden["steps"]:
        labels = torch.from_numpy(arrays[f"labels_{step['step']}"])
        assert int((labels == 255).sum()) == step["n_ignored_in"]
        size = (golden["B"], golden["C"], *golden["logits_hw"])
        logits = recipe_logits(step, size, labels).requires_grad_()
        if f"logits_{step['step']}" in arrays:
            np.testing.assert_array_equal(logits.detach(), arrays[f"logits_{step['step']}"])
        loss = criterion(logits, labels)
        close = pytest.approx
        assert float(loss.detach()) == close(step["loss"], rel=1e-5, nan_ok=True)
        if golden["class_balance"]:
            np.testing.assert_allclose(criterion.class_weight, step["class_weight"], rtol=1e-6)
            np.testing.assert_allclose(criterion.often_weight, step["often_weight"], rtol=1e-6)
        assert criterion.mining is not None
        if golden["only_hard_label"]:
            assert float(criterion.mining.threshold) == close(step["mm"], rel=1e-5)
            assert abs(int(criterion.mining.kept) - step["kept"]) <= 2
        loss.backward()
        assert logits.grad is not None
        if not math.isnan(step["loss"]):
            assert float(logits.grad.double().abs().sum()) == close(step["grad_abs_sum"], rel=1e-5)
            assert float(logits.grad.double().square().sum()) == close(step["grad_sq_sum"], rel=1e-5)


def test_pixels_kept_are_those_of_the_reference() -> None:
    """Pixels that were dropped get no gradient; those that were kept get one."""
    golden = json.loads((DATA / "loss_small_store.json").read_text())
    arrays = np.load(DATA / "loss_small_store.npz")
    criterion = DistillationLoss(golden["C"], class_balance=True, often_balance=True)
    for i in range(len(golden["steps"])):
        logits = torch.from_numpy(arrays[f"logits_{i}"]).requires_grad_()
        criterion(logits, torch.from_numpy(arrays[f"labels_{i}"])).backward()
        assert logits.grad is not None
        np.testing.assert_array_equal(logits.grad.abs().sum(1) > 0, arrays[f"kept_labels_{i}"] != 255)


def test_recorded_sequences_hold_what_matters() -> None:
    """The comparison above would pass on an empty folder."""
    steps = [s for n in SEQUENCES for s in json.loads((DATA / f"{n}.json").read_text())["steps"]]
    assert len(SEQUENCES) == 10
    assert sum(math.isnan(step["loss"]) for step in steps) == 1
    assert any(step.get("mm") == 0 for step in steps)


# ---------------------------------------------------------------------------- percentile

floats = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, 2.0])


@settings(max_examples=300, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=60), percent=st.integers(0, 1000).map(lambda i: i / 10))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    array = np.array(values, np.float32)
    found = percentile(torch.from_numpy(array), percent)
    assert found.dtype == torch.float32
    expected = np.percentile(array, np.float32(percent))
    scale = float(np.abs(array).max())
    # NumPy rounds the interpolation differently in the last bits.
    assert float(found) == pytest.approx(float(expected), rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize("percent", [0, 50, 80, 99, 100])
def test_percentile_of_a_batch(percent: float) -> None:
    """Any shape, many values, many of them zero."""
    values = torch.randn(2, 128, 300, generator=torch.Generator().manual_seed(0)).relu()
    expected = np.percentile(values.numpy(), np.float32(percent))
    assert float(percentile(values, percent)) == pytest.approx(float(expected), rel=1e-6)


# ---------------------------------------------------------------------------- one step, pixel by pixel


def naive_loss(
    logits: Tensor, labels: Tensor, often: list[float], options: dict[str, Any]
) -> tuple[float, list[float], list[float]]:
    """Loss, class weights, often weights, from TRAINING.md, in float64 and Python loops."""
    num_classes = logits.shape[1]
    log_probability = logits.double().log_softmax(1)
    counts = [int((labels == c).sum()) for c in range(num_classes)]
    weights = [1.0] * num_classes
    if options["class_balance"]:
        area, top = options["balance_area"], options["max_value"]
        factor = [top if options["often_balance"] and n == 0 else 1.0 for n in counts]
        often = [0.9 * o + 0.1 * f for o, f in zip(often, factor, strict=True)]
        rare = [top if n < area * len(labels) else 1.0 for n in counts]
        weights = [r * o for r, o in zip(rare, often, strict=True)]
    pixels = []
    for b, y, x in np.ndindex(*labels.shape):
        c = int(labels[b, y, x])
        loss = 0.0 if c == 255 else weights[c] * -float(log_probability[b, c, y, x])
        pixels.append((c, loss))
    least = np.percentile([loss for _, loss in pixels], options["hard_percentile"])
    kept = [(c, loss) for c, loss in pixels if c != 255 and loss >= least - 1e-9]
    return sum(loss for _, loss in kept) / sum(weights[c] for c, _ in kept), weights, often


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    class_balance=st.booleans(),
    often_balance=st.booleans(),
    hard_percentile=st.sampled_from([0, 25, 80, 99]),
    unlabelled=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_step_is_the_loop_over_pixels(
    seed: int, class_balance: bool, often_balance: bool, hard_percentile: float, unlabelled: float
) -> None:
    options: dict[str, Any] = {
        "class_balance": class_balance,
        "often_balance": often_balance,
        "hard_percentile": hard_percentile,
        "max_value": 5.0,
        "balance_area": 8,
    }
    generator = torch.Generator().manual_seed(seed)
    criterion = DistillationLoss(6, **options)
    often = [1.0] * 6
    for _ in range(3):
        logits = 2 * torch.randn(2, 6, 5, 9, generator=generator)
        labels = torch.randint(0, 5, (2, 5, 9), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < unlabelled] = 255
        labels[0, 0, 0] = 1
        loss, weights, often = naive_loss(logits, labels, often, options)
        assert float(criterion(logits, labels.to(torch.uint8))) == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(criterion.class_weight, weights, rtol=1e-6)
        if class_balance:
            np.testing.assert_allclose(criterion.often_weight, often, rtol=1e-6)


def test_without_balance_and_mining_it_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 7, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 7), generator=generator)
    labels[0, :2] = 255
    plain = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(DistillationLoss(4, hard_percentile=0)(logits, labels), plain)


def test_pixels_at_the_percentile_are_kept() -> None:
    """Only what is below is dropped; so equal losses are all kept."""
    criterion = DistillationLoss(4, hard_percentile=80)
    loss = criterion(torch.zeros(1, 4, 6, 7), torch.zeros(1, 6, 7, dtype=torch.uint8))
    assert float(loss) == pytest.approx(math.log(4))
    assert criterion.mining is not None
    assert int(criterion.mining.kept) == 42


def test_small_logits_are_resized_to_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, generator=generator)
    labels = torch.randint(0, 4, (2, 17, 25), generator=generator)
    large = F.interpolate(logits, (17, 25), mode="bilinear", align_corners=True)
    criterion = DistillationLoss(4, hard_percentile=50)
    torch.testing.assert_close(criterion(logits, labels), criterion(large, labels))


def test_half_precision_logits_are_judged_in_float32() -> None:
    logits = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    criterion = DistillationLoss(4)
    loss = criterion(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, criterion(logits.float(), labels))


def test_weights_are_state() -> None:
    criterion = DistillationLoss(4, class_balance=True, often_balance=True)
    logits, labels = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)
    criterion(logits, labels)
    other = DistillationLoss(4, class_balance=True, often_balance=True)
    other.load_state_dict(criterion.state_dict())
    criterion(logits, labels)
    other(logits, labels)
    torch.testing.assert_close(other.class_weight, criterion.class_weight, rtol=0, atol=0)
    assert float(criterion.often_weight[1]) == pytest.approx(0.9 * 1.6 + 0.7)


def test_counts_are_those_of_all_ranks() -> None:
    """Two halves of a batch that share their counts weigh classes as the whole batch does."""
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[1] = 1
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, half = (DistillationLoss(3, class_balance=True, often_balance=True, balance_area=20) for _ in "ab")
    whole(logits, labels)
    other = torch.tensor([0, 64, 0])  # what the second rank counts

    def summed(mine: torch.Tensor) -> torch.Tensor:
        return mine + other if mine.ndim else mine

    half.ranks = Ranks(2, summed, lambda losses: torch.cat([losses, losses]))
    half(logits[:1], labels[:1])
    torch.testing.assert_close(half.class_weight, whole.class_weight)
    assert half.class_weight.tolist() == pytest.approx([1.0, 1.0, 7 * 1.6])
