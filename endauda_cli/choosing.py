"""Engine: from archives, labels or a file to the policy that ``fuse`` follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli import policy as rules
from endauda_cli.errors import DataError, PolicyError
from endauda_cli.events import Reporter, Tick
from endauda_cli.labels import read_truth
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.policy import Policy
from endauda_cli.types import PolicyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import CertaintyReader
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task

SAMPLED_IMAGES = 200
SAMPLED_PIXELS = 200_000
"""Label-free statistics need no more: they are means over pixels, and neighbours say the same."""


@dataclass(frozen=True)
class Evidence:
    """What a policy may be chosen by.

    Attributes:
        task: source and target.
        readers: teacher name -> archive, in the order of ``--teachers``.
        ids: images to fuse; label-free policies look at their certainties.
        labelled: finds the labelled target images (``val``); only called by policies that use labels.
    """

    task: Task
    readers: dict[str, CertaintyReader]
    ids: Sequence[str]
    labelled: Callable[[], list[Sample]]


def choose_policy(spec: str, evidence: Evidence, report: Reporter) -> Policy:
    """The policy that ``--policy`` asks for.

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


def _auto(evidence: Evidence, report: Reporter) -> Policy:
    labels, certainties = _sample(evidence, report)
    scores = rules.auto_scores(labels, certainties, len(evidence.task.classes))
    return _in_class_order(rules.owners_by_score(scores), PolicyKind.AUTO, scores)


def _certainty(evidence: Evidence, report: Reporter) -> Policy:
    """Means over all pixels of all images, as the follow-up project takes them."""
    num_classes = len(evidence.task.classes)
    total = np.zeros((len(evidence.readers), num_classes))
    pixels = np.zeros_like(total)
    for t, (name, reader) in enumerate(evidence.readers.items()):
        for done, image in enumerate(evidence.ids, 1):
            top = reader.certainty(image).max(0).ravel()
            given = reader.labels(image).ravel()
            known = given < num_classes
            total[t] += np.bincount(given[known], top[known], num_classes)
            pixels[t] += np.bincount(given[known], minlength=num_classes)
            report(Tick(f"certainty of {name}", done, len(evidence.ids)))
    with np.errstate(invalid="ignore"):
        table = total / pixels
    return _in_class_order(rules.owners_by_certainty(table), PolicyKind.CERTAINTY, table)


def _val(evidence: Evidence, report: Reporter) -> Policy:
    samples = evidence.labelled()
    table = np.full((len(evidence.readers), len(evidence.task.classes)), np.nan)
    for t, (name, reader) in enumerate(evidence.readers.items()):
        confusion = ConfusionMatrix(len(evidence.task.classes))
        for done, sample in enumerate(samples, 1):
            if sample.label is None or sample.id not in reader:
                raise DataError(
                    f"{name}: its archive lacks {sample.id}, one of the labelled target images that "
                    f"--policy val needs; run 'endauda export-teacher {name} --split val' first"
                )
            truth, given = read_truth(sample.label, evidence.task.target), reader.labels(sample.id)
            if truth.shape != given.shape:
                raise DataError(
                    f"{sample.label}: {wxh(truth.shape)} pixels, but {name} has {wxh(given.shape)} for it"
                )
            confusion.update(truth, given)
            report(Tick(f"IoU of {name}", done, len(samples)))
        table[t] = confusion.iou()
    return _in_class_order(rules.owners_by_score(table), PolicyKind.VAL, table, used_labels=True)


def _paper(evidence: Evidence, report: Reporter) -> Policy:
    return rules.paper_policy(evidence.task.source.name, list(evidence.readers))


POLICIES: dict[str, Callable[[Evidence, Reporter], Policy]] = {
    PolicyKind.AUTO: _auto,
    PolicyKind.VAL: _val,
    PolicyKind.CERTAINTY: _certainty,
    PolicyKind.PAPER: _paper,
}


def read_policy(path: Path, classes: Sequence[str], teachers: Sequence[str]) -> Policy:
    """A policy from JSON ``[["road", "dacs"], ...]`` (names or numbers), or from the follow-up's ``.npy``.

    Raises:
        PolicyError: if the file is absent, of another form, or names what is not there.
    """
    try:
        if path.suffix == ".npy":
            pairs: Any = np.load(path, allow_pickle=False).tolist()
        else:
            pairs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        kinds = ", ".join(PolicyKind)
        raise PolicyError(f"--policy {path}: neither one of {kinds} nor a file that exists") from error
    except (OSError, ValueError, EOFError) as error:
        raise PolicyError(f"{path}: neither JSON nor a NumPy file ({error})") from error
    if isinstance(pairs, dict):  # as written beside fused labels
        pairs = pairs.get("pairs")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise PolicyError(f'{path}: expected a list of pairs such as [["road", "dacs"], ...]')
    numbered = [(_index(path, c, classes, "class"), _index(path, t, teachers, "teacher")) for c, t in pairs]
    return rules.make_policy(numbered, len(classes), len(teachers), str(path))


def policy_record(policy: Policy, classes: Sequence[str], teachers: Sequence[str]) -> dict[str, Any]:
    """The policy as plain values for ``policy.json``; ``read_policy`` reads it back."""
    record: dict[str, Any] = {
        "kind": policy.kind,
        "used_labels": policy.used_labels,
        "pairs": [[classes[c], teachers[t]] for c, t in policy.pairs],
    }
    if policy.scores is not None:
        record["scores"] = {
            name: {classes[c]: None if np.isnan(v) else round(v, 6) for c, v in enumerate(row)}
            for name, row in zip(teachers, policy.scores, strict=True)
        }
    return record


def _index(path: Path, value: Any, names: Sequence[str], what: str) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    if value not in names:
        raise PolicyError(f"{path}: {what} {value!r} is not one of {', '.join(names)}")
    return list(names).index(value)


def _in_class_order(
    owners: list[int], kind: str, table: NDArray[np.float64], used_labels: bool = False
) -> Policy:
    scores = tuple(tuple(float(v) for v in row) for row in table)
    return Policy(tuple(enumerate(owners)), kind, scores, used_labels)


def _sample(evidence: Evidence, report: Reporter) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(T, S) labels and (T, S, C) certainties of pixels on a regular grid over evenly spread images."""
    step = max(1, -(-len(evidence.ids) // SAMPLED_IMAGES))
    ids = list(evidence.ids)[::step]
    labels, certainties = [], []
    for done, image in enumerate(ids, 1):
        pixels = _grid(common_size(evidence.readers, image), SAMPLED_PIXELS // len(ids) + 1, done)
        labels.append(
            np.stack([reader.labels(image).ravel()[pixels] for reader in evidence.readers.values()])
        )
        certainties.append(
            np.stack(
                [
                    reader.certainty(image).reshape(len(reader.classes), -1)[:, pixels].T
                    for reader in evidence.readers.values()
                ]
            )
        )
        report(Tick("choosing the policy", done, len(ids)))
    return np.concatenate(labels, 1), np.concatenate(certainties, 1)


def _grid(size: tuple[int, int], wanted: int, seed: int) -> NDArray[np.int64]:
    """About ``wanted`` flat pixel positions, evenly spread with a jitter that differs per image."""
    pixels = size[0] * size[1]
    if wanted >= pixels:
        return np.arange(pixels)
    edges = np.linspace(0, pixels, wanted + 1)
    jitter = np.random.default_rng(seed).random(wanted)
    return (edges[:-1] + jitter * np.diff(edges)).astype(np.int64)


def common_size(readers: dict[str, CertaintyReader], image: str) -> tuple[int, int]:
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
