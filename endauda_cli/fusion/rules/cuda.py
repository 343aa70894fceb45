"""The rules on CUDA, by torch; on the CPU they run too, for comparison with the compiled ones.

Nothing waits for the device but the list of classes that occur. Legend of shapes: T teacher, C class, H, W.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from endauda_cli.domains import IGNORE
from endauda_cli.fusion.rules.consensus import FLOOR, RIVAL, TINY, places_of
from endauda_cli.fusion.rules.rule import Fused, Kernel, Planes, Recipe
from endauda_cli.types import Border, FusionRule, Unclaimed

if TYPE_CHECKING:
    from torch import Tensor

    from endauda_cli.fusion.rules.consensus import Consensus

_PIXELS_AT_ONCE = 1 << 20
"""Of ``consensus``, which has a dozen floats per class and pixel in memory."""


def plf(labels: Tensor, planes: Planes, recipe: Recipe) -> Fused:
    """As ``cpu.plf``, of tensors on one device: labels (T, H, W) uint8, planes (K, H, W) percent."""
    owner_of = torch.full((256,), -1, dtype=torch.int16, device=labels.device)
    owner_of[: recipe.num_classes] = torch.tensor(recipe.owners, dtype=torch.int16, device=labels.device)
    # A teacher claims a pixel iff it owns the class it gives there: T look-ups instead of C masks.
    numbers = torch.arange(len(labels), device=labels.device)[:, None, None]
    claimed = owner_of[labels.int()] == numbers  # (T, H, W)
    claims = claimed.sum(0, dtype=torch.uint8)
    label = torch.where(claimed, labels, 0).sum(0, dtype=torch.uint8)  # right where claims == 1
    unclear = claims != 1
    candidate = torch.where(unclear, _window_vote(labels, claimed, recipe), label)
    if recipe.unclaimed == Unclaimed.IGNORE:
        candidate = torch.where(claims == 0, IGNORE, candidate)
    if recipe.threshold <= 0:
        return Fused(candidate, candidate, claims)
    reached = torch.zeros_like(unclear)
    size = _window_size(candidate, recipe)
    for c in _present(candidate, recipe.num_classes):
        sure = planes(recipe.owners[c], [c])[0]
        around = _box_sum(sure, *recipe.window) >= recipe.threshold * size
        reached |= (candidate == c) & torch.where(unclear, around, sure >= recipe.threshold)
    return Fused(torch.where(reached, candidate, IGNORE), candidate, claims)


def certainty(labels: Tensor, planes: Planes, recipe: Recipe) -> Fused:
    """As ``cpu.certainty``, of tensors on one device: labels (T, H, W) uint8, planes (K, H, W) percent."""
    best = torch.full(labels.shape[1:], -1, dtype=torch.float32, device=labels.device)
    candidate, teachers = torch.zeros_like(labels[0]), _number(labels)
    for c in range(recipe.num_classes):
        total = torch.zeros_like(best)
        for t in range(len(labels)):
            total += planes(t, [c])[0]  # sums of bytes are exact in float32
        _raise(best, candidate, total / teachers, c)
    return _kept(labels, recipe, candidate, best)


def soft_label(labels: Tensor, planes: Planes, recipe: Recipe) -> Fused:
    """As ``cpu.soft_label``, of tensors on one device: labels (T, H, W) uint8, planes (K, H, W) percent."""
    delta = torch.tensor(recipe.delta, dtype=torch.float32, device=labels.device)
    totals = torch.zeros((recipe.num_classes, *labels.shape[1:]), device=labels.device)  # (C, H, W)
    for t in range(len(labels)):
        order = planes(t, range(recipe.num_classes)).argsort(dim=0, stable=True)  # class at each rank
        totals.scatter_add_(0, order, delta[:, None, None].expand_as(totals))
    best = torch.full_like(totals[0], -1)
    candidate, teachers = torch.zeros_like(labels[0]), _number(labels)
    for c, total in enumerate(totals):
        _raise(best, candidate, total / teachers, c)
    return _kept(labels, recipe, candidate, best)


def majority(labels: Tensor, planes: Planes, recipe: Recipe) -> Fused:
    """As ``cpu.majority``, of tensors on one device: labels (T, H, W) uint8, planes (K, H, W) percent."""
    candidate, most = torch.zeros_like(labels[0]), torch.zeros_like(labels[0])
    for c in _present(labels, recipe.num_classes):
        _raise(most, candidate, (labels == c).sum(0, dtype=torch.uint8), c)
    return _kept(labels, recipe, candidate, None)


def consensus(labels: Tensor, planes: Planes, recipe: Recipe) -> Fused:
    """As ``cpu.consensus``, of tensors on one device: labels (T, H, W) uint8, planes (K, H, W) uint8 percent."""
    assert recipe.model is not None, "the rule is fitted before it fuses"
    teachers = range(len(labels))
    whole = [planes(t, range(recipe.num_classes)) for t in teachers]
    tables = _on(recipe.model, labels.device)
    best, candidate = torch.empty_like(labels[0], dtype=torch.float32), torch.empty_like(labels[0])
    rows = max(1, _PIXELS_AT_ONCE // labels.shape[2])
    places = torch.from_numpy(places_of(*labels.shape[1:])).to(labels.device)
    for first in range(0, labels.shape[1], rows):
        band = slice(first, first + rows)
        belief, named = _beliefs(
            labels[:, band], [certainty[:, band] for certainty in whole], places[band], tables
        )
        candidate[band], best[band] = _most_gain(belief, named, tables)
    return _kept(labels, recipe, candidate, best)


KERNELS: dict[str, Kernel] = {
    FusionRule.PLF: plf,
    FusionRule.CERTAINTY: certainty,
    FusionRule.MAJORITY: majority,
    FusionRule.SOFT_LABEL: soft_label,
    FusionRule.CONSENSUS: consensus,
}


class _Tables(NamedTuple):
    """``consensus.Tables`` and the edges of certainties, on a device."""

    factors: Tensor
    prior: Tensor
    powers: Tensor
    share: Tensor
    iou: Tensor
    weight: Tensor
    edges: Tensor


@lru_cache(maxsize=2)
def _on(model: Consensus, device: torch.device) -> _Tables:
    factors, *others = (torch.from_numpy(table) for table in (*model.tables, model.edges))
    # Of a word's row, class by class: (T, C, K + 1).
    return _Tables(factors.transpose(1, 2).contiguous().to(device), *(table.to(device) for table in others))


def _beliefs(labels: Tensor, planes: list[Tensor], places: Tensor, tables: _Tables) -> tuple[Tensor, Tensor]:
    """(C, H, W) beliefs, before they sum up to 1, and which classes a teacher gives or is more than 0 % certain of."""
    num_classes = tables.prior.shape[1]
    product = tables.prior.T[:, places]
    mean = torch.zeros_like(product)
    named = torch.zeros_like(product, dtype=torch.bool)
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    for t, (label, certainty) in enumerate(zip(labels, planes, strict=True)):
        scaled = tables.powers[t][certainty.int()]
        mean += scaled * (tables.share[t] / scaled.sum(0).clamp_(min=TINY))
        own = classes == label
        named |= own | (certainty > 0)
        # The runner-up, of equals the lowest class; then the word, the last one where no label is given.
        rank = certainty.int() * 256 + (255 - classes)
        second = 255 - rank.masked_fill_(own, 0).amax(0) % 256
        given = label.int().clamp(max=num_classes - 1)
        sure = certainty.gather(0, given[None].long())
        quarter = (sure > tables.edges[t].T[:, given]).sum(0)
        word = (given * num_classes + second) * (tables.edges.shape[2] + 1) + quarter
        word = torch.where(label < num_classes, word, tables.factors.shape[2] - 1)
        product *= tables.factors[t][:, word]
        product /= product.amax(0).clamp_(min=TINY)  # the product of many words is too small for float32
    product /= product.square().sum(0).clamp_(min=TINY).sqrt_()  # now the root of probabilities
    return product.mul_(mean.sqrt_()).add_(FLOOR), named


def _most_gain(belief: Tensor, named: Tensor, tables: _Tables) -> tuple[Tensor, Tensor]:
    """(H, W) uint8: the class whose choice adds most to the expected mean IoU; and the belief in it, percent."""
    most = torch.where(named, belief, 0).amax(0)
    whole = belief.sum(0)
    best, sure = torch.full_like(whole, -torch.inf), torch.zeros_like(whole)
    label = torch.zeros_like(whole, dtype=torch.uint8)
    for c, own in enumerate(belief):
        p = own / whole
        gain = (p * (1 + tables.iou[c]) - tables.iou[c]) * tables.weight[c]
        better = (own >= RIVAL * most) & (named[c] | (most <= 0)) & (gain > best)
        label.masked_fill_(better, c)
        best, sure = torch.where(better, gain, best), torch.where(better, p, sure)
    return label, 100 * sure


def _number(labels: Tensor) -> Tensor:
    """How many teachers there are, on the device: CUDA multiplies by the inverse of a number of Python's, which rounds
    otherwise than the division of the compiled kernels."""
    return torch.full((), float(len(labels)), device=labels.device)


def _raise(best: Tensor, label: Tensor, value: Tensor, c: int) -> None:
    """Put class c in place where it is strictly higher: ties stay with the lower class."""
    higher = value > best
    label.masked_fill_(higher, c)
    torch.where(higher, value, best, out=best)


def _kept(labels: Tensor, recipe: Recipe, candidate: Tensor, best: Tensor | None) -> Fused:
    """The threshold, and what is common to the rules that look at all teachers."""
    claims = _distinct(labels, recipe.num_classes)
    if recipe.unclaimed == Unclaimed.IGNORE:
        candidate = torch.where(claims == 0, IGNORE, candidate)
    if best is None or recipe.threshold <= 0:
        return Fused(candidate, candidate, claims)
    return Fused(torch.where(best >= recipe.threshold, candidate, IGNORE), candidate, claims)


def _window_vote(labels: Tensor, claimed: Tensor, recipe: Recipe) -> Tensor:
    """(H, W) uint8: the class with most claims in the window around each pixel; class 0 if there are none."""
    label = torch.zeros_like(labels[0])
    most = torch.zeros_like(labels[0], dtype=torch.int32)
    for c in _present(labels, recipe.num_classes):
        t = recipe.owners[c]
        _raise(most, label, _box_sum(claimed[t] & (labels[t] == c), *recipe.window), c)
    return label


def _window_size(label: Tensor, recipe: Recipe) -> Tensor | int:
    """How many pixels a window's sum is divided by."""
    kh, kw = recipe.window
    return _box_sum(torch.ones_like(label), kh, kw) if recipe.border == Border.INSIDE else kh * kw


def _box_sum(values: Tensor, kh: int, kw: int) -> Tensor:
    """(H, W) int32, of floats float64: sums over kh x kw windows, zeros outside; bytes exactly."""
    if values.is_floating_point():  # running sums would carry errors, and NaN, along the row
        padded = torch.nn.functional.pad(values.double(), (kw // 2, kw // 2, kh // 2, kh // 2))
        return padded.unfold(0, kh, 1).sum(-1).unfold(1, kw, 1).sum(-1)
    total = values.to(torch.int32)
    for size, axis in ((kh, 0), (kw, 1)):
        r = size // 2
        pad = (0, 0, r + 1, r) if axis == 0 else (r + 1, r)
        running = torch.nn.functional.pad(total, pad).cumsum(axis, dtype=total.dtype)
        length = values.shape[axis]
        total = running.narrow(axis, size, length) - running.narrow(axis, 0, length)
    return total


def _present(labels: Tensor, num_classes: int) -> list[int]:
    """The classes that occur, ascending."""
    found = torch.bincount(labels.flatten(), minlength=num_classes)[:num_classes]
    return [int(c) for c in found.nonzero()[:, 0]]


def _distinct(labels: Tensor, num_classes: int) -> Tensor:
    """(H, W) uint8: how many different classes the teachers give."""
    ordered = labels.sort(0).values  # (T, H, W)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return (new & (ordered < num_classes)).sum(0, dtype=torch.uint8)
