"""Would archives be smaller if they kept a network's own grid of logits instead of percent bytes enlarged from it?

    python benchmarks/grids.py FILE.npz [FILE.npz ...] [--enlarge 8] [--every 1]

Each member of the files is one image: (C, h, w) logits as the network's last layer gives them, enlarged ``--enlarge``
times by whoever uses them (bilinearly, corners aligned). ``--every 2`` keeps every second cell of a grid and enlarges
twice as far, which stands for a network that sees less, as those with an input of 1024x512 do.

Per cell the largest logit is taken off, which no softmax sees, and what is below it (``x``, at least 0) becomes a
whole number: steps of ``1/steps`` at 0 that grow as ``exp(x / scale)``, since a class that is deep below the largest
has little of the percents; from ``floor`` on all are one. Planes of these numbers are coded by JPEG-LS. Compared with
the codec ``softmax`` of the enlarged percents: bytes (label maps, which both have, included), percents and labels that
differ, and CPU seconds an image on one thread. "derive" is a reference in torch: grid to labels and percents.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import imagecodecs
import numpy as np
import torch
import torch.nn.functional as F

from endauda_cli.archive.codecs import CODECS, MODEL_CODEC, label_codec_for
from endauda_cli.segmenter import Procedure, Segmenter, certainty_maps
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.archive.codecs import Packed


class Steps(NamedTuple):
    """How what lies below the largest logit of a cell becomes whole numbers."""

    steps: int
    scale: float
    floor: float

    def quantise(self, below: Tensor) -> Tensor:
        """(C, h, w), at least 0, to whole numbers as floats."""
        below = below.clamp(max=self.floor)
        if self.scale == float("inf"):
            return (below * self.steps).round_()
        return ((1 - (-below / self.scale).exp()) * (self.steps * self.scale)).round_()

    def restore(self, numbers: Tensor) -> Tensor:
        """The inverse of ``quantise``, but for what was rounded off."""
        if self.scale == float("inf"):
            return numbers / self.steps
        return -self.scale * torch.log1p(-numbers / (self.steps * self.scale))


_UNIFORM = float("inf")
CHOICES = [
    Steps(64, _UNIFORM, 16),
    Steps(256, _UNIFORM, 16),
    Steps(256, 4, 16),
    Steps(512, 3, 14),
    Steps(512, 2.5, 14),
]


class Totals:
    """Sums over the images, by what is summed."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.of[name] = self.of.get(name, 0) + value


def grids(paths: list[str], every: int) -> Iterator[Tensor]:
    """(C, h, w) float32 of each image."""
    for path in paths:
        with np.load(path, allow_pickle=False) as members:
            for name in members:
                yield torch.from_numpy(members[name][:, ::every, ::every].astype(np.float32))


def timed(work: Callable[[], object]) -> float:
    """CPU seconds, best of two."""
    best = float("inf")
    for _ in range(2):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def stored_bytes(packed: Packed) -> int:
    models = MODEL_CODEC.pack(packed.model[None, None]).chunks if packed.model.size else ()
    return sum(len(chunk.data) for chunk in (*models, *packed.chunks))


def measure(grid: Tensor, enlarge: int, totals: dict[Steps | None, Totals]) -> None:
    """Adds one image to what is known of the percents' codec (``None``) and of each choice."""
    segmenter = Segmenter(torch.nn.Identity(), procedure=Procedure(align_corners=True))
    size = (grid.shape[1] * enlarge, grid.shape[2] * enlarge)
    label, percent = certainty_maps(segmenter, [grid], size)
    planes: NDArray[np.uint8] = percent.numpy()
    label_bytes = stored_bytes(label_codec_for(Codec.SOFTMAX).pack(label.numpy()[None]))
    codec = CODECS[Codec.SOFTMAX]
    packed = codec.pack(planes)
    unpack, out = codec.unpacker(packed.model), np.empty_like(planes[0])
    totals[None].add(
        raw=planes.size,
        bytes=label_bytes + stored_bytes(packed),
        code=timed(lambda: codec.pack(planes)),
        decode=timed(lambda: [unpack(chunk, out) for chunk in packed.chunks]),
        images=1,
    )
    below = grid.max(0).values - grid
    for choice, total in totals.items():
        if choice is None:
            continue
        numbers = choice.quantise(below)
        coded = [imagecodecs.jpegls_encode(plane) for plane in numbers.numpy().astype(np.uint16)]
        restored = -choice.restore(numbers)
        begin = time.process_time()
        its_label, its_percent = certainty_maps(segmenter, [restored], size)
        derive = time.process_time() - begin
        difference = (its_percent.short() - percent.short()).abs_()
        total.add(
            bytes=label_bytes + sum(map(len, coded)),
            code=timed(
                lambda choice=choice: [  # type: ignore[misc]
                    imagecodecs.jpegls_encode(plane)
                    for plane in choice.quantise(grid.max(0).values - grid).numpy().astype(np.uint16)
                ]
            ),
            decode=timed(lambda coded=coded: [imagecodecs.jpegls_decode(data) for data in coded]),  # type: ignore[misc]
            derive=derive,
            percents=(difference > 0).double().mean().item(),
            labels=(its_label != label).double().mean().item(),
        )
        total.of["largest"] = max(total.of.get("largest", 0), difference.max().item())


def show(totals: dict[Steps | None, Totals]) -> None:
    base = totals[None].of
    count, raw = base["images"], base["raw"]
    print(f"{count:.0f} images, {raw / count / 1e6:.1f} MB of percents each")
    for choice, total in totals.items():
        of = total.of
        text = f"{of['bytes'] / count / 1e3:7.0f} KB an image, {raw / of['bytes']:6.1f} times smaller; CPU s: code "
        text += f"{of['code'] / count:.4f} decode {of['decode'] / count:.4f}"
        if choice is None:
            print(f"{'softmax':24} {text}")
            continue
        scale = "uniform" if choice.scale == _UNIFORM else f"scale {choice.scale:g}"
        name = f"1/{choice.steps}, {scale}, to {choice.floor:g}"
        text += (
            f" derive {of['derive'] / count:.3f}; differ: percents {100 * of['percents'] / count:.3f} %, by "
        )
        print(
            f"{name:24} {text}{of['largest']:.0f} at most, labels {100 * of['labels'] / count:.4f} %; "
            f"{of['bytes'] / base['bytes']:.2f} of softmax"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--enlarge", type=int, default=8)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--images", type=int, help="the first so many")
    parser.add_argument("--refine", type=int, default=1, help="grids so many times finer, made bicubically")
    given = parser.parse_args()
    torch.set_num_threads(1)
    totals: dict[Steps | None, Totals] = {choice: Totals() for choice in (None, *CHOICES)}
    for grid in islice(grids(given.files, given.every), given.images):
        if given.refine > 1:
            grid = F.interpolate(grid[None], scale_factor=given.refine, mode="bicubic")[0]
        measure(grid, given.enlarge * given.every // given.refine, totals)
    show(totals)


if __name__ == "__main__":
    main()
