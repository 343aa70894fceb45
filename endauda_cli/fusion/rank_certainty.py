"""Engine: ``delta``, the typical certainty of each rank, by which the soft-label rule calibrates teachers.

At rank 0 stands the least certain class of a pixel, at rank C-1 the most certain one. Percent, ascending.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import ConfigError
from endauda_cli.files import read_text
from endauda_cli.fusion.array_files import MALFORMED, read_npy
from endauda_cli.progress import Reporter, counted
from endauda_cli.workspace import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs

DELTA_FILE = "delta.json"
SAMPLED_IMAGES = 64
STEP = 4
"""Of every how many pixels, each way, the certainties are looked at: neighbours say the same."""


def delta_for(
    given: str | None,
    readers: Mapping[str, TeacherOutputs],
    ids: Sequence[str],
    num_classes: int,
    out: Path,
    report: Reporter,
) -> tuple[tuple[float, ...], dict[str, Any] | None]:
    """``delta`` from a file, or estimated; the estimate of an earlier run on the same data is used again.

    Returns:
        delta, and of an estimate the record to write to ``out`` / ``delta.json``, which ``--delta`` reads back.

    Raises:
        ConfigError: if the file is wrong.
        ArchiveError: if certainties are damaged.
    """
    if given is not None:
        return read_delta(Path(given), num_classes), None
    sampled = ids[:: max(1, -(-len(ids) // SAMPLED_IMAGES))]
    digests = "".join(reader.digest(image) for reader in readers.values() for image in sampled)
    made_of = hashlib.sha256(digests.encode()).hexdigest()
    record = read_json(out / DELTA_FILE) or {}
    if record.get("made_of") == made_of:
        with suppress(ConfigError):  # damaged: it is estimated again
            return _checked(_numbers(record.get("delta")), num_classes, out / DELTA_FILE), record
    values = estimate_delta(readers, sampled, report)
    return values, {"delta": values, "images": len(sampled), "teachers": list(readers), "made_of": made_of}


def estimate_delta(
    readers: Mapping[str, TeacherOutputs], ids: Sequence[str], report: Reporter
) -> tuple[float, ...]:
    """The mean over teachers and pixels of the sorted certainties; of every 4th pixel each way."""
    total, pixels = np.zeros(1), 0
    for image in counted(ids, len(ids), "certainty by rank", report):
        for reader in readers.values():
            certainty = reader.certainty(image)[:, ::STEP, ::STEP]
            ordered = np.sort(certainty.reshape(len(certainty), -1), axis=0)  # (C, S)
            total = total + ordered.sum(1, dtype=np.int64)
            pixels += ordered.shape[1]
    return tuple(float(value) for value in total / pixels)


def read_delta(path: Path, num_classes: int) -> tuple[float, ...]:
    """C ascending percentages from a ``.npy``, or from JSON: a list, or ``delta.json`` as it is written here.

    Raises:
        ConfigError: if the file is absent, of another form or length, not ascending, or not percent.
    """
    return _checked(_load(path), num_classes, path)


def _checked(values: NDArray[np.float64], num_classes: int, path: Path) -> tuple[float, ...]:
    if values.ndim != 1 or len(values) != num_classes:
        found = f"{len(values)} values" if values.ndim == 1 else f"an array of shape {values.shape}"
        raise ConfigError(f"--delta {path}: {found}, but there are {num_classes} classes; expected one each")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 100:
        raise ConfigError(f"--delta {path}: values must be percent, 0 to 100")
    if (np.diff(values) < 0).any():
        raise ConfigError(
            f"--delta {path}: values must ascend, from the least certain class's to the most certain one's"
        )
    if values.max() <= 1:
        raise ConfigError(f"--delta {path}: values are percent, 0 to 100, not 0 to 1; multiply them by 100")
    return tuple(float(value) for value in values)


def _load(path: Path) -> NDArray[np.float64]:
    try:
        if path.suffix == ".npy":
            return read_npy(path).astype(np.float64)
        content = json.loads(read_text(path))
        return _numbers(content["delta"] if isinstance(content, dict) else content)
    except FileNotFoundError as error:
        raise ConfigError(f"--delta {path}: no such file") from error
    except (*MALFORMED, ConfigError) as error:
        raise ConfigError(
            f"--delta {path}: neither a NumPy file nor a JSON list of numbers ({error!s:.120})"
        ) from error


def _numbers(values: Any) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"no list of numbers ({error})") from error
