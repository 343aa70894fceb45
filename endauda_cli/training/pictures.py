"""A handful of training crops, always the same: photograph, labels, and what the student says of them now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from endauda_cli.inference import autocast
from endauda_cli.labels import colourise
from endauda_cli.report import thumbnail
from endauda_cli.training.data import crop_at, order_of
from endauda_cli.training.methods import MAIN
from endauda_cli.transforms import STUDENT, Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.data import Rows
    from endauda_cli.training.run import Run

    UInt8 = NDArray[np.uint8]

CROPS = 4
BUDGET_S = 0.25
"""No further crop is shown to the network after so long, which on a CPU may take a second for one."""


class Seen(NamedTuple):
    """A crop: the image's id and (h, w, 3) uint8 pictures."""

    id: str
    image: UInt8
    labels: UInt8
    prediction: UInt8


class FixedCrops:
    """The first crops of the run's sequence, before their colours are changed.

    Args:
        config: the recipe.
        run: what it learns from.
        rows: of its main stream.
    """

    def __init__(self, config: TrainConfig, run: Run, rows: Rows) -> None:
        self.device = run.device
        self.palette = run.streams[MAIN].domain.palette
        count = min(CROPS, len(rows.images))
        order = order_of(config.seed, 0, len(rows.images))[:count]
        self.ids = [run.streams[MAIN].examples[int(i)].id for i in order]
        self.crops = [crop_at(config, rows, position)[:2] for position in range(count)]

    def look(
        self, student: nn.Module, half: bool = False, preprocessing: Preprocessing = STUDENT
    ) -> list[Seen]:
        """What the student says of them now; at least of the first, of the others as far as time allows.

        Args:
            student: left as it was.
            half: whether it computes in bfloat16.
            preprocessing: what makes crops its input.
        """
        training = student.training
        begin, seen, cudnn = time.monotonic(), [], torch.backends.cudnn
        searched = cudnn.benchmark
        cudnn.benchmark = False  # a search for algorithms would take longer than all this
        student.eval()
        try:
            for id, (pixels, labels) in zip(self.ids, self.crops, strict=True):
                small = (
                    thumbnail(values, flat=True)
                    for values in (labels.numpy(), self._predict(student, pixels, half, preprocessing))
                )
                seen.append(Seen(id, thumbnail(pixels.numpy()), *(colourise(v, self.palette) for v in small)))
                if time.monotonic() - begin > BUDGET_S:
                    break
        finally:
            student.train(training)
            cudnn.benchmark = searched
        return seen

    @torch.no_grad()
    def _predict(self, student: nn.Module, pixels: Tensor, half: bool, preprocessing: Preprocessing) -> UInt8:
        """(h, w) uint8 train ids."""
        x = preprocessing.normalise(pixels[None].to(self.device))
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, half):
            logits = student(x)
        large = F.interpolate(logits.float(), pixels.shape[:2], mode="bilinear", align_corners=True)
        label: UInt8 = large[0].argmax(0).to(torch.uint8).cpu().numpy()
        return label
