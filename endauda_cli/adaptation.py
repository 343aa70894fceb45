"""What methods that adapt from source to target are told. Where each value is from: docs/methods.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from endauda_cli.errors import ConfigError
from endauda_cli.options import option, parse_size
from endauda_cli.types import Method, Regulariser

_ADAPTED = "Adaptation"
ROUNDS = (Method.CBST, Method.CRST)
"""Methods that make pseudo labels anew in each round."""
MOST_TRIES = 1000


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class AdaptationOptions:
    """Options of methods that adapt from source to target.

    Attributes:
        domains: labelled sources that are learnt together, as many images of each in every batch; empty is one source.
        source_size: (width, height) of the source's images; ``None`` is ``size``.
        crop_tries: random crops of an image with labels that are drawn at most, until one shows many classes.
        freeze_norms: batch norms keep their statistics.
        sure, teacher_decay, mixed_weight, strong: see ``training.methods.dacs``.
        rounds, portion, portion_step, portion_most, label_scale, source_portion, source_portion_step,
        source_portion_most, mine_below, mine_chance: see ``training.methods.cbst``.
        regulariser, regulariser_weight: see ``training.methods.crst``.
        auxiliary_weight, memory_weight, memory_from, deceive_auxiliary, deceive_main, judge_rate, head_dropout: see
        ``training.methods.mrnet``.
        as_published: repeat what was wrong in the published programs and changed their figures.
    """

    domains: tuple[str, ...] = option(
        (), "--domains", panel="What is learnt", metavar="A B", complete="sources", typed=list[str], parse=tuple,
        unset=True, help="Labelled sources to learn together, equal parts of every batch: gta5 synthia, or .toml files "
        "(source). [default: that of --source]",
    )  # fmt: skip
    source_size: tuple[int, int] | None = option(
        None, "--source-size", panel=_ADAPTED, metavar="WxH", complete="sizes", parse=parse_size("--source-size"),
        help="The source's images are resized to this. [default: as --size; 1280x720 with --method dacs, mrnet and "
        "1914x1052 with cbst, crst, smaller or larger as --size is than theirs]",
    )  # fmt: skip
    crop_tries: int = option(
        1, "--crop-tries", panel=_ADAPTED,
        help="Crops of an image with labels that are drawn at most, until one shows more than ten kinds of label, none "
        "being one. [default: 1; 10 with --method mrnet, rectify]",
    )  # fmt: skip
    freeze_norms: bool = option(
        False, "--freeze-norms/--no-freeze-norms", panel=_ADAPTED,
        help="Batch norms keep the statistics that they have. [default: no; yes with --method cbst, crst]",
    )  # fmt: skip
    strong: tuple[str, ...] = option(
        ("jitter", "blur"), "--strong", panel=_ADAPTED, metavar="A B", complete="augmentations", typed=list[str],
        parse=tuple, help="Photometric changes of mixed images (dacs).",
    )  # fmt: skip
    sure: float = option(
        0.968, "--sure", panel=_ADAPTED,
        help="Probability from which a pixel of the averaged teacher counts as sure (dacs).",
    )  # fmt: skip
    teacher_decay: float = option(
        0.99, "--teacher-decay", panel=_ADAPTED, help="Of the averaged teacher's weights (dacs)."
    )
    mixed_weight: float = option(
        1.0,
        "--mixed-weight",
        panel=_ADAPTED,
        help="Of the loss on mixed images, beside that on the source (dacs).",
    )
    rounds: int = option(
        3, "--rounds", panel=_ADAPTED, help="Times that pseudo labels are made, each for an equal part of --steps "
        "(cbst, crst).",
    )  # fmt: skip
    portion: float = option(
        0.2,
        "--portion",
        panel=_ADAPTED,
        help="Share of each class's pixels with a pseudo label in the first round.",
    )
    portion_step: float = option(0.05, "--portion-step", panel=_ADAPTED, help="What each round adds to it.")
    portion_most: float = option(0.5, "--portion-most", panel=_ADAPTED, help="What it is at most.")
    label_scale: float = option(
        0.9,
        "--label-scale",
        panel=_ADAPTED,
        help="Target images are scaled by this where pseudo labels are made.",
    )
    source_portion: float = option(
        0.03, "--source-portion", panel=_ADAPTED,
        help="Share of the source's images in the first round, drawn anew in each.",
    )  # fmt: skip
    source_portion_step: float = option(
        0.0025, "--source-portion-step", panel=_ADAPTED, help="What each round adds to it."
    )
    source_portion_most: float = option(
        0.06, "--source-portion-most", panel=_ADAPTED, help="What it is at most."
    )
    mine_below: float = option(
        0.001, "--mine-below", panel=_ADAPTED, help="Classes of a smaller share of the predictions are mined."
    )
    mine_chance: float = option(
        0.8, "--mine-chance", panel=_ADAPTED,
        help="Chance that a crop of an image with such a class lies around it.",
    )  # fmt: skip
    regulariser: str = option(
        Regulariser.MRKLD, "--regulariser", panel=_ADAPTED, typed=Regulariser, parse=str,
        help="What holds the network's confidence back (crst).",
    )  # fmt: skip
    regulariser_weight: float | None = option(
        None, "--regulariser-weight", panel=_ADAPTED, help="Of that (crst). [default: 0.1; 0.25 with lrent]"
    )
    auxiliary_weight: float = option(
        0.5, "--auxiliary-weight", panel=_ADAPTED, help="Of the auxiliary head's loss (mrnet, rectify)."
    )
    memory_weight: float = option(
        0.1, "--memory-weight", panel=_ADAPTED, help="Of memory regularisation (mrnet)."
    )
    memory_from: int = option(
        15_000, "--memory-from", panel=_ADAPTED, help="Step at which memory regularisation sets in (mrnet)."
    )
    deceive_auxiliary: float = option(
        0.0002, "--deceive-auxiliary", panel=_ADAPTED,
        help="Weight of deceiving the auxiliary head's discriminator (mrnet).",
    )  # fmt: skip
    deceive_main: float = option(
        0.001,
        "--deceive-main",
        panel=_ADAPTED,
        help="Weight of deceiving the main head's discriminator (mrnet).",
    )
    judge_rate: float = option(
        1e-4, "--judge-rate", panel=_ADAPTED, help="Learning rate of the discriminators (mrnet)."
    )
    head_dropout: float = option(
        0.1, "--head-dropout", panel=_ADAPTED,
        help="Share of channels that the heads leave out (mrnet, rectify). [default: 0.1; 0.2 with --method rectify]",
    )  # fmt: skip
    as_published: bool = option(
        False, "--as-published", panel=_ADAPTED,
        help="Repeat mistakes of published programs that changed their figures: crst squares its regulariser's weight, "
        "but lrent's.",
    )  # fmt: skip


def check_adaptation(config: Any) -> None:
    """Refuse what a ``TrainConfig`` cannot be; these options are some of its own.

    Raises:
        ConfigError: names the option.
    """
    adapts = config.method not in (Method.DISTILL, Method.SOURCE, Method.RECTIFY)
    if adapts and config.labelled is not None:
        raise ConfigError(
            f"--labelled {config.labelled}: --method {config.method} learns from the source's labels and no others; "
            "leave one of them out"
        )
    if config.domains:
        _check_domains(config)
    if config.source_size is not None:
        width, height = config.source_size
        if not adapts:
            raise ConfigError("--source-size: of methods that adapt from source to target; say --size")
        if config.crop[0] > width or config.crop[1] > height:
            raise ConfigError(
                f"--crop {config.crop[0]}x{config.crop[1]} is larger than --source-size {width}x{height}"
            )
    if not 1 <= config.crop_tries <= MOST_TRIES:
        raise ConfigError(f"--crop-tries {config.crop_tries}: must be from 1 to {MOST_TRIES}")
    for name in _SHARES:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be from 0 to 1")
    for name in _WEIGHTS:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be 0 or more, and finite")
    if config.regulariser == Regulariser.LRENT and config.regulariser_weight == 0:
        raise ConfigError("--regulariser-weight 0: lrent's must be above 0; without a regulariser it is cbst")
    if not 0.05 <= config.label_scale <= 4:
        raise ConfigError(f"--label-scale {config.label_scale:g}: must be from 0.05 to 4")
    if config.rounds < 1 or (config.method in ROUNDS and config.steps < config.rounds):
        raise ConfigError(f"--rounds {config.rounds}: at least 1, and --steps at most")


def _check_domains(config: Any) -> None:
    told, number = f"--domains {' '.join(config.domains)}", len(config.domains)
    if config.method != Method.SOURCE:
        raise ConfigError(
            f"{told}: several sources are learnt by --method source alone; train on them so first, then --method "
            f"{config.method} with that run as --init"
        )
    if number < 2:
        raise ConfigError(f"{told}: one source alone is named with --source")
    images = config.batch_size - config.true_images
    if images % number:
        others = f" without those of --labelled {config.labelled}" if config.true_images else ""
        raise ConfigError(
            f"{told}: the {images} images of a batch{others} do not divide into {number} equal parts; change "
            "--batch-size"
        )


_SHARES = (
    "sure", "teacher_decay", "portion", "portion_step", "portion_most", "source_portion", "source_portion_step",
    "source_portion_most", "mine_below", "mine_chance", "head_dropout",
)  # fmt: skip
_WEIGHTS = (
    "mixed_weight", "regulariser_weight", "auxiliary_weight", "memory_weight", "memory_from", "deceive_auxiliary",
    "deceive_main", "judge_rate",
)  # fmt: skip


def size_of(config: Any, of_source: bool) -> tuple[int, int]:
    """(width, height) that a ``TrainConfig`` resizes images to, those of the source that it adapts from or others."""
    width, height = config.source_size if of_source and config.source_size is not None else config.size
    return width, height


def in_proportion(
    source: tuple[int, int], own: tuple[int, int], size: tuple[int, int], crop: tuple[int, int]
) -> tuple[int, int]:
    """The size of the source's images where the target's are of another size than a method's own.

    Args:
        source, own: (width, height) of source and target that the method has.
        size: of the target.
        crop: no side is smaller than that.
    """
    width, height = (
        max(least, round(side * now / before))
        for side, before, now, least in zip(source, own, size, crop, strict=True)
    )
    return width, height
