"""The formats: a function each that writes a network to a file, which gives back what the network gives back."""

from __future__ import annotations

import json
import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from endauda_cli import checkpoint
from endauda_cli.errors import CheckpointError, ConfigError, EndaudaError
from endauda_cli.models.reading import SAID
from endauda_cli.models.universal import asked_in_numbers
from endauda_cli.types import Format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MOST_BATCH, _LEAST_SIDE, _MOST_SIDE = 1024, 32, 16_384


@dataclass(frozen=True)
class Wish:
    """What is written.

    Attributes:
        network: (B, 3, h, w) float32 to logits or probabilities (B, K, h', w'), in eval mode on the CPU.
        path: where to.
        side: (height, width) of its input.
        dynamic: other heights and widths too; the batch is always free.
        checkpoint: where the network is from.
        size: (width, height) that the user gave instead of the checkpoint's.
        half: computed in float16; input and output stay float32.
    """

    network: nn.Module
    path: Path
    side: tuple[int, int]
    dynamic: bool
    checkpoint: Path
    size: tuple[int, int] | None = None
    half: bool = False


class _Half(nn.Module):
    """A network that computes in float16 between float32, so that whoever runs it need not know."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, images: Tensor) -> Any:
        outputs = self.network(images.half())
        return outputs.float() if isinstance(outputs, Tensor) else tuple(one.float() for one in outputs)


def refuse_lost(wish: Wish) -> None:
    """Refuse weights that are too large for float16.

    Raises:
        CheckpointError: names one.
    """
    for key, value in wish.network.state_dict().items():
        if value.is_floating_point() and not bool(value.half().isfinite().all()):
            raise CheckpointError(
                f"{wish.checkpoint}: {key!r:.120} has values up to {float(value.abs().max()):.3g}, which float16 "
                "cannot hold; leave out --precision float16"
            )


def _traced(wish: Wish) -> tuple[nn.Module, Tensor]:
    """The network that is written, and an example of its input: of two images, for one would count as a constant."""
    import copy

    network = _Half(copy.deepcopy(wish.network)) if wish.half else wish.network
    return network.eval(), torch.zeros(2, 3, *wish.side)


def _shapes(wish: Wish) -> tuple[dict[int, Any]]:
    shapes = {0: torch.export.Dim("batch", min=1, max=_MOST_BATCH)}
    if wish.dynamic:
        for axis, name in ((2, "height"), (3, "width")):
            shapes[axis] = torch.export.Dim(name, min=_LEAST_SIDE, max=_MOST_SIDE)
    return (shapes,)


def _onnx(wish: Wish) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {' and '.join(missing)}; pip install 'endauda[deploy]'")
    network, example = _traced(wish)
    with _unchecked():
        torch.onnx.export(
            network, (example,), wish.path, dynamo=True, external_data=False, verbose=False,
            input_names=["image"], output_names=["logits"], dynamic_shapes=_shapes(wish),
        )  # fmt: skip


def _pt2(wish: Wish) -> None:
    network, example = _traced(wish)
    exported = torch.export.export(network, (example,), dynamic_shapes=_shapes(wish), strict=False)
    torch.export.save(exported, wish.path)


def _torchscript(wish: Wish) -> None:
    network, example = _traced(wish)
    traced: Any = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
    traced.save(str(wish.path))


def _safetensors(wish: Wish) -> None:
    """The checkpoint's weights under its own keys, with what it says of itself; it takes no library."""
    if wish.checkpoint.is_dir():
        raise CheckpointError(
            f"{wish.checkpoint}: a library's folder, which has model.safetensors already; name another --format"
        )
    content = checkpoint.load(wish.checkpoint)
    meta = content["meta"] | ({"size": list(wish.size)} if wish.size is not None else {})
    header: dict[str, Any] = {"__metadata__": {"format": "pt", SAID: json.dumps(meta)}}
    blocks, at = [], 0
    for key, value in content["weights"].items():
        value = value.half() if wish.half and value.is_floating_point() else value
        block = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[key] = {
            "dtype": _KINDS[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + len(block)]
        }  # fmt: skip
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that tensors begin where they can be mapped
    with wish.path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(blocks)


_KINDS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Writer:
    """A row of the table.

    Attributes:
        ending: of its files, with the dot.
        make: writes one.
        is_program: it runs by itself; else it holds weights alone.
    """

    ending: str
    make: Callable[[Wish], None]
    is_program: bool = True

    def write(self, wish: Wish) -> None:
        """Write the file.

        Raises:
            EndaudaError: if the network cannot be written so.
        """
        try:
            with _quiet(), torch.no_grad(), asked_in_numbers(wish.network):
                self.make(wish)
        except (EndaudaError, OSError, MemoryError):
            raise
        except Exception as error:  # an exporter fails with whatever it meets in a network
            free = "; give --fixed" if wish.dynamic else "; name another --format"
            raise CheckpointError(
                f"{wish.checkpoint}: the network cannot be written as {wish.path.suffix[1:]} "
                f"({' '.join(str(error).split()):.200}){free}"
            ) from error


FORMATS = {
    Format.ONNX: Writer(".onnx", _onnx),
    Format.PT2: Writer(".pt2", _pt2),
    Format.TORCHSCRIPT: Writer(".ts", _torchscript),
    Format.SAFETENSORS: Writer(".safetensors", _safetensors, is_program=False),
}


@contextmanager
def _unchecked() -> Iterator[None]:
    """While open, transformers leaves out its checks of values within a network, for which ONNX has no operator."""
    before = os.environ.get(_NO_CHECKS)
    os.environ[_NO_CHECKS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CHECKS]
        else:
            os.environ[_NO_CHECKS] = before


_NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
