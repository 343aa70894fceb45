"""What each engine is told, checked once. Defaults are those of the reference implementation.

A wrong value is a :class:`ConfigError` that names the option and says what would be right.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from endauda_cli.adaptation import AdaptationOptions, check_adaptation
from endauda_cli.errors import ConfigError
from endauda_cli.names import name_fault
from endauda_cli.options import (
    COMMON,
    PASSES,
    option,
    parse_batch_size,
    parse_jitter,
    parse_shard,
    parse_size,
    parse_tile,
    parse_window,
    parse_workers,
)
from endauda_cli.types import (
    Arch,
    Backbone,
    BestBy,
    Border,
    Codec,
    FusionRule,
    Labelled,
    Loss,
    Method,
    Optimizer,
    Precision,
    Unclaimed,
)


def check_name(name: str, what: str) -> None:
    """Refuse a name that is no plain folder name, such as ``../x``.

    Raises:
        ConfigError: says what kind of name it is (``what``).
    """
    if (fault := name_fault(name)) is not None:
        raise ConfigError(f"{what} {name!r}: use a word that can name a folder; this one {fault}")


def _with_commas(words: list[str]) -> str:
    return ",".join(words)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Workers:
    """How much is done at once."""

    workers: int = option(
        0, "--workers", panel=COMMON, typed=int, parse=parse_workers,
        help="Threads that read, resize and code; 0: one per core, 16 at most.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class Amp:
    """Precision: autocast to bfloat16, on any device (float16 on cards that lack it)."""

    amp: bool = option(False, "--amp", help="bfloat16 where it helps.", panel=PASSES)


_DECIDING, _MADE, _DETAILS = "How labels are decided", "What is made", "Fine points of the rules"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class FusionOptions(Workers):
    """Options of ``fuse`` that its engine takes as they are.

    Attributes:
        policy: a ``PolicyKind`` value or the path of a policy file, for ``plf`` and ``consensus``.
        few_shot: labelled target images that policy ``few-shot`` looks at: a number, or ids separated by commas.
        threshold: percent; labels of lower certainty become 255. Majority knows no threshold.
        window: (height, width) of PLF's window, odd.
        border: what PLF's window is divided by where it reaches over the image's border.
        unclaimed: what becomes of pixels that no class is claimed for.
        delta: path of a file with soft-label's typical certainties; ``None`` estimates them.
        renormalise: scale the certainties of each pixel to a sum of 100 first, as the follow-up project does.
    """

    policy: str = option(
        "auto", "--policy", panel=_DECIDING, metavar="POLICY", complete="policies",
        help="How it is found out which teacher is good at which class: auto, by their agreement, without labels; "
        "few-shot, by that and a few labelled target images; val, by all labelled ones; a policy file. "
        "With --rule plf also certainty (their mean) and paper (the published lists).",
    )  # fmt: skip
    few_shot: str = option(
        "5", "--few-shot", panel=_DECIDING, metavar="N|A B C", complete="labelled_images", typed=list[str],
        parse=_with_commas, unset=True,
        help="Labelled val images for --policy few-shot: how many, spread evenly, or their names. [default: 5]",
    )  # fmt: skip
    threshold: float = option(
        90, "--threshold", panel=_DECIDING, help="Keep labels of at least this certainty, in percent."
    )
    window: tuple[int, int] = option(
        "5", "--window", panel=_DETAILS, metavar="N|HxW", parse=parse_window,
        help="Side of plf's window, odd; or height and width.",
    )  # fmt: skip
    border: str = option(
        Border.REFERENCE, "--border", panel=_DETAILS,
        help="What plf's window is divided by at the image's border: its whole size, as published, or its pixels "
        "inside.",
    )  # fmt: skip
    unclaimed: str = option(
        Unclaimed.VOTE, "--unclaimed", panel=_DETAILS,
        help="Pixels that no class is claimed for: the rule's vote, or left unlabelled.",
    )  # fmt: skip
    delta: str | None = option(
        None, "--delta", panel=_DETAILS, typed=Path, parse=str,
        help="Typical certainty of each rank (soft-label), ascending: .npy or JSON. "
        "[default: estimated from the teachers]",
    )  # fmt: skip
    renormalise: bool = option(
        False, "--renormalise", panel=_DETAILS, help="Scale each pixel's certainties to a sum of 100 first."
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class FusionOutput:
    """What ``fuse`` makes beside the labels, and of which images.

    Attributes:
        score: compare teachers and rules with labels of the target, for the report alone; ``None`` does so for
            other splits than train, where there are labels.
        shard: (number, of): this process does every ``of``-th image, starting with ``number`` (from 1).
    """

    score: bool | None = option(
        None, "--score/--no-score", panel=_MADE,
        help="Score teachers and rules in the report, where the target has labels; nothing is chosen by it. "
        "[default: not for train]",
    )  # fmt: skip
    shard: tuple[int, int] = option(
        "1/1", "--shard", panel=_MADE, metavar="I/N", parse=parse_shard,
        help="Do the I-th of N parts, for several processes.",
    )  # fmt: skip


MAX_WINDOW = 65_535
"""Wider than any image."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig(FusionOptions, FusionOutput):
    """What ``fuse`` is told.

    Attributes:
        teachers: names of archives, in the order that teacher numbers of a policy file mean.
        rule: key of ``fusion.rules.RULES``.
    """

    teachers: tuple[str, ...]
    rule: str = FusionRule.CONSENSUS

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
        if max(self.window) > MAX_WINDOW:
            raise ConfigError(f"--window: a side is above {MAX_WINDOW:,}, the largest that is possible")
        _at_least(self.workers, 1, "--workers")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Amp, Workers):
    """How a network is run over images: ``export-teacher``, ``test`` and validation.

    Attributes:
        batch_size: images per forward pass; ``None``: as many as ``inference.images_at_once`` says.
        amp: autocast to bfloat16.
        workers: threads that decode images ahead.
        tile: (height, width) of the pieces in which larger network inputs are run; ``None`` runs them whole.
    """

    tile: tuple[int, int] | None = option(
        None, "--tile", panel=PASSES, metavar="WxH", complete="sizes", parse=parse_tile,
        help="Run larger inputs in overlapping pieces, to save memory.",
    )  # fmt: skip
    batch_size: int | None = option(
        "auto", "--batch-size", panel=PASSES, metavar="N|auto", parse=parse_batch_size,
        help="Images of one size per forward pass; auto: 1 on the CPU, up to 8 on a card, as its free memory allows.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            _at_least(self.batch_size, 1, "--batch-size")
            _at_most(self.batch_size, MOST_IMAGES, "--batch-size")
        if self.tile is not None and min(self.tile) < 32:
            raise ConfigError(f"--tile {self.tile[1]}x{self.tile[0]}: at least 32x32, better half the image")
        _at_least(self.workers, 1, "--workers")


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """How an archive is made.

    Attributes:
        codec: a ``Codec``.
        shard: (number, of): this process does every ``of``-th image, starting with ``number`` (from 1).
    """

    codec: str = option(
        Codec.GRID, "--codec", panel="The archive", complete="codecs",
        help="How certainties are kept: the network's own grid, else softmax; other programs read all but these two.",
    )  # fmt: skip
    shard: tuple[int, int] = option(
        "1/1", "--shard", panel="The archive", metavar="I/N", parse=parse_shard,
        help="Do the I-th of N parts, for several machines.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ArchiveOptions):
    """What ``export-teacher`` is told.

    Attributes:
        teacher: the archive's name.
        inference: how the network is run.
    """

    teacher: str
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        check_name(self.teacher, "teacher name")
        check_shard(self.shard)


SOFT_STRIDE = 4
"""Soft targets are kept for every fourth row and column: the student decides no finer."""
_LEARNT, _NETWORK, _SCHEDULE, _IMAGES, _LOSS, _COMPUTED = (
    "What is learnt", "Network", "Schedule", "Images", "Loss", "How it is computed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class StudentOptions:
    """What is learnt by which network.

    Attributes:
        network: what ``teachers.starting.named`` makes a network of; ``None`` is a DeepLab,
        backbone, arch: of which these are keys of ``models.BACKBONES`` and ``models.ARCHS``.
        method: key of ``training.methods.METHODS``.
    """

    network: str | None = option(
        None, "--network", panel=_NETWORK, complete="student_networks",
        help="Another network than a DeepLab: a folder of transformers or segmentation-models-pytorch, with weights or "
        "a config.json alone; smp:unet/resnet18; a published teacher's, such as dacs; a package's.",
    )  # fmt: skip
    backbone: str = option(Backbone.DRN, "--backbone", help="Feature extractor.", panel=_NETWORK)
    arch: str = option(Arch.DEEPLABV3PLUS, "--arch", help="Network around it.", panel=_NETWORK)
    method: str = option(
        Method.DISTILL, "--method", panel=_LEARNT,
        help="distill learns fused labels, source the labelled source; dacs, cbst, crst and mrnet adapt from source to "
        "target; rectify is mrnet's second stage, on a label set.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StudentOptions, AdaptationOptions, Workers):
    """Options of ``train``: the distillation recipe of EnD-UDA.

    Attributes:
        steps: optimiser steps of the whole run; the schedule ends there.
        batch_size: images per step, over all devices.
        learning_rate: of the backbone at step 0; ASPP, decoder and head get ten times as much.
        power: of the polynomial schedule.
        warm_up: steps over which the rate rises linearly from a tenth.
        optimizer: an ``Optimizer``.
        layer_decay: learning rate of a block of the encoder, as a share of the next one's.
        momentum, weight_decay: of SGD; AdamW's first beta, and its decay of matrices and kernels alone.
        nesterov: whether SGD looks ahead, as Nesterov's does.
        head_rate: learning rate of ASPP, decoder and head, as a multiple of the backbone's.
        clip: the longest gradient, over all parameters together; 0 = any.
        accumulate: parts that a step's images go through the network in, one after the other. Each counts its classes
            and mines for itself; their gradients' mean is the step's.
        recompute: keep no activations within blocks of the backbone, but compute them again in the backward pass.
        ema: decay of averaged weights, which are validated and saved as the student; 0 = none.
        precision: a ``Precision``.
        compile: let torch compile the network.
        ramp: steps over which mining and class weights rise from nothing to their strength; ``None`` is 0 where there
            are weights to start from, else all of the steps.
        keep: checkpoints of earlier steps that stay beside ``last.pt``, it included.
        size: (width, height) that images are resized to.
        crop: (width, height) of the random crop.
        scale_jitter: least and most of the factor by which crops are enlarged, drawn evenly by its logarithm; ``None``
            is 1.
        augment: keys of ``augmentation.AUGMENTATIONS``, applied to every crop.
        labelled: whose true labels are mixed into every batch, or their folder; ``None`` = nobody's.
        labelled_share: of a batch's images, those with true labels; only with ``labelled``.
        loss: what the teachers' word is taken for; ``soft`` and ``weighted`` read their archives.
        class_balance, often_balance, hard_percentile, max_value, balance_area: see ``losses``; not with ``soft``.
        seed: of sample order, crops, augmentation, dropout and initial weights.
        validate_every: steps between evaluations on labelled target images, and on those held out; 0 = never, no
            ``best`` then.
        hold_out: images that are not trained on, to see how far the student agrees with their fused labels.
        best_by: what ``best`` is chosen by.
        patience: validations without a gain after which the run ends; 0 = it never does so.
        workers: threads that prepare batches.
    """

    steps: int = option(100_001, "--steps", help="Optimiser steps.", panel=_SCHEDULE)
    batch_size: int = option(10, "--batch-size", help="Images per step, over all devices.", panel=_SCHEDULE)
    learning_rate: float = option(
        1e-4, "--lr", panel=_SCHEDULE, help="Learning rate of the backbone; the rest gets ten times that."
    )
    head_rate: float = option(
        10.0,
        "--head-rate",
        panel=_SCHEDULE,
        help="Learning rate of all but the backbone, in multiples of --lr.",
    )
    power: float = option(0.9, "--power", help="Of the learning rate's polynomial fall.", panel=_SCHEDULE)
    optimizer: str = option(
        Optimizer.SGD, "--optimizer", panel=_SCHEDULE,
        help="What moves the weights. [default: sgd; adamw for networks of --network that want it]",
    )  # fmt: skip
    layer_decay: float = option(
        1.0, "--layer-decay", panel=_SCHEDULE,
        help="Each block of the encoder learns at this much of the next one's rate.",
    )  # fmt: skip
    momentum: float = option(0.9, "--momentum", help="Of SGD; AdamW's first beta.", panel=_SCHEDULE)
    nesterov: bool = option(
        True, "--nesterov/--no-nesterov", panel=_SCHEDULE,
        help="Nesterov's momentum. [default: yes; no with --method dacs, cbst, crst]",
    )  # fmt: skip
    weight_decay: float = option(5e-4, "--weight-decay", help="Of all weights.", panel=_SCHEDULE)
    clip: float = option(0.0, "--clip", help="Longest gradient; 0 = any.", panel=_SCHEDULE)
    ema: float = option(
        0.0, "--ema", panel=_SCHEDULE,
        help="Decay of averaged weights, such as 0.999, which become the student; 0 = none.",
    )  # fmt: skip
    size: tuple[int, int] = option(
        "1024x512", "--size", panel=_IMAGES, metavar="WxH", complete="sizes", parse=parse_size("--size"),
        help="Images are resized to this.",
    )  # fmt: skip
    crop: tuple[int, int] = option(
        "512x256", "--crop", panel=_IMAGES, metavar="WxH", complete="sizes", parse=parse_size("--crop"),
        help="Random crop.",
    )  # fmt: skip
    mirror: bool = option(False, "--mirror/--no-mirror", help="Flip half of the crops.", panel=_IMAGES)
    scale_jitter: tuple[float, float] | None = option(
        None, "--scale-jitter", panel=_IMAGES, metavar="LEAST-MOST", parse=parse_jitter, between="-",
        help="Enlarge crops by a random factor, such as 0.5-2. [default: none]",
    )  # fmt: skip
    augment: tuple[str, ...] = option(
        (), "--augment", panel=_IMAGES, metavar="A B", complete="augmentations", typed=list[str], parse=tuple,
        unset=True, help="Photometric changes: colour, light, texture, jitter, blur. [default: none]",
    )  # fmt: skip
    labelled: str | None = option(
        None, "--labelled", panel=_LEARNT, metavar="target|source|DIR", complete="labelled",
        help="Mix true labels into every batch: of the few target train images that have some, or of the source; or "
        "of a folder of corrected labels, such as import-labels writes. [default: none]",
    )  # fmt: skip
    labelled_share: float = option(
        0.2, "--labelled-share", panel=_LEARNT,
        help="Share of a batch's images that have true labels, with --labelled; the batch stays as large.",
    )  # fmt: skip
    loss: str = option(
        Loss.HARD, "--loss", panel=_LOSS,
        help="Learn the fused labels; or weigh each pixel by how certain its teachers are of them, on average; or "
        "learn that average of every class (soft, without balance and mining). The last two read the archives.",
    )  # fmt: skip
    class_balance: bool = option(
        True, "--class-balance/--no-class-balance", panel=_LOSS,
        help="Weigh classes that are rare in the batch.",
    )  # fmt: skip
    often_balance: bool = option(
        True, "--often-balance/--no-often-balance", panel=_LOSS,
        help="Weigh classes that batches often lack.",
    )  # fmt: skip
    hard_percentile: float = option(
        80, "--hard-percentile", panel=_LOSS,
        help="Learn from pixels with a loss above this percentile; 0 = all.",
    )  # fmt: skip
    max_value: float = option(7.0, "--max-value", help="Weight of rare classes.", panel=_LOSS)
    balance_area: int = option(
        64 * 64, "--balance-area", panel=_LOSS, unset=True,
        help="Pixels per image below which a class is rare. [default: 1/32 of the crop]",
    )  # fmt: skip
    ramp: int | None = option(
        None, "--ramp", panel=_LOSS,
        help="Steps over which mining and class weights set in; 0 = at once. "
        "[default: 0 with --init, else all steps]",
    )  # fmt: skip
    seed: int = option(0, "--seed", help="Of order, crops, dropout and initial weights.", panel=_SCHEDULE)
    save_every: int = option(
        1000, "--save-every", panel=_SCHEDULE,
        help="Steps between checkpoints; ten minutes after one there is the next anyway.",
    )  # fmt: skip
    validate_every: int = option(
        0, "--validate-every", panel=_SCHEDULE,
        help="Steps between tests on labelled target images, by which best.pt is chosen; 0 = never look at them.",
    )  # fmt: skip
    hold_out: int = option(
        0, "--hold-out", panel=_SCHEDULE,
        help="Train images to learn nothing from; at each test the student's agreement with their fused labels is "
        "logged.",
    )  # fmt: skip
    best_by: str = option(
        BestBy.MIOU, "--best-by", panel=_SCHEDULE,
        help="Choose best.pt by the score on labelled images; or by agreement on those of --hold-out, which needs no "
        "label.",
    )  # fmt: skip
    patience: int = option(
        0, "--patience", panel=_SCHEDULE, help="End after so many tests without a gain; 0 = train all steps."
    )
    warm_up: int = option(0, "--warm-up", help="Steps of linear warm-up.", panel=_SCHEDULE)
    keep: int = option(3, "--keep", help="Checkpoints that are kept, the newest included.", panel=_SCHEDULE)
    precision: str = option(Precision.AUTO, "--precision", help="Of the computation.", panel=_COMPUTED)
    accumulate: int = option(
        1, "--accumulate", panel=_COMPUTED,
        help="Parts that a step's images are computed in, one after the other, to save memory.",
    )  # fmt: skip
    recompute: bool = option(
        False, "--recompute", panel=_COMPUTED,
        help="Compute the backbone twice rather than keep all of it in memory.",
    )  # fmt: skip
    compile: bool = option(
        False, "--compile", help="Let torch compile the network: minutes at the start.", panel=_COMPUTED
    )

    def __post_init__(self) -> None:
        _at_least(self.steps, 1, "--steps")
        # The image-pooling branch normalises 1x1 maps over the batch, which one image cannot do.
        _at_least(self.batch_size, 2, "--batch-size")
        _at_most(self.batch_size, MOST_IMAGES, "--batch-size")
        _at_least(self.save_every, 1, "--save-every")
        _at_least(self.validate_every, 0, "--validate-every")
        _at_least(self.warm_up, 0, "--warm-up")
        check_seed(self.seed)
        _at_least(self.workers, 1, "--workers")
        if self.crop[0] > self.size[0] or self.crop[1] > self.size[1]:
            raise ConfigError(
                f"--crop {self.crop[0]}x{self.crop[1]} is larger than --size {self.size[0]}x{self.size[1]}"
            )
        if self.scale_jitter is not None:
            least, most = self.scale_jitter
            if not MOST_JITTER >= most >= least >= 1 / MOST_JITTER:
                raise ConfigError(
                    f"--scale-jitter {least:g}-{most:g}: two factors, the smaller first, from {1 / MOST_JITTER:g} to "
                    f"{MOST_JITTER:g}, such as 0.5-2"
                )
        if not 0 <= self.hard_percentile < 100:
            raise ConfigError(f"--hard-percentile {self.hard_percentile:g}: 0 (off) to below 100")
        if 0 < self.hard_percentile < 1:
            raise ConfigError(
                f"--hard-percentile {self.hard_percentile:g}: a percentile is 0 (off) to below 100, not 0 to 1; "
                f"did you mean {100 * self.hard_percentile:g}?"
            )
        for value, flag in ((self.learning_rate, "--lr"), (self.head_rate, "--head-rate")):
            if not 0 < value < math.inf:
                raise ConfigError(f"{flag} {value:g}: must be above 0, and finite")
        for value, flag in (
            (self.power, "--power"), (self.weight_decay, "--weight-decay"), (self.clip, "--clip"),
        ):  # fmt: skip
            if not 0 <= value < math.inf:
                raise ConfigError(f"{flag} {value:g}: must be 0 or more, and finite")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"--layer-decay {self.layer_decay:g}: above 0, and 1 (none) at most")
        for value, flag in ((self.momentum, "--momentum"), (self.ema, "--ema")):
            if not 0 <= value < 1:
                raise ConfigError(f"{flag} {value:g}: must be from 0 to below 1")
        if not 1 <= self.max_value < math.inf:
            raise ConfigError(f"--max-value {self.max_value:g}: must be 1 or more, and finite")
        _at_least(self.balance_area, 0, "--balance-area")
        if self.ramp is not None:
            _at_least(self.ramp, 0, "--ramp")
        _at_least(self.keep, 1, "--keep")
        _at_least(self.accumulate, 1, "--accumulate")
        if self.batch_size < 2 * self.accumulate or self.batch_size % self.accumulate:
            raise ConfigError(
                f"--accumulate {self.accumulate}: --batch-size {self.batch_size} does not divide into so many parts of "
                "2 images or more"
            )
        self._check_labelled()
        self._check_tests()
        check_adaptation(self)
        if self.loss != Loss.HARD and self.method != Method.DISTILL:
            raise ConfigError(
                f"--loss {self.loss}: there are no teachers with --method {self.method}; leave one of them out"
            )
        if self.loss == Loss.SOFT and self.scale_jitter is not None:
            raise ConfigError("--loss soft: its targets know one scale; leave out --scale-jitter")
        for flag, sides in (("--size", self.size), ("--crop", self.crop)):
            if self.loss == Loss.SOFT and any(side % SOFT_STRIDE for side in sides):
                raise ConfigError(
                    f"{flag} {sides[0]}x{sides[1]}: both sides must be multiples of {SOFT_STRIDE} with --loss soft, "
                    "whose targets are kept at a quarter of that"
                )

    @property
    def true_images(self) -> int:
        """Images of a batch that have true labels, over all devices."""
        return round(self.batch_size * self.labelled_share) if self.labelled is not None else 0

    def _check_tests(self) -> None:
        _at_least(self.hold_out, 0, "--hold-out")
        _at_least(self.patience, 0, "--patience")
        for flag, value in (("--hold-out", self.hold_out), ("--patience", self.patience)):
            if value and not self.validate_every:
                raise ConfigError(f"{flag} {value}: nothing is tested; say how often, with --validate-every")
        if self.hold_out and self.method != Method.DISTILL:
            raise ConfigError(
                f"--hold-out {self.hold_out}: there are no fused labels to agree with, with --method {self.method}; "
                "leave one of them out"
            )
        if self.best_by == BestBy.AGREEMENT and not self.hold_out:
            raise ConfigError(
                "--best-by agreement: there are no images to agree on; hold some out, such as with --hold-out 50"
            )

    def _check_labelled(self) -> None:
        told = f"--labelled-share {self.labelled_share:g}"
        if not 0 < self.labelled_share < 1:  # NaN is not, either
            percent = (
                f"; did you mean {self.labelled_share / 100:g}?" if 1 < self.labelled_share < 100 else ""
            )
            raise ConfigError(
                f"{told}: a share of the batch is above 0 and below 1, not a number of images{percent}"
            )
        if self.labelled is None:
            if self.labelled_share != TrainConfig.labelled_share:
                raise ConfigError(
                    f"{told}: there are no true labels to share out; add --labelled target or --labelled source"
                )
            return
        if not 0 < self.true_images < self.batch_size:
            raise ConfigError(
                f"{told}: comes to {self.true_images} of the {self.batch_size} images of a batch; at least one must "
                "have a true label, and at least one another: change the share or --batch-size"
            )
        if self.labelled == Labelled.SOURCE and self.method == Method.SOURCE:
            raise ConfigError(
                "--labelled source: --method source learns these labels already; leave --labelled out, or say "
                "--labelled target"
            )


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
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise ConfigError(
            f"environment: WORLD_SIZE is {text!r:.80}; torchrun sets it to a number: unset it, or use torchrun"
        )
    return int(text)


def check_seed(seed: int) -> None:
    """Refuse a seed that one of the generators cannot take: NumPy's none below 0, torch's no larger ones."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: must be from 0 to {2**63 - 1}")


def _at_least(value: int, least: int, option: str) -> None:
    if value < least:
        raise ConfigError(f"{option} {value}: must be at least {least}")


MOST_JITTER = 8
"""What is enlarged or shrunk more is not recognised."""
MOST_IMAGES = 1 << 16
"""In a batch: more than any memory holds."""


def _at_most(value: int, most: int, option: str) -> None:
    if value > most:
        raise ConfigError(f"{option} {value}: must be at most {most:,}")
