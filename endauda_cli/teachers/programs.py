"""Store: networks that come as programs: torch.export ``.pt2``, TorchScript, ONNX.

Such a file is code: opening and running it runs what its author wrote, within what the format can express. So
nothing here is called for a file that was named as weights.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.files import open_regular
from endauda_cli.models.reading import opened
from endauda_cli.teachers.exported import refuse_code
from endauda_cli.teachers.onnx_files import external_files
from endauda_cli.teachers.outputs import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUFFIXES = (".pt2", ".onnx", ".ts", ".torchscript")
"""Of files that can only be programs; ``.pt`` and ``.pth`` may be TorchScript too, but seldom are."""

_OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "Failed to allocate memory")
"""How the runtimes say it."""

_ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}
_ALONE = 4
"""Images of the first batch that are run alone too."""


@dataclass(frozen=True)
class Input:
    """What a program takes, as far as it tells; ``None`` where it takes any.

    Attributes:
        batch: images at once.
        height, width: of them.
        last: the channels are the last axis, not the one before height and width.
        single: one image without an axis for the batch.
        dtype: other types than float32 are made of it.
    """

    batch: int | None = None
    height: int | None = None
    width: int | None = None
    last: bool = False
    single: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height), if it is limited to that."""
        return (self.width, self.height) if self.width and self.height else None


def input_of(shape: tuple[int | None, ...], dtype: torch.dtype) -> Input:
    """The input of a declared shape.

    Raises:
        ValueError: the end of a sentence: such a shape is none of images.
    """
    single = len(shape) == 3
    sides = (None, *shape) if single else shape
    if len(sides) != 4 or (sides[1] not in (3, None) and sides[3] not in (3, None)):
        shown = ", ".join("any" if side is None else str(side) for side in shape[:8])
        raise ValueError(
            f"it takes an input of shape ({shown}), but (batch, 3, height, width) or (batch, height, width, 3) was "
            "expected"
        )
    batch, *rest = sides
    last = rest[0] != 3 and rest[2] == 3
    height, width = (rest[0], rest[1]) if last else (rest[1], rest[2])
    return Input(batch, height, width, last, single, dtype)


class Program(nn.Module):
    """A program as a network: (B, 3, h, w) float32 to its outputs that count, each (B, K, h', w').

    What a program turns out to be is checked on its first batch: which of its outputs these are, whether logits are
    logits, and whether it says the same again, and of each image alone.

    Args:
        run: takes a batch as ``takes`` says; returns tensors in whatever.
        wanted: what is expected of them.
    """

    def __init__(self, run: Callable[[Tensor], Any], takes: Input, wanted: Wanted) -> None:
        super().__init__()
        self._run, self._takes = run, takes
        self.wanted = wanted
        self._checked = False

    def train(self, mode: bool = True) -> Self:
        """Programs are what they were exported as; an exported graph refuses to be switched."""
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._outputs(images)
        if not self._checked:
            self._check(images, outputs)
            self._checked = True
        return outputs

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        size = 1 if self._takes.single else self._takes.batch
        if not size:
            return self._call(images)
        parts = []
        for part in torch.split(images, size):
            absent = size - len(part)  # a batch that is not full is filled up with its last image
            full = torch.cat([part, part[-1:].expand(absent, -1, -1, -1)]) if absent else part
            parts.append([output[: len(part)] for output in self._call(full)])
        return tuple(torch.cat(same) for same in zip(*parts, strict=True))

    def _call(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (images.shape[2], images.shape[3])
        given = self._given(images)
        try:
            result = self._run(given)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # a program can fail in any way, and does where the input's size is another
            reason = " ".join(str(error).split())
            if any(word in reason for word in _OUT_OF_MEMORY):
                raise torch.OutOfMemoryError(reason[:200]) from error
            shape = "x".join(map(str, given.shape))
            raise CheckpointError(
                f"{self.wanted.path}: the program does not take an input of {shape} ({reason:.200}); give the size it "
                "was exported for as [input] size in its description"
            ) from error
        return self.wanted.choose(_batched(result) if self._takes.single else result, size)

    def _given(self, images: Tensor) -> Tensor:
        """The batch in the program's order of axes and type."""
        takes = self._takes
        if not takes.dtype.is_floating_point:
            whole = images.round()
            if not self._checked and bool(((images - whole).abs() > 1e-3).any() | (whole < 0).any()):
                raise CheckpointError(
                    f"{self.wanted.path}: the program takes whole numbers ({takes.dtype}), so it normalises by itself; "
                    "say divisor = 1, mean = [0, 0, 0] and std = [1, 1, 1] under [input] of its description"
                )
            images = whole
        images = images.permute(0, 2, 3, 1).contiguous() if takes.last else images
        images = images if images.dtype == takes.dtype else images.to(takes.dtype)
        return images[0] if takes.single else images

    def _check(self, images: Tensor, outputs: tuple[Tensor, ...]) -> None:
        heads = self.wanted.heads or (1.0,)
        counting = [i for i, weight in enumerate(heads) if weight]
        for i in counting:
            self.wanted.check(outputs[i].float())
        half = outputs[counting[0]].dtype != torch.float32 or torch.is_autocast_enabled(images.device.type)

        def compare(others: tuple[Tensor, ...], count: slice, what: str) -> None:
            for i in counting:
                first, second = outputs[i][count].float(), others[i].float()
                self.wanted.refuse_unstable(first, second, what, half or self._takes.dtype == torch.float16)

        compare(self._outputs(images), slice(None), "the same batch is run again")
        if self._takes.single or self._takes.batch == 1:
            return
        if len(images) > 1:
            for i in range(min(len(images), _ALONE)):
                compare(self._outputs(images[i : i + 1]), slice(i, i + 1), "an image is run alone")
            return
        try:  # a batch of one image and a pale copy of it, whose statistics are others
            beside = tuple(output[:1] for output in self._outputs(torch.cat([images, _paler(images)])))
        except (
            CheckpointError,
            RuntimeError,
        ):  # it takes one at a time, or the memory does not suffice for two
            return
        compare(beside, slice(None), "another image is in its batch")


def _paler(images: Tensor) -> Tensor:
    return images / 4 if bool((images != images.round()).any()) else (images / 4).round()


def _batched(result: Any) -> Any:
    """Outputs for one image with an axis for the batch."""
    if isinstance(result, Tensor):
        return result[None]
    if hasattr(result, "items"):
        return {key: _batched(value) for key, value in result.items()}
    return [_batched(value) for value in result]


def open_program(
    path: Path,
    classes: int | None = None,
    heads: tuple[float, ...] | None = None,
    says: str = "logits",
    pair: bool = False,
) -> tuple[Program, tuple[int, int] | None]:
    """A program, and the (width, height) that it is limited to, if it is.

    Args:
        path: the file; its kind is seen from its content.
        classes, heads, says, pair: what is expected of its outputs; see :class:`Wanted`.

    Raises:
        CheckpointError: if it cannot be opened, or is no program.
        ConfigError: if a package that runs it is not installed.
    """
    with opened(path, ", but a program was expected; check the path", None):
        pass  # that it can be
    kind = program_kind(path)
    if kind is None:
        raise CheckpointError(
            f"{path}: neither torch.export (.pt2), TorchScript nor ONNX; checkpoints are named with --weights"
        )
    wanted = Wanted(path, classes, heads, says, pair)
    try:
        with _quiet():
            run, takes = _OPENERS[kind](path)
    except (CheckpointError, ConfigError):
        raise
    except ValueError as error:  # our own readers' sentences, and others'
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{path}: cannot be opened as {kind}: {reason}") from error
    except Exception as error:  # whatever a damaged file makes of its reader
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be opened as {kind} ({reason}); export it again") from error
    program = Program(run, takes, replace(wanted, last=takes.last))
    if isinstance(run, nn.Module):
        program.add_module("program", run)  # so that .to(device) reaches its weights
    return program, takes.size


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch writes about a file before it says no: its tracebacks help nobody who has the file."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, for one, which is deprecated
            yield
    finally:
        logging.disable(before)


def program_kind(path: Path) -> str | None:
    """``torch.export``, ``TorchScript``, ``ONNX``, or ``None`` for anything else."""
    if path.suffix == ".onnx":
        return "ONNX"
    try:
        with open_regular(path, None) as file, zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except Exception:  # no zip, or a damaged one
        return None
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return "TorchScript"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "torch.export"
    return None


def program_files(path: Path) -> list[Path]:
    """All files that running it reads: the program, and the weights of an ONNX graph that lie beside it.

    Raises:
        CheckpointError: if one is not there.
    """
    if program_kind(path) != "ONNX":
        return [path]
    try:
        files = [path.parent / location for location in external_files(path)]
        for file in files:
            open_regular(file, None).close()
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be opened as ONNX: {error}") from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: cannot be read ({error.strerror}), but {path.name} keeps its weights there; copy it too"
        ) from error
    return [path, *files]


def _open_exported(path: Path) -> tuple[Callable[[Tensor], Any], Input]:
    refuse_code(path)
    exported = torch.export.load(path)
    takes = _input_of_exported(exported)
    return exported.module(), takes


def _input_of_exported(exported: Any) -> Input:
    signature = exported.graph_signature
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    inputs = [node for node in nodes if node.name in signature.user_inputs]
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs, but one batch of images was expected")
    value = inputs[0].meta["val"]
    return input_of(tuple(side if isinstance(side, int) else None for side in value.shape), value.dtype)


def _open_script(path: Path) -> tuple[Callable[[Tensor], Any], Input]:
    _refuse_reaching_out(path)
    return torch.jit.load(str(path), map_location="cpu").eval(), Input()  # type: ignore[no-untyped-call]


def _refuse_reaching_out(path: Path) -> None:
    """TorchScript has no way to Python, but operators that open files."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            inside = info.filename.partition("/")[2]
            if inside.startswith("code/") and inside.endswith(".py"):
                if info.file_size > _MAX_CODE:
                    raise ValueError(f"{info.file_size:,} bytes of code are none of a network")
                code = archive.read(info)
                if found := next((word for word in _REACHES_OUT if word in code), None):
                    raise ValueError(
                        f"its code calls {found.decode()!r}, which opens files; no network needs that, and it was not "
                        "run"
                    )


_REACHES_OUT = (b"from_file(", b"torch.save(", b"aten.save(")
_MAX_CODE = 256 << 20


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Any], Input]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: ONNX needs onnxruntime; pip install 'endauda[onnx]'") from error
    program_files(path)  # refuses weights that lie elsewhere
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=onnxruntime.get_available_providers()
    )
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs, but one batch of images was expected")
    if inputs[0].type not in _ONNX_TYPES:
        raise ValueError(f"it takes a {inputs[0].type}, but a tensor of floats or of bytes was expected")
    name, outputs = inputs[0].name, [output.name for output in session.get_outputs()]
    takes = input_of(
        tuple(side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape),
        _ONNX_TYPES[inputs[0].type],
    )

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(None, {name: images.cpu().contiguous().numpy()})
        return {
            output: torch.from_numpy(array).to(images.device)
            for output, array in zip(outputs, found, strict=True)
            if hasattr(array, "dtype") and array.dtype.kind in "fiub"
        }

    return run, takes


_OPENERS: dict[str, Callable[[Path], tuple[Callable[[Tensor], Any], Input]]] = {
    "torch.export": _open_exported,
    "TorchScript": _open_script,
    "ONNX": _open_onnx,
}
