"""Kernels: a network with all that lies between an image's pixels and the certainties of its classes.

Research code differs here more than in its networks: which sizes are run, mirrored or not, whether what is
averaged over these passes are logits or probabilities, and whether the softmax comes before or after upsampling.
Each of these is a field of ``Procedure``; a project's test-time code is one value of it.

Shapes in comments: B batch, C classes (K of the network, where a class map joins them), h and w the network's
output, H and W the image file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

from endauda_cli.domains import IGNORE
from endauda_cli.errors import ConfigError
from endauda_cli.transforms import Preprocessing, on_device, window_starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

Size = tuple[int, int]
"""(H, W)."""

Softmax = Literal["first", "upsampled", "last", "none", "scores"]
"""Where the softmax comes: of each pass at the network's resolution (``first``) or once upsampled, the passes'
probabilities then being averaged; of the average of upsampled logits (``last``); or the network did it (``none``).

``scores`` are no softmax: each mask of a universal segmenter gives a pixel its probability times those of its classes,
and they are summed over the masks. Where one mask claims a pixel they sum to about 1, as a softmax does; where several
do, to more, and are divided by their sum; where none does, to less, and stay: what nobody claims is not dealt out."""

_BAND_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}
"""Floats that are worked on at once: a CPU's cache is small, a card wants few large pieces."""
_LEAST = 1e-12
"""Probabilities below this count as it, where a logarithm is taken."""


class Pass(NamedTuple):
    """One run of the network: factor on the input's size, mirrored left to right or not."""

    scale: float
    flip: bool


@dataclass(frozen=True)
class Windows:
    """Pieces that a network is run over, one after the other; where they overlap, their logits are averaged.

    Attributes:
        side: of a square window, in pixels of the input; a shorter input has shorter ones.
        stride: from one to the next; the last one ends with the input.
        multiple_of: sides of shorter ones are padded to it with 0, normalised, and what is said there is cut off.
    """

    side: int
    stride: int
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.side or self.side % self.multiple_of:
            raise ConfigError(
                f"windows of {self.side} every {self.stride} pixels: they must be multiples of {self.multiple_of} and "
                "leave no gap"
            )


@dataclass(frozen=True)
class Procedure:
    """How a network is run over an image and its outputs become one set of probabilities.

    Attributes:
        scales: factors on the preprocessing's size; each is a pass.
        flip: each scale is also run mirrored.
        rescale: other scales are made from the image's ``pixels`` by the preprocessing's filter, or from the
            normalised ``input``, bilinearly.
        softmax: see ``Softmax``.
        heads: weights in the sum of a network's outputs, one per head.
        align_corners: convention of the bilinear upsampling.
        enlarge: ``bicubic`` enlarges to the input's size as Pillow does, before anything else; ``twice`` bilinearly
            to the input's size and from there to the image's.
        windows: in which the network is run over each pass's input; the output has the input's size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    rescale: Literal["pixels", "input"] = "pixels"
    softmax: Softmax = "last"
    heads: tuple[float, ...] = (1.0,)
    align_corners: bool = True
    enlarge: Literal["bilinear", "bicubic", "twice"] = "bilinear"
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.05 <= scale <= 20 for scale in self.scales):
            raise ConfigError(f"--scales {', '.join(f'{s:g}' for s in self.scales)}: each from 0.05 to 20")
        if self.softmax not in get_args(Softmax):
            raise ConfigError(f"softmax {self.softmax!r}: one of {', '.join(get_args(Softmax))}")

    @property
    def passes(self) -> list[Pass]:
        return [
            Pass(scale, flip) for scale in self.scales for flip in ((False, True) if self.flip else (False,))
        ]

    def with_passes(self, scales: tuple[float, ...] | None, flip: bool | None) -> Procedure:
        """The same with other scales and flips; ``None`` leaves them."""
        return replace(
            self, scales=self.scales if scales is None else scales, flip=self.flip if flip is None else flip
        )

    def facts(self) -> dict[str, Any]:
        """What an archive says about it."""
        told: dict[str, Any] = {} if self.enlarge == "bilinear" else {"enlarge": self.enlarge}
        if self.windows is not None:
            told["windows"] = [self.windows.side, self.windows.stride]
        return told | {
            "scales": list(self.scales),
            "flip": self.flip,
            "heads": list(self.heads),
            "align_corners": self.align_corners,
            "softmax": {
                "first": "before upsampling",
                "upsampled": "after upsampling, per pass",
                "last": "after upsampling",
                "none": "by the network",
                "scores": "of each mask's classes, summed over masks",
            }[self.softmax],
        }


@dataclass(frozen=True)
class ClassMap:
    """Which of the task's classes each of a network's outputs counts for; ``None`` for none of them.

    Outputs of one class are added up. What a network gives to outputs of no class is not dealt out to the
    others: their certainties stay what they are, and where such an output is the likeliest the label is 255.
    """

    outputs: tuple[str, ...]
    targets: tuple[int | None, ...]
    num_classes: int

    @classmethod
    def by_name(
        cls, outputs: Sequence[str], classes: Sequence[str], names: Mapping[str, str] | None = None
    ) -> ClassMap:
        """Outputs joined with ``classes`` by name, or by what ``names`` calls them ("" for no class)."""
        names = names or {}
        called = [names.get(output, output) for output in outputs]
        targets = tuple(classes.index(name) if name in classes else None for name in called)
        return cls(tuple(outputs), targets, len(classes))

    @property
    def is_identity(self) -> bool:
        return self.targets == tuple(range(self.num_classes))

    @property
    def absent(self) -> list[int]:
        """Classes that no output counts for."""
        return [c for c in range(self.num_classes) if c not in self.targets]

    def merge(self, probabilities: Tensor) -> tuple[Tensor, Tensor | None]:
        """(K, ...) of the outputs to (C, ...) of the classes, and the likeliest output (...) of no class."""
        device = probabilities.device
        kept = on_device([k for k, target in enumerate(self.targets) if target is not None], device)
        classes = on_device([target for target in self.targets if target is not None], device)
        dropped = [k for k, target in enumerate(self.targets) if target is None]
        merged = probabilities.new_zeros(self.num_classes, *probabilities.shape[1:])
        merged.index_add_(0, classes, probabilities.index_select(0, kept))
        if not dropped:
            return merged, None
        return merged, probabilities.index_select(0, on_device(dropped, device)).amax(0)

    def facts(self, classes: Sequence[str]) -> dict[str, str]:
        """Output -> class in words, "" for none, as an archive has it."""
        pairs = zip(self.outputs, self.targets, strict=True)
        return {output: "" if target is None else classes[target] for output, target in pairs}


@dataclass(frozen=True)
class Segmenter:
    """A network, what it wants as input, and what is done with its output.

    ``network`` maps (B, 3, h, w) to logits or probabilities (B, K, h', w') or to several of them, one per head.
    """

    network: nn.Module
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    procedure: Procedure = field(default_factory=Procedure)
    class_map: ClassMap | None = None
    temperature: float = 1.0
    batches: bool = False
    """Whether it is known to take several images at once, and to say of each what it says of it alone."""


# ---------------------------------------------------------------------------- running


def run_passes(segmenter: Segmenter, inputs: Sequence[Tensor], tile: Size | None = None) -> list[Tensor]:
    """Each pass's output (B, K, h, w): heads summed, mirrored back, padding cut off; probabilities if ``softmax``
    is ``first``.

    Args:
        segmenter: what is run.
        inputs: (B, h, w, 3) uint8 RGB, one per scale if scales are made from pixels, else one.
        tile: (height, width) of the pieces in which larger inputs are run, or ``None``.
    """
    procedure, preprocessing = segmenter.procedure, segmenter.preprocessing
    outputs = []
    for position, scale in enumerate(procedure.scales):
        x = preprocessing.normalise(inputs[position if procedure.rescale == "pixels" else 0])
        if procedure.rescale == "input" and scale != 1:
            size = (round(x.shape[2] * scale), round(x.shape[3] * scale))
            x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        content = x.shape[-2:]
        x = preprocessing.pad(x)
        for flip in (False, True) if procedure.flip else (False,):
            y = _run(segmenter, x.flip(-1) if flip else x, tile)
            y = y.flip(-1) if flip else y
            if procedure.softmax == "first":
                y = y.softmax(1)
            if procedure.enlarge == "bicubic":
                y = F.interpolate(
                    y, x.shape[-2:], mode="bicubic", antialias=True
                )  # Pillow's, of float images
            elif procedure.enlarge == "twice" or x.shape[-2:] != content:
                y = _resize(y, x.shape[-2:], procedure.align_corners)
            if x.shape[-2:] != content:
                y = y[..., : content[0], : content[1]]
            outputs.append(y)
    return outputs


def _run(segmenter: Segmenter, x: Tensor, tile: Size | None) -> Tensor:
    """Sum of the heads (B, K, h, w), float32; of windows, or an input larger than ``tile``, at the input's size."""
    if segmenter.procedure.windows is not None:
        return _slide(segmenter, x, segmenter.procedure.windows)
    if tile is None or (x.shape[2] <= tile[0] and x.shape[3] <= tile[1]):
        return _sum_heads(segmenter, x)
    height, width = min(tile[0], x.shape[2]), min(tile[1], x.shape[3])
    weights = _ramp(height, width, x.device)
    total, norm = None, x.new_zeros(x.shape[2], x.shape[3])
    for top in _starts(x.shape[2], height):
        for left in _starts(x.shape[3], width):
            window = (..., slice(top, top + height), slice(left, left + width))
            y = _resize(_sum_heads(segmenter, x[window]), (height, width), segmenter.procedure.align_corners)
            if total is None:
                total = y.new_zeros(*y.shape[:2], *x.shape[2:])
            total[window] += y * weights
            norm[window] += weights
    assert total is not None
    return total / norm


def _slide(segmenter: Segmenter, x: Tensor, windows: Windows) -> Tensor:
    """Mean of the windows' heads (B, K, h, w) at the input's size; one window is in memory at a time."""
    height, width = (min(windows.side, side) for side in x.shape[2:])
    below, right = (-side % windows.multiple_of for side in (height, width))
    total, count = None, x.new_zeros(x.shape[2:])
    for top in window_starts(x.shape[2], windows.side, windows.stride):
        for left in window_starts(x.shape[3], windows.side, windows.stride):
            place = (..., slice(top, top + height), slice(left, left + width))
            y = _sum_heads(segmenter, F.pad(x[place], (0, right, 0, below)))
            y = _resize(y, (height + below, width + right), segmenter.procedure.align_corners)
            if total is None:
                total = y.new_zeros(*y.shape[:2], *x.shape[2:])
            total[place] += y[..., :height, :width]
            count[place] += 1
    assert total is not None
    return total.div_(count)


def _sum_heads(segmenter: Segmenter, x: Tensor) -> Tensor:
    output = segmenter.network(x.contiguous(memory_format=torch.channels_last))
    heads = [output] if isinstance(output, torch.Tensor) else list(output)
    summed = None
    for weight, head in zip(segmenter.procedure.heads, heads, strict=True):
        if weight == 0:  # left out, so its size may be another
            continue
        part = head.float() if weight == 1 else weight * head.float()
        summed = part if summed is None else summed + part
    assert summed is not None
    return summed


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover ``length``, neighbours sharing a quarter or more."""
    count = 1 + -(-(length - window) // max(1, window - window // 4))
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def _ramp(height: int, width: int, device: torch.device) -> Tensor:
    """Weights (height, width) that fall towards the border, where a network sees least around a pixel."""

    def side(length: int) -> Tensor:
        from_border = torch.arange(length, device=device).minimum(torch.arange(length, device=device).flip(0))
        return (from_border + 1) / ((length + 1) // 2)

    return side(height)[:, None] * side(width)


# ---------------------------------------------------------------------------- finishing


class Band(NamedTuple):
    """Rows ``first`` to ``last`` (exclusive) of the result."""

    first: int
    last: int
    values: Tensor
    """(K, rows, W): logits if the procedure's softmax is ``last``, else probabilities."""


def bands(segmenter: Segmenter, passes: Sequence[Tensor], size: Size) -> Iterator[Band]:
    """One image's passes (K, h, w), upsampled and averaged, band by band: so it needs little memory."""
    weighted = (
        averaged(passes)
        if segmenter.procedure.softmax != "upsampled"
        else [(1 / len(passes), p) for p in passes]
    )
    first = weighted[0][1]
    row_bytes = first.shape[0] * size[1] * first.element_size()
    step = max(1, _BAND_BYTES.get(first.device.type, _BAND_BYTES["cpu"]) // row_bytes)
    for start in range(0, size[0], step):
        stop = min(start + step, size[0])
        total = None
        for weight, output in weighted:
            rows = _rows(output, size, start, stop, segmenter.procedure.align_corners)
            if segmenter.procedure.softmax == "upsampled":
                rows = rows.softmax(0)
            rows = rows if weight == 1 else rows * weight
            total = rows if total is None else total + rows
        assert total is not None
        yield Band(start, stop, total)


def certainty_maps(segmenter: Segmenter, passes: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """One image's passes (K, h, w) to a label map (H, W) and certainties (C, H, W), both uint8.

    Certainty is percent, truncated, as archives of the follow-up project are made.
    """
    device = passes[0].device
    num_classes = segmenter.class_map.num_classes if segmenter.class_map else passes[0].shape[0]
    labels = torch.empty(size, dtype=torch.uint8, device=device)
    certainty = torch.empty((num_classes, *size), dtype=torch.uint8, device=device)
    for band in bands(segmenter, passes, size):
        rows = slice(band.first, band.last)
        labels[rows], certainty[:, rows] = _label_and_percent(segmenter, band.values)
    return labels, certainty


def label_map(segmenter: Segmenter, passes: Sequence[Tensor], size: Size) -> tuple[Tensor]:
    """One image's passes (K, h, w) to its label map (H, W) uint8."""
    labels = torch.empty(size, dtype=torch.uint8, device=passes[0].device)
    for band in bands(segmenter, passes, size):
        if segmenter.class_map is None or segmenter.class_map.is_identity:
            labels[band.first : band.last] = band.values.max(0).indices  # softmax keeps the order
        else:
            labels[band.first : band.last] = _label_and_percent(segmenter, band.values)[0]
    return (labels,)


def log_probabilities(segmenter: Segmenter, values: Tensor) -> Tensor:
    """(K, ...) of ``bands`` to natural logarithms of the outputs' probabilities, before any temperature.

    Of ``scores``, (K + 1, ...): the last is what no mask claims, so that a temperature does not deal it out.
    """
    if segmenter.procedure.softmax == "last":
        return values.log_softmax(0)
    if segmenter.procedure.softmax == "scores":
        values = values / values.sum(0).clamp_(min=1)
        values = torch.cat([values, 1 - values.sum(0, keepdim=True)])
    return values.clamp(min=_LEAST).log()


def tempered(segmenter: Segmenter, log: Tensor, temperature: float) -> Tensor:
    """What ``log_probabilities`` returned to the outputs' probabilities (K, ...) at a temperature."""
    probabilities = (log / temperature).softmax(0)
    return probabilities[:-1] if segmenter.procedure.softmax == "scores" else probabilities


def _label_and_percent(segmenter: Segmenter, values: Tensor) -> tuple[Tensor, Tensor]:
    """(K, ...) of ``bands`` to labels (...) and percent (C, ...), floats; ``values`` is used up.

    As few walks over the values as there can be: on a CPU this is what an export takes beside the network.
    """
    procedure = segmenter.procedure
    if procedure.softmax == "scores":
        return _scores_and_percent(segmenter, values)
    if segmenter.temperature != 1:
        values = log_probabilities(segmenter, values).div_(segmenter.temperature)
    highest, labels = values.max(0)  # on ties the first, as argmax(), which takes several times as long
    if procedure.softmax == "last" or segmenter.temperature != 1:
        values.sub_(highest).exp_()
        values.mul_(100 / values.sum(0))
    else:
        values.mul_(100)
        if procedure.softmax == "none" or procedure.enlarge == "bicubic":
            values.clamp_(0, 100)  # a bicubic filter overshoots, a program may; and a byte would wrap around
    return _joined(segmenter.class_map, labels, values)


def _scores_and_percent(segmenter: Segmenter, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same of ``scores``; labels are the likeliest class's, also where no mask claims the pixel."""
    labels = values.max(0).indices
    if segmenter.temperature != 1:
        values = tempered(segmenter, log_probabilities(segmenter, values), segmenter.temperature).mul_(100)
    else:
        values.mul_(100 / values.sum(0).clamp_(min=1))
    return _joined(segmenter.class_map, labels, values)


def _joined(class_map: ClassMap | None, labels: Tensor, percent: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (...) and percent (K, ...) of the outputs to labels (...) and percent (C, ...) of the classes."""
    if class_map is None or class_map.is_identity:
        return labels, percent
    merged, other = class_map.merge(percent)
    highest, labels = merged.max(0)
    return labels if other is None else labels.masked_fill_(other > highest, IGNORE), merged


def averaged(passes: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Passes of one size as their sum, with each one's weight in the mean: upsampling is linear, so once will do."""
    sums: dict[torch.Size, Tensor] = {}
    for output in passes:
        sums[output.shape] = sums[output.shape] + output if output.shape in sums else output
    return [(1 / len(passes), total) for total in sums.values()]


def _rows(x: Tensor, size: Size, first: int, last: int, align_corners: bool) -> Tensor:
    """Rows of ``x`` (K, h, w) upsampled bilinearly to ``size``: (K, last - first, W), a copy."""
    height = x.shape[1]
    if height == size[0]:
        rows = x[:, first:last]
        if x.shape[2] == size[1]:
            return rows.clone()
    else:
        position = torch.arange(first, last, device=x.device, dtype=torch.float32)
        if align_corners:
            position *= (height - 1) / max(1, size[0] - 1)
        else:
            position = ((position + 0.5) * (height / size[0]) - 0.5).clamp_(0, height - 1)
        above = position.floor().long().clamp_(max=height - 1)
        below = (above + 1).clamp_(max=height - 1)
        rows = torch.lerp(x[:, above], x[:, below], (position - above)[:, None])
    return _resize(rows[None], (last - first, size[1]), align_corners)[0]


def _resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)
