"""How fast this machine codes certainties, measured, and what that makes of the target's images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from endauda_cli.config import ArchiveOptions
from endauda_cli.doctor.devices import usable_cores
from endauda_cli.doctor.program import failure, import_quietly
from endauda_cli.progress import Tick
from endauda_cli.results import Finding
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from endauda_cli.progress import Reporter

CLASSES, HEIGHT, WIDTH = 19, 512, 1024
"""Of the generated map: a quarter of a Cityscapes image, 10 MB."""
STRIDE = 4
"""Pixels per logit each way, as networks give them."""
ROUNDS = 2


@dataclass(frozen=True)
class CodecSpeed:
    """Of one core; bytes are those of the raw planes."""

    write: float
    """Bytes per second."""
    read: float
    """Bytes per second."""
    smaller: float
    """Raw bytes per coded byte."""


@dataclass(frozen=True)
class Workload:
    """The target's images as certainties."""

    images: int
    height: int
    width: int
    classes: int

    @property
    def raw_bytes(self) -> int:
        """Of one teacher's archive, uncompressed."""
        return self.images * self.height * self.width * (self.classes + 1)


def measure_codecs(report: Reporter) -> tuple[dict[str, CodecSpeed], list[Finding]]:
    """Codes and decodes a generated map with each codec, and compares what comes back."""
    try:
        codecs = import_quietly("endauda_cli.archive").CODECS
        planes = softmax_map()
    except Exception as error:  # why is told among the packages
        return {}, [Finding("codecs", "note", f"cannot be measured: {failure(error)}")]
    speeds: dict[str, CodecSpeed] = {}
    findings = []
    for done, (codec, coder) in enumerate(codecs.items()):
        report(Tick("measuring codecs", done, len(codecs), str(codec), "codecs"))
        try:
            _code(coder, planes[:, :64, :128].copy())  # the first call compiles
            speeds[str(codec)] = max((_code(coder, planes) for _ in range(ROUNDS)), key=lambda s: s.write)
        except Exception as error:
            findings.append(Finding(str(codec), "broken", f"does not work: {failure(error)}"))
        else:
            findings.append(_finding(str(codec), speeds[str(codec)]))
    report(Tick("measuring codecs", len(codecs), len(codecs), unit="codecs"))
    return speeds, findings


def time_of(work: Workload, speeds: dict[str, CodecSpeed]) -> list[Finding]:
    """How long coding planes takes for the target's images, at most. None without the default codec's speed."""
    codec = str(Codec(ArchiveOptions().codec).of_planes)
    if codec not in speeds:
        return []
    speed, at_once = speeds[codec], usable_cores()
    write, read = (work.raw_bytes / rate / at_once for rate in (speed.write, speed.read))
    text = (
        f"{work.images} train images of {work.width}x{work.height}, {work.classes} classes: per teacher at least "
        f"{duration(write)} to export and {duration(read)} to fuse (that is {codec} alone, on {at_once:g} cores)"
    )
    return [Finding("target", "ok", text, facts={"write_seconds": write, "read_seconds": read})]


def softmax_map(classes: int = CLASSES, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Any:
    """(C, H, W) uint8, percent 0..100, like a network's: logits that are smooth at several scales, enlarged
    bilinearly, their softmax truncated."""
    import numpy as np

    rng = np.random.default_rng(seed)
    small = (height // STRIDE + 1, width // STRIDE + 1)
    prior = 2.5 * rng.standard_normal((classes, 1, 1))
    logits = np.zeros((classes, *small)) + prior
    for side, strength in ((64, 4.0), (16, 2.0), (4, 1.0), (1, 0.3)):
        blobs = rng.standard_normal((classes, *(length // side + 2 for length in small)))
        logits += strength * _enlarge(blobs, small, side)
    exponent = 1.5 * _enlarge(logits, (height, width), STRIDE)
    share = np.exp(exponent - exponent.max(0))
    return (100 * share / share.sum(0)).astype(np.uint8)


def _enlarge(field: Any, size: tuple[int, int], factor: int) -> Any:
    """(C, h, w) upsampled bilinearly by a factor, cut to ``size``."""
    import numpy as np

    for axis, length in zip((1, 2), size, strict=True):
        position = np.arange(length) / factor
        first = position.astype(int)
        part = (position - first).reshape(-1, *[1] * (2 - axis))
        field = field.take(first, axis) * (1 - part) + field.take(first + 1, axis) * part
    return field


def _code(coder: Any, planes: Any) -> CodecSpeed:
    import numpy as np

    began = time.perf_counter()
    packed = coder.pack(planes)
    written = time.perf_counter()
    unpack, back = coder.unpacker(packed.model), np.empty_like(planes)
    for chunk, plane in zip(packed.chunks, back, strict=True):
        unpack(chunk, plane)
    read = time.perf_counter()
    if not np.array_equal(planes, back):
        raise ValueError("what it decodes is not what was coded")
    size = sum(len(chunk.data) for chunk in packed.chunks) + packed.model.nbytes
    return CodecSpeed(
        planes.nbytes / (written - began), planes.nbytes / (read - written), planes.nbytes / size
    )


def _finding(codec: str, speed: CodecSpeed) -> Finding:
    text = f"{speed.write / 1e6:5.0f} write {speed.read / 1e6:5.0f} read {speed.smaller:6.1f} times smaller"
    default = " (the default)" if codec == Codec(ArchiveOptions().codec).of_planes else ""
    facts = {"write": speed.write, "read": speed.read, "smaller": speed.smaller}
    return Finding(codec, "ok", text + default, facts=facts)


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``12 min``, ``40 s``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min"
