"""Kernels: the fitted rule ``consensus`` at every pixel of an image, on the CPU.

Steps 4 and 5 of :mod:`endauda_cli.fusion.rules.consensus`, a block of pixels at a time and within it class by class:
what a block needs stays in a core's cache, and most loops do many pixels at once.

Legend of shapes: T teacher, C class, H, W, P = H * W pixels, B of them in a block, K word. Places: ``places_of``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.fusion.rules.consensus import FLOOR, RIVAL, TINY, places_of
from endauda_cli.jit import jit
from endauda_cli.threads import in_bands

if TYPE_CHECKING:
    from endauda_cli.fusion.rules.consensus import Consensus, Float32, UInt8

BLOCK = 512
"""Pixels at once."""
RESCALED = 4
"""After so many teachers a pixel's highest belief is brought back to 1: the product of many words is too small for
float32, of which one takes a class to 1e-5 of the likeliest at worst."""


class Believed(NamedTuple):
    """A fused image."""

    candidate: UInt8
    """(H, W) uint8, the label of each pixel."""
    certainty: Float32
    """(H, W) percent, the belief in that label."""
    claims: UInt8
    """(H, W) uint8, how many different classes the teachers give."""


def believed(labels: UInt8, planes: UInt8, model: Consensus) -> Believed:
    """Fuse one image: its labels, beliefs and claims.

    Args:
        labels: (T, H, W) uint8, C-contiguous.
        planes: (T, C, H, W) uint8, percent, C-contiguous.
        model: see ``consensus.fit``.
    """
    num_teachers, num_classes, height, width = planes.shape
    told = labels.reshape(num_teachers, -1), planes.reshape(num_teachers, num_classes, -1)
    result = Believed(
        np.empty((height, width), np.uint8),
        np.empty((height, width), np.float32),
        np.empty((height, width), np.uint8),
    )
    flat = [array.ravel() for array in result]
    places = places_of(height, width).astype(np.uint8).ravel()  # a byte holds them

    def band(first: int, last: int) -> None:
        _decide(*told, places, model.edges, *model.tables, *flat, first * width, last * width)

    in_bands(height, band)
    return result


@jit
def _decide(  # type: ignore[no-untyped-def]
    labels,
    planes,
    places,
    edges,
    factors,
    prior,
    powers,
    share,
    iou,
    weight,
    candidate,
    certainty,
    claims,
    first,
    last,
):
    """Pixels ``first`` to ``last`` (exclusive)."""
    num_teachers, num_classes, _ = planes.shape
    product = np.ones((BLOCK, num_classes), np.float32)
    mean = np.empty((num_classes, BLOCK), np.float32)
    named = np.empty((num_classes, BLOCK), np.uint8)
    scaled, belief = np.empty_like(mean), np.empty_like(mean)
    second = np.empty(BLOCK, np.uint16)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for i in range(stop - start):
            product[i] = prior[places[start + i]]
        mean[:] = 0
        named[:] = 0
        claims[start:stop] = 0
        for t in range(num_teachers):
            _look_up(labels[t], planes[t], powers[t], share[t], start, stop, scaled, mean, named, second)
            _hear(labels, t, planes[t], edges[t], factors[t], start, stop, second, product, named, claims)
            if t % RESCALED == RESCALED - 1 and t < num_teachers - 1:
                _rescale(product)
        whole, most = _join(product, mean, named, belief)
        _choose(belief, named, whole, most, iou, weight, start, stop, candidate, certainty)


@jit
def _look_up(label, planes, powers, share, start, stop, scaled, mean, named, second):  # type: ignore[no-untyped-def]
    """One teacher's probabilities, added to ``mean``; the classes that it is more than 0 certain of, into ``named``;
    and its runner-up, the lowest of equals, as 255 - class in the lower byte of ``second``."""
    num_classes, pixels = len(planes), stop - start
    given = label[start:stop]
    total = np.zeros(BLOCK, np.float32)
    second[:] = 0
    for c in range(num_classes):
        plane, probability, seen = planes[c, start:stop], scaled[c], named[c]
        for i in range(pixels):
            probability[i] = powers[plane[i]]
        for i in range(pixels):
            total[i] += probability[i]
        for i in range(pixels):
            seen[i] |= plane[i]
        own, order = np.uint8(c), np.uint16(255 - c)
        for i in range(pixels):
            rank = (np.uint16(plane[i]) << np.uint16(8)) | order
            rank = np.uint16(0) if given[i] == own else rank
            second[i] = max(second[i], rank)
    for i in range(pixels):
        total[i] = share / max(total[i], np.float32(TINY))
    for c in range(num_classes):
        probability, sum_of_all = scaled[c], mean[c]
        for i in range(pixels):
            sum_of_all[i] += probability[i] * total[i]


@jit
def _hear(labels, t, planes, edges, factors, start, stop, second, product, named, claims):  # type: ignore[no-untyped-def]
    """One teacher's words: its label, its runner-up and how sure it is."""
    num_classes = len(planes)
    for i in range(stop - start):
        pixel = start + i
        given = labels[t, pixel]
        if given >= num_classes:
            continue
        named[given, i] = 1
        word = (given * num_classes + (255 - (second[i] & 255))) * (edges.shape[1] + 1)
        for edge in edges[given]:
            word += planes[given, pixel] > edge
        said, belief = factors[word], product[i]
        for c in range(num_classes):
            belief[c] *= said[c]
        new = True
        for other in range(t):
            new = new and labels[other, pixel] != given
        claims[pixel] += new


@jit
def _rescale(product):  # type: ignore[no-untyped-def]
    num_classes = product.shape[1]
    for belief in product:
        top = np.float32(0)
        for c in range(num_classes):
            top = max(top, belief[c])
        by = np.float32(1) / max(top, np.float32(TINY))
        for c in range(num_classes):
            belief[c] *= by


@jit
def _join(product, mean, named, belief):  # type: ignore[no-untyped-def]
    """The geometric mean of both opinions: (C, B) beliefs, their sum and the highest of a named class."""
    num_classes = len(belief)
    top, total = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    whole, most = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    for c in range(num_classes):
        own = belief[c]
        for i in range(BLOCK):
            own[i] = product[i, c]
        for i in range(BLOCK):
            top[i] = max(top[i], own[i])
    for c in range(num_classes):
        own, scaled = belief[c], mean[c]
        for i in range(BLOCK):
            own[i] /= max(top[i], np.float32(TINY))
            total[i] += own[i] * own[i]
        for i in range(BLOCK):
            own[i] *= np.sqrt(scaled[i])
    for i in range(BLOCK):
        total[i] = np.float32(1) / np.sqrt(max(total[i], np.float32(TINY)))
    for c in range(num_classes):
        own, known = belief[c], named[c]
        for i in range(BLOCK):
            own[i] = own[i] * total[i] + np.float32(FLOOR)
            whole[i] += own[i]
        for i in range(BLOCK):
            most[i] = max(most[i], own[i] if known[i] else np.float32(0))
    return whole, most


@jit
def _choose(belief, named, whole, most, iou, weight, start, stop, candidate, certainty):  # type: ignore[no-untyped-def]
    """The class that adds most to the expected mean IoU; the lowest of equals."""
    best, sure = np.full(BLOCK, -np.inf, np.float32), np.zeros(BLOCK, np.float32)
    label = np.zeros(BLOCK, np.int32)  # as wide as the others: then many pixels are done at once
    for i in range(BLOCK):
        whole[i] = np.float32(1) / whole[i]
    for c in range(len(belief)):
        own, known = belief[c], named[c]
        for i in range(BLOCK):
            p = own[i] * whole[i]
            gain = (p * (np.float32(1) + iou[c]) - iou[c]) * weight[c]
            is_rival = (own[i] >= np.float32(RIVAL) * most[i]) & ((known[i] != 0) | (most[i] <= 0))
            better = is_rival & (gain > best[i])
            best[i] = gain if better else best[i]
            label[i] = c if better else label[i]
            sure[i] = p if better else sure[i]
    for i in range(stop - start):
        candidate[start + i] = label[i]
        certainty[start + i] = np.float32(100) * sure[i]
