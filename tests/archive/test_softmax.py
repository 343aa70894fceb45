"""The codec for softmax planes: lossless for anything, dense where it should be, and unharmed by hostile bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from endauda_cli.archive import CODECS
from endauda_cli.archive.codecs import softmax_loops as loops
from endauda_cli.archive.codecs import softmax_planes as softmax
from endauda_cli.archive.codecs.softmax_planes import MODEL_BYTES
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from pathlib import Path

Bytes = NDArray[np.uint8]


def round_trip(planes: Bytes) -> Bytes:
    model, streams = softmax.encode(planes)
    assert len(model) == MODEL_BYTES and len(streams) == len(planes)
    back = np.full_like(planes, 255)
    for stream, plane in zip(streams, back, strict=True):
        softmax.decode(stream, softmax.read_model(model), plane)
    return back


def network_like(seed: int, classes: int, height: int, width: int) -> Bytes:
    """A softmax of smooth logits, truncated to percent."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 9.0
    phases = generator.uniform(0, 6, (classes, 4))
    logits = np.stack([8 * np.sin(x * a / 6 + b) * np.cos(y * c / 6 + d) for a, b, c, d in phases])
    weights = np.exp(logits - logits.max(0))
    percent: Bytes = (100 * weights / weights.sum(0)).astype(np.uint8)
    return percent


def rough(seed: int, classes: int, height: int, width: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 101, (classes, height, width)).astype(np.uint8)


def patches(seed: int, classes: int, height: int, width: int) -> Bytes:
    """Flat areas that end anywhere, of extreme values."""
    generator = np.random.default_rng(seed)
    values = np.array([0, 0, 0, 1, 99, 100])
    jumps = generator.choice(values, (classes, height, width)) * (
        generator.random((classes, height, width)) < 0.03
    )
    levels: Bytes = jumps.cumsum(2).clip(0, 100).astype(np.uint8)
    return levels


@given(
    make=st.sampled_from((network_like, rough, patches)),
    seed=st.integers(0, 1000),
    classes=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 70),
)
@settings(max_examples=150, deadline=None)
def test_lossless(make: object, seed: int, classes: int, height: int, width: int) -> None:
    assert callable(make)
    planes = make(seed, classes, height, width)
    assert np.array_equal(round_trip(planes), planes)


@pytest.mark.parametrize("width", [1023, 1026, 2050, 65_535])
def test_runs_that_end_anywhere_in_long_rows(width: int) -> None:
    """Where a run ends takes up to 16 bits, which is more than one step of the coder holds."""
    planes = np.zeros((1, 4, width), np.uint8)
    generator = np.random.default_rng(width)
    for y in range(4):
        planes[0, y, generator.integers(0, width, 3)] = generator.integers(1, 101, 3)
    planes[0, 3, -1] = 100
    assert np.array_equal(round_trip(planes), planes)


def test_wider_images_take_another_codec() -> None:
    assert CODECS[Codec.SOFTMAX].fits(1, 65_535) and not CODECS[Codec.SOFTMAX].fits(1, 65_536)


@pytest.mark.slow
def test_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    """A rerun must make the archive that an undisturbed run would have made."""
    np.save(tmp_path / "planes.npy", network_like(3, 4, 60, 80))
    program = f"""
import hashlib, numpy as np
from endauda_cli.archive.codecs import softmax_planes as softmax
model, streams = softmax.encode(np.load({str(tmp_path / "planes.npy")!r}))
print(hashlib.sha256(model + b"".join(streams)).hexdigest())
"""
    digests = {
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_denser_than_jpegls() -> None:
    planes = network_like(0, 8, 200, 320)
    sizes = {}
    for codec in (Codec.SOFTMAX, Codec.JPEGLS, Codec.ZSTD):
        packed = CODECS[codec].pack(planes)
        sizes[codec] = sum(len(chunk.data) for chunk in packed.chunks)
    assert 1.2 * sizes[Codec.SOFTMAX] < sizes[Codec.JPEGLS] < sizes[Codec.ZSTD]


@given(data=st.binary(max_size=400), seed=st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_hostile_streams_end_in_an_error(data: bytes, seed: int) -> None:
    """Never outside the arrays, and (but for one in 2^32) never as if nothing were wrong."""
    planes = network_like(seed, 2, 20, 30)
    model, streams = softmax.encode(planes)
    out = np.empty_like(planes[0])
    if data[: len(data) // 2 * 2] not in streams:
        with pytest.raises(ValueError, match="ends in another state"):
            softmax.decode(data, softmax.read_model(model), out)
    with pytest.raises(ValueError, match="ends in another state"):
        softmax.decode(streams[0][:-2], softmax.read_model(model), out)


@given(seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_hostile_models_stay_inside(seed: int) -> None:
    planes = network_like(seed % 7, 2, 20, 30)
    model, streams = softmax.encode(planes)
    generator = np.random.default_rng(seed)
    damaged = np.frombuffer(model, np.uint8).copy()
    where = generator.integers(0, damaged.size, 40)
    damaged[where] = generator.integers(0, 36, 40)
    memory = np.full((3, 20, 30), 77, np.uint8)
    with contextlib.suppress(ValueError):
        softmax.decode(streams[0], softmax.read_model(damaged), memory[1])
    assert (memory[[0, 2]] == 77).all()
    with pytest.raises(ValueError, match=f"a model of 3 bytes instead of {MODEL_BYTES}"):
        softmax.read_model(b"abc")
    damaged[-1] = 200
    with pytest.raises(ValueError, match="a frequency that is none"):
        softmax.read_model(damaged)


def test_refuses_a_model_of_too_many_symbols() -> None:
    """Half of them frequent and half rare, more than any counting gives: their slots would not fit in memory."""
    levels = np.ones((loops.CONTEXTS, loops.SYMBOLS), np.uint8)
    levels[:, 50:] = 36
    with pytest.raises(ValueError, match="more symbols than a context has room for"):
        softmax.read_model(bytes(MODEL_BYTES - levels.size) + levels.tobytes())
