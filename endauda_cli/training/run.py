"""What a run is told, and what it holds while it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.losses import DistillationLoss
from endauda_cli.models import parameter_groups
from endauda_cli.models.recomputing import recompute_blocks
from endauda_cli.training.averaging import Average
from endauda_cli.training.methods import METHODS
from endauda_cli.training.sgd import SGD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.domains import Task
    from endauda_cli.models import Student
    from endauda_cli.results import EvalResult
    from endauda_cli.training.data import Stream
    from endauda_cli.training.methods import Method


@dataclass(frozen=True)
class Run:
    """Where a run learns from, and where it goes.

    Attributes:
        task: source and target.
        streams: name -> images to draw from, as the method finds them; one is called ``MAIN``.
        out: folder of the run.
        cache: folder of decoded images.
        device: where to train.
        init: weights to start from; ``None`` is random.
        resume: insist on going on; without it, an unfinished run with the same options goes on too.
        validate: scores the network on labelled target images; ``None`` without them.
        truth: digest of the labels that ``best`` is chosen by; empty where nobody knows.
        agree: scores the network on fused labels of images held out; ``None`` without them.
        options: as typed, by their names on the command line, for the run's ``config.toml``; empty writes none.
        profile: steps to write a trace of; 0 is none.
    """

    task: Task
    streams: Mapping[str, Stream]
    out: Path
    cache: Path
    device: torch.device
    init: Path | None = None
    resume: bool = False
    validate: Callable[[nn.Module], EvalResult] | None = None
    truth: str = ""
    agree: Callable[[nn.Module], EvalResult] | None = None
    options: Mapping[str, str | float | bool | list[str]] = field(default_factory=dict)
    profile: int = 0


@dataclass
class TrainState:
    """Everything that a checkpoint holds."""

    student: Student
    optimizer: torch.optim.Optimizer
    method: Method
    step: int = 0
    best_miou: float | None = None
    best_step: int | None = None
    last_miou: float | None = None
    best_agreement: float | None = None
    last_agreement: float | None = None
    idle: int = 0
    """Validations since that of the best, or since the first if there is none."""
    initialised_from: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    """Of what and by what the run was made, see ``parentage``."""
    average: Average | None = None
    ramp: int = 0
    """Steps until mining and class weights have their strength."""
    half: bool = False
    """Whether the network computes in bfloat16."""
    empty: int = 0
    """Steps whose batch had no label, which learnt nothing."""

    @property
    def result(self) -> Student:
        """What is validated and saved as the student: the averaged one, if there is one."""
        return self.student if self.average is None else self.average.student

    @property
    def loss(self) -> DistillationLoss:
        """With its class weights."""
        return self.method.criterion


def make_state(student: Student, config: TrainConfig, num_classes: int, device: torch.device) -> TrainState:
    """The state before the first step; the student is moved to the device."""
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = make_loss(config, num_classes).to(device)
    method = METHODS[config.method](config, criterion, student)
    average = Average(student, config.ema) if config.ema else None
    if config.recompute:
        recompute_blocks(student.backbone)  # not those of copies
    return TrainState(student, make_optimizer(student, config), method, average=average)


def make_optimizer(student: Student, config: TrainConfig) -> SGD:
    """Nesterov SGD with the published groups: backbone at the base rate, the rest at a multiple of that."""
    base, tenfold = parameter_groups(student)
    groups = [{"params": base, "lr_scale": 1.0}, {"params": tenfold, "lr_scale": config.head_rate}]
    return SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


def make_loss(config: TrainConfig, num_classes: int) -> DistillationLoss:
    """The loss of a recipe."""
    return DistillationLoss(
        num_classes,
        class_balance=config.class_balance,
        often_balance=config.often_balance,
        hard_percentile=config.hard_percentile,
        max_value=config.max_value,
        balance_area=config.balance_area,
    )
