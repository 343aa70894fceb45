"""Engine: a network over many images. Serves ``export-teacher``, ``test`` and validation during training.

Decoding runs ahead in threads, and resizing too, where a CUDA device would not make the same bytes of an image; pinned
images go to the device while it computes, softmax and quantisation happen there, and results are copied back
asynchronously and waited for one batch late: a CUDA device never waits for the disk. Too little memory halves
the batch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from endauda_cli.errors import ConfigError, DataError, EndaudaError
from endauda_cli.labels import read_image
from endauda_cli.progress import Note, silent
from endauda_cli.resampling import as_pillow, resize_there
from endauda_cli.segmenter import run_passes
from endauda_cli.threads import ordered_map
from endauda_cli.transforms import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.config import InferenceConfig
    from endauda_cli.progress import Reporter
    from endauda_cli.segmenter import Segmenter, Size

    UInt8 = NDArray[np.uint8]
    Decode = Callable[[Path, Segmenter], "Loaded"]


class Loaded(NamedTuple):
    """An image on its way to the network."""

    path: Path
    size: Size
    """(H, W) of the file."""
    pixels: list[Tensor]
    """(h, w, 3) uint8 RGB, resized, one per scale that is made from pixels; or the file's own."""
    sizes: tuple[Size, ...] = ()
    """(w, h) that the file's own are resized to on the device, one per scale."""


class Finished(NamedTuple):
    """An image's results, perhaps still on their way from the device."""

    path: Path
    finite: Tensor
    outputs: tuple[Tensor, ...]
    arrived: torch.cuda.Event | None


def run_network(
    segmenter: Segmenter,
    images: Sequence[Path],
    finish: Callable[[Segmenter, Sequence[Tensor], Size], tuple[Tensor, ...]],
    config: InferenceConfig,
    device: torch.device,
    report: Reporter = silent,
    decode: Decode | None = None,
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield ``finish``'s results as NumPy arrays, image by image, in order.

    Args:
        segmenter: its network is moved to the device and put into eval mode.
        images: files.
        finish: makes what is wanted of one image's passes (K, h, w) and the file's (H, W), on the device.
        config: batch size, precision, tiles, threads.
        device: where the network runs.
        report: told when the batch is halved.
        decode: gives an image as the network takes it, in as many threads as ``config`` says; by default ``load``.

    Raises:
        DataError: if an image cannot be read, or the network's output for it is not finite.
        ConfigError: if the device's memory does not suffice for one image.
    """
    finished = _run_all(segmenter, images, finish, config, device, report, _send, decode or load_for(device))
    return (tuple(output.cpu().numpy() for output in outputs) for outputs in finished)


def run_network_there(
    segmenter: Segmenter,
    images: Sequence[Path],
    finish: Callable[[Segmenter, Sequence[Tensor], Size], tuple[Tensor, ...]],
    config: InferenceConfig,
    device: torch.device,
    report: Reporter = silent,
) -> Iterator[tuple[Tensor, ...]]:
    """As ``run_network``, but what ``finish`` makes stays on the device."""
    return _run_all(segmenter, images, finish, config, device, report, _leave, load_for(device))


def _run_all(
    segmenter: Segmenter,
    images: Sequence[Path],
    finish: Callable[[Segmenter, Sequence[Tensor], Size], tuple[Tensor, ...]],
    config: InferenceConfig,
    device: torch.device,
    report: Reporter,
    send: Callable[[Path, tuple[Tensor, ...]], Finished],
    decode: Decode,
) -> Iterator[tuple[Tensor, ...]]:
    if config.tile is not None and segmenter.procedure.windows is not None:
        side = segmenter.procedure.windows.side
        report(Note(f"--tile has no effect on this network: it is run in windows of {side}x{side} anyway"))
    network = segmenter.network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    at_once = images_at_once(config.batch_size, device.type, _free_memory(device), segmenter.batches)
    runner = _Runner(replace(segmenter, network=network), finish, config, device, report, send, at_once)
    late: list[Finished] = []
    with ThreadPoolExecutor(config.workers) as pool, torch.inference_mode():
        ahead = 2 * at_once + config.workers
        loaded = ordered_map(pool, lambda path: _pinned(decode(path, segmenter), device), images, ahead)
        batches, failure = _batches(loaded, at_once), None
        while failure is None:
            try:
                batch = next(batches, None)
                ready = runner.run(batch) if batch is not None else []
            except EndaudaError as error:  # what came before it is done, and not to be lost
                failure, ready = error, []
            yield from map(_fetch, late)
            late = ready
            if not late:
                break
        if failure is not None:
            raise failure


def images_at_once(asked: int | None, kind: str, free: int, batches: bool) -> int:
    """How many images of one size go through a network together.

    What a processor gains by more of them is little, and its results stay the same bit for bit only with one number. A
    card computes many small sums at once, and waits for the host less often.

    Args:
        asked: by the user; ``None`` leaves it to this.
        kind: of device.
        free: bytes of its memory.
        batches: the network is known to take several.
    """
    if asked is not None:
        return asked
    return max(1, min(_MOST_AT_ONCE, free // _BYTES_AN_IMAGE)) if kind == "cuda" and batches else 1


_MOST_AT_ONCE = 8
"""More gain little, and what they give waits in the host's memory, 40 MB of certainties for an image of Cityscapes."""
_BYTES_AN_IMAGE = 2 << 30
"""What docs/teachers.md measured of the published networks is less, weights included; where one takes more after all,
the batch is halved."""


def _free_memory(device: torch.device) -> int:
    """Bytes of a card's memory that nobody holds, and those that torch keeps for this process."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def load(path: Path, segmenter: Segmenter, there: bool = False) -> Loaded:
    """Decode and resize an image file for a network.

    Args:
        path: the file.
        segmenter: says for which sizes.
        there: leave resizing to the device, if that gives the same bytes.
    """
    image = read_image(path)
    size, preprocessing, procedure = (
        (image.shape[0], image.shape[1]),
        segmenter.preprocessing,
        segmenter.procedure,
    )
    scales = procedure.scales if procedure.rescale == "pixels" else (1.0,)
    sizes = tuple(preprocessing.input_size(size[1], size[0], scale) for scale in scales)
    if there and all(as_pillow(size, wanted, preprocessing.filter) for wanted in sizes):
        return Loaded(path, size, [tensor_of(image)], sizes)
    return Loaded(path, size, [tensor_of(resize(image, s, preprocessing.filter)) for s in sizes])


def load_for(device: torch.device) -> Decode:
    """``load``, as that device wants it."""
    there = device.type == "cuda"
    return lambda path, segmenter: load(path, segmenter, there)


def _pinned(loaded: Loaded, device: torch.device) -> Loaded:
    """In memory that a CUDA device can fetch while it computes."""
    if device.type != "cuda":
        return loaded
    return loaded._replace(pixels=[one.pin_memory() for one in loaded.pixels])


def tensor_of(pixels: UInt8) -> Tensor:
    """The array itself if it may be written to, as torch wants it, else a copy."""
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())


def _batches(items: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Neighbours whose inputs have one size, at most ``size`` of them; those before a file that cannot be read too."""
    batch: list[Loaded] = []
    try:
        for item in items:
            if batch and (len(batch) == size or item.pixels[0].shape != batch[0].pixels[0].shape):
                yield batch
                batch = []
            batch.append(item)
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class _Runner:
    """Runs batches, smaller ones once memory did not suffice."""

    def __init__(
        self,
        segmenter: Segmenter,
        finish: Callable[[Segmenter, Sequence[Tensor], Size], tuple[Tensor, ...]],
        config: InferenceConfig,
        device: torch.device,
        report: Reporter,
        send: Callable[[Path, tuple[Tensor, ...]], Finished],
        at_once: int,
    ) -> None:
        self._segmenter, self._finish, self._config, self._device = segmenter, finish, config, device
        self._report, self._send = report, send
        self._limit = at_once

    def run(self, batch: list[Loaded]) -> list[Finished]:
        """All images of the batch, in as many parts as the memory asks for."""
        finished: list[Finished] = []
        while len(finished) < len(batch):
            part = batch[len(finished) : len(finished) + self._limit]
            try:
                finished += self._run_part(part)
                continue
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside of the except clause, whose traceback keeps the tensors alive.
            self._halve(part)
        return finished

    def _halve(self, part: list[Loaded]) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        width, height = part[0].sizes[0] if part[0].sizes else part[0].pixels[0].shape[1::-1]
        if len(part) == 1:
            slides = self._segmenter.procedure.windows is not None  # the network is in pieces already
            helps = (
                f"make it smaller, such as --size {width // 2}x{height // 2}, or use another --device"
                if slides
                else f"run it in pieces, such as --tile {width // 2}x{height // 2}"
            )
            raise ConfigError(
                f"{part[0].path}: one image of {width}x{height} does not fit into the memory of {self._device}; {helps}"
            )
        self._limit = len(part) // 2
        self._report(
            Note(
                f"{len(part)} images of {width}x{height} do not fit into the memory of {self._device}; going on "
                f"with {self._limit} at once (--batch-size {self._limit} begins so)",
                "info" if self._config.batch_size is None else "warning",
            )
        )

    def _run_part(self, part: list[Loaded]) -> list[Finished]:
        inputs = [self._to_device([image.pixels[i] for image in part]) for i in range(len(part[0].pixels))]
        if part[0].sizes:
            filter = self._segmenter.preprocessing.filter
            inputs = [resize_there(inputs[0], size, filter) for size in part[0].sizes]
        with autocast(self._device, self._config.amp, _half(self._device)):
            passes = run_passes(self._segmenter, inputs, self._config.tile)
        finished = []
        for i, image in enumerate(part):
            own = [output[i] for output in passes]
            finite = torch.stack([output.isfinite().all() for output in own]).all()
            outputs = (finite, *self._finish(self._segmenter, own, image.size))
            finished.append(self._send(image.path, outputs))
        return finished

    def _to_device(self, pixels: list[Tensor]) -> Tensor:
        return torch.stack([one.to(self._device, non_blocking=True) for one in pixels])  # (B, h, w, 3)


def _send(path: Path, outputs: tuple[Tensor, ...]) -> Finished:
    """Start copying to the host; on CUDA into pinned memory, so that the device goes on meanwhile."""
    if outputs[0].device.type != "cuda":
        return _leave(path, outputs)
    host = tuple(
        torch.empty(o.shape, dtype=o.dtype, pin_memory=True).copy_(o, non_blocking=True) for o in outputs
    )
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return Finished(path, host[0], host[1:], arrived)


def _leave(path: Path, outputs: tuple[Tensor, ...]) -> Finished:
    """Leave results on the device."""
    return Finished(path, outputs[0], outputs[1:], None)


def _fetch(finished: Finished) -> tuple[Tensor, ...]:
    if finished.arrived is not None:
        finished.arrived.synchronize()
    if not finished.finite:
        raise DataError(
            f"{finished.path}: the network's output is not finite; leave out --amp, or check weights and preprocessing"
        )
    return finished.outputs


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no error type of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def autocast(
    device: torch.device, enabled: bool, dtype: torch.dtype = torch.bfloat16
) -> torch.autocast | nullcontext[None]:
    """Half precision where asked for: bfloat16, which needs no loss scaling."""
    return torch.autocast(device.type, dtype) if enabled else nullcontext()


def _half(device: torch.device) -> torch.dtype:
    """bfloat16; float16, which inference can do with, on cards that compute in no other."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
