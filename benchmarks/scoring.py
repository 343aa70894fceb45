"""Speed of ``test --predictions``, without its start, against a plain NumPy loop over the same label PNGs.

    python benchmarks/scoring.py [--images 20] [--size 2048x1024]

The loop opens both files with Pillow, maps label ids to train ids by a loop over the classes, as evaluation scripts
do, or by a table, and counts with ``np.bincount``, one image after the other. All three take turns; best of each, and
the CPU seconds, which say more where others use the machine. Their counts must be the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from endauda_cli.datasets import Sample
from endauda_cli.demo.street import draw_scene
from endauda_cli.domains import CITYSCAPES
from endauda_cli.options import parse_size
from endauda_cli.progress import silent
from endauda_cli.scoring import score_predictions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CLASSES = len(CITYSCAPES.classes)
ID_OF = {CITYSCAPES.train_id(i): i for i in sorted(CITYSCAPES.label_ids)}


def make_files(folder: Path, images: int, size: tuple[int, int]) -> list[Sample]:
    """Label ids of drawn streets, and train ids of the same moved by three pixels with one in 500 wrong."""
    samples = []
    table = np.array([ID_OF.get(c, 0) for c in range(256)], np.uint8)
    for i in range(images):
        rng = np.random.default_rng(i)
        drawn = Image.fromarray(draw_scene(rng, size[0] // 2, size[1] // 2).label)
        truth = np.asarray(drawn.resize(size, Image.Resampling.NEAREST))
        predicted = np.roll(truth, 3, 1)
        wrong = rng.random(truth.shape) < 0.002
        predicted[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
        label = folder / f"{i}_truth.png"
        Image.fromarray(table[truth]).save(label)
        Image.fromarray(predicted).save(folder / f"{i}.png")
        samples.append(Sample(f"{i}", folder / f"{i}.png", label))
    return samples


def by_class(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Train ids, one class after the other."""
    found = np.full_like(ids, 255)
    for label_id in CITYSCAPES.label_ids:
        if (train_id := CITYSCAPES.train_id(label_id)) is not None:
            found[ids == label_id] = train_id
    return found


def by_table(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Train ids, by one look-up per pixel."""
    known = [CITYSCAPES.train_id(i) for i in range(256)]
    return np.array([255 if c is None else c for c in known], np.uint8)[ids]


def loop(samples: list[Sample], mapped: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> float:
    """Mean IoU in percent by plain NumPy."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for sample in samples:
        assert sample.label is not None
        truth, predicted = mapped(np.asarray(Image.open(sample.label))), np.asarray(Image.open(sample.image))
        mask = (truth < CLASSES) & (predicted < CLASSES)
        cells = CLASSES * truth[mask].astype(int) + predicted[mask]
        matrix += np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    right = np.diag(matrix)
    with np.errstate(invalid="ignore"):
        return 100 * float(np.nanmean(right / (matrix.sum(0) + matrix.sum(1) - right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--size", type=parse_size, default=(2048, 1024), metavar="WxH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = make_files(folder, given.images, given.size)
        ways: dict[str, Callable[[], float | None]] = {
            "endauda": lambda: (
                score_predictions(folder, samples, CITYSCAPES, silent, workers=given.threads).miou
            ),
            "loop by class": lambda: loop(samples, by_class),
            "loop by table": lambda: loop(samples, by_table),
        }
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(given.repeat):
            scores = {}
            for way, score in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                scores[way] = score()
                taken = time.perf_counter() - wall, time.process_time() - cpu
                best[way] = min(best[way][0], taken[0]), min(best[way][1], taken[1])
            if len({round(score or 0, 9) for score in scores.values()}) > 1:
                raise SystemExit(f"they disagree: {scores}")
    ours = best["endauda"]
    for way, (wall, cpu) in best.items():
        per_image = f"{1000 * wall / given.images:.1f} ms an image, {1000 * cpu / given.images:.1f} ms of CPU"
        print(f"{way:14} {per_image}; ratio {wall / ours[0]:.2f} by the clock, {cpu / ours[1]:.2f} in CPU")


if __name__ == "__main__":
    main()
