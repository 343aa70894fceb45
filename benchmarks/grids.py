"""A network's own grid in an archive beside the percents enlarged from it: bytes, truth, CPU seconds on one thread.

    python benchmarks/grids.py FILE.npz [FILE.npz ...] [--size 2048x1024] [--every 1] [--strength 1]

Each member of the files is one image: (C, h, w) logits as the network's last layer gives them, enlarged bilinearly,
corners aligned. From them four geometries are made, those of published teachers at Cityscapes' size:

- ``one``: the grid as it is, one pass (DACS; with ``--every 2`` at the published input of half the image's sides);
- ``flip``: and mirrored: logits averaged (CRST, MRKLD, LRENT, CBST in CRST's project);
- ``sizes``: two sizes, 1 and 1.25 times, mirrored, probabilities averaged (R-MRNet);
- ``bicubic``: the same as ``one``, by a procedure that has no grid (the original CBST): percents, as before.

``--strength`` multiplies logits: a surer network. Columns: KB an image, label map included, and times smaller than
``.npy``, of the codecs ``grid`` and ``softmax``; percents that differ from the network's own, by more than 1; CPU ms an
image to make ready and code, to read all classes, to read four.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from endauda_cli.archive import CertaintyReader, CertaintyWriter, stored_bytes
from endauda_cli.gridding import grid_maps, said_of
from endauda_cli.options import parse_size
from endauda_cli.segmenter import Procedure, Segmenter, certainty_maps
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from endauda_cli.archive import CodedImage


NETWORK = torch.nn.Identity()
GEOMETRIES = {
    "one": Procedure(),
    "flip": Procedure(flip=True),
    "sizes": Procedure(scales=(1, 1.25), flip=True, softmax="first"),
    "bicubic": Procedure(enlarge="bicubic", softmax="first"),
}
FOUR = (0, 2, 8, 13)
"""Classes that a teacher may own."""
ROUNDS = 3


def grids(paths: Sequence[str], every: int, strength: float) -> Iterator[Tensor]:
    """(C, h, w) float32 of each image."""
    for path in paths:
        with np.load(path, allow_pickle=False) as members:
            for name in members:
                grid = members[name][:, ::every, ::every].astype(np.float32)
                yield strength * torch.from_numpy(np.ascontiguousarray(grid))


def passes(geometry: str, grid: Tensor) -> list[Tensor]:
    """What the network would say in each pass; mirrored passes see a little else."""
    procedure = GEOMETRIES[geometry]
    found = []
    for scale, flip in procedure.passes:
        size = [round((side - 1) * scale) + 1 for side in grid.shape[1:]]
        logits = F.interpolate(grid[None], size, mode="bilinear", align_corners=True)[0]
        logits = logits + 0.05 * logits.flip(0) if flip else logits
        found.append(logits.softmax(0) if procedure.softmax == "first" else logits)
    return found


def cpu_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    """The least of some rounds, and what comes of it."""
    best, result = float("inf"), None
    for _ in range(ROUNDS):
        begin = time.process_time()
        result = work()
        best = min(best, 1000 * (time.process_time() - begin))
    return best, result


def code(
    writer: CertaintyWriter,
    id: str,
    segmenter: Segmenter,
    finish: Callable[..., tuple[Tensor, ...]],
    outputs: Sequence[Tensor],
    size: tuple[int, int],
) -> CodedImage:
    """As an export does."""
    label, *said = (output.numpy() for output in finish(segmenter, outputs, size))
    if len(said) == 1:
        return writer.code(id, label, said[0])
    return writer.code_grids(id, label, said_of(segmenter, said[0], said[1:]))


def measure(
    geometry: str, images: Sequence[Tensor], size: tuple[int, int], folder: Path
) -> list[tuple[str, ...]]:
    """A row per codec."""
    segmenter = Segmenter(NETWORK, procedure=GEOMETRIES[geometry])
    classes = [f"class {c}" for c in range(len(images[0]))]
    finishes = {Codec.GRID: grid_maps, Codec.SOFTMAX: certainty_maps}
    truth = [certainty_maps(segmenter, passes(geometry, image), size)[1].numpy() for image in images]
    rows = []
    for codec, finish in finishes.items():
        path, times, wrong, far = folder / f"{geometry}-{codec}", np.zeros(3), 0.0, 0
        with CertaintyWriter(path, classes=classes, codec=codec) as writer:
            for i, image in enumerate(images):
                outputs = passes(geometry, image)
                ms, coded = cpu_ms(partial(code, writer, f"{i}", segmenter, finish, outputs, size))
                times[0] += ms
                writer.store(coded)
        with CertaintyReader(path) as reader:
            for i, exact in enumerate(truth):
                ms, planes = cpu_ms(partial(reader.certainty, f"{i}"))
                times[1:] += ms, cpu_ms(partial(reader.planes, f"{i}", FOUR))[0]
                difference = np.abs(planes.astype(np.int16) - exact)
                wrong, far = wrong + (difference > 0).mean(), far + int((difference > 1).sum())
            kept = str(reader.codec("0"))
        count = len(images)
        smaller = count * size[0] * size[1] * (len(classes) + 1) / stored_bytes(path)
        rows.append((
            geometry, f"{codec}" + ("" if kept == codec else f" ({kept})"),
            f"{stored_bytes(path) / count / 1000:.0f}", f"{smaller:.0f}", f"{100 * wrong / count:.3f} %", f"{far}",
            *(f"{ms / count:.0f}" for ms in times),
        ))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--size", default="2048x1024", help="of the images, width x height")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--strength", type=float, default=1)
    parser.add_argument("--images", type=int)
    parser.add_argument("--only", nargs="+", default=list(GEOMETRIES), choices=list(GEOMETRIES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    width, height = parse_size("--size")(given.size)
    images = list(islice(grids(given.files, given.every, given.strength), given.images))
    table = Table(
        *("geometry", "codec", "KB", "times smaller", "differ", "by over 1", "code", "read", "read four")
    )
    with tempfile.TemporaryDirectory() as name:
        for geometry in given.only:
            for row in measure(geometry, images, (height, width), Path(name)):
                table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
