"""What a run is told, and what it holds while it lasts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.losses import DistillationLoss
from endauda_cli.models.recomputing import recompute_encoder
from endauda_cli.students import Network, deeplab
from endauda_cli.training.averaging import Average
from endauda_cli.training.methods import METHODS
from endauda_cli.training.optimizers import make_optimizer
from endauda_cli.transforms import STUDENT, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.domains import Task
    from endauda_cli.models import Student
    from endauda_cli.models.grouping import Layers
    from endauda_cli.score_results import EvalResult
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
        network: what is trained; ``None`` is the recipe's DeepLab.
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
    network: Network | None = None

    def trained(self, config: TrainConfig) -> Network:
        """What is trained, by the recipe where nothing else is said."""
        return self.network or deeplab(config.arch, config.backbone)


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
    preprocessing: Preprocessing = STUDENT
    """What makes crops the network's input."""
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


def make_state(
    student: Student,
    config: TrainConfig,
    num_classes: int,
    device: torch.device,
    preprocessing: Preprocessing = STUDENT,
    layers: Layers | None = None,
) -> TrainState:
    """The state before the first step; the student is moved to the device.

    Args:
        student: the network.
        config: the recipe.
        num_classes: C.
        device: where it is trained.
        preprocessing: what makes crops its input.
        layers: of its encoder, for ``layer_decay``.
    """
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = make_loss(config, num_classes).to(device)
    method = METHODS[config.method](config, criterion, student)
    method.preprocessing = preprocessing
    average = Average(student, config.ema) if config.ema else None
    if config.recompute:
        recompute_encoder(student)  # not those of copies
    optimizer = make_optimizer(student, config, layers)
    return TrainState(student, optimizer, method, average=average, preprocessing=preprocessing)


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
