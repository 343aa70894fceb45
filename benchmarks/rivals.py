"""What ``fuse`` gives beside what else can be installed: mIoU and processor seconds on the real teachers' maps.

    OMP_NUM_THREADS=1 python benchmarks/rivals.py [FOLDER] [--only trio four six train] [--ways PART ...]
                                                  [--every N] [--pixels N]

FOLDER holds ``camvid/`` (default as in ``realdata.py``). The rivals are no dependency of endauda: ``pip install --group
rivals`` in a clone, or SimpleITK, crowd-kit and monai by hand. One that is absent is left out, and the line says why.

``trio``, ``four``, ``six``  three, four and six teachers on the 51 val images
``train``                    four teachers on the 184 images of three drives

No way sees a label; threshold 0, every pixel counts, and one that a rival leaves undecided counts as wrong. Seconds are
of one process, from maps in memory to labels in memory: fitting is in them, reading, imports and compilation are not.
crowd-kit takes tables with a row per vote, so its models are fitted to every so many pixels, ``--pixels`` in all, and
then label all pixels, each combination of votes once; ``endauda`` fits ``consensus`` and ``plf`` to 100,000 pixels too.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import hdf5plugin  # noqa: F401  registers the filter
import numpy as np
import torch
from realdata import ROOT

from endauda_cli.datasets import load_domain
from endauda_cli.domains import IGNORE, make_task
from endauda_cli.fusion.choosing import Evidence, choose_consensus, choose_policy
from endauda_cli.fusion.rank_certainty import SAMPLED_IMAGES, estimate_delta
from endauda_cli.fusion.rules import RULES, Recipe, fuse_image
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.domains import Domain

    UInt8 = NDArray[np.uint8]

FOUR = ("fddwnet", "dabnet", "mininetv2", "espnetv2")
CASES = {
    "trio": (("dicenet", "espnet", "espnetv2"), ("val",)),
    "four": (FOUR, ("val",)),
    "six": ((*FOUR, "dicenet", "espnet"), ("val",)),
    "train": (FOUR, ("train", "more")),
}
"""Teachers, and the splits whose images they are fused on."""


@dataclass(frozen=True)
class Reader:
    """What one teacher says, in memory; speaks like an archive."""

    classes: tuple[str, ...]
    place: Mapping[str, int]
    label: UInt8
    planes: UInt8

    def labels(self, image: str) -> UInt8:
        found: UInt8 = self.label[self.place[image]]
        return found

    def certainty(self, image: str) -> UInt8:
        found: UInt8 = self.planes[self.place[image]]
        return found

    def size(self, image: str) -> tuple[int, ...]:
        return self.labels(image).shape


@dataclass(frozen=True)
class Maps:
    """What T teachers say of N images of C classes, and the truth, which judges alone.

    Attributes:
        labels: (T, N, H, W) train ids, each below C.
        planes: (T, N, C, H, W) percent.
        truth: (N, H, W) train ids, C and above where there is none.
        pixels: how many of them crowd-kit's models are fitted to.
    """

    domain: Domain
    teachers: tuple[str, ...]
    images: tuple[str, ...]
    labels: UInt8
    planes: UInt8
    truth: UInt8
    pixels: int

    @property
    def num_classes(self) -> int:
        return len(self.domain.classes)

    @property
    def evidence(self) -> Evidence:
        place = {image: n for n, image in enumerate(self.images)}
        readers = {
            name: cast("TeacherOutputs", Reader(self.domain.classes, place, self.labels[t], self.planes[t]))
            for t, name in enumerate(self.teachers)
        }
        return Evidence(make_task(self.domain, self.domain), readers, self.images, list)

    @property
    def glimpse(self) -> Maps:
        """Every ninth row and column of the first image: enough to have everything compiled."""
        thin = (slice(None), slice(None, 1), ..., slice(None, None, 9), slice(None, None, 9))
        labels, planes = (np.ascontiguousarray(array[thin]) for array in (self.labels, self.planes))
        return replace(self, images=self.images[:1], labels=labels, planes=planes)


def load(folder: Path, case: str, every: int, pixels: int) -> Maps:
    teachers, splits = CASES[case]
    domain = load_domain(str(folder / "camvid.toml"))
    split_of: dict[str, str] = {}
    for split in splits:
        with h5py.File(folder / f"outputs_{teachers[0]}_{split}.h5") as file:
            split_of |= {stem.decode(): split for stem in file["stem"][:]}
    images = sorted(split_of)[::every]
    truths = [read_truth(folder / "labels" / split_of[i] / f"{i}.png", domain) for i in images]
    truth = np.stack(truths)
    size = truth.shape[1:]
    labels = np.empty((len(teachers), len(images), *size), np.uint8)
    planes = np.empty((len(teachers), len(images), len(domain.classes), *size), np.uint8)
    for t, teacher in enumerate(teachers):
        for split in splits:
            with h5py.File(folder / f"outputs_{teacher}_{split}.h5") as file:
                c = int(file.attrs["classes"])
                place = {stem.decode(): i for i, stem in enumerate(file["stem"][:])}
                for n, image in enumerate(images):
                    if image in place:
                        i = place[image]
                        labels[t, n] = file["label"][i]
                        planes[t, n] = file["certainty"][i * c : (i + 1) * c]
    return Maps(domain, teachers, tuple(images), labels, planes, truth, pixels)


# ---------------------------------------------------------------------------- ways to fuse: Maps -> (N, H, W) labels


def endauda(rule: str, maps: Maps) -> UInt8:
    """As ``endauda fuse --rule RULE --threshold 0`` does, with the policy ``auto`` where there is one."""
    needs, evidence = RULES[rule].needs, maps.evidence
    owners: tuple[int, ...] = ()
    delta: tuple[float, ...] = ()
    model = None
    if "owners" in needs:
        owners = tuple(choose_policy("auto", evidence, lambda _: None).owners)
    if "model" in needs:
        model = choose_consensus("auto", evidence, lambda _: None)[1]
    if "delta" in needs:
        some = maps.images[:: -(-len(maps.images) // SAMPLED_IMAGES)]
        delta = estimate_delta(evidence.readers, some, lambda _: None)
    recipe = Recipe(maps.num_classes, owners, threshold=0, delta=delta, model=model)
    fused = np.empty(maps.labels.shape[1:], np.uint8)
    for n in range(len(fused)):
        labels, planes = np.ascontiguousarray(maps.labels[:, n]), maps.planes[:, n]
        fused[n] = fuse_image(rule, labels, partial(_of, planes), recipe).label
    return fused


def _of(planes: UInt8, teacher: int, classes: Sequence[int]) -> UInt8:
    return planes[teacher, list(classes)]


def simpleitk(name: str, maps: Maps) -> UInt8:
    """All images as one volume, so that STAPLE has one confusion matrix per teacher."""
    itk: Any = import_module("SimpleITK")
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rater = getattr(itk, name)()
    rater.SetLabelForUndecidedPixels(IGNORE)
    fused: UInt8 = itk.GetArrayFromImage(rater.Execute([itk.GetImageFromArray(own) for own in maps.labels]))
    return fused


def monai_vote(maps: Maps) -> UInt8:
    vote = import_module("monai.transforms").VoteEnsemble(num_classes=maps.num_classes)
    labels = torch.from_numpy(maps.labels)
    return np.stack([vote(labels[:, n, None])[0].to(torch.uint8).numpy() for n in range(labels.shape[1])])


def monai_mean(maps: Maps) -> UInt8:
    mean = import_module("monai.transforms").MeanEnsemble()
    planes = torch.from_numpy(maps.planes)
    of_each = (mean(planes[:, n].float()).argmax(0) for n in range(planes.shape[1]))
    return np.stack([label.to(torch.uint8).numpy() for label in of_each])


def crowd_kit(name: str, maps: Maps) -> UInt8:
    """Fitted to a sample of pixels; a pixel's label follows from its T votes, so each combination is asked for once."""
    model = getattr(import_module("crowdkit.aggregation"), name)()
    votes = maps.labels.reshape(len(maps.labels), -1)
    model.fit(_ballots(votes[:, :: max(1, votes.shape[1] // maps.pixels) | 1]))
    teachers, c = len(votes), maps.num_classes
    code = np.zeros(votes.shape[1], np.int32)
    for own in votes:
        code *= c
        code += own
    found = np.flatnonzero(np.bincount(code, minlength=c**teachers))
    asked = _ballots(np.stack([found // c ** (teachers - 1 - t) % c for t in range(teachers)]))
    if name == "MMSR":
        labels = model.predict(asked)
    else:  # these label what they were fitted to alone; one more E-step labels the rest
        labels = model._e_step(asked, model.priors_, model.errors_).idxmax(axis=1)
    label_of = np.full(c**teachers, IGNORE, np.uint8)
    label_of[found] = labels.loc[np.arange(len(found))].to_numpy()
    return label_of[code].reshape(maps.labels.shape[1:])


def _ballots(votes: NDArray[Any]) -> Any:
    """crowd-kit's table of (T, S) votes."""
    teachers, tasks = votes.shape
    columns = {
        "task": np.tile(np.arange(tasks), teachers),
        "worker": np.repeat(np.arange(teachers), tasks),
        "label": votes.ravel().astype(np.int64),
    }
    return import_module("pandas").DataFrame(columns)


WAYS: dict[str, tuple[str, Callable[[Maps], UInt8]]] = {
    **{f"endauda {rule}": ("endauda_cli", partial(endauda, rule)) for rule in RULES},
    "SimpleITK LabelVoting": ("SimpleITK", partial(simpleitk, "LabelVotingImageFilter")),
    "SimpleITK MultiLabelSTAPLE": ("SimpleITK", partial(simpleitk, "MultiLabelSTAPLEImageFilter")),
    **{
        f"crowd-kit {name}": ("crowdkit.aggregation", partial(crowd_kit, name))
        for name in ("DawidSkene", "OneCoinDawidSkene", "MMSR")
    },
    "MONAI VoteEnsemble": ("monai.transforms", monai_vote),
    "MONAI MeanEnsemble": ("monai.transforms", monai_mean),
}
"""What it is called, the module that must be there, and how it fuses."""


# ---------------------------------------------------------------------------- measuring


def line(module: str, way: Callable[[Maps], UInt8], maps: Maps) -> str:
    """mIoU, seconds and share of undecided pixels of a way to fuse, or why there are none."""
    try:
        import_module(module)
    except ImportError as error:
        return f"left out: {error}"
    way(maps.glimpse)
    begun = time.process_time()
    fused = way(maps)
    spent = time.process_time() - begun
    undecided = float((fused == IGNORE).mean())
    note = f"   {undecided:.1%} of the pixels undecided" if undecided else ""
    return f"{miou(maps, fused):6.2f} {spent:8.1f}{note}"


def miou(maps: Maps, fused: UInt8) -> float:
    """Percent; an undecided pixel is wrong."""
    confusion = ConfusionMatrix(maps.num_classes)
    confusion.update(maps.truth, fused)
    return 100 * confusion.mean_iou(strict=True)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--ways", nargs="+", default=[""], help="only ways to fuse that have one of these in their name"
    )
    parser.add_argument("--every", type=int, default=1, help="use every so many images")
    parser.add_argument("--pixels", type=int, default=100_000, help="that crowd-kit's models are fitted to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for case in given.only:
        maps = load(given.folder.resolve() / "camvid", case, given.every, given.pixels)
        best = max(miou(maps, own) for own in maps.labels)
        print(f"{case}: {', '.join(maps.teachers)}, {len(maps.images)} images; the best teacher {best:.2f}")
        print(f"{'':28} {'mIoU %':>6} {'CPU s':>8}")
        for name, (module, way) in WAYS.items():
            if any(part in name for part in given.ways):
                print(f"{name:28} {line(module, way, maps)}", flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(run())
