"""Kernel: a lossless code for the class planes of one softmax map, a third denser than JPEG-LS.

Certainty planes are mostly flat (0, sometimes 100) and smooth elsewhere, because networks enlarge their
logits. What is flat is coded by the run. Every other pixel is predicted from ten neighbours above and to the
left, with weights that are fitted to the image by least squares, and the difference is coded under a context:
how restless the neighbourhood is (after CALIC, Wu & Memon 1997), and where between two whole numbers the
prediction lies. Differences are coded by interleaved rANS (Duda 2013, arXiv 1311.2540) with one table per
context. Weights and tables are the image's *model*, about 1 KB for all of its planes, so each plane is decoded
on its own, in integers only, to the same bytes on any machine.

A plane's stream is 16-bit little-endian words. A decoder that has read the last word must be back in the
state that the encoder began with, which damage that slipped through a checksum would hardly be.

Legend of shapes: N planes, H, W; K kinds of neighbourhood; X contexts; S symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.archive.codecs import softmax_loops as loops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

MAX_WIDTH = 65_535
MODEL_BYTES = 2 * loops.KINDS * loops.TAPS + loops.CONTEXTS * loops.SYMBOLS


def _steps(thresholds: tuple[int, ...], unit: int = 1) -> Bytes:
    """A table that quantises an activity of up to 7 differences."""
    table = np.zeros(8 * loops.SYMBOLS, np.uint8)
    for threshold in thresholds:
        table[threshold:] += unit
    return table


_KIND_OF = _steps((2, 4, 8, 16, 32))
_CONTEXT_OF = _steps((2, 4, 8, 16, 32, 60), unit=2 << loops.RESIDUE_BITS)
_BIT_LENGTH = np.array([n.bit_length() for n in range(MAX_WIDTH + 1)], np.uint8)
# Frequencies are stored as logarithms, in steps of a third of an octave; 0 is "does not occur".
_FREQUENCY_OF = np.array([0] + [(4096, 5161, 6502)[i % 3] << i // 3 for i in range(3 * 12)], np.int64)

_CENTRE = 50
"""Where a model has the frequency of "no difference": between the small ones, so that zeros lie together."""


class Model(NamedTuple):
    """What the planes of one image have in common, ready for coding."""

    weights: NDArray[np.int64]
    """(K, taps), times 2^12."""
    symbols: Bytes
    """(X * 2^10,): which symbol a context's slot belongs to."""
    slots: NDArray[np.uint32]
    """(X * S,): frequency << 16 | first slot."""


def encode(planes: Bytes) -> tuple[bytes, list[bytes]]:
    """Codes (N, H, W) uint8 planes of values up to 100: the model, and a stream per plane."""
    weights = _fit(planes)
    counts = np.zeros((loops.CONTEXTS, loops.SYMBOLS), np.int64)
    buffer = np.empty(2 * planes[0].size + 16, np.uint32)  # two events a pixel at most
    traces = []
    for plane in planes:
        length = loops.trace(plane, weights.astype(np.int64), _KIND_OF, _CONTEXT_OF, _BIT_LENGTH, buffer)
        traces.append(buffer[:length].copy())
        loops.count(traces[-1], counts)
    levels = _levels(counts)
    model = _model(weights, levels)
    words = np.empty(buffer.size + 8, np.uint16)
    streams = [words[loops.encode(trace, model.slots, words) :].astype("<u2").tobytes() for trace in traces]
    return weights.astype("<i2").tobytes() + np.roll(levels, _CENTRE, axis=1).tobytes(), streams


def read_model(data: bytes | Bytes) -> Model:
    """The model from its ``MODEL_BYTES``. Raises ValueError if they cannot be one."""
    raw = np.frombuffer(data, np.uint8)
    if raw.size != MODEL_BYTES:
        raise ValueError(f"a model of {raw.size} bytes instead of {MODEL_BYTES}")
    size = 2 * loops.KINDS * loops.TAPS
    levels = np.roll(raw[size:].reshape(loops.CONTEXTS, loops.SYMBOLS), -_CENTRE, axis=1)
    if levels.max() >= len(_FREQUENCY_OF):
        raise ValueError("a model with a frequency that is none")
    return _model(raw[:size].view("<i2").reshape(loops.KINDS, loops.TAPS), levels)


def decode(stream: bytes | memoryview, model: Model, out: Bytes) -> None:
    """Fills ``out``, (H, W) uint8, contiguous. Raises ValueError if the stream does not end as it should."""
    if not 0 < out.shape[1] <= MAX_WIDTH:  # a table of the loops has an entry for each length
        raise ValueError(f"rows of {out.shape[1]:,} pixels, more than {MAX_WIDTH:,}")
    # A pixel takes four words at most, so that a damaged stream is found at the end of a row, still inside.
    words = np.zeros(len(stream) // 2 + 4 * out.shape[1] + 64, np.uint16)
    count = len(stream) // 2
    words[:count] = np.frombuffer(stream, "<u2", count)
    if count < 4 or not loops.decode(words, count, *model, _KIND_OF, _CONTEXT_OF, _BIT_LENGTH, out):
        raise ValueError("a plane's stream ends in another state than it should")


# Fitting


def _fit(planes: Bytes) -> NDArray[np.int16]:
    """(K, taps) weights: least squares over some rows, in which restless pixels count less."""
    step = min(64, max(1, planes.size // 125_000))
    squares, products = np.zeros((loops.KINDS, loops.TAPS, loops.TAPS)), np.zeros((loops.KINDS, loops.TAPS))
    loops.normal_equations(planes, step, _KIND_OF, squares, products)
    # Kinds that are hardly ever seen lean towards the weights of all.
    all_kinds = np.zeros(loops.TAPS)
    loops.solve(squares.sum(0), products.sum(0), 1e-3, all_kinds)
    weights = np.tile(all_kinds, (loops.KINDS, 1))
    for k in range(loops.KINDS):
        loops.solve(squares[k], products[k], 0.1, weights[k])
    limit = np.iinfo(np.int16).max
    scaled = np.rint(weights * (1 << loops.WEIGHT_BITS))
    weights_16: NDArray[np.int16] = scaled.clip(-limit, limit).astype(np.int16)
    return weights_16


def _levels(counts: NDArray[np.int64]) -> Bytes:
    """(X, S) frequencies as rounded logarithms."""
    share = counts * (1 << loops.SCALE_BITS) / np.maximum(counts.sum(1, keepdims=True), 1)
    levels = np.rint(3 * np.log2(np.maximum(share, 1))) + 1
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def _model(weights: NDArray[np.int16], levels: Bytes) -> Model:
    symbols = np.zeros(loops.CONTEXTS << loops.SCALE_BITS, np.uint8)
    slots = np.zeros(loops.CONTEXTS * loops.SYMBOLS, np.uint32)
    if not loops.tables(levels, _FREQUENCY_OF, symbols, slots):
        raise ValueError("a model with more symbols than a context has room for")
    return Model(weights.astype(np.int64), symbols, slots)
