"""Engine: from archives, labels or a file to the policy that ``fuse`` follows."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError, PolicyError
from endauda_cli.fusion.array_files import read_arrays, write_arrays
from endauda_cli.fusion.inputs import NotKeptError, file_digest, table_digest
from endauda_cli.fusion.policy_files import (
    expected_arrays,
    model_arrays,
    model_of,
    read_consensus,
    read_policy,
)
from endauda_cli.fusion.rules import consensus, policies
from endauda_cli.fusion.rules.policies import Overlaps, Policy
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.progress import Reporter, counted, phase
from endauda_cli.types import PolicyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.fusion.array_files import Expected
    from endauda_cli.fusion.rules.consensus import Consensus

SAMPLED_IMAGES = 200
SAMPLED_PIXELS = 100_000
"""Label-free statistics need no more: they are means over pixels, and neighbours say the same."""
STATISTICS_VERSION = 3
"""Grows when what is computed from the same archives changes, so that what was kept is computed again."""


@dataclass(frozen=True)
class Evidence:
    """What a policy may be chosen by.

    Attributes:
        task: source and target.
        readers: teacher name -> archive, in the order of ``--teachers``.
        ids: images to fuse; label-free policies look at their certainties.
        labelled: finds the labelled target images (``val``); only called by policies that use labels.
        few_shot: which of them ``few-shot`` may look at: a number, or ids separated by commas.
        store: folder where statistics of archives are kept for the next run; ``None`` keeps none.
        kept_only: take what is kept there, and compute nothing: ``NotKeptError``.
    """

    task: Task
    readers: Mapping[str, TeacherOutputs]
    ids: Sequence[str]
    labelled: Callable[[], list[Sample]]
    few_shot: str = "5"
    store: Path | None = None
    kept_only: bool = False


def choose_policy(spec: str, evidence: Evidence, report: Reporter) -> Policy:
    """The policy that ``--policy`` asks for: who owns which class.

    Args:
        spec: a ``PolicyKind`` value, or the path of a policy file.
        evidence: what there is to choose by.
        report: told of progress.

    Raises:
        PolicyError: if the file is wrong, or the paper's policy does not apply.
        DataError, ArchiveError: if images, labels or certainties that are needed are not there.
    """
    if spec in POLICIES:
        return POLICIES[spec](evidence, report)
    return read_policy(Path(spec), evidence.task.classes, list(evidence.readers))


def choose_consensus(spec: str, evidence: Evidence, report: Reporter) -> tuple[Policy, Consensus]:
    """What the rule ``consensus`` goes by, and which teacher leads in which class, for the record.

    Args:
        spec: ``auto``, ``few-shot``, ``val``, or the path of a ``policy.json`` beside labels of this rule.
        evidence: what there is to fit to.
        report: told of progress.

    Raises:
        PolicyError: if the policy names owners, which this rule does not have, or the file is wrong.
        DataError, ArchiveError: if images, labels or certainties that are needed are not there.
    """
    if spec in (PolicyKind.CERTAINTY, PolicyKind.PAPER):
        raise PolicyError(f"--policy {spec} says who owns which class, which rule consensus has no use for; "
                          "add --rule plf, or use --policy auto, few-shot or val")  # fmt: skip
    if spec not in POLICIES:
        classes, teachers = evidence.task.classes, list(evidence.readers)
        path = Path(spec)
        return read_policy(path, classes, teachers), read_consensus(path, classes, teachers)
    shown = [] if spec == PolicyKind.AUTO else labelled_samples(spec, evidence)
    fitted = _fitted(evidence, shown, report)
    return _by_agreement(spec, fitted, [sample.id for sample in shown]), fitted.model


def policy_of_all_rules(spec: str) -> str:
    """What the other rules go by when they are scored beside one that goes by ``spec``: the same, if they can."""
    return spec if spec in (PolicyKind.AUTO, PolicyKind.FEW_SHOT, PolicyKind.VAL) else PolicyKind.AUTO


@dataclass(frozen=True)
class _Fitted:
    """What was learnt from the archives, see ``consensus``."""

    model: Consensus
    overlaps: Overlaps
    sureness: NDArray[np.float64]
    """(T, C) mean certainty of each teacher's classes, once all were brought to one mean certainty."""

    @property
    def scores(self) -> NDArray[np.float64]:
        """(T, C) expected IoU; NaN where a teacher never gives the class."""
        scores = self.overlaps.iou()
        scores[self.overlaps.common.sum(0) == 0] = np.nan
        return scores


def _by_agreement(kind: str, fitted: _Fitted, labelled: Sequence[str] = ()) -> Policy:
    owners = policies.owners_by_score(fitted.scores)
    sure = policies.sureness(fitted.overlaps, owners)
    return _in_class_order(owners, kind, fitted.scores, labelled, sure)


def choose_both(evidence: Evidence, report: Reporter) -> tuple[Policy, Consensus]:
    """What policy ``auto`` gives ``plf`` and ``consensus``, learnt once."""
    fitted = _fitted(evidence, [], report)
    return _auto_of(fitted), fitted.model


def _auto(evidence: Evidence, report: Reporter) -> Policy:
    return _auto_of(_fitted(evidence, [], report))


def _auto_of(fitted: _Fitted) -> Policy:
    scores = fitted.scores * fitted.sureness
    owners = policies.owners_by_score(scores)
    sure = policies.sureness(fitted.overlaps, owners, np.nan_to_num(fitted.sureness))
    return _in_class_order(owners, PolicyKind.AUTO, scores, (), sure)


def _certainty(evidence: Evidence, report: Reporter) -> Policy:
    """Means over all pixels of all images, as the follow-up project takes them."""
    _refuse_work(evidence)
    num_classes = len(evidence.task.classes)
    total = np.zeros((len(evidence.readers), num_classes))
    pixels = np.zeros_like(total)
    for t, (name, reader) in enumerate(evidence.readers.items()):
        for image in counted(evidence.ids, len(evidence.ids), f"certainty of {name}", report):
            top = reader.certainty(image).max(0).ravel()
            given = reader.labels(image).ravel()
            known = given < num_classes
            total[t] += np.bincount(given[known], top[known], num_classes)
            pixels[t] += np.bincount(given[known], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        table = total / pixels
    return _in_class_order(policies.owners_by_certainty(table), PolicyKind.CERTAINTY, table)


def _val(evidence: Evidence, report: Reporter) -> Policy:
    samples = labelled_samples(PolicyKind.VAL, evidence)
    return _by_labels(PolicyKind.VAL, samples, _true_overlaps(evidence, samples, None, report))


def _few_shot(evidence: Evidence, report: Reporter) -> Policy:
    samples = labelled_samples(PolicyKind.FEW_SHOT, evidence)
    before = _fitted(evidence, [], report).scores
    return _by_labels(PolicyKind.FEW_SHOT, samples, _true_overlaps(evidence, samples, before, report))


def _by_labels(kind: str, samples: Sequence[Sample], overlaps: Overlaps) -> Policy:
    scores = overlaps.iou()
    owners = policies.owners_by_score(scores)
    ids = [sample.id for sample in samples]
    return _in_class_order(owners, kind, scores, ids, policies.sureness(overlaps, owners))


def _true_overlaps(
    evidence: Evidence, samples: Sequence[Sample], before: NDArray[np.float64] | None, report: Reporter
) -> Overlaps:
    """What each teacher has in common with the truth, per labelled image."""
    _refuse_work(evidence)
    num_classes = len(evidence.task.classes)
    common = np.zeros((len(samples), len(evidence.readers), num_classes))
    union = np.zeros_like(common)
    labelled = 0
    for n, sample in enumerate(counted(samples, len(samples), "IoU of the teachers", report)):
        truth = read_truth(_label_file(sample), evidence.task.target)
        labelled += int(np.count_nonzero(truth < num_classes))
        for t, (name, reader) in enumerate(evidence.readers.items()):
            confusion = ConfusionMatrix(num_classes)
            confusion.update(truth, _given(name, reader, sample, truth.shape))
            common[n, t] = confusion.matrix.diagonal()
            union[n, t] = confusion.matrix.sum(0) + confusion.matrix.sum(1) - common[n, t]
    _refuse_empty(labelled, samples)
    return Overlaps(common, union, before)


def _refuse_work(evidence: Evidence) -> None:
    if evidence.kept_only:
        raise NotKeptError


def labelled_samples(spec: str, evidence: Evidence) -> list[Sample]:
    """The labelled target images that a policy looks at."""
    found = evidence.labelled()
    if spec == PolicyKind.VAL:
        return found
    names = {sample.id: sample for sample in found}
    if not evidence.few_shot.strip().isdecimal():
        ids = [name.strip() for name in evidence.few_shot.split(",") if name.strip()]
        unknown = [name for name in ids if name not in names]
        if unknown or not ids:
            raise PolicyError(
                f"--few-shot {evidence.few_shot}: {unknown[0] if unknown else 'nothing'!r} is not a labelled "
                f"image of the target; name some of its {len(found)}, such as {found[0].id}, or a number of them"
            )
        return [names[name] for name in dict.fromkeys(ids)]
    digits = evidence.few_shot.strip()
    number = int(digits) if len(digits) < 10 else 0
    if not 1 <= number <= len(found):
        raise PolicyError(
            f"--few-shot {digits:.20}: the target has {len(found)} labelled images, so 1 to {len(found)}"
        )
    ordered = [names[name] for name in sorted(names)]
    return [ordered[(2 * i + 1) * len(ordered) // (2 * number)] for i in range(number)]


def _given(name: str, reader: TeacherOutputs, sample: Sample, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A teacher's labels of a labelled image."""
    if sample.id not in reader:
        raise DataError(
            f"{name}: its archive lacks {sample.id}, one of the labelled target images that the policy needs; "
            f"run 'endauda export-teacher {name} --split val' first"
        )
    given = reader.labels(sample.id)
    if shape != given.shape:
        raise DataError(f"{sample.label}: {wxh(shape)} pixels, but {name} has {wxh(given.shape)} for it")
    return given


def _refuse_empty(labelled: int, samples: Sequence[Sample]) -> None:
    """Truth without any class, such as Cityscapes' public test labels, chooses nobody."""
    if not labelled:
        raise PolicyError(
            f"the truth of all {len(samples)} images holds no class at all (first {samples[0].label}): every pixel is "
            "one that is ignored, so no teacher can be chosen by it; use --policy auto, or name images with labels by "
            "--few-shot"
        )


def _label_file(sample: Sample) -> Path:
    if sample.label is None:
        raise DataError(f"{sample.image}: has no label, which the policy needs")
    return sample.label


def _paper(evidence: Evidence, report: Reporter) -> Policy:
    return policies.paper_policy(evidence.task.source.name, list(evidence.readers))


POLICIES: dict[str, Callable[[Evidence, Reporter], Policy]] = {
    PolicyKind.AUTO: _auto,
    PolicyKind.VAL: _val,
    PolicyKind.FEW_SHOT: _few_shot,
    PolicyKind.CERTAINTY: _certainty,
    PolicyKind.PAPER: _paper,
}


def _in_class_order(
    owners: list[int],
    kind: str,
    table: NDArray[np.float64],
    labelled: Sequence[str] = (),
    sure: tuple[float, ...] | None = None,
) -> Policy:
    scores = tuple(tuple(float(v) for v in row) for row in table)
    return Policy(tuple(enumerate(owners)), kind, scores, bool(labelled), tuple(labelled), sure)


# ---------------------------------------------------------------------------- what is learnt from the archives


def _fitted(evidence: Evidence, labelled: Sequence[Sample], report: Reporter) -> _Fitted:
    """The consensus of the teachers; kept in ``evidence.store`` for as long as its inputs are the same."""
    step = max(1, -(-len(evidence.ids) // SAMPLED_IMAGES))
    ids = list(evidence.ids)[::step]
    file = None
    if evidence.store is not None:
        file = evidence.store / f"{_inputs_digest(evidence, ids, labelled)}.npz"
        kept = _read_fitted(file, len(evidence.readers), len(evidence.task.classes))
        if kept is not None:
            return kept
    _refuse_work(evidence)
    num_classes = len(evidence.task.classes)
    sample = _sample(evidence.readers, ids, report)
    shown = _labelled_pixels(evidence, labelled, report) if labelled else None
    with phase(report, "fitting the consensus"):
        places = consensus.Places(sample.place, len(ids))
        model = consensus.fit(sample.labels, sample.certainties, num_classes, shown, places)
        belief = consensus.believe(sample.labels, sample.certainties, model, sample.place)
        fitted = _Fitted(
            model,
            consensus.overlaps(sample.labels, belief, sample.image),
            policies.scaled_certainty(sample.labels, sample.certainties, num_classes),
        )
    if file is not None:
        _write_fitted(file, fitted)
    return fitted


def _inputs_digest(evidence: Evidence, ids: Sequence[str], labelled: Sequence[Sample]) -> str:
    parts: list[Any] = [STATISTICS_VERSION, SAMPLED_PIXELS, evidence.task.classes]
    for reader in evidence.readers.values():
        parts.append([reader.classes, *((image, reader.digest(image)) for image in ids)])
        parts.append([reader.digest(sample.id) for sample in labelled if sample.id in reader])
    for sample in labelled:
        parts.append([sample.id, file_digest(_label_file(sample))])
    if labelled:
        parts.append(table_digest(evidence.task.target))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read_fitted(file: Path, teachers: int, classes: int) -> _Fitted | None:
    expected: Expected = {
        **expected_arrays(teachers, classes),
        "common": (np.float64, (None, teachers, classes)),
        "union_per_image": (np.float64, (None, teachers, classes)),
        "sureness": (np.float64, (teachers, classes)),
    }
    try:
        arrays = read_arrays(file, expected)
        if arrays["common"].shape != arrays["union_per_image"].shape or not len(arrays["common"]):
            return None
        overlaps = Overlaps(arrays["common"], arrays["union_per_image"])
        return _Fitted(model_of(arrays), overlaps, arrays["sureness"])
    except (OSError, ValueError):
        return None  # not there, or cut short: it is computed again


def _write_fitted(file: Path, fitted: _Fitted) -> None:
    arrays = model_arrays(fitted.model) | {
        "common": fitted.overlaps.common,
        "union_per_image": fitted.overlaps.union,
        "sureness": fitted.sureness,
    }
    with suppress(OSError, DataError):  # a folder that cannot be written to only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, arrays)


@dataclass(frozen=True)
class _Pixels:
    """Sampled pixels: (T, S) labels, (T, S, C) certainties, (S,) the number of their image and their place in it."""

    labels: NDArray[np.uint8]
    certainties: NDArray[np.uint8]
    image: NDArray[np.intp]
    place: NDArray[np.intp]


def _sample(readers: Mapping[str, TeacherOutputs], ids: Sequence[str], report: Reporter) -> _Pixels:
    """Pixels on a regular grid over the images."""
    labels, certainties, image_of, places = [], [], [], []
    for number, image in enumerate(counted(ids, len(ids), "weighing the teachers", report)):
        size = common_size(readers, image)
        pixels = _grid(size, SAMPLED_PIXELS // len(ids) + 1, number + 1)
        labels.append(np.stack([reader.labels(image).ravel()[pixels] for reader in readers.values()]))
        certainties.append(
            np.stack(
                [
                    reader.certainty(image).reshape(len(reader.classes), -1)[:, pixels].T
                    for reader in readers.values()
                ]
            )
        )
        image_of.append(np.full(len(pixels), number))
        places.append(consensus.places_of(*size).ravel()[pixels])
    return _Pixels(
        np.concatenate(labels, 1),
        np.concatenate(certainties, 1),
        np.concatenate(image_of),
        np.concatenate(places),
    )


def _labelled_pixels(evidence: Evidence, samples: Sequence[Sample], report: Reporter) -> consensus.Labelled:
    truths = [read_truth(_label_file(sample), evidence.task.target) for sample in samples]
    for sample, truth in zip(samples, truths, strict=True):
        for name, reader in evidence.readers.items():
            _given(name, reader, sample, truth.shape)
    num_classes = len(evidence.task.classes)
    _refuse_empty(sum(int(np.count_nonzero(truth < num_classes)) for truth in truths), samples)
    pixels = _sample(evidence.readers, [sample.id for sample in samples], report)
    sampled = [
        truth.ravel()[_grid(truth.shape, SAMPLED_PIXELS // len(samples) + 1, number)]
        for number, truth in enumerate(truths, 1)
    ]
    return consensus.Labelled(pixels.labels, pixels.certainties, np.concatenate(sampled), pixels.image)


def _grid(size: tuple[int, ...], wanted: int, seed: int) -> NDArray[np.int64]:
    """About ``wanted`` flat pixel positions, evenly spread with a jitter that differs per image."""
    pixels = size[0] * size[1]
    if wanted >= pixels:
        return np.arange(pixels)
    edges = np.linspace(0, pixels, wanted + 1)
    jitter = np.random.default_rng(seed).random(wanted)
    return (edges[:-1] + jitter * np.diff(edges)).astype(np.int64)


def common_size(readers: Mapping[str, TeacherOutputs], image: str) -> tuple[int, int]:
    """(H, W) of an image, the same in all archives.

    Raises:
        DataError: if it differs.
    """
    sizes = {name: reader.size(image) for name, reader in readers.items()}
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            raise DataError(
                f"{image}: {wxh(size)} pixels in the archive of {first}, but {wxh(other)} in that of {name}; "
                "export both at one size"
            )
    return size


def wxh(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
