"""Several devices or machines by ``torchrun``: rank, world size and sums over ranks; nothing without it."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import timedelta
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from endauda_cli.config import launched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

# The default of 30 minutes hides a dead rank for that long.
TIMEOUT = timedelta(minutes=10)


def rank() -> int:
    """This process's number, 0 without ``torchrun``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the work, 1 without ``torchrun``."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other ranks if ``torchrun`` started several; yields this rank's device."""
    if launched() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The tensor's sum over all ranks; the tensor itself without ``torchrun``."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def total_over_ranks(*counts: int) -> list[int]:
    """Each count's sum over all ranks; waits for all of them."""
    if world_size() == 1:
        return list(counts)
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    totals: list[int] = sum_over_ranks(torch.tensor(counts, device=device)).tolist()
    return totals


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the first one's buffers: its running statistics are the ones that are saved."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is a card, else the CPU; anything else is torch's own name for a device.

    Raises:
        ConfigError: if there is no such device.
    """
    from endauda_cli.errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta" has tensors, but nothing in them
    except (RuntimeError, AssertionError, ImportError) as error:
        # What follows the first clause are pages of advice for those who build torch.
        reason = shorten(re.split(r"[.;!](?:\s|$)|\n", str(error))[0], 120, placeholder=" ...")
        raise ConfigError(f"--device {name}: not available ({reason}); try --device auto") from error
    return device
