"""An ONNX file in int8, by onnxruntime's quantiser."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class _Reader:
    """What the quantiser measures ranges on."""

    def __init__(self, inputs: Iterator[NDArray[np.float32]]) -> None:
        self._inputs = inputs

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._inputs, None)
        return None if image is None else {"image": image}


def quantise(path: Path, inputs: Iterator[NDArray[np.float32]]) -> None:
    """Turn the float32 file into int8, in place: weights per channel, and the layers' inputs.

    Args:
        path: the ONNX file.
        inputs: (1, 3, h, w) float32 each; the ranges of the layers' inputs are measured on them. Without any they are
            found for each image as it runs, which takes longer.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static

    first = next(inputs, None)
    made = path.with_name(f"int8-{path.name}")
    common: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it advises on preparing the file, which changes nothing here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if first is None:
                # onnxruntime has signed products of whole numbers for matrices, unsigned ones for convolutions.
                quantize_dynamic(path, made, per_channel=True, weight_type=QuantType.QUInt8)
            else:
                reader: Any = _Reader(_again(first, inputs))
                quantize_static(
                    path,
                    made,
                    reader,
                    activation_type=QuantType.QUInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    **common,
                )
    finally:
        logging.disable(before)
    made.replace(path)


def _again(first: NDArray[np.float32], rest: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    yield first
    yield from rest
