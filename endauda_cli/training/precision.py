"""What a run computes in. The loss, the weights and the optimiser are float32 whatever is chosen."""

from __future__ import annotations

import torch

from endauda_cli.errors import ConfigError
from endauda_cli.types import Precision

TENSOR_CORES = (8, 0)
"""Compute capability from which on a card has bfloat16 and TensorFloat-32."""


def chosen_precision(asked: str, device: torch.device) -> Precision:
    """What ``auto`` is on a device; anything else is itself.

    Raises:
        ConfigError: if the device has no such thing.
    """
    precision = Precision(asked)
    cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES
    if precision == Precision.AUTO:
        return Precision.BF16 if cores else Precision.FP32
    if precision == Precision.TF32 and not cores:
        raise ConfigError(f"--precision tf32: {device} has none; try --precision fp32 or bf16")
    return precision


def set_precision(precision: Precision, device: torch.device) -> None:
    """Set up torch for it, in the whole process.

    In float32 proper, cuDNN has few convolutions for dilated ones: TF32 is three to seven times as fast.
    """
    if device.type != "cuda":
        return
    kind = "ieee" if precision == Precision.FP32 else "tf32"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = True  # all batches have one shape
