"""Images that a run learns nothing from, to see without any label how good the student has become."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from endauda_cli.datasets import Sample
from endauda_cli.errors import ConfigError
from endauda_cli.training.data import MAIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.training.data import Stream


def hold_out(streams: Mapping[str, Stream], count: int) -> tuple[dict[str, Stream], list[Sample]]:
    """The streams, the main one without some of its images; and these images.

    Which they are depends on their ids alone, neither on a seed nor on their order: they are spread over cameras and
    towns, and those of fewer are among those of more.

    Args:
        streams: what a method learns from.
        count: of images to hold out.

    Raises:
        ConfigError: if none would be left.
    """
    main = streams[MAIN]
    if count == 0:
        return dict(streams), []
    if count >= len(main.examples):
        raise ConfigError(
            f"--hold-out {count}: there are {len(main.examples)} images with fused labels, so none would be left to "
            "learn from; hold out fewer"
        )
    drawn = sorted(main.examples, key=lambda example: hashlib.sha256(example.id.encode()).digest())
    held = {example.id for example in drawn[:count]}
    left = [example for example in main.examples if example.id not in held]
    samples = [Sample(e.id, e.image, e.label) for e in main.examples if e.id in held]
    return {**streams, MAIN: replace(main, examples=left, contents=None)}, samples
