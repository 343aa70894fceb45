"""The rules on the CPU: machine code that goes over an image once, in bands of rows.

Legend of shapes: T teacher, C class, K some classes, H, W.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.fusion.rules.beliefs import believed
from endauda_cli.fusion.rules.rule import Fused, Planes, Recipe
from endauda_cli.jit import jit
from endauda_cli.threads import in_bands
from endauda_cli.types import Border, Unclaimed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]
    Array = NDArray[Any]

CLASSES_AT_ONCE = 8
"""Planes per teacher that are in memory at once where a rule goes from class to class."""
BLOCK = 512
"""Pixels whose certainties by all classes fit into a core's first cache."""


def plf(labels: UInt8, planes: Planes, recipe: Recipe) -> Fused:
    """Each class from the teacher that owns it; conflicts by a vote in a window.

    Args:
        labels: (T, H, W) uint8 train ids, 255 = none.
        planes: (K, H, W) percent, uint8, or float32 once renormalised; asked for owners' classes that occur alone.
        recipe: ``owners``, ``window``, ``border``, ``threshold``, ``unclaimed``.

    Returns:
        (H, W) uint8 label, candidate and number of claims.
    """
    _, height, width = labels.shape
    owners, owner_of = np.array(recipe.owners, np.int64), np.full(256, -1, np.int64)
    owner_of[: recipe.num_classes] = owners
    candidate, claims = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    kh, kw = recipe.window
    votes = np.int16 if kh * kw < 2**15 else np.int32  # the narrower, the more at once
    ignore = recipe.unclaimed == Unclaimed.IGNORE

    def claim_and_vote(first: int, last: int) -> None:
        _claim(labels[:, first:last], owner_of, candidate[first:last], claims[first:last])
        columns = np.zeros((len(owners), width + kw - 1), votes)
        _vote(labels, owners, kh, kw, ignore, columns, claims, candidate, first, last)

    in_bands(height, claim_and_vote)
    if recipe.threshold <= 0:
        return Fused(candidate, candidate, claims)
    label = np.full_like(candidate, IGNORE)
    present = np.flatnonzero(np.bincount(candidate.ravel(), minlength=256)[: recipe.num_classes])
    inside = recipe.border == Border.INSIDE
    for t in sorted(set(recipe.owners)):
        mine = [int(c) for c in present if recipe.owners[c] == t]
        if mine:
            slots = np.full(256, -1, np.int64)
            slots[mine] = range(len(mine))
            owned = planes(t, mine)  # (K, H, W)
            told = (float(recipe.threshold), kh, kw, inside)
            in_bands(height, partial(_keep, candidate, claims, slots, owned, *told, label))
    return Fused(label, candidate, claims)


def certainty(labels: UInt8, planes: Planes, recipe: Recipe) -> Fused:
    """The class with the highest mean certainty.

    Args:
        labels: (T, H, W) uint8 train ids, 255 = none.
        planes: (K, H, W) percent, uint8, or float32 once renormalised; asked for all classes, some at a time.
        recipe: ``threshold``, ``unclaimed``.

    Returns:
        (H, W) uint8 label, candidate and number of different classes given.
    """
    teachers, height, width = labels.shape
    best = np.full((height, width), -1, np.float32)
    candidate = np.zeros((height, width), np.uint8)
    for start in range(0, recipe.num_classes, CLASSES_AT_ONCE):
        group = range(start, min(start + CLASSES_AT_ONCE, recipe.num_classes))
        stack = _stack(planes, teachers, group)
        in_bands(height, partial(_raise_mean, stack, start, best, candidate))
    return _kept(labels, recipe, candidate, best)


def soft_label(labels: UInt8, planes: Planes, recipe: Recipe) -> Fused:
    """The highest mean of certainties that are typical of their ranks.

    Args:
        labels: (T, H, W) uint8 train ids, 255 = none.
        planes: (K, H, W) percent, uint8, or float32 once renormalised; asked for all classes at once.
        recipe: ``delta`` (C,) percent, ascending; ``threshold``, ``unclaimed``.

    Returns:
        As of ``certainty``.
    """
    teachers, height, width = labels.shape
    stack = _stack(planes, teachers, range(recipe.num_classes))
    delta = np.asarray(recipe.delta, np.float32)
    best, candidate = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
    in_bands(height, partial(_rank_and_average, stack, delta, best, candidate))
    return _kept(labels, recipe, candidate, best)


def consensus(labels: UInt8, planes: Planes, recipe: Recipe) -> Fused:
    """What all teachers together believe.

    Args:
        labels: (T, H, W) uint8 train ids, 255 = none.
        planes: (K, H, W) uint8 percent; asked for all classes at once.
        recipe: ``model``, ``threshold``, ``unclaimed``.

    Returns:
        As of ``certainty``.
    """
    assert recipe.model is not None, "the rule is fitted before it fuses"
    whole = _stack(planes, len(labels), range(recipe.num_classes))
    candidate, certainty, claims = believed(labels, whole, recipe.model)
    if recipe.unclaimed == Unclaimed.IGNORE:
        candidate = np.where(claims == 0, np.uint8(IGNORE), candidate)
    if recipe.threshold <= 0:
        return Fused(candidate, candidate, claims)
    reached = certainty >= np.float32(recipe.threshold)
    return Fused(np.where(reached, candidate, np.uint8(IGNORE)), candidate, claims)


def majority(labels: UInt8, planes: Planes, recipe: Recipe) -> Fused:
    """The class that most teachers give.

    Args:
        labels: (T, H, W) uint8 train ids, 255 = none.
        planes: not asked.
        recipe: ``unclaimed``.

    Returns:
        As of ``certainty``; label and candidate are one array.
    """
    candidate, claims = _poll(labels, recipe.num_classes)
    if recipe.unclaimed == Unclaimed.IGNORE:
        candidate[claims == 0] = IGNORE
    return Fused(candidate, candidate, claims)


def _stack(planes: Planes, teachers: int, classes: range) -> Array:
    """(T, K, H, W), of which one teacher's part is in memory twice."""
    first = planes(0, classes)
    stack = np.empty((teachers, *first.shape), first.dtype)
    stack[0] = first
    for t in range(1, teachers):
        stack[t] = planes(t, classes)
    return stack


def _kept(labels: UInt8, recipe: Recipe, candidate: UInt8, best: Array) -> Fused:
    """The threshold, and what is common to the rules that look at all teachers."""
    _, claims = _poll(labels, recipe.num_classes)
    if recipe.unclaimed == Unclaimed.IGNORE:
        candidate[claims == 0] = IGNORE
    if recipe.threshold <= 0:
        return Fused(candidate, candidate, claims)
    # The mean as float32, like the published code: it decides what "reaches" means for fractions.
    label = np.where(best >= np.float32(recipe.threshold), candidate, np.uint8(IGNORE))
    return Fused(label, candidate, claims)


def _poll(labels: UInt8, num_classes: int) -> tuple[UInt8, UInt8]:
    _, height, width = labels.shape
    winner, distinct = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    in_bands(height, partial(_count_votes, labels, num_classes, winner, distinct))
    return winner, distinct


# ---------------------------------------------------------------------------- machine code


@jit
def _claim(labels: UInt8, owner_of: Array, candidate: UInt8, claims: UInt8) -> None:
    """A teacher claims a pixel iff it owns the class it gives there: T look-ups instead of C masks.

    ``candidate`` is right where exactly one class is claimed.
    """
    teachers, height, width = labels.shape
    tables = np.full((teachers, 256), IGNORE, np.uint8)
    for c in range(256):
        if owner_of[c] >= 0:
            tables[owner_of[c], c] = c
    for y in range(height):
        lowest, n = candidate[y], claims[y]
        lowest[:] = IGNORE
        n[:] = 0
        for t in range(teachers):
            table, given = tables[t], labels[t, y]
            for x in range(width):
                mine = table[given[x]]
                lowest[x] = min(lowest[x], mine)
                n[x] += np.uint8(mine != IGNORE)


@jit
def _vote(
    labels: UInt8,
    owners: Array,
    kh: int,
    kw: int,
    ignore: bool,
    columns: Array,
    claims: UInt8,
    candidate: UInt8,
    first: int,
    last: int,
) -> None:
    """Where not exactly one class is claimed, the class with most claims in the window.

    ``columns`` (C, W + kw - 1), zeros at first, are the claims per class and column in the window's rows; they go
    along from row to row. Whole rows at a time: that is faster than to look at the few pixels that need it.
    """
    _, height, width = labels.shape
    ry, rx = kh // 2, kw // 2
    seen = np.zeros(len(owners), np.int64)
    votes, most = np.empty(width, columns.dtype), np.empty(width, columns.dtype)
    winner = np.empty(width, np.uint8)
    for y in range(max(0, first - ry), min(height, first + ry)):
        for c in range(len(owners)):
            seen[c] += _count(labels[owners[c], y], c, 1, columns[c, rx : rx + width])
    for y in range(first, last):
        most[:] = 0
        winner[:] = 0
        for c in range(len(owners)):
            given, inside = labels[owners[c]], columns[c, rx : rx + width]
            if y + ry < height:
                seen[c] += _count(given[y + ry], c, 1, inside)
            if y > first and y > ry:
                seen[c] -= _count(given[y - ry - 1], c, -1, inside)
            if seen[c] > 0:
                _outvote(columns[c], kw, c, votes, most, winner)
        for x in range(width):
            voted = IGNORE if claims[y, x] == 0 and ignore else winner[x]
            candidate[y, x] = candidate[y, x] if claims[y, x] == 1 else voted


@jit
def _count(given: UInt8, c: int, step: int, columns: Array) -> int:
    found = 0
    for x in range(len(given)):
        here = given[x] == c
        columns[x] += step * here
        found += here
    return found


@jit
def _outvote(columns: Array, kw: int, c: int, votes: Array, most: Array, winner: UInt8) -> None:
    votes[:] = columns[: len(votes)]
    for k in range(1, kw):
        more = columns[k : k + len(votes)]
        for x in range(len(votes)):
            votes[x] += more[x]
    _raise(votes, c, most, winner)


@jit
def _raise(values: Array, c: int, best: Array, winner: UInt8) -> None:
    """Put class c in place where it is strictly higher: ties stay with the lower class. (In one loop, selections
    of two widths are not done many pixels at a time.)"""
    label = np.uint8(c)
    for x in range(len(values)):
        now = winner[x]
        if values[x] > best[x]:
            now = label
        winner[x] = now
    for x in range(len(values)):
        best[x] = values[x] if values[x] > best[x] else best[x]


@jit
def _keep(
    candidate: UInt8,
    claims: UInt8,
    slots: Array,
    owned: Array,
    threshold: float,
    kh: int,
    kw: int,
    inside: bool,
    label: UInt8,
    first: int,
    last: int,
) -> None:
    """``owned`` is (K, H, W), and class c stands at ``slots[c]``, or nowhere if that is below 0. Sums of bytes
    are exact, and so is the comparison; floats are summed as float64, from the start in each row, so that no error
    creeps in."""
    height, width = candidate.shape
    rx = kw // 2
    sums = np.zeros((len(owned), width), np.float64)
    fresh = np.zeros(len(owned), np.bool_)
    for y in range(first, last):
        top, bottom = max(0, y - kh // 2), min(height, y + kh // 2 + 1)
        fresh[:] = False
        for x in range(width):
            c = candidate[y, x]
            slot = slots[c]
            if slot < 0:
                continue
            if claims[y, x] == 1:
                enough = owned[slot, y, x] >= threshold
            else:
                if not fresh[slot]:
                    fresh[slot] = True
                    _sum_columns(owned[slot, top:bottom], sums[slot])
                left, right = max(0, x - rx), min(width, x + rx + 1)
                total = 0.0
                for j in range(left, right):
                    total += sums[slot, j]
                enough = total >= threshold * ((bottom - top) * (right - left) if inside else kh * kw)
            if enough:
                label[y, x] = c


@jit
def _sum_columns(rows: Array, sums: Array) -> None:
    sums[:] = 0
    for y in range(rows.shape[0]):
        row = rows[y]
        for x in range(len(row)):
            sums[x] += row[x]


@jit
def _raise_mean(stack: Array, start: int, best: Array, label: UInt8, first: int, last: int) -> None:
    """``stack`` is (T, K, H, W) of the classes from ``start`` on; sums of bytes are exact in float32."""
    teachers, classes, _, width = stack.shape
    total = np.empty(width, np.float32)
    for y in range(first, last):
        for c in range(classes):
            total[:] = 0
            for t in range(teachers):
                values = stack[t, c, y]
                for x in range(width):
                    total[x] += np.float32(values[x])
            for x in range(width):
                total[x] /= np.float32(teachers)
            _raise(total, start + c, best[y], label[y])


@jit
def _rank_and_average(stack: Array, delta: Array, best: Array, label: UInt8, first: int, last: int) -> None:
    """``stack`` is (T, C, H, W). A class's rank is the number of classes below it; among equals, before it."""
    teachers, classes, _, width = stack.shape
    ranks, totals = np.empty((classes, BLOCK), np.uint8), np.empty((classes, BLOCK), np.float32)
    for y in range(first, last):
        for left in range(0, width, BLOCK):
            pixels = min(BLOCK, width - left)
            totals[:] = 0
            for t in range(teachers):
                ranks[:] = 0
                for a in range(classes):
                    low, rank_of_low = stack[t, a, y, left : left + pixels], ranks[a]
                    for b in range(a + 1, classes):
                        _compare(low, stack[t, b, y, left : left + pixels], rank_of_low, ranks[b])
                for c in range(classes):
                    total, rank = totals[c], ranks[c]
                    for i in range(pixels):
                        total[i] += delta[rank[i]]
            highest, winner = best[y, left : left + pixels], label[y, left : left + pixels]
            highest[:] = -1
            winner[:] = 0
            for c in range(classes):
                total = totals[c, :pixels]
                for i in range(pixels):
                    total[i] /= np.float32(teachers)
                _raise(total, c, highest, winner)


@jit
def _compare(a: Array, b: Array, rank_a: UInt8, rank_b: UInt8) -> None:
    """Each pixel's higher value of two classes, of equals the later class's, moves one rank up. (Equal are also those
    that are no number: a pixel of zeros has no shares, of any class.)"""
    for i in range(len(a)):
        later = np.uint8(not a[i] > b[i])
        rank_b[i] += later
        rank_a[i] += np.uint8(1) - later


@jit
def _count_votes(
    labels: UInt8, num_classes: int, winner: UInt8, distinct: UInt8, first: int, last: int
) -> None:
    """The class with most votes (the lowest of equals, 0 without a vote), and how many classes have votes."""
    teachers, _, width = labels.shape
    votes, most = np.empty(width, np.uint8), np.empty(width, np.uint8)
    earlier = np.empty(width, np.bool_)
    for y in range(first, last):
        best, different = winner[y], distinct[y]
        best[:] = 0
        different[:] = 0
        most[:] = 0
        for t in range(teachers):
            mine = labels[t, y]
            votes[:] = 0
            earlier[:] = False
            for other in range(teachers):
                theirs = labels[other, y]
                for x in range(width):
                    same = mine[x] == theirs[x]
                    votes[x] += np.uint8(same)
                    earlier[x] |= same & (other < t)
            for x in range(width):
                valid = mine[x] < num_classes
                different[x] += np.uint8(valid & ~earlier[x])
                better = valid & ((votes[x] > most[x]) | ((votes[x] == most[x]) & (mine[x] < best[x])))
                most[x] = votes[x] if better else most[x]
                best[x] = mine[x] if better else best[x]
