"""How good `fuse --advise` is: its estimates and its advice against the truth, on the real teachers, per drive.

    OMP_NUM_THREADS=1 python benchmarks/advice.py [FOLDER] [--only DRIVE ...] [--few N ...] [--draws N]

FOLDER holds ``camvid/`` (default as in ``realdata.py``). Drives are the three of CamVid's train images (``train`` and
``more``, four teachers) and the one of its val images (six). Every ensemble of a drive's teachers is fused by every
rule, as ``--advise`` does it, on all images of the drive, thinned out; labels judge alone, but for those of ``--few``.

* rank: Spearman's correlation of expected and true mIoU over ensembles of two and more, each by ``consensus``; and
  over all candidates, by every rule.
* regret: how far the true mIoU of what is advised is below the highest of all candidates.
* fewer: true mIoU of the smaller ensemble, less that of all; by tolerance.
* ``--few``: so many labelled images, drawn anew each time, the rest judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin  # noqa: F401  registers the filter
import numpy as np
from realdata import ROOT
from rich.console import Console
from rich.table import Table

from endauda_cli.datasets import load_domain
from endauda_cli.domains import make_task
from endauda_cli.fusion import advising
from endauda_cli.fusion.candidates import Sight, Thinned, _thin, against_belief, against_truth, make, mean_iou
from endauda_cli.labels import read_truth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float64]

SPLITS = {"train": ("train", "more"), "val": ("val",)}
TOLERANCES = (0.0, 0.5, 1.0, 2.0)
FEW = (3, 5, 10, 20)


def load(folder: Path) -> dict[str, Sight]:
    """Each drive's teachers and truth, thinned out."""
    domain = load_domain(str(folder / "camvid.toml"))
    task = make_task(domain, domain)
    sights: dict[str, Sight] = {}
    for part, splits in SPLITS.items():
        for split in splits:
            for file in sorted(folder.glob(f"outputs_*_{split}.h5")):
                with h5py.File(file) as opened:
                    c = int(opened.attrs["classes"])
                    for i, stem in enumerate(image.decode() for image in opened["stem"][:]):
                        drive = stem.split("_")[0] + (", val" if part == "val" else "")
                        sight = sights.setdefault(drive, Sight(task, {}, [], {}))
                        name = file.stem.split("_")[1]
                        own = sight.teachers.setdefault(name, Thinned(domain.classes))  # type: ignore[attr-defined]
                        rows, columns = _thin(opened["label"].shape[1:])
                        own.label[stem] = np.ascontiguousarray(opened["label"][i][rows, columns])
                        planes = opened["certainty"][i * c : (i + 1) * c]
                        own.planes_of[stem] = np.ascontiguousarray(planes[:, rows, columns])
                        if stem not in sight.truths:
                            truth = read_truth(folder / "labels" / split / f"{stem}.png", domain)
                            sight.truths[stem] = np.ascontiguousarray(truth[rows, columns])  # type: ignore[index]
    return {
        name: Sight(task, s.teachers, sorted(s.truths), {i: s.truths[i] for i in sorted(s.truths)})
        for name, s in sights.items()
    }


class Candidates:
    """All ensembles of a drive by all rules: (K, N, 2, C) overlaps with belief and truth."""

    def __init__(self, sight: Sight) -> None:
        self.every = tuple(sight.teachers)
        self.keys: list[tuple[tuple[str, ...], str]] = []
        believed, true = [], []
        belief: Any = None
        for ensemble in advising._search(self.every, {}):
            made = make(sight, ensemble)
            belief = belief or made.belief
            for rule in advising.ORDER:
                self.keys.append((ensemble, rule))
                believed.append(against_belief(made.labels[rule], belief))
                true.append(against_truth(made.labels[rule], sight))
        self.believed, self.true = np.stack(believed), np.stack(true)
        self.images = len(sight.truths)

    def miou(self, overlaps: Float, times: Float) -> Float:
        """(K, D)"""
        return np.stack([mean_iou(own, times) for own in overlaps])

    def trial(self, images: NDArray[np.intp] | None, draws: int) -> advising.Trial:
        """What ``advise`` would look at: the truth of some images, or none."""
        expected = self.miou(self.believed, np.ones((1, self.images)))
        if images is None:
            return advising.Trial(self.keys, np.repeat(expected, 2, 1), None)
        drawn = np.random.default_rng(0).multinomial(
            len(images), np.full(len(images), 1 / len(images)), draws
        )
        times = np.concatenate([np.ones((1, len(images))), drawn])
        return advising.Trial(
            self.keys, np.repeat(expected, len(times), 1), self.miou(self.true[:, images], times)
        )


def ranks(values: Float) -> Float:
    return np.argsort(np.argsort(values)).astype(float)


def spearman(one: Float, two: Float) -> float:
    return float(np.corrcoef(ranks(one), ranks(two))[0, 1])


def without_labels(drives: dict[str, Candidates], console: Console) -> None:
    table = Table(
        "drive", "images, teachers", "rank, consensus", "rank, every rule", "best possible", "advised (all)", "regret",
        "rule: regret", "best teacher", title="no label",
    )  # fmt: skip
    for name, own in drives.items():
        once = np.ones((1, own.images))
        expected, true = (own.miou(overlaps, once)[:, 0] for overlaps in (own.believed, own.true))
        trial = own.trial(None, 0)
        advised = own.keys.index(_key(trial.advised()[0]))
        several = [k for k, (e, rule) in enumerate(own.keys) if len(e) > 1]
        one_rule = [k for k in several if own.keys[k][1] == advising.DEFAULT]
        of_all = [k for k, (e, _) in enumerate(own.keys) if e == own.every]
        single = max(true[k] for k, (e, rule) in enumerate(own.keys) if len(e) == 1 and rule == "majority")
        best = own.keys[int(true.argmax())]
        table.add_row(
            name, f"{own.images}, {len(own.every)}", f"{spearman(expected[one_rule], true[one_rule]):+.2f}",
            f"{spearman(expected[several], true[several]):+.2f}", f"{true.max():.2f} ({'+'.join(best[0])}, {best[1]})",
            f"{true[advised]:.2f}", f"{true.max() - true[advised]:.2f}",
            f"{max(true[of_all]) - true[advised]:.2f}", f"{single:.2f}",
        )  # fmt: skip
    console.print(table)


def fewer(drives: dict[str, Candidates], console: Console) -> None:
    """What leaving teachers out costs, by tolerance; and by the one that was chosen on the other drives."""
    table = Table(
        "drive", *(f"{t:g} points" for t in TOLERANCES), "chosen on the others", title="fewer teachers"
    )
    lost: dict[str, list[tuple[int, float]]] = {}
    for name, own in drives.items():
        true = own.miou(own.true, np.ones((1, own.images)))[:, 0]
        lost[name] = []
        for tolerance in TOLERANCES:
            advising.TOLERANCE = tolerance
            found = own.trial(None, 0).smaller()[0]
            away = true[own.keys.index(_key(found))] - true[own.keys.index((own.every, advising.DEFAULT))]
            lost[name].append((len(found.teachers), float(away)))
    for name, cells in lost.items():
        others = [other for key, other in lost.items() if key != name]
        # The largest tolerance that costs no other drive more than half a point.
        fine = [k for k in range(len(TOLERANCES)) if all(other[k][1] >= -0.5 for other in others)]
        chosen = max(fine, default=0)
        shown = [f"{size} of {len(drives[name].every)}, {away:+.2f}" for size, away in cells]
        table.add_row(name, *shown, f"{TOLERANCES[chosen]:g}: {cells[chosen][1]:+.2f}")
    console.print(table)


def few(drives: dict[str, Candidates], numbers: Sequence[int], draws: int, console: Console) -> None:
    table = Table(
        "drive", "labelled", "highest", "within one error, fewest", "advised", "all, consensus",
        title=f"few labels: regret on the other images, mean (worst) of {draws} draws",
    )  # fmt: skip
    for name, own in drives.items():
        sizes = np.array([len(ensemble) for ensemble, _ in own.keys])
        default = own.keys.index((own.every, advising.DEFAULT))
        for number in numbers:
            regrets: list[list[float]] = []
            generator = np.random.default_rng(number)
            for _ in range(draws):
                images = generator.choice(own.images, number, replace=False)
                rest = np.setdiff1d(np.arange(own.images), images)
                true = own.miou(own.true[:, rest], np.ones((1, len(rest))))[:, 0]
                trial = own.trial(images, 100)
                assert trial.true is not None
                highest = int(trial.true[:, 0].argmax())
                error = (trial.true - trial.true[highest])[:, 1:].std(1)
                near = np.flatnonzero(trial.true[:, 0] >= trial.true[highest, 0] - error)
                least = near[sizes[near] == sizes[near].min()]
                small = int(least[trial.true[least, 0].argmax()])
                advised = own.keys.index(_key(trial.advised()[0]))
                regrets.append([float(true.max() - true[k]) for k in (highest, small, advised, default)])
            cells = [f"{np.mean(own):.2f} ({np.max(own):.2f})" for own in zip(*regrets, strict=True)]
            table.add_row(name, str(number), *cells)
    console.print(table)


def _key(advised: Any) -> tuple[tuple[str, ...], str]:
    return advised.teachers, advised.rule


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", nargs="+", help="drives")
    parser.add_argument("--few", nargs="+", type=int, default=FEW, help="numbers of labelled images")
    parser.add_argument("--draws", type=int, default=20, help="of labelled images")
    given = parser.parse_args()
    sights = load(given.folder.resolve() / "camvid")
    drives = {}
    for name, sight in sights.items():
        if given.only is None or name in given.only:
            drives[name] = Candidates(sight)
    console = Console(width=150)
    without_labels(drives, console)
    fewer(drives, console)
    few(drives, given.few, given.draws, console)
    return 0


if __name__ == "__main__":
    sys.exit(run())
