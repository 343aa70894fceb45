"""Policies and rules on the real teachers: every ensemble of three to six, every pixel, threshold 0.

    python benchmarks/policies.py [FOLDER] [--only val splits stress steps] [--every N] [--ensembles N]
                                  [--ways PART] [--chart FILE]

FOLDER holds ``camvid/`` (default: ``ENDAUDA_REALDATA``, else ``../shared/realdata`` beside the repository). Prints,
for each way to fuse, the mean and the worst difference to the majority vote and to the best single teacher of the
ensemble, in points of mIoU. Labels score; only ``few-shot`` and ``val`` also look at them, and say so.

``val``     what ``endauda fuse`` offers, on all 51 val images
``splits``  the rule fitted to other images than it is scored on: half of val, the train images
``stress``  the same with teachers made worse in ways that label-free choices fall for
``steps``   the rule with a step left out or a constant changed, and older or simpler rules: what was tried

``--every 5`` looks at every fifth image only. The record of it all is ``docs/policies.md``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import hdf5plugin  # noqa: F401  registers the filter
import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.domains import make_task
from endauda_cli.fusion.choosing import Evidence, choose_consensus, choose_policy
from endauda_cli.fusion.rules import Recipe, consensus, fuse_image, policies, standing
from endauda_cli.fusion.rules.beliefs import believed
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import CertaintyReader
    from endauda_cli.datasets import Sample

    UInt8 = NDArray[np.uint8]

ROOT = Path(os.environ.get("ENDAUDA_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))
SEED = 0
STORE = Path(tempfile.mkdtemp(prefix="endauda-policies-"))
"""The statistics that several policies share; removed at the end."""


@dataclass(frozen=True)
class Outputs:
    """A teacher's outputs in memory; speaks like a ``CertaintyReader``."""

    classes: tuple[str, ...]
    label: dict[str, UInt8]
    planes: dict[str, UInt8]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __contains__(self, image: str) -> bool:
        return image in self.label

    def labels(self, image: str) -> UInt8:
        return self.label[image]

    def certainty(self, image: str) -> UInt8:
        return self.planes[image]

    def digest(self, image: str) -> str:
        return f"{self.key} {image}"  # for the statistics kept between policies of this run

    def size(self, image: str) -> tuple[int, ...]:
        return self.label[image].shape


@dataclass(frozen=True)
class World:
    """Teachers and what they are scored on; ``fit`` are the images that label-free choices may look at."""

    name: str
    folder: Path
    teachers: dict[str, Outputs]
    fit: Sequence[str]
    score: Sequence[str]
    truth: Mapping[str, UInt8]
    samples: Sequence[Sample]

    def evidence(self, names: Sequence[str], fit: Sequence[str] | None = None) -> Evidence:
        domain = load_domain(str(self.folder / "camvid" / "camvid.toml"))
        readers = {name: cast("CertaintyReader", self.teachers[name]) for name in names}
        return Evidence(
            make_task(domain, domain), readers, fit or self.fit, lambda: list(self.samples), store=STORE
        )


def load(folder: Path, every: int, splits: Sequence[str] = ("val",)) -> World:
    """All teachers that have outputs of all the splits."""
    domain = load_domain(str(folder / "camvid" / "camvid.toml"))
    samples = find_samples(domain, (folder / "camvid",), "val", need_labels=True)
    files = sorted((folder / "camvid").glob("outputs_*_val.h5"))
    teachers, images = {}, {}
    for name in (file.stem.split("_")[1] for file in files):
        parts = [folder / "camvid" / f"outputs_{name}_{split}.h5" for split in splits]
        if not all(part.exists() for part in parts):
            continue
        label, planes = {}, {}
        for split, part in zip(splits, parts, strict=True):
            with h5py.File(part) as file:
                stems = [stem.decode() for stem in file["stem"][:]]
                images[split] = sorted(stems)[::every]
                c = int(file.attrs["classes"])
                for i in (stems.index(stem) for stem in images[split]):
                    label[stems[i]] = file["label"][i]
                    planes[stems[i]] = file["certainty"][i * c : (i + 1) * c]
        teachers[name] = Outputs(domain.classes, label, planes)
    samples = [sample for sample in samples if sample.id in images["val"]]
    truth = {sample.id: read_truth(cast("Path", sample.label), domain) for sample in samples}
    return World("val", folder, teachers, images["val"], images["val"], truth, samples)


def ensembles(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [group for size in (3, 4, 5, 6) for group in combinations(names, size)]


# ---------------------------------------------------------------------------- ways to fuse

Fuser = "Callable[[UInt8, UInt8], UInt8]"
"""From (T, H, W) labels and (T, C, H, W) certainties of an image to its label."""


def vote(labels: UInt8, planes: UInt8) -> UInt8:
    return np.asarray(np.argmax([(labels == c).sum(0) for c in range(planes.shape[1])], 0), np.uint8)


def by_owner(owners: Sequence[int]) -> Any:
    def fuse(labels: UInt8, planes: UInt8) -> UInt8:
        recipe = Recipe(planes.shape[1], tuple(owners), threshold=0)
        label: UInt8 = fuse_image(
            "plf", labels, lambda teacher, classes: planes[teacher, classes], recipe
        ).label
        return label

    return fuse


def by_model(model: consensus.Consensus) -> Any:
    return lambda labels, planes: believed(labels, planes, model).candidate


def shipped(rule: str, kind: str, world: World, names: Sequence[str]) -> Any:
    """As ``endauda fuse --rule RULE --policy KIND`` does."""
    evidence = world.evidence(names)
    if rule == "plf":
        return by_owner(choose_policy(kind, evidence, lambda _: None).owners)
    return by_model(choose_consensus(kind, evidence, lambda _: None)[1])


def few_shot_ids(world: World) -> list[str]:
    names = list(world.teachers)[:3]
    return list(choose_policy("few-shot", world.evidence(names), lambda _: None).labelled)


def pixels_of(world: World, names: Sequence[str]) -> tuple[UInt8, UInt8]:
    """(T, S) labels and (T, S, C) certainties of every seventy-first pixel or so."""
    step = max(1, len(world.fit) * 172_800 // 100_000) | 1
    labels = [np.concatenate([world.teachers[n].label[i].ravel()[::step] for i in world.fit]) for n in names]
    planes = [
        np.concatenate(
            [world.teachers[n].planes[i].reshape(len(world.teachers[n].classes), -1)[:, ::step] for i in world.fit], 1
        ).T
        for n in names
    ]  # fmt: skip
    return np.stack(labels), np.stack(planes)


def fitted(world: World, names: Sequence[str]) -> consensus.Consensus:
    """The rule, fitted to every seventy-first pixel or so."""
    labels, planes = pixels_of(world, names)
    own = next(iter(world.teachers.values()))
    step = max(1, len(world.fit) * 172_800 // 100_000) | 1
    place = [consensus.places_of(*own.size(i)).ravel()[::step] for i in world.fit]
    places = consensus.Places(np.concatenate(place), len(place))
    return consensus.fit(labels, planes, planes.shape[2], places=places)


def earlier_auto(world: World, names: Sequence[str]) -> Any:
    """The policy ``auto`` of before: soft IoU with the Dawid-Skene posterior, times scaled certainty."""
    labels, planes = pixels_of(world, names)
    return by_owner(policies.owners_by_score(policies.auto_scores(labels, planes, planes.shape[2])))


def dawid_skene(world: World, names: Sequence[str]) -> Any:
    labels, planes = pixels_of(world, names)
    votes, counts, _ = policies.combinations(labels)
    model = policies.annotators(votes, counts, planes.shape[2])

    def fuse(labels: UInt8, planes: UInt8) -> UInt8:
        votes, _, which = policies.combinations(labels.reshape(len(labels), -1))
        return np.asarray(model.posterior(votes).argmax(1)[which], np.uint8).reshape(labels.shape[1:])

    return fuse


def mean_certainty(scale: bool, world: World, names: Sequence[str]) -> Any:
    """The mean of the certainties, as they are or brought to one mean certainty."""
    powers = np.ones(len(names))
    if scale:
        powers = consensus._powers(pixels_of(world, names)[1])

    def fuse(labels: UInt8, planes: UInt8) -> UInt8:
        total = np.zeros(planes.shape[1:], np.float32)
        for power, own in zip(powers, planes, strict=True):
            scaled = consensus._byte_powers(float(power))[own]
            total += scaled / scaled.sum(0)
        return np.asarray(total.argmax(0), np.uint8)

    return fuse


def with_constants(world: World, names: Sequence[str], **constants: float) -> Any:
    """The rule with other constants."""
    owner = {name: consensus if hasattr(consensus, name) else standing for name in constants}
    before = {name: getattr(owner[name], name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(owner[name], name, value)
        model = fitted(world, names)
        _ = model.tables  # made while the constants are these
    finally:
        for name, value in before.items():
            setattr(owner[name], name, value)
    return by_model(model)


def most_likely(world: World, names: Sequence[str]) -> Any:
    """The rule with the most likely class instead of the one that adds most to the expected mean IoU."""
    model = fitted(world, names)
    return by_model(replace(model, iou=np.zeros_like(model.iou), union=np.ones_like(model.union)))


def labels_only(world: World, names: Sequence[str]) -> Any:
    """The rule with words that are labels alone: neither a runner-up nor a degree of certainty."""
    model = fitted(world, names)
    num_classes = model.prior.shape[1]
    evidence = model.evidence.copy()
    for t in range(len(names)):
        likely = np.exp(evidence[t, :-1].astype(np.float64))
        by_label = likely.reshape(num_classes, -1, num_classes).sum(1)
        evidence[t, :-1] = np.repeat(np.log(by_label + 1e-12), len(likely) // num_classes, 0)
    return by_model(replace(model, evidence=evidence))


def window_mean(world: World, names: Sequence[str], side: int = 5) -> Any:
    """The rule's labels by a vote in a window of the labels it gives: does a neighbourhood know more?"""
    fuse = by_model(fitted(world, names))

    def smoothed(labels: UInt8, planes: UInt8) -> UInt8:
        label = fuse(labels, planes)
        masks = torch.from_numpy(np.stack([label == c for c in range(planes.shape[1])])).float()
        votes = torch.nn.functional.avg_pool2d(masks[None], side, 1, side // 2)[0]
        return np.asarray(votes.argmax(0), np.uint8)

    return smoothed


SHIPPED = {
    "majority": lambda world, names: vote,
    "certainty": partial(mean_certainty, False),
    "plf, policy certainty": partial(shipped, "plf", "certainty"),
    "plf, auto of before": earlier_auto,
    "plf, auto": partial(shipped, "plf", "auto"),
    "consensus, auto": partial(shipped, "consensus", "auto"),
    "plf, few-shot": partial(shipped, "plf", "few-shot"),
    "consensus, few-shot": partial(shipped, "consensus", "few-shot"),
    "plf, val": partial(shipped, "plf", "val"),
    "consensus, val": partial(shipped, "consensus", "val"),
}
LABEL_FREE = {
    name: SHIPPED[name]
    for name in ("majority", "plf, policy certainty", "plf, auto of before", "plf, auto", "consensus, auto")
}
STEPS = {
    "consensus, auto": partial(shipped, "consensus", "auto"),
    "Dawid-Skene (step 1)": dawid_skene,
    "mean of scaled certainties (step 2)": partial(mean_certainty, True),
    "words are labels only (no step 3)": labels_only,
    "most likely class (no step 5)": most_likely,
    "1 witness": partial(with_constants, WITNESSES=1.0),
    "2 witnesses": partial(with_constants, WITNESSES=2.0),
    "all teachers count the same": partial(with_constants, TRUST=0.0),
    "all places are alike": partial(with_constants, PLACE=0.0),
    "rare classes as the evidence says": partial(with_constants, CAUTION=1.0),
    "copies count, classes may drift": partial(with_constants, ALIKE=0.999999, DRIFT=np.inf),
    "2 degrees of certainty": partial(with_constants, BINS=2),
    "8 degrees of certainty": partial(with_constants, BINS=8),
    "smoothing 1e-4": partial(with_constants, SMOOTHING=1e-4),
    "smoothing 1e-2": partial(with_constants, SMOOTHING=1e-2),
    "5x5 vote after it": window_mean,
}


# ---------------------------------------------------------------------------- teachers made worse


def changed(
    world: World, name: str, change: Callable[[str, Outputs, str], UInt8], only: Sequence[str]
) -> World:
    """The world with the planes of some teachers changed, and their labels after them."""
    teachers = dict(world.teachers)
    for teacher in only:
        old = world.teachers[teacher]
        planes = {image: change(teacher, old, image) for image in old.planes}
        labels = {image: own.argmax(0).astype(np.uint8) for image, own in planes.items()}
        teachers[teacher] = Outputs(old.classes, labels, planes)
    return replace(world, name=name, teachers=teachers)


def heated(power: float, teacher: str, old: Outputs, image: str) -> UInt8:
    scaled = consensus._byte_powers(power)[old.planes[image]]
    return np.asarray(100 * scaled / scaled.sum(0), np.uint8)


def swapped(teacher: str, old: Outputs, image: str) -> UInt8:
    place = list(range(len(old.classes)))
    for a, b in (("car", "pedestrian"), ("pole", "sign")):
        i, j = old.classes.index(a), old.classes.index(b)
        place[i], place[j] = place[j], place[i]
    return old.planes[image][place]


def blotted(teacher: str, old: Outputs, image: str) -> UInt8:
    """Three in ten blocks of 24x24 pixels are those of another image."""
    images = sorted(old.planes)
    rng = np.random.default_rng([SEED, images.index(image), sum(teacher.encode())])
    other = old.planes[images[rng.integers(len(images))]]
    height, width = old.label[image].shape
    blocks = rng.random((-(-height // 24), -(-width // 24))) < 0.3
    mask = np.kron(blocks, np.ones((24, 24), bool))[:height, :width]
    return np.where(mask, other, old.planes[image])


def coarse(teacher: str, old: Outputs, image: str) -> UInt8:
    """An eighth of the resolution."""
    small = old.planes[image][:, 4::8, 4::8]
    return np.repeat(np.repeat(small, 8, 1), 8, 2)[
        :, : old.label[image].shape[0], : old.label[image].shape[1]
    ]


def blind(teacher: str, old: Outputs, image: str) -> UInt8:
    """Road everywhere, and quite sure of it."""
    planes = np.zeros_like(old.planes[image])
    planes[old.classes.index("road")] = 99
    return planes


def with_twins(world: World, teacher: str) -> World:
    """A teacher and two near copies of it among all others: what it says is heard three times."""
    twin = {
        f"{teacher}-{i}": changed(world, "", partial(heated, power), [teacher]).teachers[teacher]
        for i, power in ((2, 0.8), (3, 1.2))
    }
    return replace(world, name=f"two more copies of {teacher}", teachers=world.teachers | twin)


def stressed(world: World) -> Iterator[tuple[World, list[tuple[str, ...]]]]:
    names = list(world.teachers)
    groups = ensembles(names)
    strong, middle, weak = "fddwnet", "dabnet", "espnet"
    for teacher in (strong, weak):
        yield changed(world, f"{teacher} over-confident (power 4)", partial(heated, 4), [teacher]), groups
        yield changed(world, f"{teacher} unsure (power 0.3)", partial(heated, 0.3), [teacher]), groups
    for teacher in (strong, middle):
        yield changed(world, f"{teacher} with classes swapped", swapped, [teacher]), groups
        yield changed(world, f"{teacher} with 30 % of another image", blotted, [teacher]), groups
    yield changed(world, f"{strong} coarse", coarse, [strong]), groups
    yield changed(world, f"{weak} blind", blind, [weak]), groups
    for teacher in ("dicenet", weak):
        twins = with_twins(world, teacher)
        copies = (teacher, f"{teacher}-2", f"{teacher}-3")
        others = [name for name in names if name != teacher]
        yield twins, [copies + rest for size in (2, 3, 4) for rest in combinations(others, size)]


# ---------------------------------------------------------------------------- scoring


def miou(world: World, images: Sequence[str], label_of: Callable[[str], UInt8]) -> float:
    confusion = ConfusionMatrix(len(next(iter(world.teachers.values())).classes))
    for image in images:
        confusion.update(world.truth[image], label_of(image))
    return 100 * float(np.nanmean(confusion.iou()))


def scores(
    world: World, groups: Sequence[tuple[str, ...]], ways: Mapping[str, Any], title: str, console: Console
) -> dict[str, NDArray[np.float64]]:
    """(ensembles,) mIoU of every way to fuse; printed against the vote and the best teacher."""
    found: dict[str, list[float]] = {name: [] for name in ("best teacher", *ways)}
    shown = few_shot_ids(world) if any("few-shot" in name for name in ways) else []
    rest = [image for image in world.score if image not in shown]
    apart: dict[str, list[float]] = {}
    started = time.monotonic()
    single = {n: miou(world, world.score, world.teachers[n].labels) for n in world.teachers}
    single_rest = (
        {n: miou(world, rest, world.teachers[n].labels) for n in world.teachers} if shown else single
    )
    for group in groups:
        found["best teacher"].append(max(single[n] for n in group))
        apart.setdefault("best teacher", []).append(max(single_rest[n] for n in group))
        for name, way in ways.items():
            fuse = way(world, group)
            labels = {
                image: fuse(
                    np.stack([world.teachers[n].label[image] for n in group]),
                    np.stack([world.teachers[n].planes[image] for n in group]),
                )
                for image in world.score
            }
            found[name].append(miou(world, world.score, labels.__getitem__))
            if shown and ("few-shot" in name or name == "majority"):
                apart.setdefault(name, []).append(miou(world, rest, labels.__getitem__))
    table = Table(
        "", "mean mIoU", "to the vote: mean", "worst", "to the best: mean", "worst",
        title=f"{title} ({len(groups)} ensembles, {len(world.score)} images, {time.monotonic() - started:.0f} s)",
    )  # fmt: skip
    arrays = {name: np.array(values) for name, values in found.items()}
    base, best = arrays.get("majority"), arrays["best teacher"]
    if base is None:
        base = np.array([_vote_score(world, group) for group in groups])
    for name, values in arrays.items():
        _row(table, name, values, base, best)
    for name in apart if shown else ():
        if "few-shot" in name:
            own = {key: np.array(value) for key, value in apart.items()}
            _row(table, f"{name}, scored without its images", own[name], own["majority"], own["best teacher"])
    console.print(table)
    if shown:
        console.print(f"few-shot looked at: {' '.join(shown)}")
    return arrays


def _vote_score(world: World, group: tuple[str, ...]) -> float:
    def label_of(image: str) -> UInt8:
        labels = np.stack([world.teachers[n].label[image] for n in group])
        return vote(labels, world.teachers[group[0]].planes[image][None])

    return miou(world, world.score, label_of)


def _row(table: Table, name: str, values: Any, base: Any, best: Any) -> None:
    figures = [f"{values.mean():.2f}"]
    for difference in (values - base, values - best):
        figures += [f"{difference.mean():+.2f}", f"{difference.min():+.2f}"]
    table.add_row(name, *figures)


# ---------------------------------------------------------------------------- picture


def draw_chart(path: Path, arrays: Mapping[str, NDArray[np.float64]]) -> None:
    """Per way to fuse a bar of the mean difference to the vote and a dot per ensemble."""
    base = arrays["majority"]
    names = [name for name in arrays if name != "majority"]
    left, width, line, top = 190, 560, 30, 34
    low, high = -14.0, 22.0
    image = Image.new("RGB", (left + width + 70, top + line * len(names) + 40), "white")
    draw = ImageDraw.Draw(image)

    def x(value: float) -> float:
        return left + width * (min(max(value, low), high) - low) / (high - low)

    for value in range(-10, 21, 5):
        draw.line((x(value), top, x(value), top + line * len(names)), "#cccccc" if value else "#555555")
        draw.text(
            (x(value), top + line * len(names) + 8), f"{value:+d}", "#555555", anchor="mt", font_size=12
        )
    draw.text(
        (left, 8),
        "mIoU above the majority vote of the same teachers; a dot per ensemble",
        "#222222",
        font_size=14,
    )
    for row, name in enumerate(names):
        y = top + line * row + line // 2
        difference = arrays[name] - base
        ours = "consensus" in name
        bar = sorted((x(0), x(float(difference.mean()))))
        draw.rectangle((bar[0], y - 8, bar[1], y + 8), "#3b7dd8" if ours else "#b9c4d2")
        for value in difference:
            draw.ellipse(
                (x(float(value)) - 2, y - 2, x(float(value)) + 2, y + 2), "#16365f" if ours else "#65707d"
            )
        draw.text((left - 8, y), name, "#222222", anchor="rm", font_size=13)
        draw.text((left + width + 62, y), f"{difference.mean():+.1f}", "#222222", anchor="rm", font_size=13)
    image.quantize(32).save(path, optimize=True)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = ["val", "splits", "stress", "steps"]
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    parser.add_argument(
        "--ways", help="of val, splits and stress, only ways to fuse that have this in their name"
    )
    parser.add_argument("--ensembles", type=int, default=1, help="use every so many ensembles")
    parser.add_argument("--every", type=int, default=1, help="use every so many images")
    parser.add_argument("--chart", type=Path, help="draw the table of val into this PNG")
    given = parser.parse_args()
    console = Console(width=110)
    folder = given.folder.resolve()
    world = load(folder, given.every)
    groups = ensembles(list(world.teachers))[:: given.ensembles]

    def chosen(ways: Mapping[str, Any]) -> dict[str, Any]:
        return {name: way for name, way in ways.items() if (given.ways or "") in name or name == "majority"}

    if "val" in given.only:
        ways = {
            name: way for name, way in SHIPPED.items() if (given.ways or "") in name or name == "majority"
        }
        arrays = scores(world, groups, ways, "val", console)
        if given.chart:
            draw_chart(given.chart, arrays)
    if "splits" in given.only:
        half = replace(world, fit=world.fit[::2], score=world.score[1::2])
        scores(half, groups, chosen(LABEL_FREE), "fitted to every other image, scored on the rest", console)
        few = replace(world, fit=world.fit[:: max(1, len(world.fit) // 5)])
        scores(few, groups, chosen(LABEL_FREE), f"fitted to {len(few.fit)} images", console)
        both = load(folder, given.every, ("val", "train"))
        unseen = [image for image in next(iter(both.teachers.values())).label if image not in both.truth]
        scores(
            replace(both, fit=unseen), ensembles(list(both.teachers)), chosen(LABEL_FREE),
            "fitted to train, scored on val", console,
        )  # fmt: skip
    if "stress" in given.only:
        for worse, those in stressed(world):
            scores(worse, those[:: given.ensembles], chosen(LABEL_FREE), worse.name, console)
    if "steps" in given.only:
        scores(world, groups, STEPS, "steps left out and constants changed", console)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run())
    finally:
        shutil.rmtree(STORE, ignore_errors=True)
