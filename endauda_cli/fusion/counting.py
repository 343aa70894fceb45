"""Engine: one image of a fusion, made and counted: the line that the journal keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError
from endauda_cli.fusion.image import run_rule
from endauda_cli.fusion.rules import RULES, Fused
from endauda_cli.fusion.rules.measures import agreement, overlaps, tally
from endauda_cli.labels import label_files, read_truth, write_label_and_colour
from endauda_cli.workspace import make_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.fusion.image import Fusion
    from endauda_cli.fusion.journal import Line

    UInt8 = NDArray[np.uint8]

MOST = 2**53
"""No count is larger."""


def fuse_one(fusion: Fusion, out: Path, image: str) -> Line:
    """Fuse and write an image; returns its counts."""
    teachers = list(fusion.readers.values())
    labels = np.stack([reader.labels(image) for reader in teachers])
    fused = run_rule(fusion, fusion.config.rule, image, labels)
    path, colours = label_files(out, image)
    if "/" in image:  # ulm/0003
        make_folder(path.parent)
    write_label_and_colour(path, colours, fused.label, fusion.task.target.palette)
    line = _counts(fused, labels, fusion.recipe.num_classes) | {"bytes": path.stat().st_size}
    if image in fusion.truths:
        line["score"] = _score(fusion, image, labels)
    return line


def is_line(fusion: Fusion, line: Line) -> bool:
    """Whether a line of a journal holds what ``fuse_one`` counts, so that sums can be made of it."""
    c, t = fusion.recipe.num_classes, len(fusion.readers)
    shapes: dict[str, tuple[int, ...]] = {
        "pixels": (), "given": (c,), "kept": (c,), "overlap": (c,), "unclaimed": (), "same": (t, t), "both": (t, t),
        "disputed": (), "bytes": (),
    }  # fmt: skip
    if not all(_are_counts(line.get(key), shape) for key, shape in shapes.items()):
        return False
    if line["id"] not in fusion.truths:
        return True
    score = line.get("score")
    return (
        isinstance(score, dict)
        and _are_scores(score.get("teachers"), t, c)
        and isinstance(score.get("rules"), dict)
        and all(_are_scores(score["rules"].get(rule), 2, c) for rule in RULES)
    )


def _are_scores(value: Any, number: int, classes: int) -> bool:
    return isinstance(value, list) and len(value) == number and all(
        isinstance(part, list)
        and len(part) == 3
        and all(
            _are_counts(v, shape) for v, shape in zip(part, ((classes,), (classes,), ()), strict=True)
        )
        for part in value
    )  # fmt: skip


def _are_counts(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return type(value) is int and 0 <= value <= MOST
    return (
        isinstance(value, list) and len(value) == shape[0] and all(_are_counts(v, shape[1:]) for v in value)
    )


def _counts(fused: Fused, labels: UInt8, num_classes: int) -> Line:
    """Counts of an image, per class before and after the threshold, and how far teachers agree."""
    (given, kept, overlap), unclaimed = tally(fused, num_classes)
    same, both, disputed = agreement(labels, num_classes)
    return {
        "pixels": fused.label.size,
        "given": given.tolist(),
        "kept": kept.tolist(),
        "overlap": overlap.tolist(),
        "unclaimed": unclaimed,
        "same": same.tolist(),
        "both": both.tolist(),
        "disputed": disputed,
    }


def _score(fusion: Fusion, image: str, labels: UInt8) -> dict[str, Any]:
    """Every teacher and every rule against the truth: of each class intersection and union, see ``overlaps``."""
    num_classes = fusion.recipe.num_classes
    truth = read_truth(fusion.truths[image], fusion.task.target)
    if truth.shape != labels.shape[1:]:
        raise DataError(
            f"{fusion.truths[image]}: {truth.shape[1]}x{truth.shape[0]} pixels, but the archives have "
            f"{labels.shape[2]}x{labels.shape[1]} for it; --no-score leaves labels out"
        )

    def score(label: UInt8) -> list[Any]:
        hits, unions, labelled = overlaps(truth, label, num_classes)
        return [hits.tolist(), unions.tolist(), labelled]

    fused = {rule: run_rule(fusion, rule, image, labels) for rule in RULES}
    return {
        "teachers": [score(label) for label in labels],
        "rules": {rule: [score(of.candidate), score(of.label)] for rule, of in fused.items()},
    }
