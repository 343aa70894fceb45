"""Weights and inputs that any machine can make again, for comparison with golden files.

The golden files under ``tests/data`` hold what the reference implementation computed from exactly
these numbers; see the docstrings for the recipe.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.random import Generator, Philox
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


def recipe_weights(model: nn.Module, scale: float = 1.0) -> dict[str, Tensor]:
    """Fill ``model`` in place with the recipe's weights, and return them as a state dict.

    Every entry is drawn by its own generator, ``Philox(crc32(key))``, in float64 and then cast to
    float32; so an entry depends on its key and shape alone. Weights of convolutions get the
    variance 2 / fan-in, weights of norms lie around 1, and everything else is small.

    ``scale`` multiplies the convolutions' weights after the cast. At 1 ("recipe A") activations of
    a deep ResNet reach 1e11; at 0.5 ("recipe B") small terms such as biases stay visible.
    Where two keys share one tensor (mobilenet), the later one wins.
    """
    weights = {key: _recipe_entry(key, entry, scale) for key, entry in model.state_dict().items()}
    model.load_state_dict(weights, strict=True)
    return weights


def recipe_input(shape: Sequence[int], seed: int = 20210429) -> Tensor:
    """Images ``shape`` = (B, 3, H, W), float32: normal with standard deviation 50, from ``Philox(seed)``."""
    values = Generator(Philox(seed)).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(values) * 50


def describe(name: str, module: nn.Module) -> list[object] | None:
    """A layer as in the golden files; None for a container."""
    settings: dict[str, object]
    if isinstance(module, nn.Conv2d):
        settings = {
            "cin": module.in_channels,
            "cout": module.out_channels,
            "kernel": list(module.kernel_size),
            "stride": list(module.stride),
            "padding": list(module.padding),
            "dilation": list(module.dilation),
            "groups": module.groups,
            "bias": module.bias is not None,
            "train": module.weight.requires_grad,
        }
        return [name, "Conv2d", settings]
    if isinstance(module, nn.BatchNorm2d):
        settings = {
            "ch": module.num_features,
            "eps": module.eps,
            "momentum": module.momentum,
            "train": module.weight.requires_grad,
        }
        return [name, "BatchNorm2d", settings]
    if isinstance(module, nn.MaxPool2d):
        settings = {
            "kernel": module.kernel_size,
            "stride": module.stride,
            "padding": module.padding,
            "ceil_mode": module.ceil_mode,
        }
        return [name, "MaxPool2d", settings]
    if isinstance(module, nn.GroupNorm):
        return [
            name,
            "GroupNorm",
            {"groups": module.num_groups, "ch": module.num_channels, "eps": module.eps},
        ]
    if isinstance(module, nn.Linear):
        return [name, "Linear", {"fin": module.in_features, "fout": module.out_features}]
    if isinstance(module, nn.Dropout | nn.Dropout2d):
        return [name, type(module).__name__, {"p": module.p}]
    if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Sigmoid | nn.AdaptiveAvgPool2d):
        return [name, type(module).__name__, {}]
    return None


def _recipe_entry(key: str, like: Tensor, scale: float) -> Tensor:
    kind = key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    normal = Generator(Philox(zlib.crc32(key.encode()))).standard_normal(tuple(like.shape))
    if kind == "weight" and like.ndim >= 2:
        fan_in = int(np.prod(like.shape[1:]))
        return _float32(normal * np.sqrt(2 / fan_in)) * scale
    values = {
        "weight": lambda: 1 + 0.1 * normal,
        "bias": lambda: 0.1 * normal,
        "running_mean": lambda: 0.1 * normal,
        "running_var": lambda: 0.5 + 0.5 * np.abs(normal),
    }
    return _float32(values[kind]())


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
