"""Kernel: the loops over pixels of :mod:`endauda_cli.archive.softmax`, which says what they are for.

Neighbours are named by the compass: ``nw`` is the pixel above and to the left, ``ww`` the second to the left.
Numba checks whether a signed index is negative; unsigned ones spare that.
"""
# Numba finds the types itself.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from endauda_cli.jit import jit

SYMBOLS = 101
"""Values are 0 to 100, and differences are counted modulo this."""
TAPS = 10
"""Neighbours that predict: W, N, NW, NE, WW, NN, NNE, NEE, NWW, NNW."""
KINDS = 6
"""Neighbourhoods by activity in the rows above; each has weights of its own."""
WEIGHT_BITS = 12
RESIDUE_BITS = 2
"""The prediction's fraction, in quarters."""

# Contexts: of a predicted pixel, of a run (is it flat to its end?), of the pixel that ends a run early.
ACTIVITIES = 7
LENGTHS = 17
_RUN = ACTIVITIES * 2 << RESIDUE_BITS
_BREAK = _RUN + 2 * LENGTHS
CONTEXTS = _BREAK + 2

SCALE_BITS = 10
"""Frequencies of a context add up to 2 to this."""
_STATE = 1 << 16
"""rANS states stay between this and its square."""
_LITERAL = 1 << 31
"""Marks an event that is a number of equally likely bits, instead of a symbol in a context."""

_PADDING = 16
"""Bytes around a row: neighbours of the first and last pixels, all 0, and what eight bytes at once overlook."""
_LEFT = 2

_u = np.uint32
_1, _2, _3, _8 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(8)


@intrinsic
def _eight_bytes(typing_context, array, index):
    """Eight bytes of a uint8 array from an index on, as one number, wherever they lie."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(address, align=1)

    return types.uint64(array, index), generate


@intrinsic
def _trailing_zeros(typing_context, number):
    """How many of the lowest bits of a uint64 are 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@jit
def normal_equations(planes, step, kind_of, squares, products):
    count, height, width = planes.shape
    taps = np.empty(TAPS, np.float64)
    for c in range(count):
        for y in range(2, height, step):
            for x in range(2, width - 2):
                w, ww = np.int64(planes[c, y, x - 1]), np.int64(planes[c, y, x - 2])
                n, nw = np.int64(planes[c, y - 1, x]), np.int64(planes[c, y - 1, x - 1])
                ne, nww = np.int64(planes[c, y - 1, x + 1]), np.int64(planes[c, y - 1, x - 2])
                nn = np.int64(planes[c, y - 2, x])
                above = abs(ne - n) + abs(n - nw) + abs(n - nn)
                activity = above + abs(nw - w) + abs(w - ww)
                if activity == 0:
                    continue
                k = kind_of[above + abs(nw - nww) + abs(nw - ww)]
                taps[0], taps[1], taps[2], taps[3], taps[4], taps[5] = w, n, nw, ne, ww, nn
                taps[6], taps[7] = planes[c, y - 2, x + 1], planes[c, y - 1, x + 2]
                taps[8], taps[9] = nww, planes[c, y - 2, x - 1]
                value = np.float64(planes[c, y, x])
                for i in range(TAPS):
                    weighted = taps[i] / (activity + 2)
                    products[k, i] += weighted * value
                    for j in range(i + 1):
                        squares[k, i, j] += weighted * taps[j]


@jit
def solve(squares, products, ridge, solution):
    """Least squares, ``solution`` replaced by the better one; ``ridge`` is what the given one counts.

    Gaussian elimination: ten unknowns need no LAPACK, whose last digits differ from machine to machine.
    ``squares`` is only read in its lower half.
    """
    size = len(products)
    matrix = np.empty((size, size), np.float64)
    for i in range(size):
        for j in range(size):
            matrix[i, j] = squares[max(i, j), min(i, j)]
        matrix[i, i] += ridge
        solution[i] = products[i] + ridge * solution[i]
    for i in range(size):
        for j in range(i + 1, size):
            factor = matrix[j, i] / matrix[i, i]
            for k in range(i, size):
                matrix[j, k] -= factor * matrix[i, k]
            solution[j] -= factor * solution[i]
    for i in range(size - 1, -1, -1):
        for j in range(i + 1, size):
            solution[i] -= matrix[i, j] * solution[j]
        solution[i] /= matrix[i, i]


@jit
def _flat_above(north, far_north, i, end, value):
    """For how many pixels from i on all neighbours above are ``value``; at least 1."""
    same = np.uint64(value) * np.uint64(0x0101010101010101)
    at = i
    while at < end:
        other = (_eight_bytes(north, at + _1) ^ same) | (_eight_bytes(far_north, at) ^ same)
        if other:
            at += _trailing_zeros(other) >> _3
            break
        at += _8
    return max(np.int64(min(at, end) - i), 1)


@jit
def _predict(north, far_north, i, w, ww, n, nw, ne, nww, nn, weights, k):
    """The prediction in quarters, 0 to 403, rounded so that the nearest whole number is a quarter of it."""
    total = (
        weights[k, 1] * n
        + weights[k, 2] * nw
        + weights[k, 3] * ne
        + weights[k, 4] * ww
        + weights[k, 5] * nn
        + weights[k, 6] * np.int64(far_north[i + _1])
        + weights[k, 7] * np.int64(north[i + _2])
        + weights[k, 8] * nww
        + weights[k, 9] * np.int64(far_north[i - _1])
        + (1 << WEIGHT_BITS - 1)
        + weights[k, 0] * w
    )
    return min(max(total, 0), (SYMBOLS << WEIGHT_BITS) - 1) >> WEIGHT_BITS - RESIDUE_BITS


@jit
def trace(plane, weights, kind_of, context_of, bit_length, events):
    """Writes the events that describe a plane, context << 8 | symbol or a literal, and returns their number."""
    height, width = plane.shape
    rows = np.zeros((3, width + _PADDING), np.uint8)
    end = np.uint64(width + _LEFT)
    count = 0
    for y in range(height):
        row, north, far_north = rows[y % 3], rows[(y + 2) % 3], rows[(y + 1) % 3]
        for x in range(width):
            row[x + _LEFT] = plane[y, x]
        i = _2
        while i < end:
            w, ww = np.int64(row[i - _1]), np.int64(row[i - _2])
            n, nw, ne = np.int64(north[i]), np.int64(north[i - _1]), np.int64(north[i + _1])
            nn, nww = np.int64(far_north[i]), np.int64(north[i - _2])
            above = abs(ne - n) + abs(n - nw) + abs(n - nn)
            activity = above + abs(nw - w) + abs(w - ww)
            if activity != 0:
                k = _u(kind_of[_u(above + abs(nw - nww) + abs(nw - ww))])
                quarters = _predict(north, far_north, i, w, ww, n, nw, ne, nww, nn, weights, k)
                context = np.int64(context_of[_u(activity)]) + (4 if quarters >= 4 else 0) + (quarters & 3)
                symbol = np.int64(row[i]) - (quarters >> RESIDUE_BITS)
                events[count] = context << 8 | (symbol + SYMBOLS if symbol < 0 else symbol)
                count += 1
                i += _1
                continue
            length = _flat_above(north, far_north, i, end, w)
            run = np.int64(0)
            while run < length and row[i + np.uint64(run)] == w:
                run += 1
            nonzero = 1 if w else 0
            context = _RUN + nonzero * LENGTHS + np.int64(bit_length[_u(length)])
            events[count] = context << 8 | (run < length)
            count += 1
            i += np.uint64(run)
            if run < length:
                bits, rest = np.int64(bit_length[_u(length - 1)]), run
                while bits > 0:
                    some = min(bits, SCALE_BITS)
                    events[count] = _LITERAL | some << 16 | (rest & (1 << some) - 1)
                    count += 1
                    bits -= some
                    rest >>= some
                symbol = np.int64(row[i]) - w
                events[count] = _BREAK + nonzero << 8 | (symbol + SYMBOLS if symbol < 0 else symbol)
                count += 1
                i += _1
    return count


@jit
def count(events, counts):
    for event in events:
        if not event & _LITERAL:
            counts[event >> 8, event & 255] += 1


@jit
def tables(levels, frequency_of, symbols, slots):
    """Fills a context's slots in proportion to its frequencies: every symbol that occurs gets one at least.

    Whether they suffice. Frequencies that were counted always do; forged ones would be written outside.
    """
    frequencies = np.zeros(SYMBOLS, np.int64)
    for context in range(CONTEXTS):
        total = np.int64(0)
        for symbol in range(SYMBOLS):
            total += frequency_of[levels[context, symbol]]
        if total == 0:
            continue
        left, most = np.int64(1 << SCALE_BITS), 0
        for symbol in range(SYMBOLS):
            weight = frequency_of[levels[context, symbol]]
            share = max(np.int64(1), (weight << SCALE_BITS) // total) if weight else np.int64(0)
            frequencies[symbol] = share
            left -= share
            if share > frequencies[most]:
                most = symbol
        frequencies[most] += left
        if frequencies[most] < 1:
            return False
        first = np.int64(0)
        for symbol in range(SYMBOLS):
            share = frequencies[symbol]
            if share > 0:
                slots[context * SYMBOLS + symbol] = share << 16 | first
                for slot in range(first, first + share):
                    symbols[(context << SCALE_BITS) + slot] = symbol
                first += share
    return True


@jit
def encode(events, slots, words):
    """Writes the words at the end of ``words`` and returns where they begin. rANS codes the last event first."""
    even, odd = np.int64(_STATE), np.int64(_STATE)
    at = len(words)
    for j in range(len(events) - 1, -1, -1):
        event = np.int64(events[j])
        if event & _LITERAL:
            free = SCALE_BITS - (event >> 16 & 31)
            share, first = np.int64(1) << free, (event & 0xFFFF) << free
        else:
            slot = np.int64(slots[_u((event >> 8) * SYMBOLS + (event & 255))])
            share, first = slot >> 16, slot & 0xFFFF
        state = odd if j & 1 else even
        if state >= share << 32 - SCALE_BITS:
            at -= 1
            words[at] = state & 0xFFFF
            state >>= 16
        whole = state // share
        state = (whole << SCALE_BITS) + state - whole * share + first
        if j & 1:
            odd = state
        else:
            even = state
    for part in (odd & 0xFFFF, odd >> 16, even & 0xFFFF, even >> 16):
        at -= 1
        words[at] = part
    return at


@jit
def _next_state(state, share, first, words, at):
    """The state after an event of that share of the slots, and how many words have been read then."""
    state = share * (state >> SCALE_BITS) + (state & (1 << SCALE_BITS) - 1) - first
    if state < _STATE:
        return state << 16 | np.int64(words[_u(at)]), at + 1
    return state, at


@jit
def decode(words, count, weights, symbols, slots, kind_of, context_of, bit_length, out):
    """Whether the words end where they should. ``state`` is for the next event, ``other`` for the one after."""
    height, width = out.shape
    rows = np.zeros((3, width + _PADDING), np.uint8)
    end = np.uint64(width + _LEFT)
    state = np.int64(words[0]) << 16 | np.int64(words[1])
    other = np.int64(words[2]) << 16 | np.int64(words[3])
    at = np.int64(4)
    for y in range(height):
        row, north, far_north = rows[y % 3], rows[(y + 2) % 3], rows[(y + 1) % 3]
        i = _2
        w, ww = np.int64(0), np.int64(0)
        n, nw, nww = np.int64(north[_LEFT]), np.int64(0), np.int64(0)
        rise, rise_before = n, np.int64(0)  # |N - NW| and |NW - NWW|, which move on from pixel to pixel
        while i < end:
            ne, nn = np.int64(north[i + _1]), np.int64(far_north[i])
            next_rise = abs(ne - n)
            above = next_rise + rise + abs(n - nn)
            activity = above + abs(nw - w) + abs(w - ww)
            if activity != 0:
                k = _u(kind_of[_u(above + rise_before + abs(nw - ww))])
                quarters = _predict(north, far_north, i, w, ww, n, nw, ne, nww, nn, weights, k)
                context = np.int64(context_of[_u(activity)]) + (4 if quarters >= 4 else 0) + (quarters & 3)
                symbol = np.int64(symbols[_u(context << SCALE_BITS | state & (1 << SCALE_BITS) - 1)])
                slot = np.int64(slots[_u(context * SYMBOLS + symbol)])
                following, at = _next_state(state, slot >> 16, slot & 0xFFFF, words, at)
                state, other = other, following
                value = symbol + (quarters >> RESIDUE_BITS)
                ww, w = w, value - SYMBOLS if value >= SYMBOLS else value
                row[i] = w
                nww, nw, n = nw, n, ne
                rise_before, rise = rise, next_rise
                i += _1
                continue
            length = _flat_above(north, far_north, i, end, w)
            nonzero = 1 if w else 0
            context = _RUN + nonzero * LENGTHS + np.int64(bit_length[_u(length)])
            broken = np.int64(symbols[_u(context << SCALE_BITS | state & (1 << SCALE_BITS) - 1)])
            slot = np.int64(slots[_u(context * SYMBOLS + broken)])
            following, at = _next_state(state, slot >> 16, slot & 0xFFFF, words, at)
            state, other = other, following
            run = length
            if broken:
                run, done, bits = np.int64(0), np.int64(0), np.int64(bit_length[_u(length - 1)])
                while bits > 0:
                    some = min(bits, SCALE_BITS)
                    free = SCALE_BITS - some
                    literal = (state & (1 << SCALE_BITS) - 1) >> free
                    following, at = _next_state(state, np.int64(1) << free, literal << free, words, at)
                    state, other = other, following
                    run |= literal << done
                    done += some
                    bits -= some
                run = min(run, length - 1)
            flat = np.uint8(w)
            for j in range(i, i + np.uint64(run)):
                row[j] = flat
            i += np.uint64(run)
            if broken:
                context = _BREAK + nonzero
                symbol = np.int64(symbols[_u(context << SCALE_BITS | state & (1 << SCALE_BITS) - 1)])
                slot = np.int64(slots[_u(context * SYMBOLS + symbol)])
                following, at = _next_state(state, slot >> 16, slot & 0xFFFF, words, at)
                state, other = other, following
                value = symbol + w
                w = value - SYMBOLS if value >= SYMBOLS else value
                row[i] = w
                i += _1
            ww = np.int64(row[i - _2])
            n, nw, nww = np.int64(north[i]), np.int64(north[i - _1]), np.int64(north[i - _2])
            rise, rise_before = abs(n - nw), abs(nw - nww)
        if at > count:
            return False
        for x in range(width):
            out[y, x] = row[x + _LEFT]
    # Which of the two began as which depends on the number of events; both began alike.
    return at == count and state == _STATE and other == _STATE
