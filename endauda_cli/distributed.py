"""Several devices or machines by ``torchrun``: rank, world size and sums over ranks; nothing without it."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import timedelta
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from endauda_cli import signals
from endauda_cli.config import launched
from endauda_cli.errors import ConfigError, EndaudaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

Value = TypeVar("Value")

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
    """Join the other ranks if ``torchrun`` started several; yields this rank's device.

    Raises:
        ConfigError: if the environment does not say where they meet, or they cannot.
        EndaudaError: if another one ends before its time.
    """
    if launched() == 1:
        yield device
        return
    _check_meeting()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or "0"))
        torch.cuda.set_device(device)
    with signals.watched():
        try:
            # What the processes tell each other in numbers does not wait for the cards.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(_not_met(error)) from error
        try:
            yield device
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
                raise
            raise EndaudaError(
                "another process of this job ended or does not answer; its own message says why"
            ) from error
        finally:
            dist.destroy_process_group()


_LOST = re.compile(
    r"(?i)connection (closed|reset) by peer|gloo.*(timed? ?out|connect|broken pipe|socket|peer)|socketTimeout"
)
"""What gloo says when another process is gone."""


def _check_meeting() -> None:
    """Refuse an environment that torchrun has not made, before torch waits or asks for one variable after another."""
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if absent:
        raise ConfigError(
            f"environment: WORLD_SIZE is {launched()}, but {' and '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not set; start with torchrun, which sets them all, or unset "
            "WORLD_SIZE"
        )
    bounds = {"RANK": launched() - 1, "MASTER_PORT": 65535}
    if os.environ.get("LOCAL_RANK"):
        bounds["LOCAL_RANK"] = max(torch.cuda.device_count(), launched()) - 1
    for name, most in bounds.items():
        text = os.environ[name]
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
            raise ConfigError(
                f"environment: {name} is {text!r:.80}, not a number from 0 to {most}; start with torchrun, which "
                "sets it"
            )


def _not_met(error: Exception) -> str:
    """Why the processes of a job did not find each other, and what helps."""
    where = f"{os.environ['MASTER_ADDR']:.80}:{os.environ['MASTER_PORT']}"
    text = str(error)
    if "EADDRINUSE" in text or "in use" in text.lower():
        return (
            f"environment: MASTER_PORT {os.environ['MASTER_PORT']} is in use by another program; name another with "
            "torchrun --master-port"
        )
    reason = shorten(re.split(r"[.;!](?:\s|$)|\n", text)[0], 160, placeholder=" ...")
    return (
        f"environment: the {launched()} processes of this job do not meet at {where} ({reason}); see that all were "
        "started, and that MASTER_ADDR and MASTER_PORT name the machine of the first"
    )


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The tensor's sum over all ranks; the tensor itself without ``torchrun``."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The tensor's mean over all ranks."""
    return sum_over_ranks(tensor) / world_size()


def gather_over_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors (N,) in a row, (world size * N,)."""
    every = tensor.new_empty(world_size() * tensor.numel())
    dist.all_gather_into_tensor(every, tensor.contiguous())
    return every


def every_ranks(value: Value) -> list[Value]:
    """The ranks' values, in their order, for all of them; of plain values and arrays that differ in size."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def total_over_ranks(*counts: int) -> list[int]:
    """Each count's sum over all ranks; waits for all of them."""
    if world_size() == 1:
        return list(counts)
    totals: list[int] = sum_over_ranks(torch.tensor(counts)).tolist()
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
