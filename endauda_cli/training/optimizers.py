"""What moves the weights: optimisers by name, over the groups of parameters that a recipe makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.models import parameter_groups
from endauda_cli.models.grouping import groups_of
from endauda_cli.training.sgd import SGD
from endauda_cli.types import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from endauda_cli.config import TrainConfig
    from endauda_cli.models import Student
    from endauda_cli.models.grouping import Layers


def make_optimizer(
    student: Student, config: TrainConfig, layers: Layers | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser; its groups have ``lr_scale``, the multiple of the base rate that they learn at.

    Args:
        student: whose parameters that need a gradient are each in one group.
        config: the recipe.
        layers: of the encoder, for ``layer_decay``.
    """
    return OPTIMIZERS[config.optimizer](student, config, layers)


def _sgd(student: Student, config: TrainConfig, layers: Layers | None) -> torch.optim.Optimizer:
    """SGD with the published groups: backbone at the base rate, the rest at a multiple of that."""
    base, rest = parameter_groups(student)
    groups: list[dict[str, Any]] = [
        {"params": base, "lr_scale": 1.0},
        {"params": rest, "lr_scale": config.head_rate},
    ]
    if config.layer_decay != 1 or not base or not rest:
        found = groups_of(student, config.head_rate, layer_decay=config.layer_decay, layers=layers)
        groups = [{"params": group.parameters, "lr_scale": group.rate} for group in found]
    return SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
    )


def _adamw(student: Student, config: TrainConfig, layers: Layers | None) -> torch.optim.Optimizer:
    """AdamW whose weight decay is of matrices and kernels, not of norms, biases and embeddings."""
    found = groups_of(
        student, config.head_rate, matrices_alone=True, layer_decay=config.layer_decay, layers=layers
    )
    groups = [
        {
            "params": group.parameters,
            "lr_scale": group.rate,
            "weight_decay": config.weight_decay if group.decays else 0.0,
        }
        for group in found
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


OPTIMIZERS: dict[str, Callable[[Student, TrainConfig, Layers | None], torch.optim.Optimizer]] = {
    Optimizer.SGD: _sgd,
    Optimizer.ADAMW: _adamw,
}
