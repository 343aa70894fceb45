"""Engine: a network over many images. Serves ``export-teacher``, ``test`` and validation during training.

Decoding and resizing run ahead in threads, pinned batches go to the device while it computes, and results
are fetched one batch late, so that a CUDA device is never waited for while it has work.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.labels import read_image
from endauda_cli.pipeline import ordered_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from endauda_cli.config import InferenceConfig
    from endauda_cli.transforms import Preprocessing

    UInt8 = NDArray[np.uint8]

Size = tuple[int, int]
Outputs = TypeVar("Outputs", bound="tuple[Tensor, ...]")


class Loaded(NamedTuple):
    """An image on its way to the network."""

    path: Path
    size: Size
    """(H, W) of the file."""
    pixels: UInt8
    """(h, w, 3) uint8 RGB, resized."""


def certainty_maps(logits: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Logits (1, C, h, w) to a label map (H, W) and certainties (C, H, W), both uint8.

    Softmax after upsampling; certainty is percent, truncated, as archives of the follow-up project are made.
    """
    large = _resize(logits.float(), size)[0]
    return large.argmax(0).to(torch.uint8), (large.softmax(0) * 100).to(torch.uint8)


def evaluation_label(logits: Tensor, size: Size) -> tuple[Tensor]:
    """Logits (1, C, h, w) to a label map (H, W) uint8: softmax first, then upsampling, then argmax.

    The order is the reference's evaluation and differs from :func:`certainty_maps` at class borders.
    """
    return (_resize(logits.float().softmax(1), size)[0].argmax(0).to(torch.uint8),)


def run_network(
    model: nn.Module,
    preprocessing: Preprocessing,
    images: Sequence[Path],
    finish: Callable[[Tensor, Size], Outputs],
    config: InferenceConfig,
    device: torch.device,
) -> Iterator[tuple[UInt8, ...]]:
    """Yield ``finish``'s results as NumPy arrays, image by image, in order.

    Args:
        model: returns logits (B, C, h, w); moved to the device and put into eval mode.
        preprocessing: of the network.
        images: files.
        finish: makes what is wanted of one image's logits (1, C, h, w) and the file's (H, W).
        config: batch size, precision, threads.
        device: where the network runs.

    Raises:
        DataError: if an image cannot be read.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    late: list[Outputs] = []
    with ThreadPoolExecutor(config.workers) as pool, torch.inference_mode():
        loaded = ordered_map(
            pool, lambda path: _load(path, preprocessing), images, 2 * config.batch_size + config.workers
        )
        for batch in _batches(loaded, config.batch_size):
            logits = _forward(model, preprocessing, batch, config.amp, device)
            ready = [finish(logits[i : i + 1], image.size) for i, image in enumerate(batch)]
            yield from map(_fetch, late)
            late = ready
        yield from map(_fetch, late)


def _load(path: Path, preprocessing: Preprocessing) -> Loaded:
    image = read_image(path)
    return Loaded(path, (image.shape[0], image.shape[1]), preprocessing.resize(image))


def _batches(items: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    batch: list[Loaded] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _forward(
    model: nn.Module, preprocessing: Preprocessing, batch: list[Loaded], amp: bool, device: torch.device
) -> Tensor:
    pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))  # (B, h, w, 3)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    x = preprocessing.normalise(pixels.to(device, non_blocking=True))
    with autocast(device, amp):
        logits: Tensor = model(x.contiguous(memory_format=torch.channels_last))
    return logits


def autocast(device: torch.device, enabled: bool) -> torch.autocast | nullcontext[None]:
    """Half precision where asked for: bfloat16, which needs no loss scaling."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def _fetch(outputs: tuple[Tensor, ...]) -> tuple[UInt8, ...]:
    return tuple(output.cpu().numpy() for output in outputs)


def _resize(x: Tensor, size: Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
