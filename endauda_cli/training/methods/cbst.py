"""CBST (Zou et al., 2018, arXiv 1810.07911): pseudo labels whose share is the same for every class.

What each constant is and where it is from: docs/methods.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli.domains import IGNORE
from endauda_cli.training.methods.arrays import Array, float_array, like

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def class_thresholds(probabilities: Iterable[Array], portion: float, stride: int = 1) -> Any:
    """The certainty that the surest ``portion`` of each class's pixels have at least.

    Of the n pixels that a class is predicted at, over all maps, sorted by falling probability, it is that of number
    floor(portion n), counted from 1. A class with no such pixel, for it is never predicted or too rarely, gets 1.0,
    which only a probability of 1 passes.

    Args:
        probabilities: softmax maps (C, H, W), 0..1, of any floating type and of any sizes; a generator will do, for
            each is looked at once.
        portion: 0..1.
        stride: of each map's pixels of a class, in reading order, every so manieth is counted.

    Returns:
        (C,) float32, a tensor if the first map is one, else an array.

    Raises:
        ValueError: without a map, or with another portion or stride.
    """
    if not 0 <= portion <= 1 or stride < 1:
        raise ValueError(f"portion {portion}, stride {stride}: 0 to 1, and at least 1")
    first: Array | None = None
    sure: list[list[NDArray[np.float32]]] = []
    for each in probabilities:
        values = float_array(each)
        if first is None:
            first, sure = each, [[] for _ in values]
        predicted, certainty = values.argmax(0), values.max(0)  # the lower class where two are equal
        for number in np.unique(predicted):
            sure[number].append(certainty[predicted == number][::stride])
    if first is None:
        raise ValueError("no map of probabilities")
    found = np.array([_threshold(of_class, portion) for of_class in sure], np.float32)
    return like(torch.from_numpy(found), first)


def _threshold(certainties: list[NDArray[np.float32]], portion: float) -> np.float32:
    count = math.floor(portion * sum(map(len, certainties)))
    if count == 0:
        return np.float32(1)
    every = np.concatenate(certainties)
    every.partition(len(every) - count)
    return np.float32(every[len(every) - count])


def pseudo_labels(probabilities: Array, thresholds: Array) -> Any:
    """Of every pixel the class whose probability is highest in multiples of its threshold, if that is at least one.

    Args:
        probabilities: (C, H, W), 0..1.
        thresholds: (C,), above 0, of :func:`class_thresholds`.

    Returns:
        (H, W) uint8 train ids, 255 where no class reaches its threshold; of equal classes the lowest. A tensor for a
        tensor.
    """
    weighed = _weighed(probabilities, thresholds)
    labels = weighed.argmax(0).astype(np.uint8)
    labels[~(weighed.max(0) >= 1)] = IGNORE
    return like(torch.from_numpy(labels), probabilities)


def _weighed(probabilities: Array, thresholds: Array) -> NDArray[np.float32]:
    """(C, H, W): probabilities in multiples of the thresholds."""
    values, least = float_array(probabilities), float_array(thresholds)
    if values.ndim != 3 or least.shape != values.shape[:1]:
        raise ValueError(f"probabilities {values.shape} and thresholds {least.shape}: (C, H, W) and (C,)")
    ratio: NDArray[np.float32] = values / least[:, None, None]
    return ratio
