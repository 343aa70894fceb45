"""What a network says on its own grid, as archives keep it (``archive.grids``), instead of percents enlarged.

Legend of shapes: C classes; h, w the network's output; H, W the image file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.archive import grids
from endauda_cli.archive.grids import GridForm, Grids
from endauda_cli.segmenter import averaged, certainty_maps, label_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.segmenter import Segmenter, Size

_LEAST = 1e-38
"""Of a probability that has a logarithm."""


def has_grid(segmenter: Segmenter) -> bool:
    """Whether a grid and ``GridForm`` can say all that is made of the network's outputs.

    It must end in one softmax of logits that are enlarged bilinearly, once, or in the mean of enlarged probabilities;
    joined classes, windows that were slid, and a temperature of enlarged probabilities, need the percents.
    """
    procedure, classes = segmenter.procedure, segmenter.class_map
    if procedure.enlarge != "bilinear" or procedure.windows is not None:
        return False
    if classes is not None and not classes.is_identity:
        return False
    if procedure.softmax == "upsampled":  # of one pass, what comes last
        return len(procedure.passes) == 1
    return procedure.softmax == "last" or (procedure.softmax == "first" and segmenter.temperature == 1)


def grid_maps(segmenter: Segmenter, passes: Sequence[Tensor], size: Size) -> tuple[Tensor, ...]:
    """One image's passes (C, h, w) to a label map (H, W) uint8, each grid's share (S,) and S grids of numbers.

    Numbers are (C, h, w) int16, which ``archive.grids`` explains. Where a grid does not pay, or cannot say it all, to
    a label map and certainties, as ``certainty_maps``.
    """
    counts = [sum(other.shape == total.shape for other in passes) for _, total in averaged(passes)]
    means = [total / count for (_, total), count in zip(averaged(passes), counts, strict=True)]
    form = GridForm(
        tuple((mean.shape[1], mean.shape[2]) for mean in means),
        tuple(count / len(passes) for count in counts),
        "first" if segmenter.procedure.softmax == "first" else "last",
        segmenter.procedure.align_corners,
    )
    if not has_grid(segmenter) or not form.fits(len(passes[0]), size):
        return certainty_maps(segmenter, passes, size)
    if means[0].device.type == "cpu":
        arrays = [mean.numpy() for mean in means]
        labels = torch.from_numpy(grids.enlarged_labels(arrays, form.shares, form.align_corners, size))
    else:
        (labels,) = label_map(segmenter, passes, size)
    # Where logits of several grids are added up, what is nothing in one may be the most in another.
    apart = form.softmax == "first" or len(means) == 1
    numbers = [_numbers(_below(mean, form.softmax, segmenter.temperature), apart) for mean in means]
    return labels, torch.tensor(form.shares), *numbers


def said_of(segmenter: Segmenter, shares: NDArray[np.float32], numbers: Sequence[NDArray[np.int16]]) -> Grids:
    """The arrays of ``grid_maps`` but its label map, as an archive takes them."""
    form = GridForm(
        tuple((grid.shape[1], grid.shape[2]) for grid in numbers),
        tuple(shares.tolist()),
        "first" if segmenter.procedure.softmax == "first" else "last",
        segmenter.procedure.align_corners,
    )
    return Grids(form, tuple(grid.view(np.uint16) for grid in numbers))


def _below(mean: Tensor, softmax: str, temperature: float) -> Tensor:
    """(C, h, w): how far each class's logarithm of probability is below the cell's largest."""
    logits = mean.clamp(min=_LEAST).log() if softmax == "first" else mean / temperature
    below: Tensor = logits.amax(0) - logits
    return below.clamp_(max=grids.DEEPEST)


def _numbers(below: Tensor, apart: bool) -> Tensor:
    """(C, h, w) depths to int16 numbers; with ``NOTHING`` if the grid stands alone, ``apart``."""
    fine = (1 - (-below.clamp(max=grids.MEETING) / grids.GROWTH).exp()) * (grids.FINE * grids.GROWTH)
    coarse = grids.MEETING_NUMBER + (below - grids.MEETING) / grids.COARSE
    number = torch.where(below < grids.MEETING, fine, coarse).round_().to(torch.int16)
    number += (number >= grids.NOTHING).to(torch.int16)
    return number.masked_fill_(_negligible(below), grids.NOTHING) if apart else number


def _negligible(below: Tensor) -> Tensor:
    """(C, h, w): where a class is ``NEGLIGIBLE`` below another everywhere between the cell and its neighbours.

    Inside a square of four cells each class is between its least and its most at the corners.
    """
    if min(below.shape[1:]) < 2:
        return torch.zeros_like(below, dtype=torch.bool)
    most = _corners(below, torch.minimum)  # of a class, as a depth: the least below
    surely = _corners(below, torch.maximum).amin(0)
    squares = F.pad(most >= surely + grids.NEGLIGIBLE, (1, 1, 1, 1), value=True)
    return _corners(squares, torch.logical_and)  # the squares that a cell is a corner of


def _corners(x: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(C, h, w) to (C, h - 1, w - 1): of every square of four neighbours."""
    rows = join(x[:, 1:], x[:, :-1])
    return join(rows[:, :, 1:], rows[:, :, :-1])
