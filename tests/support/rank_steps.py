"""Twenty steps of a tiny network, alone or as one of several ranks: each takes its part of the same batches.

usage: rank_steps.py OUT [LOSS [METHOD]]          (with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: one of several)
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import nn

from endauda_cli.distributed import mean_over_ranks, process_group, rank, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.losses import TRUE, Mining
from endauda_cli.models import build_student
from endauda_cli.training.loop import _distribute, optimise
from endauda_cli.training.methods import MAIN, TARGET
from endauda_cli.training.methods.dacs import Dacs
from endauda_cli.training.run import make_state
from endauda_cli.types import Loss, Method
from tests.support.training_runs import CONFIG

CPU = torch.device("cpu")
IMAGES, HEIGHT, WIDTH, CLASSES, STEPS = 8, 24, 48, 3, 20
UNLABELLED = (0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.9, 1.0)
"""Shares of the images' pixels: uneven over two ranks, and over four."""


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and labels of all ranks."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=generator)
    # Classes are rare in some images and absent in others.
    labels = torch.randint(0, CLASSES + 4, (IMAGES, HEIGHT, WIDTH), generator=generator)
    labels = torch.where(labels < CLASSES, labels, torch.arange(IMAGES)[:, None, None] % 2).to(torch.uint8)
    share = torch.tensor(UNLABELLED)[:, None, None]
    labels[torch.rand(labels.shape, generator=generator) < share] = IGNORE
    return x, labels


def certainties(step: int, loss: str) -> tuple[torch.Tensor, ...]:
    """Percent of all ranks, as the loss wants them; every fourth image has true labels."""
    if loss == Loss.HARD:
        return ()
    shape = (CLASSES, HEIGHT // 4, WIDTH // 4) if loss == Loss.SOFT else (HEIGHT, WIDTH)
    percent = torch.randint(0, 101, (IMAGES, *shape), generator=torch.Generator().manual_seed(step))
    percent[::4] = TRUE
    return (percent.to(torch.uint8),)


def main(out: str, loss: str = Loss.HARD, method: str = Method.DISTILL) -> None:
    config = dataclasses.replace(
        CONFIG,
        batch_size=IMAGES,
        steps=100,
        learning_rate=1e-4,
        balance_area=200,
        ramp=0,
        loss=loss,
        method=method,
        hard_percentile=0 if method == Method.DACS else CONFIG.hard_percentile,
        strong=(),
    )
    with process_group(CPU):
        torch.manual_seed(0)
        state = make_state(build_student("deeplabv3plus", "tiny", CLASSES), config, CLASSES, CPU)
        model = _distribute(state, config, CPU)
        copies = [state.method.teacher] if isinstance(state.method, Dacs) else []
        for module in (module for network in (state.student, *copies) for module in network.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
        mine = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
        told = []
        for step in range(STEPS):
            x, labels = batch(step)
            given = tuple(one[mine] for one in (x, labels, *certainties(step, loss)))
            streams = {MAIN: given}
            if method == Method.DACS:
                unknown, nothing = batch(step + STEPS)
                streams[TARGET] = (unknown[mine], torch.full_like(nothing[mine], IGNORE))
            found = mean_over_ranks(optimise(state, model, streams, config))
            mining = state.loss.mining or Mining(torch.zeros(()), torch.zeros(()), 0)  # soft has none
            told.append([float(found), float(mining.threshold), float(mining.kept), float(mining.pixels)])
        if rank() == 0:
            weights = {**state.student.state_dict(), "class_weight": state.loss.class_weight}
            torch.save({"told": torch.tensor(told, dtype=torch.float64), "weights": weights}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
