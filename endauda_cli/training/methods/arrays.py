"""Kernels take tensors and NumPy arrays alike, and give back what they were given."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Array = torch.Tensor | NDArray[np.generic]
Given = TypeVar("Given", torch.Tensor, NDArray[np.generic])


def tensor(array: Array) -> torch.Tensor:
    """The array as a tensor, which shares its memory where that is possible."""
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def float_array(array: Array) -> NDArray[np.float32]:
    """The values as float32 on the CPU; detached."""
    if isinstance(array, torch.Tensor):
        return array.detach().float().cpu().numpy()
    return np.asarray(array, np.float32)


def like(result: torch.Tensor, given: Array) -> Array:
    """The result as what was given: a tensor for a tensor, an array for an array."""
    return result if isinstance(given, torch.Tensor) else result.numpy()
