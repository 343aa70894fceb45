"""Store: networks that come as programs: torch.export ``.pt2``, TorchScript, ONNX.

Such a file is code: opening and running it runs what its author wrote, within what the format can express. So
nothing here is called for a file that was named as weights.
"""

from __future__ import annotations

import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from endauda_cli.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SUFFIXES = (".pt2", ".onnx", ".ts", ".torchscript")
"""Of files that can only be programs; ``.pt`` and ``.pth`` may be TorchScript too, but seldom are."""

_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "Failed to allocate memory")
"""How the runtimes say it."""


class Program(nn.Module):
    """A program as a network: (B, 3, h, w) float32 to its first outputs (B, K, h', w').

    What a program turns out to say is checked on its first batch: number of classes, and whether logits are logits.
    """

    def __init__(self, path: Path, run: Callable[[Tensor], Any], batch: int | None, outputs: int) -> None:
        super().__init__()
        self._path, self._run, self._batch, self._outputs = path, run, batch, outputs
        self.expected_classes: int | None = None
        self.probabilities = False
        self._checked = False

    def train(self, mode: bool = True) -> Self:
        """Programs are what they were exported as; an exported graph refuses to be switched."""
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = torch.split(images, self._batch) if self._batch else (images,)
        outputs = [_tensors(self._call(part))[: self._outputs] for part in parts]
        joined = tuple(torch.cat(same) for same in zip(*outputs, strict=True))
        if not self._checked:
            self._check(joined)
            self._checked = True
        return joined

    def _call(self, images: Tensor) -> Any:
        try:
            return self._run(images)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # a program can fail in any way, and does where the input's size is another
            shape = "x".join(map(str, images.shape))
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self._path}: the program does not take an input of {shape} ({reason}); give the size it was "
                "exported for as [input] size in its description"
            ) from error

    def _check(self, outputs: tuple[Tensor, ...]) -> None:
        if len(outputs) < self._outputs:
            raise CheckpointError(
                f"{self._path}: the program has {len(outputs)} outputs, but [output] heads weighs {self._outputs}"
            )
        for output in outputs:
            if output.ndim != 4 or not output.is_floating_point():
                raise CheckpointError(
                    f"{self._path}: the program's output has shape {tuple(output.shape)} and type {output.dtype}, but "
                    "floats (batch, classes, height, width) were expected; export logits or probabilities"
                )
            if self.expected_classes is not None and output.shape[1] != self.expected_classes:
                raise CheckpointError(
                    f"{self._path}: the program has {output.shape[1]} outputs, but {self.expected_classes} class "
                    "names; list the names of its outputs, in order, as classes in its description"
                )
            _check_kind(self._path, output.float(), self.probabilities)


def open_program(path: Path, outputs: int = 1) -> tuple[Program, tuple[int, int] | None]:
    """A program, and the (width, height) that it is limited to, if it is.

    Args:
        path: the file; its kind is seen from its content.
        outputs: how many of its outputs are wanted.

    Raises:
        CheckpointError: if it cannot be opened, or is no program.
        ConfigError: if a package that runs it is not installed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, but a program was expected; check the path")
    kind = program_kind(path)
    if kind is None:
        raise CheckpointError(
            f"{path}: neither torch.export (.pt2), TorchScript nor ONNX; checkpoints are named with --weights"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # TorchScript is deprecated, which does not help those who have a file
            return _OPENERS[kind](path, outputs)
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # whatever a damaged file makes of its reader
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be opened as {kind} ({reason}); export it again") from error


def program_kind(path: Path) -> str | None:
    """``torch.export``, ``TorchScript``, ``ONNX``, or ``None`` for anything else."""
    if path.suffix == ".onnx":
        return "ONNX"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return None
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return "TorchScript"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "torch.export"
    return None


def _open_exported(path: Path, outputs: int) -> tuple[Program, tuple[int, int] | None]:
    exported = torch.export.load(path)
    shape = _shape_of(exported)
    module = exported.module()
    program = Program(path, module, shape[0], outputs)
    program.add_module("exported", module)  # so that .to(device) reaches its weights
    size = (shape[2], shape[1]) if shape[1] and shape[2] else None
    return program, size


def _shape_of(exported: Any) -> tuple[int | None, int | None, int | None]:
    """(batch, height, width) that the program insists on; ``None`` where it takes any."""
    signature = exported.graph_signature
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    inputs = [node for node in nodes if node.name in signature.user_inputs]
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs, but one batch of images was expected")
    shape = inputs[0].meta["val"].shape
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(
            f"it takes an input of shape {tuple(shape)}, but (batch, 3, height, width) was expected"
        )
    batch, height, width = (
        side if isinstance(side, int) else None for side in (shape[0], shape[2], shape[3])
    )
    return batch, height, width


def _open_script(path: Path, outputs: int) -> tuple[Program, tuple[int, int] | None]:
    module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    program = Program(path, module, None, outputs)
    program.add_module("script", module)
    return program, None


def _open_onnx(path: Path, outputs: int) -> tuple[Program, tuple[int, int] | None]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: ONNX needs onnxruntime; pip install 'endauda[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=onnxruntime.get_available_providers()
    )
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(f"it takes {len(inputs)} inputs, but one batch of images was expected")
    name = inputs[0].name
    half = "float16" in inputs[0].type
    batch, _, height, width = (side if isinstance(side, int) else None for side in inputs[0].shape)

    def run(images: Tensor) -> list[Tensor]:
        array = images.cpu().contiguous().numpy().astype(np.float16 if half else np.float32, copy=False)
        return [torch.from_numpy(output).to(images.device) for output in session.run(None, {name: array})]

    return Program(path, run, batch, outputs), (width, height) if width and height else None


_OPENERS: dict[str, Callable[[Path, int], tuple[Program, tuple[int, int] | None]]] = {
    "torch.export": _open_exported,
    "TorchScript": _open_script,
    "ONNX": _open_onnx,
}


def _tensors(output: Any) -> Sequence[Tensor]:
    """A program's outputs in order, whatever it wraps them in."""
    if isinstance(output, Tensor):
        return (output,)
    values = list(output.values()) if hasattr(output, "values") else list(output)
    return [value for value in values if isinstance(value, Tensor)]


def _check_kind(path: Path, output: Tensor, probabilities: bool) -> None:
    """Refuse logits that are called probabilities, and the other way round: either would pass unnoticed."""
    low, high = output.min().item(), output.max().item()
    sums = output.sum(1)
    are_probabilities = low >= -1e-3 and high <= 1.001 and bool(((sums - 1).abs() < 1e-2).all())
    if probabilities and not are_probabilities:
        raise CheckpointError(
            f"{path}: [output] kind is 'probabilities', but values go from {low:.3g} to {high:.3g}; say 'logits'"
        )
    if not probabilities and are_probabilities and output.shape[1] > 1:
        raise CheckpointError(
            f"{path}: the outputs are probabilities (they sum to 1), not logits; say kind = 'probabilities' under "
            "[output] of its description"
        )
