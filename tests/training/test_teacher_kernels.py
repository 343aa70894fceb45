"""The formulas of CBST, CRST, DACS and R-MRNet against slow forms and values worked out by hand; docs/methods.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from endauda_cli.training.methods import cbst, crst, dacs, mrnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Maps = NDArray[np.float32]

CLASSES = pytest.mark.parametrize("classes", [16, 19])
PARTLY = pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])


def maps(classes: int, count: int = 3, seed: int = 0, shape: tuple[int, int] = (7, 9)) -> list[Maps]:
    """Softmax maps whose last two classes are never predicted."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes, *shape)).astype(np.float32)
    logits[:, -2:] = -20
    return list(torch.from_numpy(logits).softmax(1).numpy())


def logits_and_labels(classes: int, ignored: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 4, 5), generator=generator)
    labels[torch.rand(2, 4, 5, generator=generator) < ignored] = 255
    return logits, labels


def agrees_with_differences(function: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """The gradient is that of finite differences."""
    assert torch.autograd.gradcheck(function, at.clone().requires_grad_())


# ---------------------------------------------------------------------------- CBST


def test_thresholds_by_hand() -> None:
    one = np.array([[[0.9, 0.8, 0.7, 0.6]], [[0.1, 0.2, 0.3, 0.4]], [[0, 0, 0, 0]]], np.float32)
    other = np.array([[[0.5, 0.4]], [[0.5, 0.6]], [[0, 0]]], np.float32)  # the first is a tie: class 0
    # class 0: .9 .8 .7 .6 .5; class 1: .6; class 2: none
    found = cbst.class_thresholds([one, other], 0.4)
    np.testing.assert_array_equal(found, np.array([0.8, 1, 1], np.float32))
    np.testing.assert_array_equal(cbst.class_thresholds([one, other], 1), np.array([0.5, 0.6, 1], np.float32))
    np.testing.assert_array_equal(cbst.class_thresholds([one, other], 0.19), np.array([1, 1, 1], np.float32))
    assert (found.dtype, found.shape) == (np.float32, (3,))


@CLASSES
@pytest.mark.parametrize("portion", [0.0, 0.2, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 4])
def test_thresholds_against_sorting(classes: int, portion: float, stride: int) -> None:
    every = maps(classes)
    sure: list[list[float]] = [[] for _ in range(classes)]
    for each in every:
        seen = [0] * classes
        for row in range(each.shape[1]):
            for column in range(each.shape[2]):
                pixel = each[:, row, column].tolist()
                best = pixel.index(max(pixel))
                if seen[best] % stride == 0:
                    sure[best].append(pixel[best])
                seen[best] += 1
    expected = []
    for of_class in sure:
        number = math.floor(len(of_class) * portion)
        expected.append(sorted(of_class, reverse=True)[number - 1] if number else 1.0)
    found = cbst.class_thresholds(iter(every), portion, stride)
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_thresholds_of_all_kinds_of_input() -> None:
    every = maps(19)
    expected = cbst.class_thresholds(every, 0.2)
    of_tensors = cbst.class_thresholds([torch.from_numpy(each) for each in every], 0.2)
    assert isinstance(of_tensors, Tensor)
    np.testing.assert_array_equal(of_tensors.numpy(), expected)
    halves = [each.astype(np.float16) for each in every]
    np.testing.assert_array_equal(
        cbst.class_thresholds(halves, 0.2),
        cbst.class_thresholds([half.astype(np.float32) for half in halves], 0.2),
    )
    with pytest.raises(ValueError, match="no map"):
        cbst.class_thresholds([], 0.2)
    with pytest.raises(ValueError, match="portion 20"):
        cbst.class_thresholds(every, 20)


def test_labels_by_hand() -> None:
    probabilities = np.array(
        [[[0.6, 0.5, 0.6, 1.0]], [[0.4, 0.5, 0.3, 0.0]], [[0.0, 0.0, 0.1, 0.0]]], np.float32
    )
    # in multiples of the thresholds: (.75 .8 0), (.625 1 0), (.75 .6 .1), (1.25 0 0)
    found = cbst.pseudo_labels(probabilities, np.array([0.8, 0.5, 1], np.float32))
    np.testing.assert_array_equal(found, [[255, 1, 255, 0]])
    assert found.dtype == np.uint8
    tie = cbst.pseudo_labels(probabilities, np.array([0.5, 0.5, 1], np.float32))
    np.testing.assert_array_equal(tie, [[0, 0, 0, 0]])  # the second: both 1
    nobody = cbst.pseudo_labels(np.full((3, 2, 2), 1 / 3, np.float32), np.array([1, 1, 1], np.float32))
    assert (nobody == 255).all()


@CLASSES
def test_labels_against_pixel_by_pixel(classes: int) -> None:
    every = maps(classes)
    thresholds = cbst.class_thresholds(every, 0.3)
    for each in every:
        expected = np.full(each.shape[1:], 255, np.uint8)
        for row in range(each.shape[1]):
            for column in range(each.shape[2]):
                weighed = [float(p / t) for p, t in zip(each[:, row, column], thresholds, strict=True)]
                if max(weighed) >= 1:
                    expected[row, column] = weighed.index(max(weighed))
        np.testing.assert_array_equal(cbst.pseudo_labels(each, thresholds), expected)
        of_tensor = cbst.pseudo_labels(torch.from_numpy(each), torch.from_numpy(thresholds))
        assert of_tensor.dtype == torch.uint8
        np.testing.assert_array_equal(of_tensor.numpy(), expected)
    surest = [each for each in every if (cbst.pseudo_labels(each, thresholds) != 255).any()]
    assert surest, "nothing was labelled, so nothing was compared"


# ---------------------------------------------------------------------------- CRST

PIXELS: dict[str, Callable[[list[float]], float]] = {
    "mrkld": lambda p: -sum(math.log(x) for x in p) / len(p),
    "mrent": lambda p: sum(x * math.log(x) for x in p),
    "mrl2": lambda p: sum(x * x for x in p),
}


@CLASSES
@PARTLY
@pytest.mark.parametrize("regulariser", PIXELS)
def test_regularised_losses_against_pixel_by_pixel(classes: int, ignored: float, regulariser: str) -> None:
    logits, labels = logits_and_labels(classes, ignored)
    p = logits.softmax(1)
    known = [(b, y, x) for b in range(2) for y in range(4) for x in range(5) if labels[b, y, x] != 255]
    entropy = sum(-math.log(p[b, int(labels[b, y, x]), y, x]) for b, y, x in known)
    added = sum(PIXELS[regulariser](p[b, :, y, x].tolist()) for b, y, x in known)
    found = crst.regularised_loss(logits, labels, 0.1, regulariser)
    assert float(found) == pytest.approx((entropy + 0.1 * added) / max(1, len(known)))
    assert float(crst.regularised_loss(logits, labels.numpy().astype(np.uint8), 0.0, regulariser)) == (
        pytest.approx(entropy / max(1, len(known)))
    )
    agrees_with_differences(lambda x: crst.regularised_loss(x, labels, 0.1, regulariser), logits)


def test_mrkld_by_hand() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    labels = torch.tensor([[[0, 255]]])
    # ln 2, and a tenth of (ln 2 + 2 ln 4) / 3
    assert float(crst.mrkld_loss(logits, labels, 0.1)) == pytest.approx(math.log(2) * (1 + 0.1 * 5 / 3))


def test_images_of_weight_0_are_not_regularised() -> None:
    logits, labels = logits_and_labels(19, 0.3)
    weights = torch.tensor([0.0, 0.1])
    entropy = float(crst.mrkld_loss(logits, labels, 0.0))
    alone = float(crst.mrkld_loss(logits[1:], labels[1:], 0.1)) - float(
        crst.mrkld_loss(logits[1:], labels[1:], 0.0)
    )
    assert float(crst.mrkld_loss(logits, labels, weights)) == pytest.approx(entropy + alone)


def test_losses_in_half_precision_are_float32() -> None:
    logits, labels = logits_and_labels(19, 0.3)
    found = crst.mrkld_loss(logits.half(), labels, 0.1)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(crst.mrkld_loss(logits, labels, 0.1)), rel=1e-3)


def test_soft_labels_by_hand() -> None:
    probabilities = np.array([[[0.8, 0.4, 0.5]], [[0.2, 0.6, 0.5]]], np.float32)
    found = crst.lrent_soft_labels(probabilities, np.array([0.5, 1], np.float32), 0.5)
    # squares of (1.6 .2), (.8 .6), (1 .5): sums 2.6, 1.0 (not above 1), 1.25
    np.testing.assert_allclose(found[:, 0, 0], [2.56 / 2.6, 0.04 / 2.6], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0, 2], [0.8, 0.2], rtol=1e-6)
    assert (found.dtype, found.shape) == (np.float32, (2, 1, 3))


def objective(label: NDArray[Any], p: NDArray[Any], thresholds: Maps, weight: float) -> float:
    """Of CRST's labels at one pixel; 0 for no label."""
    some = label > 0
    return float(
        -(label[some] * np.log(p[some] / thresholds[some])).sum()
        + weight * (label[some] * np.log(label[some])).sum()
    )


@CLASSES
def test_soft_labels_lower_the_objective_as_no_other_does(classes: int) -> None:
    rng = np.random.default_rng(1)
    each = maps(classes)[0]
    thresholds = cbst.class_thresholds(maps(classes), 0.5)
    soft = crst.lrent_soft_labels(each, thresholds, 0.25)
    chosen = 0
    for row in range(each.shape[1]):
        for column in range(each.shape[2]):
            label, p = soft[:, row, column].astype(np.float64), each[:, row, column].astype(np.float64)
            others = rng.dirichlet(np.full(classes, 0.1), 50)
            least = min(objective(other, p, thresholds, 0.25) for other in others)
            if label.any():
                chosen += 1
                assert label.sum() == pytest.approx(1, abs=1e-6)
                assert objective(label, p, thresholds, 0.25) < min(least + 1e-9, 0)
            else:
                assert least > -1e-9
    assert 0 < chosen < each[0].size


def test_soft_labels_of_small_weights_are_the_hard_ones() -> None:
    each = maps(19)[0]
    thresholds = cbst.class_thresholds(maps(19), 0.5)
    hard = cbst.pseudo_labels(each, thresholds * np.float32(1.0001))
    soft = crst.lrent_soft_labels(
        torch.from_numpy(each), torch.from_numpy(thresholds * np.float32(1.0001)), 1e-4
    )
    assert isinstance(soft, Tensor)
    np.testing.assert_array_equal(np.where(soft.sum(0) > 0, soft.argmax(0), 255), hard)
    with pytest.raises(ValueError, match="weight 0"):
        crst.lrent_soft_labels(each, thresholds, 0)


@CLASSES
@PARTLY
def test_lrent_against_pixel_by_pixel(classes: int, ignored: float) -> None:
    logits, labels = logits_and_labels(classes, ignored)
    soft = (3 * logits.flip(0)).softmax(1) * (labels != 255)[:, None]
    p = logits.softmax(1)
    total, count = 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                label = soft[b, :, y, x].tolist()
                if sum(label):
                    count += 1
                    pairs = zip(label, p[b, :, y, x].tolist(), strict=True)
                    total += sum(0.25 * q * math.log(q) - q * math.log(r) for q, r in pairs)
    assert float(crst.lrent_loss(logits, soft, 0.25)) == pytest.approx(total / max(1, count))
    hard = crst.lrent_loss(logits, labels, 0.25)
    assert float(hard) == pytest.approx(float(crst.mrkld_loss(logits, labels, 0.0)))
    agrees_with_differences(lambda x: crst.lrent_loss(x, soft, 0.25), logits)


# ---------------------------------------------------------------------------- DACS


def test_classmix_by_hand() -> None:
    labels = np.array([[0, 0, 3], [255, 5, 3]], np.uint8)
    mask = dacs.classmix_mask(labels, np.array([3, 255, 9]))
    np.testing.assert_array_equal(mask, [[0, 0, 1], [1, 0, 1]])
    assert mask.dtype == np.int64
    mixed = dacs.mix(mask, labels, np.full_like(labels, 7))
    np.testing.assert_array_equal(mixed, [[7, 7, 3], [255, 7, 3]])
    assert mixed.dtype == np.uint8
    images = torch.arange(12.0).view(1, 2, 2, 3)
    both = dacs.mix(torch.from_numpy(mask)[None], images, -images)
    assert both[0, :, 0].tolist() == [[-0.0, -1.0, 2.0], [-6.0, -7.0, 8.0]]
    assert dacs.classmix_mask(torch.from_numpy(labels), torch.tensor([], dtype=torch.long)).sum() == 0


def test_pixel_weight_by_hand() -> None:
    one = torch.tensor([[[0.97, 0.968, 0.5, 0.967]], [[0.03, 0.032, 0.5, 0.033]]])
    assert float(dacs.pixel_weight(one, 0.968)) == 0.5
    assert float(dacs.pixel_weight(torch.stack([one, one.flip(0)]), 0.97)) == 0.25
    assert float(dacs.pixel_weight(one.numpy(), 0.4)) == 1
    assert float(dacs.pixel_weight(one, 0.99)) == 0


def test_the_average_is_the_mean_at_first() -> None:
    assert [dacs.ema_decay(step, 0.99) for step in (0, 1, 3, 98, 99, 10**6)] == [
        0,
        0.5,
        0.75,
        1 - 1 / 99,
        0.99,
        0.99,
    ]
    students, mean = [3.0, 5.0, 10.0], 0.0
    for step, student in enumerate(students):
        decay = dacs.ema_decay(step, 0.99)
        mean = decay * mean + (1 - decay) * student
    assert mean == pytest.approx(6)


# ---------------------------------------------------------------------------- R-MRNet


def divergence(p: list[float], q: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def pixels(of: Tensor) -> Iterator[list[float]]:
    for image in of.permute(0, 2, 3, 1).flatten(0, 2):
        yield image.tolist()


@CLASSES
@pytest.mark.parametrize("mutual", [False, True])
def test_memory_regularisation_against_pixel_by_pixel(classes: int, mutual: bool) -> None:
    main, _ = logits_and_labels(classes, 0)
    auxiliary, _ = logits_and_labels(classes, 0, seed=1)
    terms = []
    heads = [(main + 0.5 * auxiliary).softmax(1), main.softmax(1), auxiliary.softmax(1)]
    for m, p, q in zip(*map(pixels, heads), strict=True):
        if mutual:
            terms.append(-sum(a * math.log(b) + b * math.log(a) for a, b in zip(p, q, strict=True)))
        else:
            terms.append(divergence(m, p) + divergence(m, q))
    found = mrnet.memory_regularisation(main, auxiliary, mutual=mutual)
    assert float(found) == pytest.approx(sum(terms) / len(terms))


def test_memory_regularisation_takes_what_both_say_for_given() -> None:
    main, _ = logits_and_labels(19, 0)
    auxiliary, _ = logits_and_labels(19, 0, seed=1)
    main.requires_grad_()
    mrnet.memory_regularisation(main, auxiliary).backward()  # type: ignore[no-untyped-call]
    both = (main + 0.5 * auxiliary).softmax(1).detach()
    expected = (main.detach().softmax(1) - both) / main[:, 0].numel()
    assert main.grad is not None
    torch.testing.assert_close(main.grad, expected)
    equal = mrnet.memory_regularisation(3 * auxiliary, 2 * torch.zeros_like(auxiliary))
    assert float(equal) > 0
    agrees_with_differences(lambda x: mrnet.memory_regularisation(x, auxiliary, mutual=True), main.detach())


@CLASSES
@PARTLY
@pytest.mark.parametrize("reverse", [False, True])
def test_rectified_loss_against_pixel_by_pixel(classes: int, ignored: float, reverse: bool) -> None:
    main, labels = logits_and_labels(classes, ignored)
    auxiliary, _ = logits_and_labels(classes, 0, seed=1)
    weight = torch.linspace(1, 7, classes, dtype=torch.float64)
    terms, weighed = [], []
    heads = pixels(main.softmax(1)), pixels(auxiliary.softmax(1))
    for p, q, label in zip(*heads, labels.flatten().tolist(), strict=True):
        variance = divergence(p, q) if reverse else divergence(q, p)
        entropy = 0.0 if label == 255 else -math.log(p[label])
        terms.append(math.exp(-variance) * entropy + variance)
        weighed.append(
            math.exp(-variance) * entropy * (1 if label == 255 else float(weight[label])) + variance
        )
    found = mrnet.rectified_loss(main, auxiliary, labels, reverse=reverse)
    assert float(found) == pytest.approx(sum(terms) / len(terms))
    found = mrnet.rectified_loss(main, auxiliary, labels, class_weight=weight, reverse=reverse)
    assert float(found) == pytest.approx(sum(weighed) / len(weighed))
    agrees_with_differences(lambda x: mrnet.rectified_loss(x, auxiliary, labels, reverse=reverse), main)
    agrees_with_differences(lambda x: mrnet.rectified_loss(main, x, labels, reverse=reverse), auxiliary)


def test_heads_that_agree_learn_by_cross_entropy_alone() -> None:
    main, labels = logits_and_labels(19, 0)
    found = mrnet.rectified_loss(main, main, labels)
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(main, labels)))


@CLASSES
def test_the_discriminator_is_the_published_one(classes: int) -> None:
    torch.manual_seed(0)
    judge = mrnet.discriminator(classes)
    state = judge.state_dict()
    one = 9 * classes * 32 + 3 * 9 * 32 * 32 + 9 * 32 * 64 + 8 * 9 * 64 * 64 + 64 + 4 * 32 + 9 * 64 + 1
    assert sum(value.numel() for value in state.values()) == 3 * one
    assert {"cnns.0.0.conv.weight", "cnns.1.8.model.1.conv.bias", "cnns.2.9.weight"} <= set(state)
    assert float(state["cnns.0.4.conv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    said = judge(torch.rand(2, classes, 48, 64).softmax(1))
    assert [tuple(patch.shape) for patch in said] == [(2, 1, 6, 8), (2, 1, 3, 4), (2, 1, 2, 2)]


def test_losses_of_the_discriminator_by_hand() -> None:
    said = [torch.tensor([0.0, 1.0]), torch.tensor([0.5])]
    assert float(mrnet.deceiving_loss(said)) == 1 + 0.5

    class Double(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [2 * x]

    source, target = torch.full((1, 1, 1, 2), 0.25), torch.full((1, 1, 1, 2), 0.5)
    # target: 1; source: 1/4; slope 2 at two places
    found = mrnet.telling_loss(Double(), source, target)
    assert float(found.detach()) == pytest.approx(1 + 0.25 + 0.01 * 8)


def test_a_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    judge = mrnet.discriminator(16)
    source, target = torch.rand(2, 16, 32, 32).softmax(1), (4 * torch.rand(2, 16, 32, 32)).softmax(1)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.9, 0.99))
    losses: list[Any] = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = mrnet.telling_loss(judge, source, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
