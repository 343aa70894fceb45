"""How the teachers of a folder are to each other: what the demo's should have in common with real ones.

    python benchmarks/likeness.py demo/certainty/noon demo/dusk.toml
    python benchmarks/likeness.py certainty/camvid camvid.toml --teachers fddwnet dabnet espnet

Reads all archives of the folder, or those named, and the truth of a labelled split. Prints of each teacher mIoU, share
of right pixels, expected calibration error (ten bins) and how many pixels it is 90 % sure of; and of all pairs the
smallest, mean and largest

- share of pixels that get the same label;
- correlation of errors, the phi coefficient of "this one is wrong" and "that one is wrong";
- share with the same label, of the pixels where both are wrong.

No fusion rule takes part.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from endauda_cli.archive import CertaintyReader
from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
SURE = 90


class Said(NamedTuple):
    """Of every labelled pixel, (P,): the truth, and what teachers say, (N, P), with how sure they are, 0..100."""

    truth: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    sure: NDArray[np.float32]


def read(folder: Path, target: Path, split: str, names: list[str]) -> Said:
    domain = load_domain(str(target))
    truth, labels, sure = [], [], []
    readers = [CertaintyReader(folder / name) for name in names]
    for sample in find_samples(domain, (target.parent,), split, need_labels=True):
        assert sample.label is not None
        true = read_truth(sample.label, domain)
        known = true < len(domain.classes)
        truth.append(true[known])
        labels.append([reader.labels(sample.id)[known] for reader in readers])
        sure.append([_scaled(reader.certainty(sample.id)[:, known]) for reader in readers])
    return Said(np.concatenate(truth), np.concatenate(labels, axis=1), np.concatenate(sure, axis=1))


def _scaled(certainty: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(C, P) bytes to (P,) top certainties; what truncation lost is spread, as ``fuse`` does."""
    share: NDArray[np.float32] = 100 * certainty.max(0).astype(np.float32) / certainty.sum(0).clip(1)
    return share


def miou(truth: NDArray[np.uint8], labels: NDArray[np.uint8], classes: int) -> float:
    counts = ConfusionMatrix(classes)
    counts.update(truth[None], labels[None])
    return 100 * counts.mean_iou()


def calibration_error(right: NDArray[np.bool_], sure: NDArray[np.float32]) -> float:
    """In points."""
    bins = (sure * BINS / 100).astype(int).clip(max=BINS - 1)
    gaps = np.bincount(bins, sure - 100 * right, BINS)
    return float(np.abs(gaps).sum() / len(right))


def show(said: Said, names: list[str], classes: int) -> list[Table]:
    right = said.labels == said.truth
    each = Table(
        "teacher", "mIoU", "right %", "calibration error", f"{SURE} % sure of, %", "wrong of these %"
    )
    for i, name in enumerate(names):
        sure = said.sure[i] >= SURE
        figures = (
            miou(said.truth, said.labels[i], classes),
            100 * right[i].mean(),
            calibration_error(right[i], said.sure[i]),
            100 * sure.mean(),
            100 * (~right[i] & sure).sum() / max(1, sure.sum()),
        )
        each.add_row(name, *(f"{figure:.1f}" for figure in figures))
    pairs = list(combinations(range(len(names)), 2))
    both_wrong = [~right[a] & ~right[b] for a, b in pairs]
    of_pairs = {
        "same label": [float((said.labels[a] == said.labels[b]).mean()) for a, b in pairs],
        "correlation of errors": [float(np.corrcoef(right[a], right[b])[0, 1]) for a, b in pairs],
        "same label where both are wrong": [
            float((said.labels[a] == said.labels[b])[wrong].mean())
            for (a, b), wrong in zip(pairs, both_wrong, strict=True)
        ],
    }
    together = Table("of pairs", "smallest", "mean", "largest")
    for what, shares in of_pairs.items():
        together.add_row(what, *(f"{figure:.2f}" for figure in (min(shares), np.mean(shares), max(shares))))
    together.add_row("pixels that some teacher gets right", "", f"{right.any(0).mean():.2f}", "")
    frequent = np.bincount(said.truth, minlength=classes) / len(said.truth)
    there = frequent[frequent > 0]
    together.add_row(
        "classes with less than 1 % of the pixels", "", f"{(there < 0.01).sum()} of {len(there)}", ""
    )
    return [each, together]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of archives")
    parser.add_argument("target", type=Path, help="TOML of the data set")
    parser.add_argument("--split", default="val")
    parser.add_argument("--teachers", nargs="+")
    given = parser.parse_args()
    names = given.teachers or sorted(path.parent.name for path in given.folder.glob("[!.]*/archive.json"))
    said = read(given.folder, given.target, given.split, names)
    for table in show(said, names, len(load_domain(str(given.target)).classes)):
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
