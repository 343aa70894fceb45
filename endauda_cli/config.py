"""What each engine is told, checked once. Defaults are those of the reference implementation.

A wrong value is a :class:`ConfigError` that names the option and says what would be right.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from endauda_cli.errors import ConfigError
from endauda_cli.types import Arch, Backbone, Border, Codec, FusionRule, Method, Unclaimed


def check_name(name: str, what: str) -> None:
    """Refuse a name that is no plain folder name, such as ``../x``.

    Raises:
        ConfigError: says what kind of name it is (``what``).
    """
    if not name.strip() or "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{what} {name!r}: use a word that can name a folder")


@dataclass(frozen=True)
class FuseConfig:
    """Options of ``fuse``.

    Attributes:
        teachers: names of archives, in the order that teacher numbers of a policy file mean.
        rule: key of ``fusion.RULES``.
        policy: a ``PolicyKind`` value or the path of a policy file, for ``plf`` and ``consensus``.
        few_shot: labelled target images that policy ``few-shot`` looks at: a number, or ids separated by commas.
        threshold: percent; labels of lower certainty become 255. Majority knows no threshold.
        window: (height, width) of PLF's window, odd.
        renormalise: scale the certainties of each pixel to a sum of 100 first, as the follow-up project does.
        border: what PLF's window is divided by where it reaches over the image's border.
        unclaimed: what becomes of pixels that no class is claimed for.
        delta: path of a file with soft-label's typical certainties; ``None`` estimates them.
        shard: (number, of): this process does every ``of``-th image, starting with ``number`` (from 1).
        score: compare teachers and rules with labels of the target, for the report alone; ``None`` does so for
            other splits than train, where there are labels.
        workers: images fused at once.
    """

    teachers: tuple[str, ...]
    rule: str = FusionRule.CONSENSUS
    policy: str = "auto"
    few_shot: str = "5"
    threshold: float = 90
    window: tuple[int, int] = (5, 5)
    renormalise: bool = False
    border: str = Border.REFERENCE
    unclaimed: str = Unclaimed.VOTE
    delta: str | None = None
    shard: tuple[int, int] = (1, 1)
    score: bool | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        check_shard(self.shard)
        if not self.teachers:
            raise ConfigError("--teachers is empty; name at least one archive")
        for name in self.teachers:
            if self.teachers.count(name) > 1:
                raise ConfigError(f"--teachers names {name} twice")
        if not 0 <= self.threshold <= 100:
            raise ConfigError(f"--threshold {self.threshold:g}: certainties are percent, 0 to 100")
        if 0 < self.threshold <= 1:
            raise ConfigError(
                f"--threshold {self.threshold:g}: certainties are percent, 0 to 100, not 0 to 1; "
                f"did you mean {100 * self.threshold:g}?"
            )
        if any(side < 1 or side % 2 == 0 for side in self.window):
            raise ConfigError(
                f"--window {self.window[0]}x{self.window[1]}: both sides must be odd and positive"
            )
        _at_least(self.workers, 1, "--workers")


@dataclass(frozen=True)
class InferenceConfig:
    """How a network is run over images: ``export-teacher``, ``test`` and validation.

    Attributes:
        batch_size: images per forward pass.
        amp: autocast to bfloat16, on any device (float16 on cards that lack it).
        workers: threads that decode images ahead.
        tile: (height, width) of the pieces in which larger network inputs are run; ``None`` runs them whole.
    """

    batch_size: int = 1
    amp: bool = False
    workers: int = 2
    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _at_least(self.batch_size, 1, "--batch-size")
        if self.tile is not None and min(self.tile) < 32:
            raise ConfigError(f"--tile {self.tile[1]}x{self.tile[0]}: at least 32x32, better half the image")
        _at_least(self.workers, 1, "--workers")


@dataclass(frozen=True)
class ExportConfig:
    """Options of ``export-teacher``.

    Attributes:
        teacher: the archive's name.
        codec: key of ``archive.CODECS``.
        shard: (number, of): this process does every ``of``-th image, starting with ``number`` (from 1).
        inference: how the network is run.
    """

    teacher: str
    codec: str = Codec.SOFTMAX
    shard: tuple[int, int] = (1, 1)
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        check_name(self.teacher, "teacher name")
        check_shard(self.shard)


@dataclass(frozen=True)
class TrainConfig:
    """Options of ``train``: the distillation recipe of EnD-UDA.

    Attributes:
        backbone, arch: keys of ``models.BACKBONES`` and ``models.ARCHS``.
        method: ``distill`` learns the fused labels of the target, ``source`` the source's ground truth.
        steps: optimiser steps of the whole run; the schedule ends there.
        batch_size: images per step, over all devices.
        learning_rate: of the backbone at step 0; ASPP, decoder and head get ten times as much.
        power: of the polynomial schedule.
        warm_up: steps over which the rate rises linearly from a tenth.
        momentum, weight_decay: of Nesterov SGD.
        size: (width, height) that images are resized to.
        crop: (width, height) of the random crop.
        mirror: flip half of the crops.
        augment: keys of ``transforms.AUGMENTATIONS``, applied to every crop.
        class_balance, often_balance, hard_percentile, max_value, balance_area: see ``losses``.
        seed: of sample order, crops, augmentation, dropout and initial weights.
        amp: autocast to bfloat16, on any device.
        save_every: steps between checkpoints.
        validate_every: steps between evaluations on labelled target images; 0 = never, no ``best`` then.
        workers: threads that prepare batches.
    """

    backbone: str = Backbone.DRN
    arch: str = Arch.DEEPLABV3PLUS
    method: str = Method.DISTILL
    steps: int = 100_001
    batch_size: int = 10
    learning_rate: float = 1e-4
    power: float = 0.9
    warm_up: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    size: tuple[int, int] = (1024, 512)
    crop: tuple[int, int] = (512, 256)
    mirror: bool = False
    augment: tuple[str, ...] = ()
    class_balance: bool = True
    often_balance: bool = True
    hard_percentile: float = 80
    max_value: float = 7.0
    balance_area: int = 64 * 64
    seed: int = 0
    amp: bool = False
    save_every: int = 1000
    validate_every: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        _at_least(self.steps, 1, "--steps")
        # The image-pooling branch normalises 1x1 maps over the batch, which one image cannot do.
        _at_least(self.batch_size, 2, "--batch-size")
        _at_least(self.save_every, 1, "--save-every")
        _at_least(self.validate_every, 0, "--validate-every")
        _at_least(self.warm_up, 0, "--warm-up")
        check_seed(self.seed)
        _at_least(self.workers, 1, "--workers")
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            raise ConfigError(
                f"--crop {self.crop[0]}x{self.crop[1]} is larger than --size {self.size[0]}x{self.size[1]}"
            )
        if not 0 <= self.hard_percentile < 100:
            raise ConfigError(f"--hard-percentile {self.hard_percentile:g}: 0 (off) to below 100")
        if 0 < self.hard_percentile < 1:
            raise ConfigError(
                f"--hard-percentile {self.hard_percentile:g}: a percentile is 0 (off) to below 100, not 0 to 1; "
                f"did you mean {100 * self.hard_percentile:g}?"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"--lr {self.learning_rate:g}: must be above 0, and finite")


def check_shard(shard: tuple[int, int]) -> None:
    """Refuse a part that is not one of the parts."""
    number, of = shard
    if not 1 <= number <= of:
        raise ConfigError(f"--shard {number}/{of}: the first number runs from 1 to the second")


def launched() -> int:
    """How many processes ``torchrun``, or whoever speaks like it, has started for this job.

    Raises:
        ConfigError: if the environment does not say it as a number.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ConfigError(
            f"environment: WORLD_SIZE is {text!r}; torchrun sets it to a number: unset it, or use torchrun"
        )
    return int(text)


def check_seed(seed: int) -> None:
    """Refuse a seed that one of the generators cannot take: NumPy's none below 0, torch's no larger ones."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: must be from 0 to {2**63 - 1}")


def _at_least(value: int, least: int, option: str) -> None:
    if value < least:
        raise ConfigError(f"{option} {value}: must be at least {least}")
