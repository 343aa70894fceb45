"""Engine: one temperature per teacher, from labelled images (Guo et al., On Calibration of Modern Networks, 2017).

Fusion compares certainties of different teachers, which are differently sure of themselves. A temperature makes one
teacher's certainties honest on average and never changes its labels but where outputs are merged into a class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.inference import run_network
from endauda_cli.labels import image_size, read_truth
from endauda_cli.progress import counted
from endauda_cli.reliability import RANGE, least
from endauda_cli.segmenter import bands, log_probabilities, tempered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from endauda_cli.config import InferenceConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain
    from endauda_cli.progress import Reporter
    from endauda_cli.segmenter import Segmenter, Size
    from endauda_cli.teachers import Teacher

MOST_IMAGES = 100
PIXELS_PER_IMAGE = 4096


@dataclass(frozen=True)
class Fit:
    """A temperature and how it was found; logarithmic losses are natural, per pixel."""

    temperature: float
    on: str
    images: int
    pixels: int
    loss_before: float
    loss_after: float

    def facts(self) -> dict[str, Any]:
        """What an archive says about it."""
        return {
            "on": self.on,
            "images": self.images,
            "pixels": self.pixels,
            "log_loss": [round(self.loss_before, 4), round(self.loss_after, 4)],
        }


def fit_temperature(
    teacher: Teacher,
    samples: Sequence[Sample],
    domain: Domain,
    split: str,
    config: InferenceConfig,
    device: torch.device,
    report: Reporter,
) -> Fit:
    """The temperature of least mean logarithmic loss on pixels drawn from labelled images.

    Args:
        teacher: whose certainties are to be honest; a temperature of its own is not looked at.
        samples: images with ground truth, of which at most ``MOST_IMAGES``, evenly spread, are run.
        domain: class table of the truth.
        split: of the samples, for the archive.
        config, device: how and where the network is run.
        report: told of progress.

    Raises:
        DataError: if no drawn pixel has a class, or a file cannot be read.
    """
    step = max(1, -(-len(samples) // MOST_IMAGES))
    # What repeats, such as two cameras of which one is labelled, may leave every n-th image without a class.
    spread = (samples[first::step] for first in range(step))
    chosen = next((some for some in spread if any(_has_class(s, domain) for s in some)), samples[::step])
    segmenter = replace(teacher.segmenter, temperature=1.0)
    drawn = run_network(segmenter, [s.image for s in chosen], _draw, config, device, report)
    logs, labels = [], []
    told = counted(drawn, len(chosen), "calibrating", report)
    for sample, (values, places) in zip(chosen, told, strict=True):
        truth = torch.from_numpy(_truth(sample, domain, int(places[-1]))).flatten()[
            torch.from_numpy(places[:-1])
        ]
        known = truth != IGNORE
        logs.append(torch.from_numpy(values)[:, known])
        labels.append(truth[known].long())
    log, label = torch.cat(logs, 1).double(), torch.cat(labels)
    loss = partial(_loss, segmenter, log, label)
    if not label.numel() or math.isnan(loss(1.0)):
        raise DataError(
            f"{domain.name} {split}: no labelled pixel of a class that the teacher knows in the {len(chosen)} of "
            f"{len(samples)} images that were looked at, so no temperature; give a number, or other labelled images"
        )
    # The loss has one valley in the temperature's logarithm.
    temperature = _rounded(math.exp(least(lambda log: loss(math.exp(log)), *map(math.log, RANGE))))
    return Fit(
        temperature, f"{domain.name} {split}", len(chosen), label.numel(), loss(1.0), loss(temperature)
    )


def _draw(segmenter: Segmenter, passes: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """Log-probabilities (K, N) at N pixels of one image, and their places in it with the pixel count behind them."""
    count = size[0] * size[1]
    generator = torch.Generator().manual_seed(count)
    places = torch.randint(count, (min(PIXELS_PER_IMAGE, count),), generator=generator).sort().values
    drawn = []
    for band in bands(segmenter, passes, size):
        first, last = band.first * size[1], band.last * size[1]
        here = places[(places >= first) & (places < last)] - first
        drawn.append(log_probabilities(segmenter, band.values.flatten(1)[:, here.to(band.values.device)]))
    return torch.cat(drawn, 1), torch.cat([places, torch.tensor([count])])


def _has_class(sample: Sample, domain: Domain) -> bool:
    return sample.label is not None and bool((read_truth(sample.label, domain) != IGNORE).any())


def _truth(sample: Sample, domain: Domain, pixels: int) -> Any:
    assert sample.label is not None
    truth = read_truth(sample.label, domain)
    if truth.size != pixels:
        raise DataError(
            f"{sample.label}: {truth.shape[1]}x{truth.shape[0]} pixels, but {sample.image} has {pixels:,} in all; "
            "truth and image must have one size"
        )
    if truth.shape != (size := image_size(sample.image)):
        raise DataError(
            f"{sample.label}: {truth.shape[1]}x{truth.shape[0]} pixels, but {sample.image} has {size[1]}x{size[0]}; "
            "truth and image must have one size"
        )
    return truth


def _loss(segmenter: Segmenter, log: Tensor, label: Tensor, temperature: float) -> float:
    """Mean of -ln p(label) at a temperature; pixels whose class no output stands for are left out."""
    probabilities = tempered(segmenter, log, temperature)
    if segmenter.class_map is not None:
        probabilities, _ = segmenter.class_map.merge(probabilities)
        absent = torch.zeros(segmenter.class_map.num_classes, dtype=torch.bool)
        absent[segmenter.class_map.absent] = True
        probabilities, label = probabilities[:, ~absent[label]], label[~absent[label]]
    picked = probabilities.gather(0, label[None]).clamp(min=1e-12)
    return -picked.log().mean().item()


def _rounded(temperature: float) -> float:
    """Three digits: more mean nothing, and would differ between machines."""
    return float(f"{temperature:.3g}")
