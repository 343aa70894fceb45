"""Batches on their way to the device: the next one is copied while the current one is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor


class Crops(NamedTuple):
    """A stream's part of a batch."""

    pixels: Tensor
    """(B, h, w, 3) uint8 RGB, before any photometric change."""
    labels: Tensor
    """(B, h, w) uint8 train ids, 255 = none."""
    changes: Tensor
    """(B, n) float32: what ``augmentation.augment`` does to each."""
    certainties: Tensor | None = None
    """(B, ...) uint8, if the rows have some."""


class Fed(NamedTuple):
    """What a step is given."""

    step: int
    streams: Mapping[str, Crops]
    labelled: int
    """Pixels with a label, in this rank's part of the batch: counted on the CPU, so that nobody asks the device."""


def feed(batches: Iterable[Fed], device: torch.device) -> Iterator[Fed]:
    """The batches on the device."""
    return _copied_ahead(batches, device) if device.type == "cuda" else iter(batches)


def _copied_ahead(batches: Iterable[Fed], device: torch.device) -> Iterator[Fed]:
    """Copied on a stream of its own, from two sets of page-locked buffers in turn that are made once."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    sets: tuple[dict[tuple[str, int], Tensor], dict[tuple[str, int], Tensor]] = ({}, {})
    copied: list[torch.cuda.Event | None] = [None, None]
    waiting: tuple[Fed, torch.cuda.Event] | None = None
    for number, batch in enumerate(batches):
        buffers, before = sets[number % 2], copied[number % 2]
        if before is not None:
            before.synchronize()  # of two batches ago: long done
        streams = {}
        with torch.cuda.stream(side):
            for name, tensors in batch.streams.items():
                moved = []
                for place, tensor in enumerate(tensors):
                    if tensor is None:
                        continue
                    key = name, place
                    if key not in buffers or buffers[key].shape != tensor.shape:
                        buffers[key] = torch.empty_like(tensor, pin_memory=True)
                    moved.append(buffers[key].copy_(tensor).to(device, non_blocking=True))
                streams[name] = Crops(*moved)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(side)
        copied[number % 2] = done
        if waiting is not None:
            yield _ready(*waiting)
        waiting = Fed(batch.step, streams, batch.labelled), done
    if waiting is not None:
        yield _ready(*waiting)


def _ready(batch: Fed, copied: torch.cuda.Event) -> Fed:
    """The batch for the stream that computes, which waits for the copy; the process does not."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensors in batch.streams.values():
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(current)
    return batch
