"""What `fuse` gives on drives and teachers that took no part in a choice: `leave one drive and half the teachers out`.

    python benchmarks/heldout.py [FOLDER] [--only real made few copies] [--step N] [--groups N] [--ways PART]

FOLDER holds ``camvid/`` (default as in ``policies.py``). Labels judge; only ``few`` shows some to the rule. Drives are
the three of CamVid's train images (``train`` and ``more``) and the one of its val images. Everything is fitted to the
images of the drive that it is scored on, as ``endauda fuse`` would be, on every N-th row and column (default 6).

``real``    the real teachers as they are, all ensembles of three and more of them, per drive
``made``    the protocol: teachers are split into halves; out of each half more are made (``relative``), so that
            ensembles of three to six need no teacher of the other half. A variant of the rule is chosen by the mean
            over ensembles of one half on all drives but one, and reported on the other half and that drive
``few``     five labelled images of one drive, judged on every other drive
``copies``  the trio of unlike teachers with a near-copy of one of them
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin  # noqa: F401  registers the filter
import numpy as np
from realdata import ROOT
from rich.console import Console
from rich.table import Table

from endauda_cli.datasets import load_domain
from endauda_cli.fusion.rules import consensus, standing
from endauda_cli.fusion.rules.beliefs import believed
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]
    Way = Callable[["Told"], UInt8]

SPLITS = {"train": ("train", "more"), "val": ("val",)}
HALVES = (
    (("fddwnet", "espnetv2", "dicenet"), ("mininetv2", "dabnet", "espnet")),
    (("fddwnet", "mininetv2", "espnet"), ("dabnet", "espnetv2", "dicenet")),
    (("fddwnet", "dabnet", "dicenet"), ("mininetv2", "espnetv2", "espnet")),
)
"""Teachers of both halves, of which a drive has those that it has."""
MADE = 6
"""Teachers of a half, made ones included."""


@dataclass(frozen=True)
class Told:
    """What teachers say of all pixels of a drive: labels (T, S), certainties (T, S, C); S of (N, H, W) images."""

    labels: UInt8
    certainties: UInt8
    size: tuple[int, ...]

    def by(self, teachers: Sequence[int]) -> Told:
        t = list(teachers)
        return Told(self.labels[t], self.certainties[t], self.size)

    @cached_property
    def heard(self) -> consensus.Heard:
        """What the variants of the last steps have in common."""
        return consensus.hear(self.labels, self.certainties, self.certainties.shape[2])

    @cached_property
    def images(self) -> list[tuple[UInt8, UInt8]]:
        """Labels and planes of each image."""
        labels = self.labels.reshape(-1, *self.size)
        planes = self.certainties.reshape(*labels.shape, -1).transpose(1, 0, 4, 2, 3)
        return [
            (np.ascontiguousarray(labels[:, n]), np.ascontiguousarray(own)) for n, own in enumerate(planes)
        ]

    @property
    def places(self) -> consensus.Places:
        images, *size = self.size
        return consensus.Places(np.tile(consensus.places_of(*size).ravel(), images), images)


@dataclass(frozen=True)
class Drive:
    """Sampled outputs of one drive's images: planes (T, N, C, H, W), truth (N, H, W)."""

    name: str
    teachers: tuple[str, ...]
    planes: UInt8
    truth: UInt8

    @property
    def told(self) -> Told:
        labels: UInt8 = self.planes.argmax(2).reshape(len(self.planes), -1).astype(np.uint8)
        teachers, _, classes, *_ = self.planes.shape
        planes = np.ascontiguousarray(self.planes.transpose(0, 1, 3, 4, 2)).reshape(teachers, -1, classes)
        return Told(labels, planes, self.truth.shape)

    def of(self, names: Sequence[str]) -> Drive:
        chosen = [name for name in self.teachers if name in names]
        return Drive(
            self.name, tuple(chosen), self.planes[[self.teachers.index(n) for n in chosen]], self.truth
        )


def load(folder: Path, step: int) -> list[Drive]:
    domain = load_domain(str(folder / "camvid" / "camvid.toml"))
    drives = []
    for part, splits in SPLITS.items():
        files = [sorted((folder / "camvid").glob(f"outputs_*_{split}.h5")) for split in splits]
        names = [file.stem.split("_")[1] for file in files[0]]
        planes: dict[str, list[UInt8]] = {}
        truth: dict[str, list[UInt8]] = {}
        for split, those in zip(splits, files, strict=True):
            for name, file in zip(names, those, strict=True):
                with h5py.File(file) as opened:
                    stems = [stem.decode() for stem in opened["stem"][:]]
                    c = int(opened.attrs["classes"])
                    for i in sorted(range(len(stems)), key=stems.__getitem__):
                        own = opened["certainty"][i * c : (i + 1) * c][
                            :, step // 2 :: step, step // 2 :: step
                        ]
                        planes.setdefault(f"{stems[i].split('_')[0]} {name}", []).append(own)
                        if name == names[0]:
                            whole = read_truth(
                                folder / "camvid" / "labels" / split / f"{stems[i]}.png", domain
                            )
                            shown = whole[step // 2 :: step, step // 2 :: step]
                            truth.setdefault(stems[i].split("_")[0], []).append(shown)
        for drive, labels in truth.items():
            stacked = np.stack([np.stack(planes[f"{drive} {name}"]) for name in names])
            title = drive if part == "train" else f"{drive}, val"
            drives.append(Drive(title, tuple(names), stacked, np.stack(labels)))
    return drives


# ---------------------------------------------------------------------------- more teachers


def relative(planes: UInt8, seed: Sequence[int]) -> UInt8:
    """(N, C, H, W) of a teacher made of two real ones: region by region the one or the other, so that its errors are
    real ones; with a temperature, favourite classes and doubts of its own."""
    generator = np.random.default_rng(seed)
    first, second = generator.choice(len(planes), 2, replace=False)
    logs = [np.log(planes[t].astype(np.float32) + 0.5) for t in (first, second)]
    _, images, classes, height, width = planes.shape
    field = partial(_field, generator, (images, height, width))
    mixed = 1 / (1 + np.exp(-4 * field(int(generator.choice([3, 8, 15])))))[:, None]
    own = (logs[0] * (1 - mixed) + logs[1] * mixed) * np.exp(generator.normal(0, 0.4))
    own += np.asarray(generator.normal(0, 0.5, classes), np.float32)[:, None, None]
    for c in range(classes):
        own[:, c] += 0.6 * field(int(generator.choice([2, 3, 6])))
    return _percent(np.exp(own - own.max(1, keepdims=True)))


def _field(generator: np.random.Generator, shape: tuple[int, int, int], scale: int) -> Any:
    """(N, H, W) smooth noise of unit size."""
    images, height, width = shape
    coarse = generator.standard_normal((images, height // scale + 2, width // scale + 2)).astype(np.float32)
    for axis, size in ((1, height), (2, width)):
        place = np.arange(size, dtype=np.float32) / scale
        low = place.astype(int)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(low, axis) * (1 - part) + coarse.take(low + 1, axis) * part
    return coarse * np.float32(1.5)


def _percent(shares: Any) -> UInt8:
    return np.asarray(100 * shares / shares.sum(1, keepdims=True) + 1e-4, np.uint8)


def with_relatives(drive: Drive, half: Sequence[str], seed: int) -> Drive:
    own = drive.of(half)
    more = [relative(own.planes, [seed, number]) for number in range(MADE - len(own.teachers))]
    names = (*own.teachers, *(f"made{number}" for number in range(len(more))))
    return Drive(drive.name, names, np.concatenate([own.planes, np.stack(more)]), drive.truth)


# ---------------------------------------------------------------------------- ways to fuse


def vote(told: Told) -> UInt8:
    classes = range(told.certainties.shape[2])
    return np.asarray(np.argmax([(told.labels == c).sum(0) for c in classes], 0), np.uint8)


def scaled_mean(told: Told) -> UInt8:
    powers = consensus._powers(told.certainties)
    scaled = [consensus._scaled(own, power) for own, power in zip(told.certainties, powers, strict=True)]
    return np.asarray(np.mean(scaled, 0).argmax(1), np.uint8)


def by_rule(
    told: Told,
    labelled: consensus.Labelled | None = None,
    likely: bool = False,
    **constants: float,
) -> UInt8:
    """The rule as it is, or with other constants; ``likely`` leaves its last step out."""
    owner = {name: consensus if hasattr(consensus, name) else standing for name in constants}
    before = {name: getattr(owner[name], name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(owner[name], name, value)
        if labelled is None and not FITTED & constants.keys():
            heard = told.heard
        else:
            heard = consensus.hear(told.labels, told.certainties, told.certainties.shape[2], labelled)
        model = consensus.weigh(heard, labelled, told.places)
        if likely:
            model = replace(model, iou=np.zeros_like(model.iou), union=np.ones_like(model.union))
        return np.stack([believed(*own, model).candidate for own in told.images]).ravel()
    finally:
        for name, value in before.items():
            setattr(owner[name], name, value)


FITTED = {"ALIKE", "DRIFT", "BINS", "SMOOTHING"}
"""Constants of the first steps."""
FIRST: dict[str, Any] = {"TRUST": 0.0, "PLACE": 0.0, "CAUTION": 1.0}
"""Without what followed the bounds and the near-copies: better teachers count no more, places are alike."""


def before(told: Told) -> UInt8:
    """The rule of version 0.1: 0.7 of every teacher, copies counted, classes free to drift."""
    return by_rule(told, WITNESSES=0.7 * len(told.labels), ALIKE=0.999999, DRIFT=np.inf, **FIRST)


VARIANTS: dict[str, Way] = {
    "consensus": by_rule,
    "consensus, of before": before,
    "all count the same, no places, 2 witnesses": partial(by_rule, **{**FIRST, "WITNESSES": 2.0}),
    "all count the same, no places, likely class": partial(by_rule, likely=True, **FIRST),
    "no places": partial(by_rule, PLACE=0.0),
    "all count the same": partial(by_rule, TRUST=0.0),
    "odds to the 4": partial(by_rule, TRUST=4.0),
    "no caution": partial(by_rule, CAUTION=1.0),
    "2 witnesses": partial(by_rule, WITNESSES=2.0),
    "most likely class": partial(by_rule, likely=True),
}
WAYS: dict[str, Way] = {"majority": vote, "scaled mean": scaled_mean, **VARIANTS}


# ---------------------------------------------------------------------------- tables


def miou(truth: UInt8, label: UInt8) -> float:
    confusion = ConfusionMatrix(11)
    confusion.update(truth.ravel(), label.ravel())
    return 100 * float(np.nanmean(confusion.iou()))


def scores(drive: Drive, groups: Sequence[tuple[int, ...]], ways: Mapping[str, Way]) -> dict[str, Any]:
    """(ensembles,) mIoU of every way, and of the best single teacher."""
    told = drive.told
    single = [miou(drive.truth, own) for own in told.labels]
    found: dict[str, list[float]] = {name: [] for name in ("best teacher", *ways)}
    for group in groups:
        own = told.by(group)
        found["best teacher"].append(max(single[t] for t in group))
        for name, way in ways.items():
            found[name].append(miou(drive.truth, way(own)))
    return {name: np.array(values) for name, values in found.items()}


def table(title: str, rows: Sequence[tuple[str, Any, Any]], console: Console) -> None:
    """Rows of (name, mIoU, mIoU of the vote)."""
    shown = Table("", "mean mIoU", "to the vote: mean", "worst", "more than 0.5 below it", "of", title=title)
    for name, values, base in rows:
        away = np.asarray(values) - np.asarray(base)
        figures = [f"{np.mean(values):.2f}", f"{away.mean():+.2f}", f"{away.min():+.2f}"]
        shown.add_row(name, *figures, str(int((away < -0.5).sum())), str(len(away)))
    console.print(shown)


def real(drives: Sequence[Drive], ways: Mapping[str, Way], step: int, console: Console) -> None:
    for drive in drives:
        groups = [g for size in (3, 4, 5, 6) for g in combinations(range(len(drive.teachers)), size)][::step]
        found = scores(drive, groups, ways)
        title = f"{drive.name}: {len(drive.truth)} images, real teachers"
        table(title, [(name, values, found["majority"]) for name, values in found.items()], console)


def made(drives: Sequence[Drive], ways: Mapping[str, Way], groups: int, seed: int, console: Console) -> None:
    found: dict[tuple[int, int, str], dict[str, Any]] = {}
    for split, halves in enumerate(HALVES):
        for side, half in enumerate(halves):
            for number, drive in enumerate(drives):
                world = with_relatives(drive, half, seed + 100 * split + 10 * side + number)
                found[split, side, drive.name] = scores(
                    world, list(_some(groups, seed + split + number)), ways
                )
    chosen: list[tuple[str, Any, Any]] = []
    for drive in drives:
        parts = [own for (_, _, name), own in found.items() if name == drive.name]
        joined = {way: np.concatenate([part[way] for part in parts]) for way in parts[0]}
        table(
            f"{drive.name}: teachers made of halves",
            [(w, v, joined["majority"]) for w, v in joined.items()],
            console,
        )
    whole = {
        way: np.concatenate([part[way] for part in found.values()]) for way in next(iter(found.values()))
    }
    table("all drives", [(way, values, whole["majority"]) for way, values in whole.items()], console)
    picked: dict[str, int] = {}
    left_out: dict[str, list[float]] = {"chosen": [], "majority": [], "best teacher": []}
    for (split, side, drive_name), own in found.items():
        others = [o for (s, d, n), o in found.items() if s == split and d != side and n != drive_name]
        gain = {v: np.mean([(o[v] - o["majority"]).mean() for o in others]) for v in VARIANTS if v in ways}
        best = max(gain, key=gain.__getitem__)
        picked[best] = picked.get(best, 0) + 1
        for name, way in (("chosen", best), ("majority", "majority"), ("best teacher", "best teacher")):
            left_out[name] += list(own[way])
    chosen = [(name, values, left_out["majority"]) for name, values in left_out.items()]
    table("a variant chosen on the other half and the other drives", chosen, console)
    console.print("chosen: " + ", ".join(f"{name} {count}" for name, count in picked.items()))


def _some(number: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Ensembles of three to six out of a half's teachers."""
    generator = np.random.default_rng(seed)
    for n in range(number):
        yield tuple(sorted(int(t) for t in generator.choice(MADE, 3 + n % 4, replace=False)))


def few(drives: Sequence[Drive], console: Console) -> None:
    for shown in drives:
        rows: list[tuple[str, Any, Any]] = []
        for drive in drives:
            if drive.name.split(",")[0] == shown.name.split(",")[0]:
                continue
            names = [name for name in drive.teachers if name in shown.teachers]
            ours, theirs = drive.of(names), shown.of(names)
            images = [(2 * i + 1) * len(shown.truth) // 10 for i in range(5)]
            part = Drive(shown.name, theirs.teachers, theirs.planes[:, images], shown.truth[images])
            pixels = part.truth[0].size
            shown_told, all_told = part.told, ours.told
            place = np.repeat(np.arange(5), pixels)
            groups = [g for size in (3, 4) for g in combinations(range(len(names)), size)]
            found: dict[str, list[float]] = {"best teacher": [], "majority": [], "auto": [], "few-shot": []}
            for group in groups:
                shown_here, told = shown_told.by(group), all_told.by(group)
                known = consensus.Labelled(
                    shown_here.labels, shown_here.certainties, part.truth.ravel(), place
                )
                found["best teacher"].append(max(miou(drive.truth, own) for own in told.labels))
                found["majority"].append(miou(drive.truth, vote(told)))
                found["auto"].append(miou(drive.truth, by_rule(told)))
                found["few-shot"].append(miou(drive.truth, by_rule(told, known)))
            rows += [(f"{drive.name}: {name}", values, found["majority"]) for name, values in found.items()]
        table(f"five labelled images of {shown.name}", rows, console)


def with_copy(drive: Drive, name: str | None, power: float = 1.0) -> Told:
    """What the teachers say, and one of them once more, with a temperature."""
    planes = drive.planes
    if name is not None:
        heated = (planes[drive.teachers.index(name)] + np.float32(0.5)) ** power
        planes = np.concatenate([planes, _percent(heated)[None]])
    return replace(drive, planes=planes).told


def copies(drives: Sequence[Drive], console: Console) -> None:
    trio = drives[-1].of(("dicenet", "espnet", "espnetv2"))
    rows: list[tuple[str, Any, Any]] = []
    for name in (None, *trio.teachers):
        for power in (0.5, 2.0) if name else (1.0,):
            told = with_copy(trio, name, power)
            base = [miou(trio.truth, vote(told))]
            title = f"and {name}, power {power:g}" if name else "the trio"
            for when, way in (("before", before), ("now", by_rule)):
                rows.append((f"{title}: {when}", [miou(trio.truth, way(told))], base))
    table("dicenet, espnet, espnetv2", rows, console)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = ["real", "made", "few", "copies"]
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    parser.add_argument("--step", type=int, default=6, help="use every so many rows and columns")
    parser.add_argument("--seed", type=int, default=0, help="of made teachers and their ensembles")
    parser.add_argument("--groups", type=int, default=4, help="of made teachers, per drive and half")
    parser.add_argument("--ensembles", type=int, default=1, help="of real teachers, use every so many")
    parser.add_argument("--ways", default="", help="only ways to fuse that have this in their name")
    given = parser.parse_args()
    console, started = Console(width=110), time.process_time()
    drives = load(given.folder.resolve(), given.step)
    ways = {name: way for name, way in WAYS.items() if given.ways in name or name == "majority"}
    if "real" in given.only:
        real(drives, ways, given.ensembles, console)
    if "made" in given.only:
        made(drives, ways, given.groups, given.seed, console)
    if "few" in given.only:
        few(drives, console)
    if "copies" in given.only:
        copies(drives, console)
    console.print(f"{time.process_time() - started:.0f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(run())
