"""From the counts of all images to the figures of a set, and what they warn of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.fusion.rules import RULES
from endauda_cli.progress import Note, Reporter
from endauda_cli.results import ClassSummary, FusionResult, FusionScore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endauda_cli.fusion.image import Fusion
    from endauda_cli.fusion.journal import Line
    from endauda_cli.fusion.rules.policies import Policy

SCARCE = 0.1
"""A class of whose labels less than this share is kept is warned of,"""
NOTABLE = 0.002
"""if it has more than this share of the pixels."""


def summarise(
    fusion: Fusion, policy: Policy | None, out: Path, lines: Sequence[Line], made: int
) -> FusionResult:
    config, names = fusion.config, fusion.config.teachers

    def total(key: str) -> Any:
        return np.sum([line[key] for line in lines], axis=0) if lines else np.zeros(1)

    num_classes = fusion.recipe.num_classes
    pixels = total("pixels")
    given, kept, overlap = (np.broadcast_to(total(key), num_classes) for key in ("given", "kept", "overlap"))
    same, both = (np.broadcast_to(total(key), (len(names), len(names))) for key in ("same", "both"))
    return FusionResult(
        labels=out,
        rule=config.rule,
        policy=policy.kind if policy else None,
        used_labels=bool(policy and policy.used_labels),
        labelled_images=policy.labelled if policy else (),
        teachers=names,
        threshold=config.threshold if RULES[config.rule].knows_threshold else None,
        images=len(lines),
        skipped=len(lines) - made,
        coverage=_share(kept.sum(), pixels) or 0.0,
        overlap=_share(overlap.sum(), pixels) or 0.0,
        unclaimed=_share(total("unclaimed"), pixels) or 0.0,
        disputed=_share(total("disputed"), pixels) or 0.0,
        agreement=tuple(
            tuple(_share(same[t, u], both[t, u]) for u in range(len(names))) for t in range(len(names))
        ),
        classes=tuple(
            ClassSummary(
                name=name,
                owner=names[policy.owners[c]] if policy else None,
                margin=_margin(policy, c),
                sureness=policy.sureness[c] if policy and policy.sureness else None,
                share=_share(kept[c], kept.sum()),
                kept=_share(kept[c], given[c]),
                overlap=_share(overlap[c], given[c]),
            )
            for c, name in enumerate(fusion.task.classes)
        ),
        scores=_scores(fusion, lines),
    )


def _scores(fusion: Fusion, lines: Sequence[Line]) -> tuple[FusionScore, ...]:
    scored = [line["score"] for line in lines if "score" in line]
    if not scored:
        return ()
    pixels = sum(line["pixels"] for line in lines if "score" in line)

    def score(name: str, all_pixels: list[Any], kept: list[Any] | None) -> FusionScore:
        iou = _iou(all_pixels)
        kept_iou = None if kept is None else _iou(kept)
        return FusionScore(
            name=name,
            is_rule=kept is not None,
            miou=_mean(iou),
            kept_miou=None if kept_iou is None else _mean(kept_iou),
            coverage=None if kept is None else 100 * sum(part[2] for part in kept) / pixels,
            iou=dict(zip(fusion.task.classes, iou, strict=True)),
        )

    teachers = [
        score(name, [s["teachers"][t] for s in scored], None) for t, name in enumerate(fusion.config.teachers)
    ]
    rules = [
        score(rule, [s["rules"][rule][0] for s in scored], [s["rules"][rule][1] for s in scored])
        for rule in RULES
    ]
    return (*teachers, *rules)


def _iou(parts: list[Any]) -> list[float | None]:
    """Per class, percent; ``None`` for a class that occurs neither in truth nor in prediction."""
    hits, unions = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
    return [float(100 * h / u) if u else None for h, u in zip(hits, unions, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _margin(policy: Policy | None, c: int) -> float | None:
    if policy is None or policy.scores is None:
        return None
    scores = [row[c] for row in policy.scores]
    own = scores[policy.owners[c]]
    others = [s for t, s in enumerate(scores) if t != policy.owners[c] and not np.isnan(s)]
    return None if np.isnan(own) or not others else own - max(others)


def warn_of_what_is_lost(result: FusionResult, lines: Sequence[Line], report: Reporter) -> None:
    """A student cannot learn a class whose labels the threshold took away. What hardly occurs is nobody's loss."""
    if result.scores and all(score.miou is None for score in result.scores):
        report(
            Note(
                "the labels of these images hold none of the classes, every pixel is one that is ignored: nothing is "
                "scored",
                "warning",
            )
        )
    if not result.threshold:
        return
    given, pixels = (np.sum([line[key] for line in lines], axis=0) for key in ("given", "pixels"))
    lost = [
        c.name
        for c, labels in zip(result.classes, given, strict=True)
        if c.kept is not None and c.kept < SCARCE and labels > NOTABLE * pixels
    ]
    if lost:
        report(
            Note(
                f"--threshold {result.threshold:g} takes more than {1 - SCARCE:.0%} of the labels of "
                f"{', '.join(lost)}, which a student hardly sees; --threshold 0 keeps all",
                "warning",
            )
        )
