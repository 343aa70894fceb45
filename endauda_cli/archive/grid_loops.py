"""Kernel: a network's own grid to what it means at the size of the image, in blocks of the image.

Enlarging is bilinear. Every cell's values are depths below the cell's largest class, in natural logarithms of
probability, or ``NOTHING``: so far below the others, in this cell and all its neighbours, that no certainty would
change. In most blocks most classes are nothing, and they cost nothing. Only additions, products, quotients and
comparisons of float32 are used, so results are the same on every CPU.

Legend of shapes: S grids, whose cells (C, h, w) lie one after another in flat arrays; C classes; H, W of the image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from endauda_cli.jit import jit

ROWS, COLUMNS = 16, 128
"""Of a block: its numbers stay in a core's cache."""

_ZERO, _HUNDRED = np.float32(0), np.float32(100)
_MOST = np.float32(87)  # of what has an exponential among the normal floats
_LOG2_E = np.float32(1.4426950408889634)
# 2**f for f in -0.5..0.5, to 2e-7
_E0, _E1, _E2 = np.float32(1), np.float32(0.69314718), np.float32(0.24022651)
_E3, _E4, _E5 = np.float32(0.05550411), np.float32(0.00961813), np.float32(0.00133336)
_E6 = np.float32(0.00015404)


class Geometry(NamedTuple):
    """Where each row and column of the image lies in each grid; H or W long in the last dimension."""

    starts: Any
    """(S,) int64: where each grid's cells begin."""
    heights: Any
    widths: Any
    top: Any
    """(S, H) int64: the cell above, or at, a row."""
    down: Any
    """(S, H) float32: the next cell's share."""
    until: Any
    """(S, H) int64: the row that ends the run of rows between the same cells, all at the same distance."""
    left: Any
    along: Any
    right: Any
    """The same of columns."""


@jit
def percents(  # type: ignore[no-untyped-def]
    numbers, nothing, values, geometry, classes, last, wanted, first_row, last_row, out
) -> None:
    """Certainties of rows ``first_row`` to ``last_row`` into ``out``, (wanted, H, W) uint8 zeros.

    Args:
        numbers: (S * C * h * w,) uint16.
        nothing: the number that stands for nothing.
        values: float32, like ``numbers``: logits, -60..0, if ``last``, else percent; times each grid's share.
        geometry: a ``Geometry``.
        classes: C.
        last: the softmax comes after the enlarging.
        wanted: (C,) int64: each class's place in ``out``, or -1.
        first_row: of the image, a multiple of ``ROWS``.
        last_row: exclusive.
        out: what is not written is 0 already.
    """
    width = out.shape[2]
    live = np.empty(classes, np.int64)
    wide = np.empty((ROWS + 2, COLUMNS), np.float32)
    terms = np.empty((classes, ROWS, COLUMNS), np.float32)
    total = np.empty((ROWS, COLUMNS), np.float32)
    for y0 in range(first_row, last_row, ROWS):
        y1 = min(y0 + ROWS, last_row)
        for x0 in range(0, width, COLUMNS):
            x1 = min(x0 + COLUMNS, width)
            count = 0
            for c in range(classes):
                if not _is_nothing(numbers, nothing, geometry, classes, c, y0, y1, x0, x1):
                    live[count] = c
                    count += 1
            if last:
                _softmax(
                    values, geometry, classes, live[:count], wanted, y0, y1, x0, x1, wide, terms, total, out
                )
            else:
                _mean(values, geometry, classes, live[:count], wanted, y0, y1, x0, x1, wide, total, out)


@jit
def _softmax(  # type: ignore[no-untyped-def]
    values, geometry, classes, live, wanted, y0, y1, x0, x1, wide, terms, total, out
) -> None:
    """A block of which the enlarged logits' softmax is wanted."""
    total[:] = _ZERO
    power, ratio = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
    for i in range(live.size):
        own = terms[i if wanted[live[i]] >= 0 else live.size - 1]
        for s in range(geometry.starts.size):
            _widen(values, geometry, classes, s, live[i], y0, y1, x0, x1, wide)
            _exponentials(geometry, s, y0, y1, x1 - x0, wide, power, ratio, own, total)
    for y in range(y1 - y0):
        for x in range(x1 - x0):
            total[y, x] = _HUNDRED / total[y, x]
    for i in range(live.size):
        if wanted[live[i]] >= 0:
            own, plane = terms[i], out[wanted[live[i]]]
            for y in range(y1 - y0):
                for x in range(x1 - x0):
                    plane[y0 + y, x0 + x] = np.uint8(np.int32(min(own[y, x] * total[y, x], _HUNDRED)))


@jit
def _mean(  # type: ignore[no-untyped-def]
    values, geometry, classes, live, wanted, y0, y1, x0, x1, wide, own, out
) -> None:
    """A block of which the enlarged percents are wanted."""
    for c in live:
        if wanted[c] >= 0:
            _enlarge(values, geometry, classes, c, y0, y1, x0, x1, wide, own)
            plane = out[wanted[c]]
            for y in range(y1 - y0):
                for x in range(x1 - x0):
                    plane[y0 + y, x0 + x] = np.uint8(np.int32(min(own[y, x], _HUNDRED)))


@jit
def _is_nothing(numbers, nothing, geometry, classes, c, y0, y1, x0, x1):  # type: ignore[no-untyped-def]
    """Whether the class is nothing in all cells that the block is made of."""
    for s in range(geometry.starts.size):
        h, w = geometry.heights[s], geometry.widths[s]
        left, right = geometry.left[s, x0], min(geometry.left[s, x1 - 1] + 1, w - 1)
        for row in range(geometry.top[s, y0], min(geometry.top[s, y1 - 1] + 1, h - 1) + 1):
            begin = geometry.starts[s] + (c * h + row) * w
            for at in range(begin + left, begin + right + 1):
                if numbers[at] != nothing:
                    return False
    return True


@jit
def _widen(values, geometry, classes, s, c, y0, y1, x0, x1, out) -> None:  # type: ignore[no-untyped-def]
    """A class's cells in one grid that a block is made of, enlarged to the side: rows of ``out``."""
    h, w = geometry.heights[s], geometry.widths[s]
    first = geometry.top[s, y0]
    for row in range(first, min(geometry.top[s, y1 - 1] + 1, h - 1) + 1):
        begin = geometry.starts[s] + (c * h + row) * w
        x = x0
        while x < x1:  # the columns between two cells
            left = geometry.left[s, x]
            a, b = values[begin + left], values[begin + min(left + 1, w - 1)]
            end = min(geometry.right[s, x], x1)
            for i in range(x, end):
                out[row - first, i - x0] = a + geometry.along[s, i] * (b - a)
            x = end


@jit
def _enlarge(values, geometry, classes, c, y0, y1, x0, x1, wide, out) -> None:  # type: ignore[no-untyped-def]
    """The sum of the enlarged grids of a class in a block: into ``out``, (ROWS, COLUMNS)."""
    for s in range(geometry.starts.size):
        _widen(values, geometry, classes, s, c, y0, y1, x0, x1, wide)
        for y in range(y1 - y0):
            above, below, share = _rows(geometry, s, y0, y0 + y)
            if s == 0:
                for x in range(x1 - x0):
                    out[y, x] = wide[above, x] + share * (wide[below, x] - wide[above, x])
            else:
                for x in range(x1 - x0):
                    out[y, x] += wide[above, x] + share * (wide[below, x] - wide[above, x])


@jit
def _rows(geometry, s, y0, y):  # type: ignore[no-untyped-def]
    """The rows of ``_widen`` above and below row ``y`` of the image, and the share of the latter."""
    first, above = geometry.top[s, y0], geometry.top[s, y]
    return above - first, min(above + 1, geometry.heights[s] - 1) - first, geometry.down[s, y]


@jit
def _exponentials(  # type: ignore[no-untyped-def]
    geometry, s, y0, y1, count, wide, power, ratio, out, total
) -> None:
    """Exponentials of a block's enlarged logits in one grid, times those of the grids before, into ``out``.

    Between two rows of cells logits are linear, so each row's exponentials are those of the row above times a ratio.
    """
    whole = np.empty(COLUMNS, np.int32)
    y = 0
    while y < y1 - y0:
        above, below, share = _rows(geometry, s, y0, y0 + y)
        end = min(geometry.until[s, y0 + y], y1) - y0
        step = (geometry.down[s, y0 + end - 1] - share) / np.float32(max(1, end - 1 - y))
        for x in range(count):
            a, b = wide[above, x], wide[below, x]
            power[x] = a + share * (b - a)
            ratio[x] = step * (b - a)
        _exponential(power, count, whole)
        _exponential(ratio, count, whole)
        for row in range(y, end):
            for x in range(count):
                term = power[x] if s == 0 else out[row, x] * power[x]
                out[row, x] = term
                if s == geometry.starts.size - 1:
                    total[row, x] += term
                power[x] *= ratio[x]
        y = end


@jit
def _exponential(terms, count, whole) -> None:  # type: ignore[no-untyped-def]
    """Replaces ``count`` numbers of -87..87 by their exponentials, to six digits."""
    powers = whole.view(np.float32)
    for x in range(count):
        exponent = min(max(terms[x], -_MOST), _MOST) * _LOG2_E
        nearest = np.floor(exponent + np.float32(0.5))
        f = exponent - nearest
        terms[x] = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6)))))
        whole[x] = (np.int32(nearest) + np.int32(127)) << np.int32(23)
    for x in range(count):
        terms[x] *= powers[x]


@jit
def winners(values, geometry, classes, first_row, last_row, out) -> None:  # type: ignore[no-untyped-def]
    """The class of the largest sum of enlarged grids, on ties the first: rows of ``out``, (H, W) uint8.

    In a block, a class all cells of which are below the least of another cannot win; mostly one is left.
    """
    width = out.shape[1]
    wide = np.empty((ROWS + 2, COLUMNS), np.float32)
    own = np.empty((ROWS, COLUMNS), np.float32)
    best = np.empty((ROWS, COLUMNS), np.float32)
    most = np.empty(classes, np.float32)
    for y0 in range(first_row, last_row, ROWS):
        y1 = min(y0 + ROWS, last_row)
        for x0 in range(0, width, COLUMNS):
            x1 = min(x0 + COLUMNS, width)
            least = _bounds(values, geometry, classes, y0, y1, x0, x1, most)
            left, only = 0, 0
            for c in range(classes):
                if most[c] >= least:
                    left, only = left + 1, c
            if left == 1:
                out[y0:y1, x0:x1] = only
                continue
            best[:] = np.float32(-np.inf)
            for c in range(classes):
                if most[c] < least:
                    continue
                _enlarge(values, geometry, classes, c, y0, y1, x0, x1, wide, own)
                for y in range(y1 - y0):
                    for x in range(x1 - x0):
                        if own[y, x] > best[y, x]:
                            best[y, x] = own[y, x]
                            out[y0 + y, x0 + x] = c


@jit
def _bounds(values, geometry, classes, y0, y1, x0, x1, most):  # type: ignore[no-untyped-def]
    """Each class's largest cells in a block, summed over the grids; returns the largest of the sums of the least."""
    highest = np.float32(-np.inf)
    for c in range(classes):
        upper, lower = _ZERO, _ZERO
        for s in range(geometry.starts.size):
            h, w = geometry.heights[s], geometry.widths[s]
            left, right = geometry.left[s, x0], min(geometry.left[s, x1 - 1] + 1, w - 1)
            high, low = np.float32(-np.inf), np.float32(np.inf)
            for row in range(geometry.top[s, y0], min(geometry.top[s, y1 - 1] + 1, h - 1) + 1):
                begin = geometry.starts[s] + (c * h + row) * w
                for at in range(begin + left, begin + right + 1):
                    high, low = max(high, values[at]), min(low, values[at])
            upper += high
            lower += low
        # Rounding may lift an enlarged value a little over its cells.
        slack = np.float32(1e-5) * max(abs(upper), abs(lower))
        most[c] = upper + slack
        highest = max(highest, lower - slack)
    return highest
