"""Engine: one image of a fusion: what the teachers say of it, and what a rule makes of that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.fusion.rules import RULES, Fused, Planes, Recipe, fuse_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.config import FuseConfig
    from endauda_cli.domains import Task

    UInt8 = NDArray[np.uint8]
    Readers = dict[str, TeacherOutputs]


@dataclass(frozen=True)
class Fusion:
    """All that an image's labels depend on, beside the image's own data.

    Attributes:
        config: as given.
        task: source and target.
        readers: teacher name -> what it says, in the order of ``config.teachers``.
        recipe: what the rule is told.
        truths: image -> ground truth to score with; empty if nothing is scored.
        device: where the rule runs.
    """

    config: FuseConfig
    task: Task
    readers: Readers
    recipe: Recipe
    truths: Mapping[str, Path]
    device: str


def planes_of(fusion: Fusion, image: str, rule: str) -> Planes:
    """The certainties of an image, read when the rule asks for them."""
    teachers = list(fusion.readers.values())
    if not _renormalises(fusion, rule):
        return lambda t, classes: teachers[t].planes(image, classes)
    whole: dict[int, tuple[UInt8, NDArray[np.float32]]] = {}

    def renormalised(t: int, classes: Sequence[int]) -> NDArray[np.float32]:
        if t not in whole:
            certainty = teachers[t].certainty(image)
            whole[t] = certainty, certainty.sum(0, dtype=np.float32)
        certainty, total = whole[t]
        with np.errstate(invalid="ignore"):  # a pixel of zeros has no share of them
            scaled: NDArray[np.float32] = (
                certainty[list(classes)].astype(np.float32) * np.float32(100) / total
            )
        return scaled

    return renormalised


def _renormalises(fusion: Fusion, rule: str) -> bool:
    return fusion.config.renormalise and "renormalise" in RULES[rule].options


def run_rule(fusion: Fusion, rule: str, image: str, labels: UInt8, threshold: float | None = None) -> Fused:
    """A rule over one image, on the device of choice; the result is in NumPy arrays.

    What a network left on the device is not copied; labels are counted here in any case, and small.
    """
    recipe = fusion.recipe if threshold is None else replace(fusion.recipe, threshold=threshold)
    planes = planes_of(fusion, image, rule)
    if fusion.device == "cpu":
        return fuse_image(rule, labels, planes, recipe)
    import torch

    left_there = [getattr(reader, "tensors", None) for reader in fusion.readers.values()]

    def on_device(t: int, classes: Sequence[int]) -> Any:
        ask = None if _renormalises(fusion, rule) else left_there[t]
        found = torch.from_numpy(planes(t, classes)) if ask is None else ask(image, classes)
        return found.to(fusion.device)

    with torch.inference_mode():
        fused = fuse_image(rule, torch.from_numpy(labels).to(fusion.device), on_device, recipe)
        return Fused(*(tensor.cpu().numpy() for tensor in fused))
